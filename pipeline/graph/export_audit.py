"""Compares an exported graph with its checkpoint: every stored parameter, bit by bit.

A fault in a few rows of a table of tokens shows only for those tokens, and no set of inputs holds all
of them. Nothing is run here. A parameter is right when some tensor of the checkpoint has its shape and
its numbers; when none has, and there is a tensor of its name and shape, it is wrong. What was renamed
and changed while it was loaded has no counterpart, and is only counted.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import ml_dtypes
import numpy as np
import onnx_ir as ir

from pipeline.graph.files import load_ir_model
from pipeline.graph.large_weights import LARGE_BYTES, has_outside_weights, release_weight, turned
from pipeline.runtimes.mapped_pages import few_pages
from pipeline.stages.base import EXTERNAL_DATA_FILE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_DTYPES: Final[Mapping[str, Any]] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}
"""safetensors' name of a type -> numpy's; tensors of others are no floating-point parameters."""

_BLOCK: Final = 1 << 22
"""Elements that are compared or hashed at a time."""

_HEADER_LIMIT: Final = 100_000_000
"""Bytes of a safetensors header; the library's own limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportAudit:
    """What the comparison found.

    Attributes:
        opset: Version of the standard operators that the graph is made for.
        compared: Parameters that are the checkpoint's.
        changed: (name, sentence) of those that are not.
        without_counterpart: Names of those of which the checkpoint has neither numbers nor name.
    """

    opset: int
    compared: int
    changed: tuple[tuple[str, str], ...]
    without_counterpart: tuple[str, ...]


def audit_export(path: Path, checkpoint: Path) -> ExportAudit:
    """Compare the float parameters of a graph with a checkpoint's safetensors.

    Args:
        path: The `.onnx` file. Parameters are its stored tensors with a dotted name.
        checkpoint: A directory with `*.safetensors`.

    Raises:
        ArtifactError: when the graph cannot be read.
    """
    files = [path.parent / EXTERNAL_DATA_FILE, *checkpoint.rglob("*.safetensors")]
    with few_pages(files):
        model = load_ir_model(path)
        tensors = dict(_tensors(checkpoint))
        known = {_fingerprint(array) for array in tensors.values()}
        found = [_audit(name, array, known, tensors) for name, array in _parameters(model)]
    return ExportAudit(
        opset=model.opset_imports.get("", 0),
        compared=sum(each.is_known for each in found),
        changed=tuple((each.name, each.detail) for each in found if each.detail),
        without_counterpart=tuple(
            each.name for each in found if not each.is_known and not each.detail
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What is known of one parameter; `detail` says how it is wrong."""

    name: str
    is_known: bool = False
    detail: str = ""


def _parameters(model: ir.Model) -> Iterator[tuple[str, Sequence[NDArray[Any]]]]:
    """Name, and the numbers of one float parameter at a time, in each order they may lie in.

    Weights that lie outside of the file are transposed when they are written, and then have the name
    of the result (`pipeline.graph.large_weights.turn_weights`).
    """
    is_outside = has_outside_weights(model)
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT:
            continue
        may_be_turned = is_outside and len(tensor.shape) == 2 and tensor.nbytes >= LARGE_BYTES
        if "." not in name and not may_be_turned:
            continue
        array = tensor.numpy()
        if "." not in name:
            yield name, (turned(array.T), array)
        else:
            yield name, (array, array.T) if may_be_turned else (array,)
        del array
        release_weight(tensor)


def _audit(
    name: str,
    orders: Sequence[NDArray[Any]],
    known: Collection[bytes],
    tensors: Mapping[str, NDArray[Any]],
) -> _Found:
    if any(_fingerprint(array) in known for array in orders):
        return _Found(name=name, is_known=True)
    size = orders[0].size
    pairs = [(array, _named(name, array.shape, tensors)) for array in orders]
    counts = [_differences(array, other) for array, other in pairs if other is not None]
    if "." not in name:  # named as a result: the tensor that it was is most of it
        others = [(a, b) for a in orders for b in tensors.values() if b.shape == a.shape]
        counts = [count for a, b in others if 2 * (count := _differences(a, b)) < size]
    if not counts:
        return _Found(name=name)
    return _Found(
        name=name,
        detail=f"{min(counts):,} of {size:,} numbers of `{name}` are not the checkpoint's",
    )


def _differences(array: NDArray[Any], other: NDArray[Any]) -> int:
    return sum(int(np.count_nonzero(a != b.astype(np.float32))) for a, b in _blocks(array, other))


def _tensors(checkpoint: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    """Every floating-point tensor, mapped and not read."""
    for path in sorted(checkpoint.rglob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _HEADER_LIMIT:
                continue
            header = json.loads(file.read(length))
        if path.stat().st_size == length + 8:
            continue
        content = np.memmap(path, dtype=np.uint8, mode="r", offset=length + 8)
        for name, entry in header.items():
            if name == "__metadata__" or entry["dtype"] not in _DTYPES:
                continue
            begin, end = entry["data_offsets"]
            yield name, content[begin:end].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])


def _fingerprint(array: NDArray[Any]) -> bytes:
    """Of shape and numbers, as float32: the export computes in it."""
    digest = hashlib.sha256(repr(array.shape).encode())
    for block, _ in _blocks(array, array):
        digest.update(np.ascontiguousarray(block, dtype=np.float32).tobytes())
    return digest.digest()


def _blocks(
    left: NDArray[Any], right: NDArray[Any]
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    one, two = left.reshape(-1), right.reshape(-1)
    for start in range(0, one.size, _BLOCK):
        yield one[start : start + _BLOCK], two[start : start + _BLOCK]


def _named(
    name: str, shape: tuple[int, ...], tensors: Mapping[str, NDArray[Any]]
) -> NDArray[Any] | None:
    """The tensor of a parameter's name: `model.bert.x` is `bert.x` or `x` in a checkpoint."""
    parts = name.split(".")
    for start in range(len(parts) - 1):
        found = tensors.get(".".join(parts[start:]))
        if found is not None and found.shape == shape:
            return found
    return None
