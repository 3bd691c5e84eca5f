"""A checkpoint in the compressed-tensors format, with the integers and scales of a graph in few bits.

vLLM and transformers load it. Weights of the graph are found in the checkpoint by their values, so that
neither names nor fused or reordered operators can lead to the wrong module.
Source of the format: `compressed_tensors.compressors.pack_quantized`, compressed-tensors 0.20.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.bundle.consumer import has_package, try_in_consumer
from pipeline.bundle.generation_settings import read_generation_settings
from pipeline.bundle.graphs import GRAPH_FILE, copy_companions, read_graphs
from pipeline.bundle.placing import placed_whole
from pipeline.errors import ArtifactError, RecipeError
from pipeline.hashing import sha256_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.bundle.graphs import GraphTarget
    from pipeline.graph.block_tables import NarrowTable
    from pipeline.graph.block_weights import BlockWeight

PACKAGE: Final = "compressed_tensors"
WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
_HEAD: Final = "lm_head"
_LOOK_ROWS: Final = 8
"""Rows of a weight that are compared with every candidate first."""
_NEAR: Final = {4: 0.35, 8: 0.05}
"""RMS of the rounding error over RMS of the weight, at most, by bits.

Rounding of a normal weight in 4 bits makes about 0.1, a clipped or compensated one less than 0.2;
another weight is off by about 1.4.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedModel:
    """What was written of one target.

    Attributes:
        weights: How many have few bits.
        trial: What came of loading it; empty when it was not tried.
    """

    target: str
    bits: str
    weights: int
    trial: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedExport:
    """What was written."""

    directory: Path
    artifact: str
    model: CompressedModel
    notes: tuple[str, ...]


def export_vllm(
    artifact: Path,
    directory: Path,
    *,
    target: str | None = None,
    checkpoint: Path | None = None,
    replace: bool = False,
) -> CompressedExport:
    """Write the quantised checkpoint of one target, and compare it with the graph where that is possible.

    Args:
        artifact: Its directory; it is verified first.
        directory: Where to; nothing may be there yet.
        target: Which; None for the only one with weights in few bits.
        checkpoint: The checkpoint that it was made from; None for where the artifact says it was.
        replace: What was written there earlier gives way.

    Raises:
        RecipeError: the artifact failed, there is no such target, the checkpoint is not there or not
            the one that it was made from, or a weight is of none of its linear modules.
        ArtifactError: the artifact is damaged, or what was written computes something else.
    """
    with placed_whole(
        directory, replace=replace, is_ours=_is_ours, what="checkpoint of convert"
    ) as draft:
        source = read_graphs(artifact, [target] if target else [])
        if not source.task.has_cache:
            raise RecipeError(
                f"`{source.title}` is of task `{source.task.name}`, and this is for `text-generation`"
            )
        chosen = _choose(source.targets, source.left_out)
        root = _find_checkpoint(artifact, checkpoint)
        copy_companions(chosen, draft)
        made, has_tables = _write(chosen, root, draft)
        settings = read_generation_settings(chosen)
        trial, notes = "", []
        if has_package(PACKAGE):
            question = {
                "folder": str(draft),
                "graph": str(chosen.folder / GRAPH_FILE),
                "vocabulary": settings.vocabulary,
                "positions": settings.positions,
            }
            answer = try_in_consumer(
                "pipeline.bundle.vllm_trial", question, what="transformers", where=chosen.name
            )
            trial, notes = answer.told, list(answer.notes)
        else:
            notes.append(
                "it was written and not tried: pip install 'convert-pipeline[vllm]', then export again"
            )
    if _HEAD in made:
        notes.append(
            f"`{_HEAD}` has few bits too, as in the graph: not every version of vLLM reads that; "
            "`exclude_nodes` in the recipe keeps it float"
        )
    if has_tables:
        notes.append(
            "the table of tokens has few bits in the graph, and the format has none for tables: it is written as "
            "the floats that it stands for"
        )
    bits = "/".join(str(bits) for bits in sorted(set(made.values())))
    return CompressedExport(
        directory=directory,
        artifact=source.title,
        model=CompressedModel(target=chosen.name, bits=bits, weights=len(made), trial=trial),
        notes=tuple(notes),
    )


def _is_ours(child: Path) -> bool:
    config = child.parent / "config.json"
    try:
        said = json.loads(config.read_text(encoding="utf-8"))["quantization_config"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return child.is_file() and said.get("producer") == "convert"


def _choose(targets: Sequence[GraphTarget], left_out: Sequence[str]) -> GraphTarget:
    fitting = [
        target
        for target in targets
        if target.declaration.quantization
        and target.declaration.quantization.mode == "weight_only"
    ]
    if len(fitting) == 1:
        return fitting[0]
    found = ", ".join(target.name for target in fitting)
    raise RecipeError(
        f"{len(fitting)} targets have weights in few bits: {found}"
        if found
        else "no target has weights in few bits"
        + (f" (left out is {'; '.join(left_out)})" if left_out else ""),
        hint="name one with --target"
        if found
        else "it takes a target with `quantization: {mode: weight_only}`",
    )


def _find_checkpoint(artifact: Path, named: Path | None) -> Path:
    """The checkpoint's directory, once its weights have the digests that the artifact states.

    Raises:
        RecipeError: it is not there, or not the same.
    """
    from pathlib import Path

    from pipeline.publish import read_manifest

    said = read_manifest(artifact).get("source") or {}
    root = named or Path(str(said.get("source", "")))
    hint = "name the checkpoint that it was converted from: --checkpoint DIRECTORY"
    if not (root / "config.json").is_file():
        raise RecipeError(f"there is no checkpoint at `{root}`", hint=hint)
    for name, digest in (said.get("files") or {}).items():
        if not name.endswith(".safetensors"):
            continue
        if not (root / name).is_file() or sha256_file(root / name) != digest:
            raise RecipeError(
                f"`{name}` of `{root}` is not the one that the artifact was made from", hint=hint
            )
    return root


def _write(target: GraphTarget, root: Path, folder: Path) -> tuple[dict[str, int], bool]:
    """Write weights and config; returns module -> bits, and whether a table has few bits in the graph.

    Raises:
        RecipeError: a weight is of no linear module.
        ArtifactError: there is none, or it is stored in another form.
    """
    from pipeline.graph.block_tables import read_narrow_tables
    from pipeline.graph.block_weights import read_block_weights

    is_tied = bool(target.config.get("tie_word_embeddings", True))
    quantization = target.declaration.quantization
    is_scaled = quantization is not None and quantization.method == "awq"
    matcher = _Matcher(root, is_tied=is_tied, is_scaled=is_scaled)
    found: dict[str, BlockWeight] = {}
    for weight in read_block_weights(target.folder / GRAPH_FILE):
        module = matcher.module_of(weight)
        if module in found:
            raise ArtifactError(
                f"`{weight.name}` and `{found[module].name}` are both `{module}`",
                where=target.name,
            )
        found[module] = weight
    if not found:
        raise ArtifactError("no weight of the graph has few bits", where=target.name)
    tables = {
        matcher.table_of(table): table.floats
        for table in read_narrow_tables(target.folder / GRAPH_FILE)
    }
    config = dict(target.config)
    if _HEAD in found or (is_tied and any(map(_is_embedding, tables))):
        config["tie_word_embeddings"] = False
    _save(root, found, tables, folder, has_own_head=config.get("tie_word_embeddings") is False)
    config["quantization_config"] = _quantization_config(found, matcher.linear_modules())
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return {module: weight.bits for module, weight in found.items()}, bool(tables)


def _quantization_config(
    found: Mapping[str, BlockWeight], modules: Sequence[str]
) -> dict[str, Any]:
    groups: dict[tuple[int, int], list[str]] = {}
    for module, weight in sorted(found.items()):
        groups.setdefault((weight.bits, weight.block_size or 0), []).append(module)
    described = {}
    for number, ((bits, size), members) in enumerate(sorted(groups.items())):
        described[f"group_{number}"] = {
            "targets": ["Linear"] if len(groups) == 1 else members,
            "weights": {
                "num_bits": bits,
                "type": "int",
                "symmetric": True,
                "strategy": "group" if size else "channel",
                "group_size": size or None,
                "dynamic": False,
            },
            "input_activations": None,
            "output_activations": None,
        }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": described,
        "ignore": sorted(module for module in {*modules, _HEAD} if module not in found),
        "kv_cache_scheme": None,
        "producer": "convert",
    }


def _save(
    root: Path,
    found: Mapping[str, BlockWeight],
    tables: Mapping[str, NDArray[np.float32]],
    folder: Path,
    *,
    has_own_head: bool,
) -> None:
    """Write one file for each of the checkpoint's, with the packed weights in place of floats.

    Args:
        root: The checkpoint.
        found: Module -> its weight.
        tables: Name of a tensor -> what stands there instead.
        folder: Where to.
        has_own_head: A head that is tied in the checkpoint, and float, is written too.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    files = sorted(root.glob("*.safetensors"))
    waiting = dict(found)
    index: dict[str, str] = {}
    for number, file in enumerate(files, 1):
        name = WEIGHTS if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
        tensors: dict[str, Any] = {}
        with safe_open(file, framework="pt") as reader:
            for key in reader.keys():  # noqa: SIM118 - it is no mapping
                module = key.removesuffix(".weight")
                if module in waiting:
                    tensors |= _packed(module, waiting.pop(module))
                else:
                    tensors[key] = reader.get_tensor(key)
                if key in tables:
                    if has_own_head and _HEAD not in found and _is_embedding(key):
                        # The checkpoint's own head, where it has one, is of the same name.
                        tensors.setdefault(f"{_HEAD}.weight", tensors[key])
                    tensors[key] = torch.from_numpy(tables[key])
        if number == len(files):  # a tied head has no tensor of its own in the checkpoint
            for module, weight in waiting.items():
                tensors |= _packed(module, weight)
        index |= dict.fromkeys(tensors, name)
        save_file(tensors, folder / name, metadata={"format": "pt"})
    if len(files) > 1:
        document = {"metadata": {}, "weight_map": index}
        (folder / INDEX).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _packed(module: str, weight: BlockWeight) -> dict[str, Any]:
    import torch

    return {
        f"{module}.weight_packed": torch.from_numpy(pack(weight.integers, weight.bits)),
        f"{module}.weight_scale": torch.from_numpy(weight.scale),
        f"{module}.weight_shape": torch.tensor(weight.integers.shape, dtype=torch.int64),
    }


def pack(integers: NDArray[np.int8], bits: int) -> NDArray[np.int32]:
    """Unsigned integers, the first in the lowest bits of each word.

    Args:
        integers: int8 (outputs, inputs), signed.
        bits: 4 or 8.

    Returns:
        int32 (outputs, inputs * bits / 32), rounded up.
    """
    each = 32 // bits
    outputs, inputs = integers.shape
    words = np.zeros((outputs, -(-inputs // each)), np.uint32)
    unsigned = (integers.astype(np.int16) + (1 << (bits - 1))).astype(np.uint32)
    for place in range(each):
        part = unsigned[:, place::each]
        words[:, : part.shape[1]] |= part << np.uint32(place * bits)
    return words.view(np.int32)


class _Matcher:
    """Finds the module of the checkpoint that a weight of the graph is.

    Args:
        root: The checkpoint.
        is_tied: The head is the matrix of embeddings.
        is_scaled: Channels of the graph may have been scaled.
    """

    def __init__(self, root: Path, *, is_tied: bool, is_scaled: bool) -> None:
        from safetensors import safe_open

        self._files = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._is_tied = is_tied
        self._hint = (
            "`awq` has scaled channels of this model, so its weights are not the checkpoint's any more; export "
            "a target of another method, such as `gptq`"
            if is_scaled
            else "modules that are merged or transposed in the graph have no counterpart"
        )
        for file in sorted(root.glob("*.safetensors")):
            with safe_open(file, framework="pt") as reader:
                for key in reader.keys():  # noqa: SIM118 - it is no mapping
                    self._files[key] = file
                    self._shapes[key] = tuple(reader.get_slice(key).get_shape())

    def linear_modules(self) -> list[str]:
        """Modules with a matrix; embeddings among them do no harm in a list of exceptions."""
        return [
            key.removesuffix(".weight")
            for key, shape in self._shapes.items()
            if key.endswith(".weight") and len(shape) == 2
        ]

    def module_of(self, weight: BlockWeight) -> str:
        """Raises `RecipeError` when it is none of them."""
        seen = weight.floats(slice(0, _LOOK_ROWS))
        errors = {
            key: _error(rows, seen)
            for key, rows in self._candidates(weight.integers.shape, _LOOK_ROWS)
        }
        limit = _NEAR[weight.bits]
        near = sorted((error, key) for key, error in errors.items() if error <= limit)
        if not near:
            raise RecipeError(
                f"weight `{weight.name}` {list(weight.integers.shape)} of the graph is that of no linear "
                "module of the checkpoint",
                hint=self._hint,
            )
        heads = [key for _, key in near if key == f"{_HEAD}.weight"]
        key = heads[0] if heads else near[0][1]
        ((_, whole),) = self._read([key], weight.integers.shape[0])
        if not _error(whole, weight.floats()) <= limit:
            raise RecipeError(
                f"weight `{weight.name}` of the graph is not quite `{key}`", hint=self._hint
            )
        if self._is_tied and f"{_HEAD}.weight" not in self._files and _is_embedding(key):
            return _HEAD
        return key.removesuffix(".weight")

    def table_of(self, table: NarrowTable) -> str:
        """The tensor of a table of embeddings; raises `RecipeError` when it is none of them."""
        fitting = self._candidates(table.floats.shape, len(table.floats))
        near = sorted(
            (_error(rows, table.floats), key.startswith(_HEAD), key) for key, rows in fitting
        )
        if not near or near[0][0] > _NEAR[table.bits]:
            raise RecipeError(f"table `{table.name}` of the graph is no table of the checkpoint")
        return near[0][2]

    def _candidates(
        self, shape: tuple[int, ...], rows: int
    ) -> Iterator[tuple[str, NDArray[np.float32]]]:
        fitting = [key for key, other in self._shapes.items() if other == tuple(shape)]
        return self._read([key for key in fitting if key.endswith(".weight")], rows)

    def _read(self, keys: Sequence[str], rows: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
        from safetensors import safe_open

        for key in keys:
            with safe_open(self._files[key], framework="pt") as reader:
                yield key, reader.get_slice(key)[:rows].float().numpy()


def _is_embedding(key: str) -> bool:
    return any(word in key for word in ("embed_tokens", "wte", "embed_in", "word_embeddings"))


def _error(own: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    size = float(np.sqrt(np.mean(np.square(own)))) or 1.0
    return float(np.sqrt(np.mean(np.square(own - other)))) / size
