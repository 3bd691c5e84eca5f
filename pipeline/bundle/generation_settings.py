"""How a checkpoint says that its texts begin, end and are chosen; held against its own sizes.

`generation_config.json` says it; `config.json` where that says nothing, as `transformers` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pipeline.bundle.chat import chat_template
from pipeline.errors import RecipeError
from pipeline.source.json_files import read_json
from pipeline.source.rope import short_positions

if TYPE_CHECKING:
    from pipeline.bundle.graphs import GraphTarget

GENERATION_FILE: Final = "generation_config.json"
_POSITIONS: Final = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
_OF_TARGETS: Final = ("max_target_positions", "max_position_embeddings", "n_positions")
"""Of the decoder behind an encoder."""
_NO_END: Final = 2**31 - 1
"""Of positions that are relative, as those of T5."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSettings:
    """What a text generator has to know.

    Attributes:
        vocabulary: Width of the logits.
        positions: Tokens of a text at most, prompt included; of an encoder's decoder, of what it writes.
        starts: First token of what a decoder behind an encoder writes; None for other models.
        begins: Token that stands before every text; None when there is none.
        stops: Tokens that end a text; empty when none does.
        pad: What fills up shorter texts.
        is_sampled: Tokens are drawn; otherwise the likeliest is taken.
        beams: Of beam search; 1 for none.
        has_chat: There is a template for conversations.
    """

    vocabulary: int
    positions: int
    starts: int | None
    begins: int | None
    stops: tuple[int, ...]
    pad: int
    is_sampled: bool
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    beams: int
    has_chat: bool


def read_generation_settings(target: GraphTarget) -> GenerationSettings:
    """Read them, and refuse those that contradict the model or one another.

    Raises:
        RecipeError: naming what contradicts.
        ArtifactError: a file is no JSON.
    """
    said: dict[str, Any] = {}
    if (target.folder / GENERATION_FILE).is_file():
        said = read_json(target.folder / GENERATION_FILE, f"{target.name}/{GENERATION_FILE}")
    vocabulary = _vocabulary(target)
    tokens = {
        key: read_tokens(said.get(key, target.config.get(key)), key, vocabulary)
        for key in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    }
    keys: tuple[str, ...] = _OF_TARGETS if target.parts else _POSITIONS
    if "relative_attention_num_buckets" in target.config:
        keys = ()
    positions = [target.config[key] for key in keys if _is_count(target.config.get(key))]
    if target.parts:
        positions = positions[:1] or [_NO_END]
    if not positions:
        raise RecipeError(
            f"config.json of `{target.name}` does not say how many positions the model has "
            f"({', '.join(_POSITIONS)})"
        )
    longest = said.get("max_length")
    # 20 is what transformers wrote there for years without anybody's wish.
    if _is_count(longest) and longest != 20 and longest > min(positions):
        raise contradiction(
            f"`max_length` is {longest}, and the model has {min(positions)} positions"
        )
    stops = tokens["eos_token_id"]
    pad = tokens["pad_token_id"] or stops
    if not pad:
        raise RecipeError(
            f"neither {GENERATION_FILE} nor config.json says `pad_token_id` or `eos_token_id`",
            hint="add one of them to the checkpoint, then build again",
        )
    begins = tokens["bos_token_id"]
    starts = (tokens["decoder_start_token_id"] or begins) if target.parts else ()
    if target.parts and not starts:
        raise RecipeError(
            f"neither {GENERATION_FILE} nor config.json says `decoder_start_token_id`, which a decoder's text "
            "begins with",
            hint="add it to the checkpoint, then build again",
        )
    return GenerationSettings(
        vocabulary=vocabulary,
        positions=min([*positions, short_positions(target.config) or _NO_END]),
        starts=starts[0] if starts else None,
        begins=begins[0] if begins else None,
        stops=stops,
        pad=pad[0],
        has_chat=bool(chat_template(target.folder)),
        **_choosing(said),
    )


def _choosing(said: dict[str, Any]) -> dict[str, Any]:
    """How tokens are chosen; defaults are those of `transformers`.

    Raises:
        RecipeError: a number makes no sense.
    """
    found: dict[str, Any] = {
        "is_sampled": bool(said.get("do_sample", False)),
        "temperature": read_number(said, "temperature", 1.0),
        "top_k": int(read_number(said, "top_k", 50)),
        "top_p": read_number(said, "top_p", 1.0),
        "repetition_penalty": read_number(said, "repetition_penalty", 1.0),
        "beams": int(read_number(said, "num_beams", 1)),
    }
    wrong = {
        "temperature": found["is_sampled"] and found["temperature"] <= 0,
        "top_k": found["top_k"] < 0,
        "top_p": not 0 < found["top_p"] <= 1,
        "repetition_penalty": found["repetition_penalty"] <= 0,
        "num_beams": found["beams"] < 1,
    }
    for key, is_wrong in wrong.items():
        if is_wrong:
            raise contradiction(f"`{key}` cannot be {said.get(key)}")
    if found["is_sampled"] and found["beams"] > 1:
        raise contradiction(
            f"`do_sample` and `num_beams: {found['beams']}` do not go together here"
        )
    return found


def read_number(said: dict[str, Any], key: str, default: float) -> float:
    """The number under a key, or the default where there is none.

    Raises:
        RecipeError: it is no number.
    """
    value = said.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise contradiction(f"`{key}` is no number: {value!r}")
    return value


def read_tokens(value: object, key: str, vocabulary: int) -> tuple[int, ...]:
    """One token or several, all of which the model knows; none for None.

    Raises:
        RecipeError: one is no token of the model.
    """
    values = value if isinstance(value, list) else [] if value is None else [value]
    for token in values:
        if isinstance(token, bool) or not isinstance(token, int):
            raise contradiction(f"`{key}` is no token: {token!r}")
        if not 0 <= token < vocabulary:
            raise contradiction(
                f"`{key}` is {token}, and the model's tokens are 0 to {vocabulary - 1}"
            )
    return tuple(values)


def _vocabulary(target: GraphTarget) -> int:
    for tensor in target.graph.outputs:
        if tensor.name == "logits" and isinstance(tensor.shape[-1], int):
            return tensor.shape[-1]
    raise RecipeError(f"target `{target.name}` has no output `logits` of a fixed width")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def contradiction(message: str) -> RecipeError:
    """The error for a `generation_config.json` that cannot be followed."""
    return RecipeError(
        f"the checkpoint's {GENERATION_FILE} contradicts: {message}",
        hint=f"correct {GENERATION_FILE} of the checkpoint, then build again",
    )
