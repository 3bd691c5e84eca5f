"""What a recipe says of its checkpoint -> a `Source`: located, selected, checked, digested."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

from pipeline.errors import RecipeError
from pipeline.file_names import PROCESSOR_FILES, TOKENIZER_FILES
from pipeline.source.decoder_start import start_doubts
from pipeline.source.directory import locate_directory
from pipeline.source.files import SourceFile
from pipeline.source.json_files import read_json
from pipeline.source.package import locate_package
from pipeline.source.selection import INDEX_FILE, is_weights, select_files
from pipeline.source.types import Request, Source
from pipeline.source_checks import check_config, check_is_content, check_safetensors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pipeline.digest_memory import DigestMemory
    from pipeline.source.types import Location, Note

_KIND = re.compile(r"([a-z][a-z0-9+.-]*):(.*)", re.DOTALL)
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


def _locate_hub(spec: str, request: Request) -> Location:
    from pipeline.source.hub import locate_hub  # the others need nothing of it

    return locate_hub(spec, request)


RESOLVERS: Mapping[str, Callable[[str, Request], Location]] = {
    "package": locate_package,
    "hub": _locate_hub,
}
"""Word before the colon -> who finds such a checkpoint."""


def resolve_source(
    spec: str,
    *,
    recipe_directory: Path,
    memory: DigestMemory,
    revision: str | None = None,
    where: str = "",
    where_revision: str = "",
    note: Note = lambda _: None,
) -> Source:
    """Find a checkpoint, check its files and take their digests.

    Weights on a hub are not fetched: their digests are known from its list of files, and that is
    all that a plan needs. `fetch_source` has them fetched.

    Args:
        spec: A directory (relative to the recipe's), `package:NAME/path`, or `hub:ORG/NAME`. One
            `ORG/NAME` without the word means the hub, unless there is a directory of that name:
            then it must be written as `./ORG/NAME` or `hub:ORG/NAME`.
        recipe_directory: Where relative paths start.
        memory: Saves hashing files that have not changed.
        revision: Branch, tag or commit on a hub; `main` when None.
        where: Position of the value in the recipe, for messages.
        where_revision: Position of the revision.
        note: Is told what goes on while files are fetched.

    Raises:
        RecipeError: there is no such checkpoint, or it may not be used (pickled weights only,
            a `config.json` that asks for foreign code).
        EnvironmentMissing: the package is not installed, or the hub cannot be reached, or does not
            let us in.
        ArtifactError: a file is damaged.
    """
    location = _locate(
        Request(
            spec=spec,
            revision=revision or "",
            directory=recipe_directory,
            where=where,
            where_revision=where_revision or where,
            note=note,
        )
    )
    names = select_files(location, where)
    location.bring([n for n in names if not is_weights(n) or location.promised(n) is None])
    config = check_config(
        read_json(location.root / "config.json", "config.json"), where=location.label
    )
    files = {}
    absent = []
    for name in names:
        promise = location.promised(name)
        if promise is None:
            files[name] = _take(location, name, memory)
        else:
            size, sha256 = promise
            absent.append(name)
            files[name] = SourceFile(
                path=location.root / name,
                size_bytes=size,
                sha256=sha256,
                identity=(size, 0, 0, 0),
            )
    tokenizer = tuple(n for n in names if n in {*TOKENIZER_FILES, *PROCESSOR_FILES, "config.json"})
    source = Source(
        spec=spec,
        root=location.root,
        files=files,
        config=config,
        revision=location.revision,
        groups={
            "checkpoint": names,
            "tokenizer": tokenizer,
            "companions": tuple(n for n in names if not is_weights(n) and n != INDEX_FILE),
        },
        notes=location.notes,
        absent=tuple(absent),
        location=location,
    )
    return dataclasses.replace(source, notes=(*source.notes, *start_doubts(source)))


def fetch_source(source: Source, memory: DigestMemory) -> Source:
    """Have all files of a source here, checked. Does nothing when they are.

    Raises:
        PipelineError: as `resolve_source`, for the files that were absent.
    """
    if not source.absent or source.location is None:
        return source
    source.location.bring(source.absent)
    taken = {name: _take(source.location, name, memory) for name in source.absent}
    return dataclasses.replace(source, files={**source.files, **taken}, absent=())


def _take(location: Location, name: str, memory: DigestMemory) -> SourceFile:
    """Digest and identity of a file that is here, links followed, after all checks."""
    path = (location.root / name).resolve()
    file = SourceFile.of(path, memory)
    location.check(name, file.sha256)
    check_is_content(path)
    if is_weights(name):
        check_safetensors(path)
    return file


def _locate(request: Request) -> Location:
    kind = _KIND.fullmatch(request.spec)
    if kind is not None:
        resolver = RESOLVERS.get(kind[1])
        if resolver is None:
            known = ", ".join(f"`{name}:`" for name in RESOLVERS)
            raise RecipeError(
                f"`{kind[1]}:` is no kind of source, only: {known}",
                where=request.where,
                hint=f"for a directory of that name write `./{request.spec}`",
            )
        return resolver(kind[2], request)
    if _HUB_ID.fullmatch(request.spec):
        if (request.directory / request.spec).exists():
            raise RecipeError(
                f"`{request.spec}` can be a directory, which is there, or a checkpoint on the hub",
                where=request.where,
                hint=f"write `./{request.spec}` or `hub:{request.spec}`",
            )
        return _locate_hub(request.spec, request)
    return locate_directory(request.spec, request)
