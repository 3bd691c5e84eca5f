"""Whether what was published, or what the store holds, is still what it was: every digest, both ways."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.errors import ArtifactError, RecipeError
from pipeline.hashing import canonical_json
from pipeline.listing import read_facts
from pipeline.manifest import Manifest, check_directory
from pipeline.publish import MANIFEST_FILE, read_manifest
from pipeline.store import Store
from pipeline.store.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from pipeline.digest_memory import DigestMemory

REPORTED = ("name", "version", "verdict", "created_at")
"""What manifest and report both say, and must say alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What came of a verification.

    Attributes:
        path: The artifact, or the root of the store.
        counts: What was looked at: `files` and `size_bytes`, or `trees`, `records` and
            `quarantined`, which were damaged earlier and are not used.
        problems: A sentence for each thing that is wrong; empty when all is well.
        digests: SHA-256 of each file of an artifact as its manifest states it, by path.
    """

    path: Path
    counts: Mapping[str, int]
    problems: tuple[str, ...]
    digests: Mapping[str, str] = field(default_factory=dict)


def verify_published(directory: Path, memory: DigestMemory | None = None) -> Verification:
    """Check an artifact: every file against the manifest, both ways, and the manifest itself.

    The manifest is held against its own digest of the list of files, against the report, which it
    lists, and against the form of a manifest: an edited verdict does not go unseen.

    Args:
        directory: The artifact.
        memory: Digests of an earlier check, so that large files that are the same by size, inode and
            times are not read again; without one every byte is read. See `check_directory`.

    Raises:
        ArtifactError: the manifest cannot be read.
    """
    document = read_manifest(directory)
    manifest = _listed_files(document, directory)
    problems = list(
        check_directory(directory, manifest, ignore=frozenset({MANIFEST_FILE}), memory=memory)
    )
    if manifest.digest != document.get("files_digest"):
        problems.append(f"{MANIFEST_FILE}: `files_digest` is not the digest of `files`")
    problems += _report_problems(directory, document)
    try:
        read_facts(directory)
    except ArtifactError as error:
        problems.append(error.message)
    return Verification(
        path=directory,
        counts={"files": len(manifest.entries), "size_bytes": manifest.size_bytes},
        problems=tuple(problems),
        digests={entry.path: entry.sha256 for entry in manifest.entries},
    )


def verify_store(root: Path) -> Verification:
    """Check every tree and every record of a store; nothing is changed or set aside.

    Raises:
        RecipeError: there is no store.
        StoreError: it cannot be read, or another version made it.
    """
    layout = Layout(root.resolve())
    if not layout.check_version():
        raise RecipeError(
            f"there is no store at `{root}`",
            hint="name its root: convert verify --store DIRECTORY, or set CONVERT_STORE",
        )
    problems = Store(root).verify()
    return Verification(
        path=root,
        counts={
            "trees": _count(layout.trees),
            "records": _count(layout.records),
            "quarantined": _count(layout.quarantine),
        },
        problems=problems,
    )


def _listed_files(document: Mapping[str, Any], directory: Path) -> Manifest:
    try:
        return Manifest.from_json(canonical_json(document.get("files")) + "\n")
    except (ValueError, RecursionError) as error:  # NaN, which JSON readers let through
        raise ArtifactError(f"`files` is damaged: {error}", where=str(directory)) from error
    except ArtifactError as error:
        raise ArtifactError(
            f"{MANIFEST_FILE}: `files`: {error.message}", where=str(directory), hint=error.hint
        ) from error


def _report_problems(directory: Path, document: Mapping[str, Any]) -> Iterator[str]:
    try:
        report = json.loads((directory / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return  # missing or changed: its digest told already
    for key in REPORTED:
        said = report.get(key) if isinstance(report, dict) else None
        if said != document.get(key):
            yield (
                f"{MANIFEST_FILE} says {key} {document.get(key)!r:.80}, report.json says {said!r:.80}"
            )


def _count(directory: Path) -> int:
    return sum(1 for _ in directory.iterdir()) if directory.is_dir() else 0
