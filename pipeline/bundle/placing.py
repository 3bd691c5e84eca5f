"""A directory that appears whole or not at all, and takes the place of nothing that is not its like."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from typing import TYPE_CHECKING

from pipeline.errors import ArtifactError, RecipeError
from pipeline.publish import require_place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@contextlib.contextmanager
def placed_whole(
    directory: Path, *, replace: bool, is_ours: Callable[[Path], bool], what: str
) -> Iterator[Path]:
    """A private directory beside another one, which it becomes in the end unless something fails.

    Args:
        directory: The place. Nothing may be there but an empty directory.
        replace: A directory of which everything is ours gives way too.
        is_ours: Whether something in that directory is of the kind that is written here.
        what: What such a thing is, in words: `model of Triton`.

    Raises:
        RecipeError: something is in the way.
        ArtifactError: it cannot be written.
    """
    _require_free(directory, replace=replace, is_ours=is_ours, what=what)
    draft = directory.absolute().parent / f".{directory.name}-{uuid.uuid4().hex}"
    try:
        draft.mkdir(parents=True)
        yield draft
        _put(draft, directory)
    except OSError as error:
        raise ArtifactError(
            f"it cannot be written: {error.strerror or error}", where=str(directory)
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _require_free(
    directory: Path, *, replace: bool, is_ours: Callable[[Path], bool], what: str
) -> None:
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise RecipeError(f"`{directory}` is there already, and is no directory")
    require_place(directory.parent, "DIRECTORY")
    if not directory.is_dir() or not any(directory.iterdir()):
        return
    if not replace:
        raise RecipeError(
            f"`{directory}` is not empty", hint="name another one, or replace it with --force"
        )
    strange = [child.name for child in directory.iterdir() if not is_ours(child)]
    if strange:
        raise RecipeError(
            f"`{directory}` is not replaced: `{strange[0]}` in it is no {what}",
            hint="name another directory",
        )


def _put(draft: Path, directory: Path) -> None:
    old = None
    if directory.is_dir():
        old = draft.with_name(f"{draft.name}-old")
        directory.rename(old)
    try:
        draft.rename(directory)
    except OSError:
        if old is not None:
            old.rename(directory)
        raise
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
