"""Questions to a hub, through `huggingface_hub`; every failure as an error with a hint.

The library retries, resumes a transfer that breaks (within one run), follows redirects without
taking the token along, and moves a file to its place only when it is complete.
"""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, cast

import httpx2
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)

from pipeline.errors import ArtifactError, EnvironmentMissing, PipelineError, RecipeError
from pipeline.source.hub_cache import HubFile, hub_file, is_commit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.source.hub_settings import HubSettings
    from pipeline.source.types import Note, Request

ANSWER_TIME_S = 20.0
"""After which a hub that does not answer a question counts as unreachable."""

PAUSES_S = (0.5, 2.0)
"""Between attempts to ask: hubs have short outages."""

NOTE_EVERY_S = 10.0
OUTAGES = (408, 429, 500, 502, 503, 504)

# All that the library and what it calls (httpx2, hf_xet, json) raise when a transfer fails.
_FAILURES = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    RuntimeError,
    httpx2.HTTPError,
    XetDownloadError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubClient:
    """One repository of one hub.

    Attributes:
        repository: `ORG/NAME`.
        revision: As the recipe says it, for messages.
        request: Where the recipe says it, for messages.
        cached_commit: What the cache takes the revision for; empty when it does not know.
    """

    settings: HubSettings
    repository: str
    revision: str
    request: Request
    cached_commit: str = ""

    def look_up(self) -> tuple[str, dict[str, HubFile]]:
        """The commit that the revision is now, and all its files by name.

        Raises:
            RecipeError: there is no such repository or revision.
            EnvironmentMissing: the hub cannot be reached, or does not let us in.
        """
        api = HfApi(endpoint=self.settings.endpoint, library_name="convert")
        try:
            info = self._asked(
                lambda: api.model_info(
                    self.repository,
                    revision=self.revision,
                    files_metadata=True,
                    timeout=ANSWER_TIME_S,
                )
            )
            if not is_commit(info.sha):
                raise ValueError("it names no commit")
            files = {
                sibling.rfilename: hub_file(
                    sibling.size, sibling.blob_id, sibling.lfs.sha256 if sibling.lfs else ""
                )
                for sibling in info.siblings or []
            }
        except _FAILURES as error:
            raise self._explained(error) from error
        return str(info.sha), files

    def _asked(self, question: Callable[[], Any]) -> Any:
        for pause_s in PAUSES_S:
            try:
                return question()
            except HfHubHTTPError as error:
                if error.response.status_code not in OUTAGES:
                    raise
            except httpx2.TransportError:
                pass
            time.sleep(pause_s)
        return question()

    def download(self, commit: str, files: dict[str, int]) -> None:
        """Have files in the cache, one after the other: so Ctrl-C ends it at once.

        Args:
            commit: Full.
            files: Name -> size in bytes.

        Raises:
            EnvironmentMissing: the hub cannot be reached, or does not let us in.
            ArtifactError: what came is not what was announced, or cannot be written.
        """
        total = sum(files.values())
        self.request.note(
            f"fetching {len(files)} {'file' if len(files) == 1 else 'files'}, {_megabytes(total)}, "
            f"of {self.repository} at {commit[:12]} from {self.settings.endpoint}"
        )
        meter = _meter(total, self.request.note)
        for name in files:
            try:
                hf_hub_download(
                    self.repository,
                    name,
                    revision=commit,
                    cache_dir=self.settings.cache,
                    endpoint=self.settings.endpoint,
                    library_name="convert",
                    tqdm_class=cast("Any", meter),
                )
            except _FAILURES as error:
                raise self._explained(error, name) from error

    # --- failures ---------------------------------------------------------------------------

    def _explained(self, error: BaseException, name: str = "") -> PipelineError:
        """What a failure means to the user."""
        for cause in _causes(error):
            found = self._refusal(cause) or self._outage(cause) or self._damage(cause, name)
            if found is not None:
                return found
        return self._missing(
            f"the answer of {self.settings.endpoint} is not that of a hub: {_one_line(error)}",
            "check HF_ENDPOINT, and that no proxy answers in the hub's place",
        )

    def _refusal(self, error: BaseException) -> PipelineError | None:
        """The hub answered that it will not."""
        place = f"on {self.settings.endpoint}"
        if isinstance(error, RevisionNotFoundError):
            return RecipeError(
                f"`{self.repository}` {place} has no revision `{self.revision}`",
                where=self.request.where_revision,
                hint=f"{self.settings.endpoint}/{self.repository}/tree/main lists branches and tags",
            )
        if isinstance(error, GatedRepoError):
            return self._missing(
                f"`{self.repository}` {place} is gated, and "
                + self._token_words("does not open it", "none is given"),
                f"accept its conditions at {self.settings.endpoint}/{self.repository}, then set "
                "HF_TOKEN or run `hf auth login`",
            )
        if isinstance(error, DisabledRepoError):
            return RecipeError(
                f"`{self.repository}` {place} is disabled", where=self.request.where
            )
        if isinstance(error, HfHubHTTPError) and not isinstance(error, RemoteEntryNotFoundError):
            status = error.response.status_code
            if isinstance(error, RepositoryNotFoundError) or status == 404:
                return RecipeError(
                    f"there is no checkpoint `{self.repository}` {place}, or it is private and "
                    + self._token_words("does not open it", "no token is given"),
                    where=self.request.where,
                    hint=f"for a directory write `./{self.repository}`; for a private checkpoint "
                    "set HF_TOKEN or run `hf auth login`",
                )
            if status in {401, 403}:
                return self._missing(
                    f"{self.settings.endpoint} does not give `{self.repository}` to us "
                    f"(status {status}): " + self._token_words("is not enough", "none is given"),
                    "set HF_TOKEN to a token that may read it, or run `hf auth login`",
                )
        return None

    def _token_words(self, given: str, missing: str) -> str:
        return f"the token {given}" if self.settings.has_token else missing

    def _outage(self, error: BaseException) -> PipelineError | None:
        """The hub did not answer, or broke off."""
        is_outage = isinstance(error, httpx2.TransportError | OfflineModeIsEnabled) or (
            isinstance(error, HfHubHTTPError) and error.response.status_code in OUTAGES
        )
        if not is_outage:
            return None
        if is_commit(self.revision):
            hint = "what was fetched is kept: run again when it can be reached"
        elif self.cached_commit:
            # Using it unasked would be a conversion of something else than the recipe says today.
            hint = (
                f"the cache has {self.cached_commit} as the last known `{self.revision}`: write "
                f"`revision: {self.cached_commit}`, or set HF_HUB_OFFLINE=1 to take it"
            )
        else:
            hint = "check the network, HF_ENDPOINT and proxies; what was fetched is kept"
        return self._missing(
            f"{self.settings.endpoint} cannot be reached, or broke off: {_one_line(error)}", hint
        )

    def _damage(self, error: BaseException, name: str) -> PipelineError | None:
        """What came is not what was announced, or there is no room for it."""
        if isinstance(error, RemoteEntryNotFoundError):
            return ArtifactError(
                f"the hub lists `{name}` of `{self.repository}`, and does not have it",
                where=self.request.where,
            )
        if isinstance(error, OSError) and "Consistency check failed" in str(error):
            return ArtifactError(
                f"`{name}` of `{self.repository}` came with another size than announced; nothing "
                "of it was kept",
                where=self.request.where,
                hint="run again to fetch it anew",
            )
        if isinstance(error, OSError) and error.errno is not None:
            full = "; the disk is full" if error.errno == errno.ENOSPC else ""
            return ArtifactError(
                f"the cache of checkpoints cannot be written: {error.strerror}{full}",
                where=str(error.filename or self.settings.cache),
                hint="HF_HUB_CACHE says where it is",
            )
        return None

    def _missing(self, message: str, hint: str) -> EnvironmentMissing:
        return EnvironmentMissing(message, where=self.request.where, hint=hint)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it: the library wraps refusals in `LocalEntryNotFoundError`."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200] if text else type(error).__name__


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


class _Meter:
    """Says a line every few seconds. The library makes one "progress bar" a file from a class.

    It has the methods that `huggingface_hub` calls of `_AggregatedTqdm` in its
    `_snapshot_download.py`, which serves the same end.
    """

    note: Note
    total = 0
    done = 0
    last_s = 0.0

    def __init__(self, **_: object) -> None:
        """What the bar would look like does not matter."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        """Nothing is open."""

    def update(self, n: float | None = 1) -> None:
        """Bytes were written."""
        kind = type(self)
        kind.done += int(n or 0)
        if time.monotonic() - kind.last_s > NOTE_EVERY_S:
            kind.last_s = time.monotonic()
            kind.note(
                f"fetched {_megabytes(min(kind.done, kind.total))} of {_megabytes(kind.total)}"
            )

    def update_transfer(self, n: float | None = 1) -> None:
        """Bytes came in, which may be fewer than are written."""

    def set_postfix_str(self, text: str, refresh: bool = False) -> None:
        """The speed of one file."""

    def set_transfer_postfix_str(self, text: str, refresh: bool = False) -> None:
        """The speed of one file."""


def _meter(total: int, note: Note) -> type[_Meter]:
    """A class of meters that count together."""
    members = {"note": staticmethod(note), "total": total, "last_s": time.monotonic()}
    return type("_Meter", (_Meter,), members)
