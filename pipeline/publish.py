"""Publishes an artifact: a directory that is complete, verified and never changed again.

    artifacts/<name>/<version>/            passed its gates
    artifacts/<name>/failed/<version>/     did not: the report and what was made, for a look
    artifacts/<name>/latest -> <version>   the newest that passed

Everything is assembled beside its final place, hashed, flushed to the disk, and renamed into place
without replacing anything.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import threading
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import ArtifactError, DigestMismatch, RecipeError
from pipeline.hashing import canonical_json
from pipeline.manifest import Manifest, check_directory, scan_directory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from pipeline.hashing import JSON

MANIFEST_FILE = "manifest.json"
MANIFEST_SCHEMA_VERSION = 1
LATEST = "latest"
FAILED = "failed"


STALE_DRAFT_S = 24 * 3600.0
"""Drafts older than this were left by a process that was killed."""


class AlreadyPublished(ArtifactError):
    """The place of a version was taken while its draft was being filled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactFile:
    """A file to publish: where it comes from, where it goes, and what it must hold."""

    source: Path
    path: str
    sha256: str
    size_bytes: int


def artifact_directory(home: Path, version: str, *, has_passed: bool) -> Path:
    """Where a version of an artifact stands; `home` is the folder of all versions of one name."""
    return home / version if has_passed else home / FAILED / version


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of an artifact.

    Raises:
        ArtifactError: there is none, or it cannot be read.
    """
    path = directory / MANIFEST_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ArtifactError(
            f"there is no readable {MANIFEST_FILE}: {reason}",
            where=str(directory),
            hint="an artifact is a directory such as artifacts/<name>/<version>; a damaged one is "
            "built again",
        ) from error
    if not isinstance(document, dict):
        raise ArtifactError(f"{MANIFEST_FILE} is no mapping", where=str(directory))
    found = document.get("schema_version")
    if found != MANIFEST_SCHEMA_VERSION:
        raise ArtifactError(
            f"{MANIFEST_FILE} is of schema version {found!r}, and {MANIFEST_SCHEMA_VERSION} is read here",
            where=str(directory),
            hint="a newer version of convert may have written it; a damaged artifact is built again",
        )
    return document


def verify_artifact(directory: Path) -> tuple[str, ...]:
    """Check every file of an artifact against its manifest, both ways; empty when all is well.

    Raises:
        ArtifactError: the manifest itself cannot be read.
    """
    document = read_manifest(directory)
    manifest = Manifest.from_json(canonical_json(document["files"]) + "\n")
    return check_directory(directory, manifest, ignore=frozenset({MANIFEST_FILE}))


def require_place(directory: Path, option: str) -> None:
    """Refuse a directory that cannot be made, or not be written into, before any work is done for it.

    Args:
        directory: It need not be there yet.
        option: What messages call it, such as `--output`.

    Raises:
        RecipeError: a file is in the way, or the nearest directory above is not ours to write.
    """
    place = directory.absolute()
    while not place.exists() and not place.is_symlink() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        problem = f"`{place}` is no directory"
    elif not os.access(place, os.W_OK | os.X_OK):
        problem = f"`{place}` cannot be written"
    else:
        return
    raise RecipeError(
        problem if place == directory.absolute() else f"`{directory}` cannot be made: {problem}",
        where=option,
        hint="choose another place",
    )


class EarlyCheck:
    """Verifies `latest` in the background while the plan is still being made.

    A run in which nothing changed ends with verifying the artifact, and that is a third of its time.
    What is found is only used when that artifact turns out to be the one.

    Args:
        output: Where artifacts are.
        name: The recipe's name.
    """

    def __init__(self, output: Path, name: str) -> None:
        self._directory: Path | None = None
        self._problems: tuple[str, ...] = ()
        self._thread = threading.Thread(target=self._check, args=(output, name), daemon=True)
        self._thread.start()

    def _check(self, output: Path, name: str) -> None:
        try:
            directory = output / name / (output / name / LATEST).readlink().name
            self._problems = verify_artifact(directory)
            self._directory = directory
        except OSError:
            return  # nothing was published yet
        except ArtifactError:
            return  # whoever needs this artifact will verify it, and say what is wrong

    def problems_of(self, directory: Path) -> tuple[str, ...]:
        """Problems of an artifact, as `verify_artifact` says them."""
        self._thread.join()
        return self._problems if self._directory == directory else verify_artifact(directory)


@contextlib.contextmanager
def draft_artifact(output: Path, name: str) -> Iterator[Path]:
    """A private directory on the file system of the artifacts; gone afterwards unless published."""
    parent = output / name
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _sweep_drafts(parent)
        draft = parent / f".draft-{uuid.uuid4().hex}"
        draft.mkdir(mode=0o755)
    except OSError as error:
        raise ArtifactError(
            f"the artifact cannot be written: {error.strerror}",
            where=str(parent),
            hint="choose another place with --output DIRECTORY",
        ) from error
    try:
        yield draft
    except OSError as error:
        free = shutil.disk_usage(output).free
        raise ArtifactError(
            f"the artifact cannot be written: {error.strerror or error} "
            f"({free >> 20:,} MiB are free)",
            where=str(parent),
            hint="free some space, or choose another place with --output DIRECTORY",
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        with contextlib.suppress(OSError):
            parent.rmdir()  # only when nothing was ever published there


def _sweep_drafts(parent: Path) -> None:
    for draft in parent.glob(".draft-*"):
        with contextlib.suppress(OSError):
            if time.time() - draft.stat().st_mtime > STALE_DRAFT_S:
                shutil.rmtree(draft)


def fill_draft(draft: Path, files: tuple[ArtifactFile, ...]) -> None:
    """Copy files into a draft (sharing blocks where the file system can).

    Raises:
        ArtifactError: two files go to one place.
        OSError: such as a full disk; `draft_artifact` says so.
    """
    for file in files:
        target = draft / file.path
        if target.exists():
            raise ArtifactError(f"two files go to `{file.path}`", where=str(draft))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.source, target)


def publish_draft(
    draft: Path,
    directory: Path,
    *,
    files: tuple[ArtifactFile, ...],
    facts: Mapping[str, JSON],
) -> Path:
    """Seal a draft with its manifest and move it to its place.

    Args:
        draft: Holds all files but the manifest.
        directory: The final place; it must not exist.
        files: What was copied into the draft; every digest is checked again.
        facts: What the manifest says beside the files.

    Returns:
        `directory`.

    Raises:
        DigestMismatch: a copy is not what was made.
        AlreadyPublished: the version is there already.
    """
    manifest = scan_directory(draft)
    digests = {entry.path: entry.sha256 for entry in manifest.entries}
    for file in files:
        if digests.get(file.path) != file.sha256:
            raise DigestMismatch(
                f"`{file.path}` was damaged while it was copied", where=str(draft)
            )
    document = {
        "schema_version": MANIFEST_SCHEMA_VERSION,
        **facts,
        "files_digest": manifest.digest,
        "files": json.loads(manifest.to_json()),
    }
    text = json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n"
    (draft / MANIFEST_FILE).write_text(text, encoding="utf-8")
    for path in sorted(draft.rglob("*"), reverse=True):
        _flush(path)
    _flush(draft)
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Renaming a directory replaces an empty one only, and an artifact is never empty.
        draft.rename(directory)
    except OSError as error:
        if error.errno in {errno.EEXIST, errno.ENOTEMPTY}:
            raise AlreadyPublished(
                "another process published this version meanwhile", where=str(directory)
            ) from error
        raise ArtifactError(
            f"the artifact cannot be moved to its place: {error.strerror}", where=str(directory)
        ) from error
    _flush(directory.parent)
    return directory


def point_latest(directory: Path) -> None:
    """Let `latest` lead to a version, in one step; it stands for the last run that passed."""
    link = directory.parent / LATEST
    with contextlib.suppress(OSError):
        if link.readlink().name == directory.name:
            return
    temporary = directory.parent / f".{LATEST}-{uuid.uuid4().hex}"
    temporary.symlink_to(directory.name)
    temporary.replace(link)
    _flush(directory.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def drop_failures(directory: Path, prefix: str) -> None:
    """Delete the reports of earlier failures of the same build, but for the one in `directory`."""
    for other in directory.parent.glob(f"{prefix}-*"):
        if other != directory:
            shutil.rmtree(other, ignore_errors=True)
