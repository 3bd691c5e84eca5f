"""Large weights are written while the model is traced: each takes a processor of its own.

What a trace will make of a weight is nearly always known from its module: a linear layer's is
transposed, any other is as it is. It is written as that, and when the graph is there each weight is
looked for by where it comes from and how its axes lie. What was guessed wrongly is written behind the
others; when that is more than a trifle, all that was written early is thrown away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import onnx_ir as ir
from torch import nn

from pipeline.forked import Forked
from pipeline.graph.files import PAGE_BYTES, THRESHOLD_BYTES, require_no_model
from pipeline.graph.large_weights import TransposedWeight
from pipeline.graph.stored_weights import StoredWeight, stored_weight
from pipeline.stages.base import (
    EXTERNAL_DATA_FILE,
    INLINE_LIMIT_BYTES,
    MODEL_FILE,
    NARROW_LIMIT_BYTES,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import BinaryIO

    import torch

    from pipeline.data.stored_tensors import StoredTensor

SMALLEST_BYTES: Final = 1 << 20
"""Smaller weights wait for the graph: they take no time."""

MOST_WASTE: Final = 0.005
"""Of the bytes of a file, those that no weight of the graph needs."""

_Key = tuple[str, int, tuple[int, ...], tuple[int, ...] | None]


@dataclass(frozen=True, slots=True)
class _Place:
    tensor: ir.TensorProtocol
    offset: int


class EarlyWeights:
    """A file of weights that a process of its own writes; `close` it in any case.

    Args:
        module: Whose weights these are.
        find: Where the numbers of a parameter are; None when they are in it.
        directory: Of the output, on whose file system the file is; it is put beside `model.onnx`.
        limits: Bytes of float32 weights: up to the first they lie inside the model file, above the
            second they are not written as float32, and nothing is written early.
    """

    def __init__(
        self,
        module: nn.Module,
        find: Callable[[torch.Tensor], StoredTensor | None],
        directory: Path,
        *,
        limits: tuple[int, int] = (INLINE_LIMIT_BYTES, NARROW_LIMIT_BYTES),
    ) -> None:
        self._path = directory / EXTERNAL_DATA_FILE
        self._places: dict[_Key, _Place] = {}
        self._end = 0
        self._process: Forked | None = None
        total = sum(4 * parameter.numel() for parameter in _unique(module))
        if not limits[0] < total <= limits[1]:
            return
        for tensor in _guessed(module, find):
            key = _key(tensor)
            if key is not None and key not in self._places:
                self._end = -(-self._end // PAGE_BYTES) * PAGE_BYTES
                self._places[key] = _Place(tensor, self._end)
                self._end += tensor.nbytes
        if not self._places:
            return
        require_no_model(directory)
        self._process = Forked(self._write)

    def close(self) -> None:
        """Stop writing, and delete the file unless `save` has used it."""
        if self._process is not None:
            self._process.end()
            self._process = None
            self._path.unlink(missing_ok=True)

    def save(self, model: ir.Model) -> bool:
        """Write a graph beside the file, with whatever large weights the file lacks added to it.

        Args:
            model: All of its weights are tensors of `pipeline.graph.stored_weights`, in memory, or
                transposed ones of these.

        Returns:
            False when there is no file, it could not be written, or too much of it would be of no use:
            nothing is written here.

        Raises:
            OSError: when the file cannot be written.
            ArtifactError: when the checkpoint's cannot be read.
        """
        if self._process is None:
            return False
        large = [
            value
            for value in model.graph.initializers.values()
            if value.const_value is not None and value.const_value.nbytes > THRESHOLD_BYTES
        ]
        keys = [_key(value.const_value) for value in large if value.const_value is not None]
        unused = self._places.keys() - set(keys)
        if sum(self._places[key].tensor.nbytes for key in unused) > MOST_WASTE * self._end:
            return False
        if not self._process.succeeded():
            return False  # whoever writes it in another way meets the error, and can say it
        with self._path.open("r+b") as file:
            for value, key in zip(large, keys, strict=True):
                assert value.const_value is not None
                place = self._places.get(key) if key is not None else None
                offset = self._added(file, value.const_value) if place is None else place.offset
                value.const_value = self._outside(value.const_value, offset)
        ir.save(model, self._path.with_name(MODEL_FILE))
        self._process = None
        return True

    def _added(self, file: BinaryIO, tensor: ir.TensorProtocol) -> int:
        begin = self._end
        file.seek(begin)
        tensor.tofile(file)  # type: ignore[attr-defined]  # every tensor of onnx_ir has it
        self._end = file.tell()
        return begin

    def _outside(self, tensor: ir.TensorProtocol, offset: int) -> ir.ExternalTensor:
        return ir.ExternalTensor(
            EXTERNAL_DATA_FILE, offset, tensor.nbytes, tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()), name=tensor.name or "", base_dir=self._path.parent,
        )  # fmt: skip

    def _write(self) -> None:
        with self._path.open("xb") as file:
            for place in self._places.values():
                file.seek(place.offset)
                place.tensor.tofile(file)  # type: ignore[attr-defined]


def _unique(module: nn.Module) -> Iterator[nn.Parameter]:
    """Every parameter once; tied ones are one."""
    yield from {parameter.data_ptr(): parameter for parameter in module.parameters()}.values()


def _guessed(
    module: nn.Module, find: Callable[[torch.Tensor], StoredTensor | None]
) -> Iterator[ir.TensorProtocol]:
    """Large weights as the graph will probably have them."""
    owners: dict[int, list[nn.Module]] = {}
    for owner in module.modules():
        for parameter in owner.parameters(recurse=False):
            owners.setdefault(parameter.data_ptr(), []).append(owner)
    for parameter in _unique(module):
        source = find(parameter)
        if source is None or 4 * parameter.numel() < SMALLEST_BYTES:
            continue
        tensor = stored_weight(source, None)
        # One that is an embedding too is transposed by the graph, which needs it both ways.
        is_linear = all(type(owner) is nn.Linear for owner in owners[parameter.data_ptr()])
        is_turned = is_linear and len(source.shape) == 2
        yield TransposedWeight(tensor, (1, 0), None) if is_turned else tensor


def _key(tensor: ir.TensorProtocol | None) -> _Key | None:
    """Where the numbers of a weight come from, and in which order of axes; None for others."""
    order = None
    if isinstance(tensor, TransposedWeight):
        order, tensor = tensor.order, tensor.source
    if isinstance(tensor, StoredWeight):
        source = tensor.source
        return str(source.file), source.offset, source.shape, order
    if isinstance(tensor, ir.ExternalTensor):
        return str(tensor.path), tensor.offset or 0, tuple(tensor.shape.numpy()), order
    return None
