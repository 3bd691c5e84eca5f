"""Where a recipe's keys are written, as tools for repositories want it: relative, never absolute."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.report.places import Place

if TYPE_CHECKING:
    from pipeline.recipe.load import LoadedRecipe
    from pipeline.report.places import Places


def recipe_places(loaded: LoadedRecipe) -> Places:
    """Key path -> its place; what comes from a file that is extended has its place there."""

    def place(key_path: tuple[str | int, ...]) -> Place:
        position = loaded.document.position(key_path)
        return Place(
            file=name_in_repository(Path(position.file or loaded.path)),
            line=position.line,
            column=position.column,
        )

    return place


def name_in_repository(path: Path) -> str:
    """A file's name from the root of its repository, or from the current directory without one.

    A file that lies in neither has its bare name: where it stands on this machine is nobody's
    business.
    """
    try:
        absolute = path.resolve()
        for root in absolute.parents:
            if (root / ".git").exists():
                return absolute.relative_to(root).as_posix()
        return absolute.relative_to(Path.cwd()).as_posix()
    except (OSError, ValueError):
        return path.name
