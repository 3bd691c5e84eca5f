"""What the cache on this machine has of one repository of a hub.

The layout is that of `huggingface_hub`, shared with every tool that uses it
(https://huggingface.co/docs/huggingface_hub/guides/manage-cache): `refs/<revision>` holds a commit,
`snapshots/<commit>/<name>` links to `blobs/<digest>`. A snapshot may be partial, so by itself it does
not say which files a commit has. That is kept beside it: in `convert/<commit>.json` by us, in
`trees/<commit>.json` by `hf download` (huggingface_hub 2.4, `_tree_cache.py`), in the same format.
"""

from __future__ import annotations

import contextlib
import json
import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FORMAT_VERSION = 1
LISTING_FOLDERS = ("convert", "trees")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_commit(text: object) -> bool:
    """Whether this is a full commit, which never means anything else later."""
    return isinstance(text, str) and _COMMIT.fullmatch(text) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """What a hub says of one file.

    Attributes:
        blob_id: Git's id of its content, or of its pointer when it is kept apart: 40 hex digits.
        sha256: Digest of a file that is kept apart (Git LFS, Xet); empty for one in git itself.
    """

    size_bytes: int
    blob_id: str
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class HubCache:
    """The folder of one repository in the cache; need not be there."""

    folder: Path

    def snapshot(self, commit: str) -> Path:
        """Where the files of a commit are, or will be."""
        return self.folder / "snapshots" / commit

    def ref(self, revision: str) -> str:
        """The commit that a branch or tag had when a hub was last asked; empty when unknown."""
        try:
            commit = (self.folder / "refs" / revision).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return ""
        return commit if is_commit(commit) else ""

    def save_ref(self, revision: str, commit: str) -> None:
        """Remember what a branch or tag is; failing to is no error."""
        if self.ref(revision) != commit:
            _write(self.folder / "refs" / revision, commit)

    def listing(self, commit: str) -> dict[str, HubFile] | None:
        """All files of a commit by name; None when no list of them is here, or it is damaged."""
        for name in LISTING_FOLDERS:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                path = self.folder / name / f"{commit}.json"
                document = json.loads(path.read_text(encoding="utf-8"))
                if document["format_version"] == FORMAT_VERSION:
                    return {
                        name: hub_file(
                            entry["size"], entry["blob_id"], entry.get("lfs_sha256") or ""
                        )
                        for name, entry in document["files"].items()
                    }
        return None

    def save_listing(self, commit: str, files: Mapping[str, HubFile]) -> None:
        """Remember the files of a commit; failing to costs another question."""
        entries = {
            name: {"size": file.size_bytes, "blob_id": file.blob_id}
            | ({"lfs_sha256": file.sha256, "lfs_size": file.size_bytes} if file.sha256 else {})
            for name, file in files.items()
        }
        document = {"format_version": FORMAT_VERSION, "files": entries}
        _write(self.folder / LISTING_FOLDERS[0] / f"{commit}.json", json.dumps(document, indent=1))

    def discard(self, commit: str, name: str) -> None:
        """Take a file out of the cache: the link of its snapshot, and everything it leads to."""
        path = self.snapshot(commit) / name
        while True:
            following = path.parent / path.readlink() if path.is_symlink() else None
            with contextlib.suppress(OSError):
                path.unlink()
            if following is None:
                return
            path = following


def hub_file(size: object, blob_id: object, sha256: object) -> HubFile:
    """What a hub, or a list in the cache, says of a file.

    Raises:
        ValueError: it does not say enough to recognise the file by.
    """
    if not isinstance(size, int) or size < 0 or not is_commit(blob_id):
        raise ValueError("a file has no size or no id")
    if sha256 and not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
        raise ValueError("a digest is not a SHA-256")
    return HubFile(size_bytes=size, blob_id=str(blob_id), sha256=str(sha256 or ""))


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError:  # such as a cache that is mounted read-only
        with contextlib.suppress(OSError):
            temporary.unlink()
