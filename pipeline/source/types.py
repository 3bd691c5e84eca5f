"""What a checkpoint is to the rest: its used files with their digests; and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from pipeline.hashing import tagged_digest
from pipeline.source.files import SourceFile, link_files, require_untouched
from pipeline.source.json_files import read_json
from pipeline.source.rope import short_positions

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

Note: TypeAlias = "Callable[[str], None]"
"""Is told, a line at a time, what goes on while files are fetched."""

_NARROW_DTYPES = frozenset({"bfloat16", "float16"})
"""Of 16 bits, as `config.json` names them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the recipe says of its checkpoint.

    Attributes:
        spec: `model.source`.
        revision: `model.revision`; empty when the recipe has none.
        directory: Where relative paths start.
        where: Position of the source in the recipe, for messages.
        where_revision: Position of the revision.
        note: Is told what goes on while files are fetched.
    """

    spec: str
    revision: str
    directory: Path
    where: str
    where_revision: str
    note: Note


class Location(Protocol):
    """A place where a checkpoint is, whatever its kind."""

    @property
    def root(self) -> Path:
        """The directory that its files are in, or will be."""

    @property
    def label(self) -> str:
        """What messages call the place."""

    @property
    def revision(self) -> str:
        """Commit of a hub checkpoint or version of a package; empty for a directory."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the report should know of how it was found."""

    def names(self) -> Collection[str]:
        """Names of its files relative to `root`, with `/`; deeper folders may be left out.

        Raises:
            ArtifactError: they cannot be listed.
        """

    def bring(self, names: Sequence[str]) -> None:
        """Have these files under `root`.

        Raises:
            PipelineError: they cannot be had.
        """

    def promised(self, name: str) -> tuple[int, str] | None:
        """Size in bytes and SHA-256 of a file that is not under `root` yet; None when it is."""

    def check(self, name: str, sha256: str) -> None:
        """Hold a file under `root` against what is known of it.

        Raises:
            DigestMismatch: it is another file.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A resolved checkpoint.

    Attributes:
        spec: As the recipe says it.
        root: The directory it was found in.
        files: Every used file by its name relative to `root`.
        config: `config.json`, checked.
        revision: Commit of a hub checkpoint or version of a package; empty for a directory.
        notes: What a reader of the report should know of how it was found, such as that a branch
            was looked up in the cache.
        absent: Names of files that are known by size and digest only: weights on a hub, which
            planning does not need. `fetch_source` has them fetched.
        location: Where `absent` files come from.
    """

    spec: str
    root: Path
    files: Mapping[str, SourceFile]
    config: Mapping[str, Any]
    revision: str = ""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    location: Location | None = None

    def group_files(self, group: str) -> dict[str, str]:
        """Name -> SHA-256 of the files of one group."""
        return {name: self.files[name].sha256 for name in self.groups[group]}

    def group_digest(self, group: str) -> str:
        """Digest of the names and contents of one group of files."""
        return tagged_digest("convert/source/1", self.group_files(group))

    def materialise(self, group: str, directory: Path) -> None:
        """Make a directory that shows a group's files, and nothing else, as links to them.

        Raises:
            ValueError: a file is not here yet; a mistake of the caller.
        """
        missing = set(self.absent).intersection(self.groups[group])
        if missing:
            raise ValueError(f"{sorted(missing)} must be fetched first")
        link_files({name: self.files[name] for name in self.groups[group]}, directory)

    def require_unchanged(self) -> None:
        """Check that no used file was touched since its digest was taken.

        Raises:
            ArtifactError: when one was; what was made from it meanwhile must not be filed.
        """
        require_untouched(self.files, root=self.root, what="checkpoint", doing="converted")

    @property
    def float32_bytes(self) -> int:
        """About how many bytes its weights have as float32, by the sizes of files and `config.json`."""
        stored = sum(
            file.size_bytes for name, file in self.files.items() if name.endswith(".safetensors")
        )
        dtype = self.config.get("dtype", self.config.get("torch_dtype"))
        return stored * (2 if dtype in _NARROW_DTYPES else 1)

    @property
    def max_positions(self) -> int | None:
        """The longest sequence the checkpoint can take, or None when it does not say.

        The smaller of `max_position_embeddings` (`n_positions` for GPT-2) and the tokenizer's `model_max_length`, which for
        RoBERTa-like models is smaller by the padding offset. Values above 1e9 mean "not set". Of `longrope`, the
        positions of short texts: see `pipeline.source.rope`.
        """
        found = [self.config.get(key) for key in ("max_position_embeddings", "n_positions")]
        found.append(short_positions(self.config))
        name = "tokenizer_config.json"
        if name in self.files:
            found.append(read_json(self.files[name].path, name).get("model_max_length"))
        limits = [
            int(value) for value in found if isinstance(value, int | float) and 0 < value < 1e9
        ]
        return min(limits) if limits else None
