"""Finds the report of an artifact, and verifies the artifact meanwhile: what `convert judge` starts from.

Imports little, so that the files are hashed, in threads that hold no lock, while the rest of the program
is still being imported.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.digest_memory import DigestMemory
from pipeline.errors import ArtifactError, RecipeError
from pipeline.publish import MANIFEST_FILE
from pipeline.verification import verify_published

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.report.schema import Report

REPORT_FILE = "report.json"
MEMORY_FILE = "digests.json"
"""Below the root of the store; builds keep the digests of checkpoints there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportPlace:
    """Where a report is.

    Attributes:
        path: The file.
        artifact: The artifact it belongs to; None for a report that lies alone.
    """

    path: Path
    artifact: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredReport:
    """A report that was found, and whether its digest was checked.

    Attributes:
        path: The file.
        artifact: The verified artifact it belongs to; None for a report that lies alone.
        report: What it says.
        unread: How many large files of the artifact were not read again, since they are the same by
            size, inode and times as when they were.
    """

    path: Path
    artifact: Path | None
    report: Report
    unread: int = 0


def locate_report(name: str, output: Path) -> ReportPlace:
    """Where the report of an artifact is, as a user names it.

    Args:
        name: As `pipeline.listing.find_artifact`, or a `report.json`. One that lies beside a manifest
            belongs to its artifact; one that lies alone has no digest to be held against.
        output: Where artifacts are.

    Raises:
        RecipeError: there is no such artifact.
        ArtifactError: `latest` leads nowhere.
    """
    from pipeline.listing import find_artifact, path_kind

    path = Path(name)
    if path_kind(path) != "file" or path.suffix != ".json":
        artifact = find_artifact(name, output)
        return ReportPlace(path=artifact / REPORT_FILE, artifact=artifact)
    if not (path.parent / MANIFEST_FILE).is_file():
        return ReportPlace(path=path, artifact=None)
    if path.name != REPORT_FILE:
        raise RecipeError(
            f"`{path.name}` is not the report of this artifact",
            hint=f"convert judge {path.parent / REPORT_FILE}",
        )
    artifact = path.parent.resolve()  # `latest` is a link, and a link holds no files to verify
    return ReportPlace(path=artifact / REPORT_FILE, artifact=artifact)


@contextlib.contextmanager
def opened_report(
    place: ReportPlace, store: Path | None = None, *, must_rehash: bool = False
) -> Iterator[Callable[[], StoredReport]]:
    """Verify in the background; call what is yielded for the report.

    Args:
        place: Where it is.
        store: The store's root, where digests of large files are remembered: a file that is the same
            by size, inode and both times is not read again. None: nothing is remembered.
        must_rehash: Read every byte, whatever is remembered.

    Raises:
        ArtifactError: by the call: the artifact is damaged, or its report is of an unknown schema
            version.
    """
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1, thread_name_prefix="verify") as pool:
        verified = pool.submit(_require_whole, place.artifact, store, must_rehash)

        def finish() -> StoredReport:
            unread = verified.result()
            from pipeline.report.serialize import load_report

            return StoredReport(
                path=place.path,
                artifact=place.artifact,
                report=load_report(place.path),
                unread=unread,
            )

        yield finish


def _require_whole(artifact: Path | None, store: Path | None, must_rehash: bool) -> int:
    """Refuse a damaged artifact; how many of its files were not read."""
    if artifact is None:
        return 0
    memory = None
    if store is not None and store.is_dir():  # otherwise there is nothing to keep it in
        memory = DigestMemory(store / MEMORY_FILE, is_fresh=must_rehash)
    problems = verify_published(artifact, memory).problems
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ArtifactError(
            f"the artifact is not what was published, so nothing is judged: {problems[0]}{more}",
            where=str(artifact),
            hint=f"convert verify {artifact}",
        )
    if memory is None:
        return 0
    memory.save()
    return memory.recalled
