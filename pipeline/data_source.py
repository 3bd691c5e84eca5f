"""The data: where samples come from, which files those are, what they hold.

Resolved when the plan is made, so that a stage sees its files only, and its key knows their content.
Nothing here reads a row; that is the work of the stage `samples`.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pipeline.data.image_files import IMAGE_SUFFIXES, find_images, find_sounds
from pipeline.data.readers import BUILTINS, READERS, find_reader
from pipeline.environment import DISTRIBUTION, find_package
from pipeline.errors import EnvironmentMissing, RecipeError
from pipeline.hashing import tagged_digest
from pipeline.source.files import SourceFile, link_files, require_untouched
from pipeline.source_checks import check_is_content

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pipeline.digest_memory import DigestMemory
    from pipeline.recipe.types import DataSpec

DATASET_FILES: Final = (".parquet", ".arrow", ".json", ".jsonl", ".csv", ".tsv", ".txt")
"""What is read of a data set; nothing that is code or a pickle."""
DATASET_CARD: Final = "README.md"
"""Says which files belong to which subset and split."""

_DATASET_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource:
    """A resolved source of samples.

    Attributes:
        spec: What the recipe says.
        kind: How it is read: `builtin`, `jsonl`, `csv`, `parquet`, `images` or `datasets`.
        root: The directory its files are in; None for built-in ones.
        files: Every used file by its name relative to `root`.
    """

    spec: DataSpec
    kind: str
    root: Path | None = None
    files: Mapping[str, SourceFile] = field(default_factory=dict)

    def digest(self) -> str:
        """Digest of the names and contents of the files; of its name for a built-in one."""
        content = {name: file.sha256 for name, file in self.files.items()}
        return tagged_digest("convert/data/1", content or {"builtin": self.spec.source})

    def materialise(self, directory: Path) -> None:
        """Make a directory that shows the files, and nothing else, as links to them."""
        link_files(self.files, directory)

    def require_unchanged(self) -> None:
        """Check that no file was touched since its digest was taken.

        Raises:
            ArtifactError: when one was; what was made from it meanwhile must not be filed.
        """
        require_untouched(self.files, root=self.root, what="data", doing="read")


def resolve_data(
    spec: DataSpec, *, directory: Path, memory: DigestMemory, where: str = ""
) -> DataSource:
    """Find the files of a source and take their digests.

    Images and sounds that a table names are looked for below the table's folder, when the recipe names the
    column they are in.

    Args:
        spec: What the recipe says.
        directory: Where relative paths start.
        memory: Saves hashing files that have not changed.
        where: Position of the value in the recipe, for messages.

    Raises:
        RecipeError: there is no such file, it is empty or of a kind that cannot be read; there is
            no such built-in source; a setting is for other kinds.
        EnvironmentMissing: the package that reads it is not installed.
        ArtifactError: the file is a pointer of Git LFS.
    """
    try:
        return _resolve(spec, directory, memory)
    except (RecipeError, EnvironmentMissing) as error:
        error.where = error.where or where
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise RecipeError(f"`{spec.source}` cannot be read: {reason}", where=where) from error


def _resolve(spec: DataSpec, directory: Path, memory: DigestMemory) -> DataSource:
    prefix, colon, rest = spec.source.partition(":")
    if colon and prefix == "builtin":
        _check_builtin(spec)
        return DataSource(spec=spec, kind="builtin")
    if colon and prefix == "datasets":
        return _resolve_dataset(spec, rest, directory, memory)
    for name in ("subset", "split"):
        if getattr(spec, name) is not None:
            raise RecipeError(
                f"`{name}` is for `datasets:` sources, and this is `{spec.source}`",
                hint=f"leave `{name}` out, or write `source: datasets:...`",
            )
    path = (directory / Path(spec.source).expanduser()).resolve()
    if path.is_dir():
        return _resolve_folder(spec, path, memory)
    if not path.is_file():
        raise RecipeError(
            f"there is no file or folder `{spec.source}`"
            + (f" (looked at {path})" if str(path) != spec.source else ""),
            hint=f"give a file or a folder of images, relative to the recipe{_near(path)}",
        )
    return _resolve_table(spec, path, memory)


def _check_builtin(spec: DataSpec) -> None:
    if spec.source not in BUILTINS:
        near = difflib.get_close_matches(spec.source, BUILTINS, n=1)
        raise RecipeError(
            f"there is no `{spec.source}`" + (f" - did you mean `{near[0]}`?" if near else ""),
            hint=f"use one of: {', '.join(BUILTINS)}",
        )
    if spec.samples == "all":
        raise RecipeError(
            f"`{spec.source}` has no end, so there is no `all` of it",
            hint="write a number, such as `samples: 64`",
        )
    if spec.label is not None:
        raise RecipeError(
            f"`{spec.source}` has no labels, and `label` is `{spec.label}`",
            hint="leave `label` out, or give data of your own",
        )


def _resolve_table(spec: DataSpec, path: Path, memory: DigestMemory) -> DataSource:
    suffix = path.suffix.lower()
    reader = next((reader for reader in READERS if suffix in reader.suffixes), None)
    if reader is None:
        known = ", ".join(suffix for reader in READERS for suffix in reader.suffixes)
        raise RecipeError(
            f"`{path.name}` ends in `{path.suffix}`, which cannot be read"
            if path.suffix
            else f"`{path.name}` has no ending that says what it is",
            hint=f"use a file that ends in one of: {known}, or a folder of images",
        )
    _require_package(reader.kind)
    if path.stat().st_size == 0:
        raise RecipeError(f"`{spec.source}` is empty", hint="give a file with rows")
    check_is_content(path)
    names = [
        path.name,
        *(find_images(path.parent) if spec.image is not None else ()),
        *(find_sounds(path.parent) if spec.audio is not None else ()),
    ]
    return DataSource(
        spec=spec,
        kind=reader.kind,
        root=path.parent,
        files=_read_files(path.parent, names, memory),
    )


def _resolve_folder(spec: DataSpec, path: Path, memory: DigestMemory) -> DataSource:
    names = find_images(path)
    if not names:
        tables = sorted(
            entry.name
            for entry in path.iterdir()
            if any(entry.suffix.lower() in reader.suffixes for reader in READERS)
        )
        raise RecipeError(
            f"there are no images in the folder `{spec.source}`",
            hint=f"name the file: `source: {spec.source.rstrip('/')}/{tables[0]}`"
            if tables
            else f"images end in one of: {', '.join(IMAGE_SUFFIXES)}",
        )
    depths = {name.count("/") for name in names}
    if depths not in ({0}, {1}):
        deep = max(names, key=lambda name: name.count("/"))
        raise RecipeError(
            f"images must lie all in the folder, or all one below in folders named by their "
            f"labels, and `{spec.source}` holds `{names[0]}` and `{deep}`",
            hint="give the folder that holds the labels' folders, and put `<label>/<file>` there",
        )
    _require_package("images")
    return DataSource(spec=spec, kind="images", root=path, files=_read_files(path, names, memory))


def _resolve_dataset(
    spec: DataSpec, rest: str, directory: Path, memory: DigestMemory
) -> DataSource:
    _require_package("datasets")
    path = (directory / Path(rest).expanduser()).resolve()
    if not path.is_dir():
        if not _DATASET_NAME.fullmatch(rest):
            raise RecipeError(
                f"there is no folder `{rest}` (looked at {path})",
                hint="give a folder relative to the recipe, or the name of a data set: "
                "`datasets:OWNER/NAME`",
            )
        path = _download(rest, path)
    names = sorted(
        entry.relative_to(path).as_posix()
        for entry in path.rglob("*")
        if (
            entry.suffix.lower() in (*DATASET_FILES, *IMAGE_SUFFIXES) or entry.name == DATASET_CARD
        )
        and entry.is_file()
        and not any(part.startswith(".") for part in entry.relative_to(path).parts)
    )
    if not any(name != DATASET_CARD for name in names):
        raise RecipeError(
            f"the data set `{rest}` holds no files that can be read",
            hint=f"they end in one of: {', '.join(DATASET_FILES)}",
        )
    return DataSource(
        spec=spec, kind="datasets", root=path, files=_read_files(path, names, memory)
    )


def _download(rest: str, looked_at: Path) -> Path:
    """The snapshot of a data set of the hub, from the cache where it is there."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = rest.partition("@")
    patterns = [f"*{suffix}" for suffix in (*DATASET_FILES, *IMAGE_SUFFIXES)]
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name,
                repo_type="dataset",
                revision=revision or None,
                allow_patterns=[*patterns, DATASET_CARD],
            )
        ).resolve()
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RecipeError(
            f"the data set `{rest}` is neither a folder (looked at {looked_at}) nor in the cache, "
            f"and it cannot be downloaded: {reason}",
            hint=f"where there is a network: hf download --repo-type dataset {name}",
        ) from error


def _require_package(kind: str) -> None:
    reader = find_reader(kind)
    if reader.package and find_package(reader.package) is None:
        raise EnvironmentMissing(
            f"data of kind `{kind}` needs the package `{reader.package}`, which is not installed",
            hint=f"pip install '{DISTRIBUTION}[{reader.extra}]'",
        )


def _read_files(root: Path, names: Iterable[str], memory: DigestMemory) -> dict[str, SourceFile]:
    files = {}
    for name in names:
        path = root / name
        files[name] = SourceFile.of(path, memory)
    return files


def _near(path: Path) -> str:
    """A name like the one that is missing, from the same folder."""
    if not path.parent.is_dir():
        return ""
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1)
    return f" - did you mean `{near[0]}`?" if near else ""
