"""Reads tables of tokens in 4 or 8 bits back out of a graph, as the floats that lookups in them give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx_ir as ir

from pipeline.errors import ArtifactError, RecipeError
from pipeline.graph.fusions.matching import consumers, input_of, int_attribute, is_standard
from pipeline.graph.vocabulary import LOOKUP

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

_LOW_BITS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class NarrowTable:
    """A table whose rows are looked up.

    Attributes:
        name: Of the stored integers.
        bits: 4 or 8.
        floats: float32 (rows, size), what the graph computes with.
    """

    name: str
    bits: int
    floats: NDArray[np.float32]


def read_narrow_tables(path: Path) -> Iterator[NarrowTable]:
    """Every table that is stored in few bits, in the forms of `vocabulary` and `shared_table`.

    Raises:
        RecipeError: one has zero points.
        ArtifactError: one is stored in a form that is none of ours.
    """
    model = ir.load(path)
    for node in model.graph:
        if node.op_type == LOOKUP:
            yield _in_blocks(node, path)
        elif is_standard(node, "Gather"):
            stored = input_of(node, 0)
            if stored is not None and stored.const_value is not None and _is_rows(stored):
                yield _in_rows(node, stored, path)


def _is_rows(stored: ir.Value) -> bool:
    assert stored.const_value is not None
    return stored.const_value.dtype == ir.DataType.INT8 and len(stored.const_value.shape) == 2


def _in_rows(node: ir.Node, stored: ir.Value, path: Path) -> NarrowTable:
    """Cast(Gather(table, ids)) * Gather(scales, ids)."""
    rows = (reader for cast in consumers(node.outputs[0]) for reader in consumers(cast.outputs[0]))
    for factor in (value for reader in rows for value in reader.inputs if value is not None):
        gather = factor.producer()
        scale = input_of(gather, 0) if gather and is_standard(gather, "Gather") else None
        if scale is not None and scale.const_value is not None:
            assert stored.const_value is not None
            values = stored.const_value.numpy().astype(np.float32)
            steps = scale.const_value.numpy().astype(np.float32).reshape(len(values), 1)
            return NarrowTable(name=str(stored.name), bits=8, floats=values * steps)
    raise _unknown(node, path)


def _in_blocks(node: ir.Node, path: Path) -> NarrowTable:
    """GatherBlockQuantized, of a table of its own or of the packed weight of the head."""
    if input_of(node, 3) is not None:
        raise RecipeError(
            f"`{node.name}` has a zero point for each block",
            where=str(path),
            hint="quantise with `symmetric: true`, the default",
        )
    stored, scale = input_of(node, 0), input_of(node, 2)
    shared = stored.producer() if stored is not None else None
    if shared is not None and is_standard(shared, "Reshape"):
        stored = input_of(shared, 0)
    if stored is None or scale is None or stored.const_value is None or scale.const_value is None:
        raise _unknown(node, path)
    integers = stored.const_value.numpy()
    if stored.const_value.dtype == ir.DataType.UINT8:
        if int_attribute(node, "bits", _LOW_BITS) != _LOW_BITS:
            raise _unknown(node, path)
        packed = integers.astype(np.int16).reshape(len(integers), -1)
        integers = np.stack([packed & 15, packed >> _LOW_BITS], axis=-1) - 8
    values = integers.reshape(len(integers), -1).astype(np.float32)
    steps = scale.const_value.numpy().astype(np.float32).reshape(len(values), -1)
    steps = np.repeat(steps, int_attribute(node, "block_size", 128), axis=1)[:, : values.shape[1]]
    return NarrowTable(name=str(stored.name), bits=_LOW_BITS, floats=values * steps)


def _unknown(node: ir.Node, path: Path) -> ArtifactError:
    return ArtifactError(
        f"`{node.name}` looks up a table in a form that is none of ours", where=str(path)
    )
