"""Weights of a graph whose numbers lie in a file of the checkpoint and are read when it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from pipeline.graph.narrow_weights import SMALLEST, narrow_weight
from pipeline.stages.base import NARROW_LIMIT_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.data.stored_tensors import StoredTensor


class StoredWeight(ir.LazyTensor):
    """A float32 tensor of a checkpoint; holds no numbers.

    Args:
        source: Where they are.
        name: Of the tensor.
    """

    def __init__(self, source: StoredTensor, name: str | None) -> None:
        shape = ir.Shape(source.shape)
        super().__init__(self._read, ir.DataType.FLOAT, shape, name=name)
        self.source = source

    def _read(self) -> ir.Tensor[NDArray[np.float32]]:
        return ir.Tensor(self.source.read(), name=self.name)

    def tofile(self, file: Any) -> None:
        """Write the numbers a piece at a time."""
        for block in self.source.blocks():
            file.write(block.data)


def use_stored_weights(
    model: ir.Model,
    find: Callable[[torch.Tensor], StoredTensor | None],
    *,
    limit: int = NARROW_LIMIT_BYTES,
) -> tuple[str, ...]:
    """Let a translated graph read its weights from the checkpoint.

    Args:
        model: A graph whose weights are tensors of torch.
        find: Where the numbers of such a tensor are; None when they are in it.
        limit: Above so many bytes of float32 weights, those in 16 bits are written as they are: see
            `pipeline.graph.narrow_weights`.

    Returns:
        Names of the weights, floats with more than one number, of which that is not so.
    """
    others = []
    is_narrow = sum(_bytes(value) for value in model.graph.initializers.values()) > limit
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            continue
        raw = getattr(tensor, "raw", None)
        source = find(raw) if isinstance(raw, torch.Tensor) else None
        if source is not None:
            narrow = narrow_weight(source, name) if is_narrow else None
            value.const_value = narrow or stored_weight(source, name)
        elif tensor.dtype.is_floating_point() and tensor.size > 1:
            others.append(name)
    return tuple(others)


def stored_weight(source: StoredTensor, name: str | None) -> ir.TensorProtocol:
    """A float32 weight; a large one that is float32 in the checkpoint is copied from file to file."""
    if source.dtype != "F32" or source.size < SMALLEST:
        return StoredWeight(source, name)
    return ir.ExternalTensor(
        source.file, source.offset, 4 * source.size, ir.DataType.FLOAT,
        shape=ir.Shape(source.shape), name=name or "",
    )  # fmt: skip


def _bytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes
