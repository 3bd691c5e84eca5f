"""With which token the decoder of a checkpoint begins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pipeline.errors import RecipeError
from pipeline.source.json_files import read_json

if TYPE_CHECKING:
    from pipeline.source.types import Source

KEY: Final = "decoder_start_token_id"
GENERATION_FILE: Final = "generation_config.json"


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
