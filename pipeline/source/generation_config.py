"""What a checkpoint's `generation_config.json` must not say; it goes with the decoder as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pipeline.errors import RecipeError
from pipeline.source.decoder_start import GENERATION_FILE
from pipeline.source.json_files import read_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pipeline.source.types import Source

TOKENS: Final = ("bos_token_id", "eos_token_id", "decoder_start_token_id")
"""Not `pad_token_id`: many checkpoints have one that no embedding belongs to, and mask it."""

POSITIVE: Final = ("num_beams", "max_length", "max_new_tokens", "repetition_penalty")


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
