"""A loaded recipe -> its plan: the checkpoint and the data are found, and their digests taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.data_source import resolve_data
from pipeline.planning import build_plan
from pipeline.source import resolve_source

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.digest_memory import DigestMemory
    from pipeline.planning import Plan
    from pipeline.recipe import LoadedRecipe


def resolve_plan(
    loaded: LoadedRecipe, memory: DigestMemory, *, note: Callable[[str], None]
) -> Plan:
    """Find what a recipe names, and lay out its plan.

    Args:
        loaded: The recipe with its positions.
        memory: Saves hashing files that have not changed; the caller saves it.
        note: Is told what was decided and should be known, such as which cached commit is used.

    Raises:
        RecipeError: what the recipe asks for is impossible.
        EnvironmentMissing: a package is not installed, or a hub cannot be reached.
        ArtifactError: the checkpoint is damaged.
    """
    source = resolve_source(
        loaded.recipe.model.source,
        recipe_directory=loaded.directory("model", "source"),
        memory=memory,
        revision=loaded.recipe.model.revision,
        where=loaded.where("model", "source"),
        where_revision=loaded.where("model", "revision"),
        note=note,
    )
    data = {
        use: resolve_data(
            spec,
            directory=loaded.directory("data", use, "source"),
            memory=memory,
            where=loaded.where("data", use, "source"),
        )
        for use, spec in loaded.recipe.data.specs().items()
    }
    return build_plan(loaded.recipe, source, data, loaded.where)
