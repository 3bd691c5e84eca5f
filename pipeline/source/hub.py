"""A checkpoint on a hub: `hub:ORG/NAME`, at a branch, a tag or a commit.

A revision is resolved to a commit, and from then on only the commit counts. A full commit whose files
are in the cache needs no network at all. A branch or tag is asked for in every run; when the hub does
not answer, that is an error even if the cache remembers a commit, for it may have moved. Setting
`HF_HUB_OFFLINE=1` asks for the cached commit, and the output and the report then say so.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import DigestMismatch, EnvironmentMissing, RecipeError
from pipeline.hashing import CHUNK_BYTES
from pipeline.source.hub_cache import HubCache, is_commit
from pipeline.source.hub_settings import HubSettings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pipeline.source.hub_cache import HubFile
    from pipeline.source.hub_client import HubClient
    from pipeline.source.types import Request

DEFAULT_REVISION = "main"
# As huggingface_hub's `validate_repo_id`, and git's check-ref-format where a path is made of it.
_REPOSITORY = re.compile(
    r"(?!.*(?:--|\.\.))(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]{0,95}", re.ASCII
)
_REVISION = re.compile(r"(?!.*(?:\.\.|//))[A-Za-z0-9_][\w./+-]{0,254}(?<![/.])", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSnapshot:
    """One commit of a repository on a hub. Implements `Location`.

    Attributes:
        repository: `ORG/NAME`.
        revision: The commit.
        files: All its files by name, as the hub says.
        cache: Where they are, or will be.
    """

    settings: HubSettings
    repository: str
    revision: str
    requested: str
    files: Mapping[str, HubFile]
    cache: HubCache
    request: Request
    notes: tuple[str, ...] = ()

    @property
    def root(self) -> Path:
        """The snapshot in the cache; may be partial."""
        return self.cache.snapshot(self.revision)

    @property
    def label(self) -> str:
        """What messages call the place."""
        return f"{self.settings.endpoint}/{self.repository} at {self.revision}"

    def names(self) -> frozenset[str]:
        """Names of all files that the commit has."""
        return frozenset(self.files)

    def bring(self, names: Sequence[str]) -> None:
        """Fetch the files that the cache does not have."""
        missing = [name for name in names if not (self.root / name).is_file()]
        if not missing:
            return
        if self.settings.is_offline:
            raise EnvironmentMissing(
                f"HF_HUB_OFFLINE is set, and {', '.join(missing[:3])} of {self.repository} at "
                f"{self.revision} must be fetched",
                where=self.request.where,
                hint="run once without HF_HUB_OFFLINE; then the cache has all that is needed",
            )
        client = _client(self.settings, self.repository, self.requested, self.request, self.cache)
        client.download(self.revision, {name: self.files[name].size_bytes for name in missing})

    def promised(self, name: str) -> tuple[int, str] | None:
        """Size and SHA-256 of a file that the cache does not have; None when they are not known."""
        file = self.files[name]
        if not file.sha256 or (self.root / name).is_file():
            return None
        return file.size_bytes, file.sha256

    def check(self, name: str, sha256: str) -> None:
        """Hold a file against the list; one that differs is taken out of the cache."""
        path, file = self.root / name, self.files[name]
        size = path.stat().st_size
        problem = ""
        if size != file.size_bytes:
            problem = f"it has {size:,} bytes instead of {file.size_bytes:,}"
        elif file.sha256 and sha256 != file.sha256:
            problem = f"its SHA-256 is {sha256} instead of {file.sha256}"
        elif not file.sha256 and (found := git_blob_id(path)) != file.blob_id:
            problem = f"its git id is {found} instead of {file.blob_id}"
        if problem:
            self.cache.discard(self.revision, name)
            raise DigestMismatch(
                f"`{name}` of {self.repository} is not what the hub says: {problem}",
                where=str(path),
                hint="it was taken out of the cache; run again to fetch it anew",
            )


def git_blob_id(path: Path) -> str:
    """Git's id of a file's content: SHA-1 of a header and the content (git-hash-object(1))."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def locate_hub(spec: str, request: Request) -> HubSnapshot:
    """The commit of a repository that the recipe asks for, and the list of its files.

    Raises:
        RecipeError: there is no such repository or revision, or these are no names of one.
        EnvironmentMissing: the hub cannot be reached or does not let us in; or it must not be asked
            (`HF_HUB_OFFLINE`), and the cache does not know.
    """
    requested = request.revision or DEFAULT_REVISION
    _check_names(spec, requested, request)
    settings = HubSettings.from_environment()
    cache = HubCache(settings.folder(spec))
    notes: tuple[str, ...] = ()
    commit = requested if is_commit(requested) else ""
    files = cache.listing(commit) if commit else None
    if files is None and settings.is_offline:
        commit = commit or cache.ref(requested)
        files = cache.listing(commit) if commit else None
        if files is None:
            raise _unknown_offline(spec, requested, commit, request)
        note = (
            f"HF_HUB_OFFLINE is set: `{requested}` of {spec} was not looked up; the cache has "
            f"commit {commit} for it"
        )
        notes = (note,)
    elif files is None:
        commit, files = _client(settings, spec, requested, request, cache).look_up()
        if is_commit(requested) and commit != requested:
            raise EnvironmentMissing(
                f"{settings.endpoint} answers with commit {commit} when asked for {requested}",
                where=request.where_revision,
                hint="check HF_ENDPOINT",
            )
        cache.save_listing(commit, files)
        if not is_commit(requested):
            cache.save_ref(requested, commit)
    return HubSnapshot(
        settings=settings,
        repository=spec,
        revision=commit,
        requested=requested,
        files=files,
        cache=cache,
        request=request,
        notes=notes,
    )


def _client(
    settings: HubSettings, repository: str, revision: str, request: Request, cache: HubCache
) -> HubClient:
    from pipeline.source.hub_client import HubClient  # 0.3 s, and not needed when all is cached

    return HubClient(
        settings=settings,
        repository=repository,
        revision=revision,
        request=request,
        cached_commit="" if is_commit(revision) else cache.ref(revision),
    )


def _check_names(repository: str, revision: str, request: Request) -> None:
    if not _REPOSITORY.fullmatch(repository):
        raise RecipeError(
            f"`{repository}` is no name of a checkpoint on a hub",
            where=request.where,
            hint="write `hub:ORG/NAME`, such as `hub:sentence-transformers/all-MiniLM-L6-v2`",
        )
    if not _REVISION.fullmatch(revision):
        raise RecipeError(
            f"`{revision}` is no branch, tag or commit",
            where=request.where_revision,
            hint="such as `main`, `v1.0`, or the 40 hex digits of a commit",
        )


def _unknown_offline(
    repository: str, requested: str, commit: str, request: Request
) -> EnvironmentMissing:
    lacks = f"the list of files of commit {commit}" if commit else f"`{requested}` of {repository}"
    return EnvironmentMissing(
        f"HF_HUB_OFFLINE is set, and the cache does not have {lacks}",
        where=request.where,
        hint=f"run once without HF_HUB_OFFLINE, or `hf download {repository} --revision "
        f"{requested}` (huggingface_hub 2.4 or newer)",
    )
