"""What files a directory holds: typed, canonical, checked both ways.

The store names its trees by the digest of their manifest, and a published artifact carries one. A
manifest knows regular files with one name each and nothing else: no symbolic link, no second hard
link (onnx >= 1.21 refuses both for external data, CVE-2026-34446/34447), no empty directory, and no
name that another operating system would read differently. This module never changes a file.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from pipeline.directory_files import DAMAGE, FileDigest, hash_files, os_reason, walk_directory
from pipeline.errors import ArtifactError
from pipeline.hashing import canonical_json, tagged_digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from pipeline.digest_memory import DigestMemory
    from pipeline.directory_files import FoundFile

MANIFEST_TAG = "convert/manifest/1"
"""Type tag of the digest; the number is the version of the format."""

_FORMAT = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ENTRY_FIELDS = {"path", "sha256", "size_bytes"}

_MAX_NAME_BYTES = 255
"""Longest name of ext4, XFS and APFS; NTFS counts 255 UTF-16 units, which is never less strict."""

_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\]')
_WINDOWS_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])")
"""Source: "Naming Files, Paths, and Namespaces", learn.microsoft.com; reserved with any suffix."""

REMEMBERED_BYTES = 4 << 20
"""Only digests of files that are at least so large are taken from a memory: reports are always read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestEntry:
    """One regular file.

    Attributes:
        path: Relative, with `/` between names; portable, see `check_name`.
        size_bytes: Length of the content.
        sha256: Of the content, 64 lower-case hex digits.
    """

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All files of a directory, sorted by path (by code point).

    Raises:
        ArtifactError: when built from entries that are unsorted, twice there, differ only in
            upper and lower case, lie inside one another, or have a bad path, size or digest.
    """

    entries: tuple[ManifestEntry, ...]

    def __post_init__(self) -> None:
        problems = [
            *_iter_entry_problems(self.entries),
            *check_paths([e.path for e in self.entries]),
        ]
        if problems:
            raise ArtifactError(f"not a manifest: {_first(problems)}")

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON under `MANIFEST_TAG`, 64 hex digits."""
        return tagged_digest(MANIFEST_TAG, [_entry_fields(entry) for entry in self.entries])

    @property
    def size_bytes(self) -> int:
        """Sum of the sizes of all files."""
        return sum(entry.size_bytes for entry in self.entries)

    def to_json(self) -> str:
        """The one text of this manifest: canonical JSON and a line feed."""
        files = [_entry_fields(entry) for entry in self.entries]
        return canonical_json({"manifest": _FORMAT, "files": files}) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read what `to_json` wrote, byte for byte; any other spelling is refused.

        Raises:
            ArtifactError: when the text is not exactly the text of a manifest.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as err:
            raise ArtifactError(f"not a manifest: {err}") from err
        if not isinstance(document, dict) or set(document) != {"manifest", "files"}:
            raise ArtifactError("not a manifest: expected an object with `manifest` and `files`")
        if document["manifest"] != _FORMAT:
            raise ArtifactError(
                f"manifest format {document['manifest']!r} is not known, expected {_FORMAT}",
                hint="use the version of convert that wrote it, or a newer one",
            )
        files = document["files"]
        if not isinstance(files, list):
            raise ArtifactError("not a manifest: `files` is not a list")
        manifest = cls(entries=tuple(_parse_entry(fields) for fields in files))
        if manifest.to_json() != text:
            raise ArtifactError("not a manifest: the text is not canonical, so it was edited")
        return manifest


def check_name(name: str) -> str:
    """Why one path component is not portable; empty when it is.

    Portable is what POSIX and Windows read in the same way: no separator, control or reserved
    character, no device name, no dot or space at the end, at most 255 bytes, Unicode NFC.
    """
    try:
        size_bytes = len(name.encode())
    except UnicodeEncodeError:
        return f"{name!r} is not UTF-8"
    rules = (
        (name in {"", ".", ".."}, "is not a file name"),
        (
            "/" in name or _FORBIDDEN.search(name) is not None,
            'holds one of / \\ < > : " | ? * or a control character',
        ),
        (name.endswith((".", " ")), "ends with a dot or a space, which Windows drops"),
        (
            _WINDOWS_DEVICES.fullmatch(name.split(".", 1)[0].rstrip()) is not None,
            "is a device on Windows",
        ),
        (size_bytes > _MAX_NAME_BYTES, f"has {size_bytes} bytes, more than {_MAX_NAME_BYTES}"),
        (
            not unicodedata.is_normalized("NFC", name),
            "is not in Unicode normal form C, so macOS would rename it",
        ),
    )
    return next((f"{name!r:.80} {problem}" for is_broken, problem in rules if is_broken), "")


def check_paths(paths: Sequence[str]) -> tuple[str, ...]:
    """Problems of relative file paths as sentences: each alone, then all beside one another."""
    problems = [
        f"bad path {path!r}: {problem}"
        for path in paths
        if (problem := next(filter(None, map(check_name, path.split("/"))), ""))
    ]
    folded: dict[str, str] = {}
    for path in paths:
        for end in [i for i, char in enumerate(path) if char == "/"] + [len(path)]:
            part = path[:end]  # the directories on the way must agree as well
            if (other := folded.setdefault(part.casefold(), part)) != part:
                problems.append(f"{other!r} and {part!r} differ only in upper and lower case")
    files = {path.casefold() for path in paths}
    for path in paths:
        parts = path.casefold().split("/")
        if any("/".join(parts[:depth]) in files for depth in range(1, len(parts))):
            problems.append(f"{path!r} lies inside another file")
    return tuple(problems)


def scan_directory(path: Path) -> Manifest:
    """Hash every file of a directory.

    Raises:
        ArtifactError: when it holds anything but regular files with one hard link and portable
            names, when an empty directory is in it, when a file changes while it is read, or when
            something cannot be read.
    """
    try:
        found = walk_directory(path)
        problems = [item.problem for item in found if item.problem]
        problems += check_paths([item.path for item in found if not item.problem])
        if problems:
            raise ArtifactError(_first(problems), where=str(path))
        digests = hash_files(path, [(item.path, item.size_bytes) for item in found])
    except OSError as err:
        raise ArtifactError(f"cannot be read: {os_reason(err)}", where=str(path)) from err
    changed = [digest.problem for digest in digests.values() if digest.problem]
    if changed:
        raise ArtifactError(_first(changed), where=str(path))
    entries = (
        ManifestEntry(path=item.path, size_bytes=item.size_bytes, sha256=digests[item.path].sha256)
        for item in found
    )
    return Manifest(entries=tuple(sorted(entries, key=lambda entry: entry.path)))


def check_directory(
    path: Path,
    manifest: Manifest,
    *,
    ignore: frozenset[str] = frozenset(),
    memory: DigestMemory | None = None,
) -> tuple[str, ...]:
    """Compare a directory with its manifest, both ways.

    Args:
        path: The directory.
        manifest: What should be in it.
        ignore: Relative paths of files that are not looked at, such as the manifest itself.
        memory: Digests of an earlier check; a file of `REMEMBERED_BYTES` or more is not read again
            while its size, inode and both times are the same. It learns, and is not saved. Without
            one every byte is read.

    Returns:
        Problems as sentences: missing, extra, size, digest, kind, second hard link. Empty when
        every file is what the manifest says and nothing else is there.

    Raises:
        ArtifactError: when the answer cannot be had, because of permissions or too many open
            files; that is not damage.
    """
    try:
        found = {item.path: item for item in walk_directory(path) if item.path not in ignore}
        expected = {entry.path: entry for entry in manifest.entries if entry.path not in ignore}
        problems = [f"{name!r} is missing" for name in expected.keys() - found.keys()]
        to_hash: list[tuple[str, int]] = []
        for name, item in found.items():
            entry = expected.get(name)
            if item.problem:
                problems.append(item.problem)
            elif entry is None:
                problems.append(f"{name!r} is not in the manifest")
            elif item.size_bytes != entry.size_bytes:
                problems.append(f"{name!r} has {item.size_bytes} bytes, not {entry.size_bytes}")
            elif known := _recalled(path, item, memory):
                problems += _digest_problems(name, known, entry)
            else:
                to_hash.append((name, item.size_bytes))
        digests = hash_files(path, to_hash)
    except OSError as err:
        if err.errno in DAMAGE:
            return (f"cannot be read: {os_reason(err)}",)
        raise ArtifactError(f"cannot be read: {os_reason(err)}", where=str(path)) from err
    for name, digest in digests.items():
        problems += _digest_problems(name, digest, expected[name])
        _learn(path / name, digest, memory)
    return tuple(sorted(problems))


def _recalled(root: Path, item: FoundFile, memory: DigestMemory | None) -> FileDigest | None:
    if memory is None or item.size_bytes < REMEMBERED_BYTES:
        return None
    sha256 = memory.recall(root / item.path, item.identity)
    return FileDigest(sha256=sha256) if sha256 else None


def _learn(path: Path, digest: FileDigest, memory: DigestMemory | None) -> None:
    if memory is None or digest.identity is None or digest.identity[0] < REMEMBERED_BYTES:
        return
    memory.learn(path, digest.identity, digest.sha256)


def _digest_problems(name: str, digest: FileDigest, entry: ManifestEntry) -> Iterable[str]:
    if digest.problem:
        yield digest.problem
    elif digest.sha256 != entry.sha256:
        yield f"{name!r} has SHA-256 {digest.sha256}, not {entry.sha256}"


def _entry_fields(entry: ManifestEntry) -> dict[str, str | int]:
    return {"path": entry.path, "size_bytes": entry.size_bytes, "sha256": entry.sha256}


def _parse_entry(fields: object) -> ManifestEntry:
    if not isinstance(fields, dict) or set(fields) != _ENTRY_FIELDS:
        raise ArtifactError(f"not a manifest: {fields!r:.80} is not {sorted(_ENTRY_FIELDS)}")
    return ManifestEntry(
        path=fields["path"], size_bytes=fields["size_bytes"], sha256=fields["sha256"]
    )


def _iter_entry_problems(entries: Sequence[ManifestEntry]) -> Iterable[str]:
    for entry in entries:
        if not isinstance(entry.path, str):
            raise ArtifactError(f"not a manifest: path {entry.path!r:.80} is not text")
        if type(entry.size_bytes) is not int or entry.size_bytes < 0:
            yield f"size {entry.size_bytes!r:.80} of {entry.path!r} is not a number of bytes"
        if not isinstance(entry.sha256, str) or not _SHA256.fullmatch(entry.sha256):
            yield f"{entry.sha256!r:.80} of {entry.path!r} is not a SHA-256"
    paths = [entry.path for entry in entries]
    if any(first >= second for first, second in pairwise(paths)):
        yield "paths are not sorted, or one is there twice"


def _first(problems: Sequence[str]) -> str:
    rest = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
    return "; ".join(problems[:3]) + rest
