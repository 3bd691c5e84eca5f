"""What a request to write gives a model to read: prompts as tokens, sources in a batch, sounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pipeline.bundle.chat import chat_template, render_chat
from pipeline.bundle.graphs import TOKENIZER_FILE
from pipeline.errors import ArtifactError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import tokenizers

    from pipeline.bundle.graphs import GraphTarget
    from pipeline.runtimes.base import Array

_SOURCES: Final = ("max_source_positions", "max_position_embeddings", "n_positions")
"""Of an encoder that reads texts."""


def read_tokenizer(target: GraphTarget) -> tokenizers.Tokenizer:
    """The target's tokenizer, which neither pads nor cuts.

    Raises:
        ArtifactError: its file cannot be read.
    """
    import tokenizers

    try:
        made = tokenizers.Tokenizer.from_buffer((target.folder / TOKENIZER_FILE).read_bytes())
    except ValueError as error:
        raise ArtifactError(
            f"{TOKENIZER_FILE} cannot be read: {error}", where=target.name
        ) from error
    made.no_padding()
    made.no_truncation()
    return made


def encode_prompt(
    tokenizer: tokenizers.Tokenizer, target: GraphTarget, prompt: str, *, is_chat: bool
) -> list[int]:
    """Tokens of a prompt.

    Raises:
        RecipeError: there are none, there is no chat template, it is no text, or it has a token that the
            model lacks.
    """
    text = prompt
    if is_chat:
        if not chat_template(target.folder):
            raise RecipeError(
                f"target `{target.name}` has no chat template, so it cannot be talked to",
                hint="leave --chat out: the model then continues the text as it is",
            )
        text = render_chat(target.folder, [{"role": "user", "content": prompt}])
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RecipeError(
            f"prompt {prompt!r} is no Unicode: character {error.start + 1} is half of a pair, or was no "
            "UTF-8",
            hint="write the prompt in UTF-8",
        ) from error
    # A template brings the special tokens along, as transformers says of its own.
    found: list[int] = tokenizer.encode(text, add_special_tokens=not is_chat).ids
    if not found:
        raise RecipeError(
            f"prompt {prompt!r} has no token, and the tokenizer puts none before it",
            hint="give a text of one token or more",
        )
    known = target.config.get("vocab_size")
    if isinstance(known, int) and max(found) >= known:
        raise RecipeError(
            f"prompt {prompt!r} has token {max(found)}, and the model's tokens are 0 to {known - 1}",
            hint="the tokenizer has tokens that the model lacks: it is another model's, or they were "
            "added without `resize_token_embeddings`",
        )
    return found


def check_sources(target: GraphTarget, encoded: Sequence[Sequence[int]]) -> None:
    """Refuse texts that an encoder has no positions for.

    Raises:
        RecipeError: one is longer.
    """
    limits = [target.config[key] for key in _SOURCES if isinstance(target.config.get(key), int)]
    longest = max(map(len, encoded))
    # The one named `n_positions` is no limit of T5, whose positions are relative.
    if limits and "relative_attention_num_buckets" not in target.config and longest > limits[0]:
        raise RecipeError(
            f"a text has {longest} tokens, and the encoder has {limits[0]} positions",
            hint="give shorter texts",
        )


def pad_sources(encoded: Sequence[Sequence[int]], pad: int) -> dict[str, Array]:
    """Sources of one batch, padded behind: int64 (texts, longest)."""
    import numpy as np

    shape = (len(encoded), max(map(len, encoded)))
    tokens, mask = np.full(shape, pad, np.int64), np.zeros(shape, np.int64)
    for row, one in enumerate(encoded):
        tokens[row, : len(one)] = one
        mask[row, : len(one)] = 1
    return {"input_ids": tokens, "attention_mask": mask}


def hear_sounds(target: GraphTarget, paths: Sequence[Path]) -> dict[str, Array]:
    """Spectrograms of the sounds, float32 (sounds, mel bins, frames)."""
    import numpy as np

    from pipeline.data.prepare.sounds import FEATURES, load_extractor, read_wav

    extractor = load_extractor(target.folder)
    rate = int(extractor.sampling_rate)
    sounds = [read_wav(path, path.name, rate, str(path.parent)) for path in paths]
    made = [
        extractor(sound, sampling_rate=rate, return_tensors="np")[FEATURES][0] for sound in sounds
    ]
    return {FEATURES: np.stack(made).astype(np.float32)}
