"""With which token the decoder of a checkpoint begins, and whether that can be.

A wrong one is seen by no comparison: torch and every graph made of it write the same wrong text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pipeline.errors import RecipeError
from pipeline.source.json_files import read_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pipeline.source.types import Source

KEY: Final = "decoder_start_token_id"
GENERATION_FILE: Final = "generation_config.json"
TOKENIZER_FILE: Final = "tokenizer.json"
TRANSCRIPT: Final = "<|startoftranscript|>"
"""With what every Whisper begins, in its tokenizer's words."""

CONVENTIONS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("blenderbot", "blenderbot-small"), "bos_token_id"),
    **dict.fromkeys(
        ("bart", "bigbird_pegasus", "fsmt", "led", "m2m_100", "mvp", "nllb-moe"), "eos_token_id"
    ),
    **dict.fromkeys(
        ("longt5", "marian", "mt5", "pegasus", "pegasus_x", "switch_transformers", "t5", "umt5"),
        "pad_token_id",
    ),
}
"""Model type -> the token that its published checkpoints begin with. Not mBART: it is a language there.

Source: defaults of the configurations and conversion scripts of transformers 5.23.
"""


def decoder_start(source: Source) -> int:
    """The token before the first one that is written; transformers asks both files for it.

    Raises:
        RecipeError: when neither file says it, or they contradict each other.
        ArtifactError: when `generation_config.json` is no JSON.
    """
    found = {"config.json": source.config.get(KEY)}
    if GENERATION_FILE in source.files:
        said = read_json(source.files[GENERATION_FILE].path, GENERATION_FILE)
        found[GENERATION_FILE] = said.get(KEY)
    said_by = {name: value for name, value in found.items() if isinstance(value, int)}
    if not said_by:
        raise RecipeError(
            "the checkpoint does not say with which token its decoder begins",
            hint=f"write `{KEY}` into its config.json",
        )
    if len(set(said_by.values())) > 1:
        first, second = (f"{name} says {value}" for name, value in said_by.items())
        raise RecipeError(
            f"the checkpoint contradicts itself: of `{KEY}` {first}, {second}",
            hint="transformers writes texts with that of generation_config.json, and is taught with "
            "that of config.json; make them equal",
        )
    return next(iter(said_by.values()))


def check_decoder_start(source: Source) -> None:
    """Refuse a first token that cannot be one.

    Raises:
        RecipeError: it is no token of the model, a part of plain text, or, of a Whisper, not its
            tokenizer's own; and as `decoder_start`.
        ArtifactError: a file is no JSON.
    """
    start = decoder_start(source)
    widths = [source.config.get(name) for name in ("vocab_size", "decoder_vocab_size")]
    known = max((width for width in widths if isinstance(width, int)), default=None)
    if start < 0 or (known is not None and start >= known):
        tokens = "" if known is None else f", and the model's tokens are 0 to {known - 1}"
        raise RecipeError(
            f"the checkpoint's `{KEY}` is {start}{tokens}", hint="correct it in config.json"
        )
    is_whisper = source.config.get("model_type") == "whisper"
    named = _named_tokens(source)
    if (start in named and not is_whisper) or TOKENIZER_FILE not in source.files:
        return
    added = _added_tokens(read_json(source.files[TOKENIZER_FILE].path, TOKENIZER_FILE))
    transcript = next((token for token, text in added.items() if text == TRANSCRIPT), None)
    if is_whisper and transcript not in {None, start}:
        raise RecipeError(
            f"the checkpoint's `{KEY}` is {start}, and its tokenizer begins a transcript with "
            f"{transcript}, `{TRANSCRIPT}`",
            hint="correct it in config.json and generation_config.json",
        )
    if start not in added and start not in named:
        raise RecipeError(
            f"the checkpoint's `{KEY}` is {start}, which its tokenizer takes for plain text: its decoder "
            "would begin each text in the middle of one",
            hint="correct it in config.json and generation_config.json; where the model was taught so, "
            f"list the token in `added_tokens` of {TOKENIZER_FILE}, as special",
        )


def start_doubts(source: Source) -> Iterator[str]:
    """A sentence when a decoder begins with another token than its kind does; it may be right.

    Raises:
        ArtifactError: `generation_config.json` is no JSON.
    """
    config = source.config
    key = CONVENTIONS.get(str(config.get("model_type")), "")
    usual = config.get(key)
    if config.get("is_encoder_decoder") is not True or not isinstance(usual, int):
        return
    try:
        start = decoder_start(source)
    except RecipeError:  # the plan says it
        return
    if start != usual:
        yield (
            f"the decoder begins with token {start} (`{KEY}`), and {config['model_type']} models begin "
            f"with their `{key}`, {usual}: unless it was taught so, its texts are wrong in torch too, "
            "which no comparison shows"
        )


def _named_tokens(source: Source) -> frozenset[int]:
    """Tokens that the two files have a name for, such as the end of a text."""
    documents = [source.config]
    if GENERATION_FILE in source.files:
        documents.append(read_json(source.files[GENERATION_FILE].path, GENERATION_FILE))
    values = [
        value
        for document in documents
        for name, value in document.items()
        if name.endswith("_token_id") and name != KEY
    ]
    flat = [each for value in values for each in (value if isinstance(value, list) else [value])]
    return frozenset(each for each in flat if isinstance(each, int))


def _added_tokens(tokenizer: Mapping[str, object]) -> dict[int, str]:
    """Token -> its text, of those in `tokenizer.json` that no text is split into."""
    added = tokenizer.get("added_tokens")
    return {
        token["id"]: str(token.get("content"))
        for token in (added if isinstance(added, list) else ())
        if isinstance(token, dict) and isinstance(token.get("id"), int)
    }
