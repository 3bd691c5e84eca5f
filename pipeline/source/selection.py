"""Which files of a checkpoint are used: an allow-list, decided on names alone.

It is decided before anything is fetched, so nothing else ever leaves a hub: no pickle, no code.
"""

from __future__ import annotations

import fnmatch
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from pipeline.errors import ArtifactError, RecipeError
from pipeline.file_names import (
    CONFIG_FILES,
    GENAI_CONFIG,
    PROCESSOR_FILES,
    TOKENIZER_FILES,
)
from pipeline.source.json_files import read_json

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from pipeline.source.types import Location

# sentence-transformers: the list of modules and each module's own folder.
MODULE_FOLDER = "[0-9]_*"
MODULE_FILES = (
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    f"{MODULE_FOLDER}/config.json",
    f"{MODULE_FOLDER}/model.safetensors",
)
ALLOWED = (*CONFIG_FILES, *TOKENIZER_FILES, *PROCESSOR_FILES, *MODULE_FILES)
PICKLED_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")
INDEX_FILE = "model.safetensors.index.json"
WEIGHTS_FILE = "model.safetensors"
ADAPTER_FILE = "adapter_config.json"
GGUF = "*.gguf"


def is_weights(name: str) -> bool:
    """Whether a used file holds weights, which only stages need."""
    return name.endswith(".safetensors")


def companion_names(root: Path) -> tuple[str, ...]:
    """Names of the files in a directory that go with a model, sorted; weights are none of them."""
    names = [entry.name for entry in root.iterdir() if entry.is_file()]
    for folder in root.iterdir():
        if fnmatch.fnmatchcase(folder.name, MODULE_FOLDER) and folder.is_dir():
            names += [f"{folder.name}/{file.name}" for file in folder.iterdir() if file.is_file()]
    allowed = (*ALLOWED, GENAI_CONFIG)
    kept = (name for name in names if any(_matches(name, pattern) for pattern in allowed))
    return tuple(sorted(name for name in kept if not is_weights(name)))


def select_files(location: Location, where: str) -> tuple[str, ...]:
    """The names of the files that are used, sorted. Brings the index of sharded weights.

    Raises:
        RecipeError: there is no config.json, no weights, or weights of another kind only: pickles,
            GGUF, those of an adapter.
        ArtifactError: the index is damaged, or names a file that is not there.
    """
    names = location.names()
    if ADAPTER_FILE in names:
        raise _adapter_error(location, names, where)
    if "config.json" not in names:
        raise RecipeError(
            "the checkpoint has no config.json",
            where=where or location.label,
            hint=f"{location.label} must hold config.json and *.safetensors",
        )
    found = {name for name in names if any(_matches(name, pattern) for pattern in ALLOWED)}
    return tuple(sorted({*found, *_weight_files(location, names, where)}))


def _matches(name: str, pattern: str) -> bool:
    """Whether a name fits a pattern folder by folder: here `*` never stands for a `/`."""
    parts, wanted = name.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(
        fnmatch.fnmatchcase(part, piece) for part, piece in zip(parts, wanted, strict=True)
    )


def _weight_files(location: Location, names: Collection[str], where: str) -> list[str]:
    """The safetensors files: the shards that the index names, or the one file."""
    if INDEX_FILE in names:
        location.bring([INDEX_FILE])
        shards = _shards(location, where)
        for shard in shards:
            if shard not in names:
                raise ArtifactError(
                    f"{INDEX_FILE} names `{shard}`, which is missing", where=location.label
                )
        return [INDEX_FILE, *shards]
    if WEIGHTS_FILE in names:
        return [WEIGHTS_FILE]
    pickled = sorted(
        name
        for name in names
        if "/" not in name
        and any(fnmatch.fnmatchcase(name, pattern) for pattern in PICKLED_WEIGHTS)
    )
    if pickled:
        raise RecipeError(
            f"the checkpoint has pickled weights only ({', '.join(pickled[:3])}), "
            "and loading a pickle runs code",
            where=where or location.label,
            hint="save it once as safetensors where you trust it: "
            "AutoModel.from_pretrained(PATH).save_pretrained(NEW, safe_serialization=True)",
        )
    if any(_matches(name, GGUF) for name in names):
        raise RecipeError(
            "the checkpoint has weights in GGUF only, which are rounded already",
            where=where or location.label,
            hint="give the checkpoint that they were made from, in safetensors",
        )
    raise RecipeError(
        f"the checkpoint has no weights: neither {WEIGHTS_FILE} nor {INDEX_FILE}",
        where=where or location.label,
        hint=_broken_link(location.root / WEIGHTS_FILE),
    )


def _broken_link(path: Path) -> str:
    """A hint where weights are a link to nothing, as in the copy of a hub's cache without its blobs."""
    if not path.is_symlink():
        return ""
    return f"`{path.name}` is a link to `{path.readlink()}`, which is not there"


def _adapter_error(location: Location, names: Collection[str], where: str) -> RecipeError:
    """Of weights that change those of another model; transformers would add them unasked."""
    location.bring([ADAPTER_FILE])
    document = read_json(location.root / ADAPTER_FILE, ADAPTER_FILE)
    base = document.get("base_model_name_or_path")
    of_what = f" of `{base}`" if isinstance(base, str) and base else ""
    beside = {WEIGHTS_FILE, INDEX_FILE} & set(names)
    left_out = f", or remove {ADAPTER_FILE} where the model is meant without it" if beside else ""
    return RecipeError(
        f"the checkpoint is an adapter{of_what}"
        if not beside
        else f"beside the weights of the checkpoint lies an adapter{of_what}, which would be left out",
        where=where or location.label,
        hint="merge it into its model once and give the result: "
        f"AutoPeftModelForCausalLM.from_pretrained(PATH).merge_and_unload().save_pretrained(NEW){left_out}",
    )


def _shards(location: Location, where: str) -> list[str]:
    weight_map = read_json(location.root / INDEX_FILE, INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ArtifactError(f"{INDEX_FILE} has no `weight_map`", where=location.label)
    shards = sorted({str(shard) for shard in weight_map.values()})
    for shard in shards:
        if PurePosixPath(shard).name != shard or not is_weights(shard):
            raise RecipeError(
                f"{INDEX_FILE} names `{shard}`, which is not a safetensors file beside it",
                where=where or location.label,
            )
    return shards
