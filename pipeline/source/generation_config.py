"""What a checkpoint's `generation_config.json` must not say; it goes with the decoder as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pipeline.errors import RecipeError
from pipeline.source.decoder_start import GENERATION_FILE
from pipeline.source.json_files import read_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pipeline.source.types import Source

TOKENS: Final = (
    *("bos_token_id", "eos_token_id", "decoder_start_token_id"),
    *("forced_bos_token_id", "forced_eos_token_id"),
)
"""Not `pad_token_id`: many checkpoints have one that no embedding belongs to, and mask it."""

POSITIVE: Final = ("num_beams", "max_length", "max_new_tokens", "repetition_penalty")
COUNTS: Final = ("no_repeat_ngram_size", "min_length", "min_new_tokens")
LISTS: Final = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")

USUAL_LENGTH: Final = 20
"""What transformers wrote as `max_length` for years without anybody's wish."""

_POSITIONS: Final = ("max_target_positions", "max_position_embeddings", "n_positions", "n_ctx")
"""In `config.json`, how many tokens a decoder can place; the first that is there."""


def check_generation_config(source: Source) -> None:
    """Refuse one that no text can be written with, where there is one.

    Raises:
        RecipeError: naming every key that makes no sense, or contradicts `config.json`.
        ArtifactError: it is no JSON object.
    """
    if GENERATION_FILE not in source.files:
        return
    said = read_json(source.files[GENERATION_FILE].path, GENERATION_FILE)
    problems = [*_wrong_tokens(said, source.config), *_wrong_numbers(said)]
    problems += _too_long(said, source.config)
    if problems:
        raise RecipeError(
            f"the checkpoint's {GENERATION_FILE} contradicts its model: {'; '.join(problems)}",
            where=str(source.root),
            hint=f"correct {GENERATION_FILE} in a copy of the checkpoint, or leave it out there",
        )


def _wrong_tokens(said: Mapping[str, object], config: Mapping[str, object]) -> Iterator[str]:
    widths = [config.get(name) for name in ("vocab_size", "decoder_vocab_size")]
    known = max((width for width in widths if isinstance(width, int)), default=None)
    for key in TOKENS:
        value = said.get(key)
        for token in value if isinstance(value, list) else [] if value is None else [value]:
            if isinstance(token, bool) or not isinstance(token, int):
                yield f"`{key}` is no token: {token!r}"
            elif token < 0 or (known is not None and token >= known):
                tokens = "" if known is None else f", and the model's tokens are 0 to {known - 1}"
                yield f"`{key}` is {token}{tokens}"


def _wrong_numbers(said: Mapping[str, object]) -> Iterator[str]:
    given = {key: said.get(key) for key in POSITIVE}
    if said.get("do_sample") is True:
        given["temperature"] = said.get("temperature")
    for key, value in given.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            yield f"`{key}` is to be more than 0, found {value!r}"
    for key in COUNTS:
        count = said.get(key)
        if count is not None and (type(count) is not int or count < 0):
            yield f"`{key}` is to be 0 or more, found {count!r}"
    for key in LISTS:
        listed = said.get(key)
        if listed is not None and not isinstance(listed, list):
            yield f"`{key}` is to be a list, found {listed!r}"


def _too_long(said: Mapping[str, object], config: Mapping[str, object]) -> Iterator[str]:
    """A length that the model has no positions for, or that no text can reach."""
    longest, least = stated_length(said), said.get("min_length")
    new, least_new = said.get("max_new_tokens"), said.get("min_new_tokens")
    positions = next(
        (value for key in _POSITIONS if isinstance(value := config.get(key), int)), None
    )
    # The positions of T5 are relative, whatever it is called with.
    is_bound = positions is not None and "relative_attention_num_buckets" not in config
    if is_bound and positions is not None and longest is not None and longest > positions:
        yield f"`max_length` is {longest}, and the model has {positions} positions"
    if is_bound and positions is not None and type(new) is int and new > positions:
        yield f"`max_new_tokens` is {new}, and the model has {positions} positions"
    if longest is not None and type(least) is int and least > longest:
        yield f"`min_length` is {least}, and `max_length` {longest}"
    if type(new) is int and type(least_new) is int and least_new > new:
        yield f"`min_new_tokens` is {least_new}, and `max_new_tokens` {new}"


def stated_length(said: Mapping[str, object]) -> int | None:
    """`max_length`, prompt included, where somebody chose it."""
    found = said.get("max_length")
    return found if type(found) is int and found != USUAL_LENGTH else None


def read_stated_length(source: Source) -> tuple[str, int] | None:
    """Which key allows how many tokens, prompt included; None where nobody says so.

    `max_new_tokens` is heeded before `max_length`, as by transformers, with a prompt of one token.

    Raises:
        ArtifactError: it is no JSON object.
    """
    if GENERATION_FILE not in source.files:
        return None
    said = read_json(source.files[GENERATION_FILE].path, GENERATION_FILE)
    new = said.get("max_new_tokens")
    if type(new) is int:
        return "max_new_tokens", new + 1
    longest = stated_length(said)
    return None if longest is None else ("max_length", longest)
