"""Reads weights in 4 or 8 bits back out of a graph that `pipeline.graph.weight_only` made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx_ir as ir

from pipeline.errors import ArtifactError, RecipeError
from pipeline.graph.joined_products import joined_parts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

_SYMMETRIC: Final = "quantise with `symmetric: true`, the default"

_BITS: Final = {ir.DataType.INT4: 4, ir.DataType.INT8: 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockWeight:
    """The weight of one product; `value = scale * integer`.

    Attributes:
        name: Of the stored integers; of a part of a joined product, that of its result.
        bits: 4 or 8.
        integers: int8 (outputs, inputs).
        scale: float32 (outputs, blocks).
        block_size: Consecutive weights that share a scale; None: all of an output.
    """

    name: str
    bits: int
    integers: NDArray[np.int8]
    scale: NDArray[np.float32]
    block_size: int | None

    def floats(self, rows: slice = slice(None)) -> NDArray[np.float32]:
        """What the graph computes with, float32 (outputs, inputs)."""
        integers, scale = self.integers[rows], self.scale[rows]
        size = integers.shape[1] // scale.shape[1]
        return integers.astype(np.float32) * np.repeat(scale, size, axis=1)


def read_block_weights(path: Path) -> Iterator[BlockWeight]:
    """Every weight that is stored in few bits, one after another.

    Raises:
        RecipeError: one is no integer times a scale: it has a zero point, or is one of NF4's numbers.
        ArtifactError: one is stored in a form that is none of ours.
    """
    model = ir.load(path)
    for node in model.graph.all_nodes():
        if node.op_type == "MatMulBnb4":
            raise RecipeError(
                f"`{node.name}` has a weight in NF4, not in integers",
                where=str(path),
                hint="quantise with `numbers: integers`, the default",
            )
        if node.op_type == "MatMulNBits":
            yield from _packed_weights(node, path)
        if node.op_type != "DequantizeLinear":
            continue
        stored = node.inputs[0]
        if stored is None or stored.const_value is None:
            continue
        if stored.dtype == ir.DataType.UINT4:
            raise RecipeError(
                f"`{stored.name}` has a zero point for each block",
                where=str(path),
                hint=_SYMMETRIC,
            )
        if stored.dtype not in _BITS:
            continue
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            raise ArtifactError(f"`{stored.name}` has a zero point", where=str(path))
        scale = node.inputs[1]
        if scale is None or scale.const_value is None or len(stored.const_value.shape) != 2:
            continue
        yield _weight(node, stored, scale)


def without_rounded_inputs(path: Path, folder: Path) -> Path:
    """A graph whose products take their inputs as floats, to compare weights alone.

    Args:
        path: The graph.
        folder: Where such a graph is written when this one rounds inputs to 8 bits.

    Returns:
        The graph itself when it rounds none.
    """
    model = ir.load(path)
    rounding = [node for node in model.graph.all_nodes() if node.op_type == "MatMulNBits"]
    if not rounding:
        return path
    for node in rounding:
        node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 1)
    ir.save(model, folder / path.name, external_data=f"{path.name}.data")
    return folder / path.name


def _packed_weights(node: ir.Node, path: Path) -> Iterator[BlockWeight]:
    """Of a product that has ONNX Runtime's own form; of one that was joined, its parts.

    Source: `MatMulNBits` in docs/ContribOperators.md of onnxruntime: uint8 (outputs, blocks, bytes of a
    block), the first of two in the lower half of a byte, around 2^(bits - 1).
    """
    stored, scale = node.inputs[1], node.inputs[2]
    bits = node.attributes.get_int("bits", 4)
    size = node.attributes.get_int("block_size", 0)
    outputs, inputs = node.attributes.get_int("N", 0), node.attributes.get_int("K", 0)
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        raise RecipeError(
            f"`{node.name}` has a zero point for each block", where=str(path), hint=_SYMMETRIC
        )
    if (
        bits not in _BITS.values()
        or not size
        or inputs % size
        or stored is None
        or scale is None
        or stored.const_value is None
        or scale.const_value is None
    ):
        raise ArtifactError(
            f"`{node.name}` is packed in a form that is none of ours", where=str(path)
        )
    packed = stored.const_value.numpy().astype(np.int16).reshape(outputs, -1)
    if bits == 4:
        packed = np.stack([packed & 15, packed >> 4], axis=-1).reshape(outputs, -1)
    integers = (packed[:, :inputs] - (1 << (bits - 1))).astype(np.int8)
    scales = scale.const_value.numpy().astype(np.float32).reshape(outputs, -1)
    parts, start = joined_parts(node), 0
    for name, count in parts:
        rows = slice(start, start + count)
        start += count
        yield BlockWeight(
            name=str(stored.name) if len(parts) == 1 else name,
            bits=bits,
            integers=integers[rows],
            scale=scales[rows],
            block_size=size,
        )


def _weight(node: ir.Node, stored: ir.Value, scale: ir.Value) -> BlockWeight:
    assert stored.const_value is not None
    assert scale.const_value is not None
    assert stored.dtype is not None
    integers: NDArray[Any] = stored.const_value.numpy().astype(np.int8)
    factors: NDArray[Any] = scale.const_value.numpy().astype(np.float32)
    axis = node.attributes.get_int("axis", 1)
    if factors.ndim == 1:  # one for each output, and `axis` is where these lie
        factors = factors[:, None]
        inputs = 1 - axis
    else:
        inputs = axis
        factors = np.moveaxis(factors, inputs, 1)
    return BlockWeight(
        name=str(stored.name),
        bits=_BITS[stored.dtype],
        integers=np.ascontiguousarray(np.moveaxis(integers, inputs, 1)),
        scale=np.ascontiguousarray(factors),
        block_size=node.attributes.get_int("block_size", 0) or None,
    )
