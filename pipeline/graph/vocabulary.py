"""The two weights of a language model that have a row for each token: the embeddings and the LM head.

    Gather(table, ids)  ->  com.microsoft.GatherBlockQuantized(table4, ids, scales)

Tables in 4 bits have blocks along a row, as products have them along their inputs; only the rows that are
looked up are widened. ONNX's own Gather takes no integers of 4 bits in ONNX Runtime 1.31.1, and a table
behind DequantizeLinear would be widened whole at every call. In 8 bits see `quantized_embeddings`.

Of a tied pair (one weight in the checkpoint) each use has its own copy here, because a product behind
DequantizeLinear reads another layout; see `shared_table` for products in ONNX Runtime's own form. That
it is tied is said in the facts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from pipeline.errors import QuantizationError
from pipeline.graph.blockwise import quantize_blocks
from pipeline.graph.fusions.matching import (
    CONTRIB_DOMAIN,
    GraphEditor,
    is_standard,
    node_name,
    only_consumer,
    replace_value,
)
from pipeline.graph.quantized_embeddings import (
    SMALLEST_EMBEDDING_BYTES,
    embedding_lookups,
    quantize_embeddings,
)
from pipeline.graph.weighted_layers import WeightedLayer, find_weighted_layers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray

Width = Literal["float", "int8", "int4"]

TABLE_BLOCK: Final = 32
"""Numbers of a row that share a scale, in 4 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableForm:
    """How a table in 4 bits is rounded.

    Attributes:
        block_size: Numbers of a row that share a scale.
        method: Of `pipeline.graph.weight_methods`.
        has_zero_points: Whether each block has one.
        has_signs: Whether scales may be negative.
        head: The product that holds the same numbers, when its integers are taken over.
    """

    block_size: int = TABLE_BLOCK
    method: str = "clip"
    has_zero_points: bool = False
    has_signs: bool = False
    head: WeightedLayer | None = None


class TableNumbers(NamedTuple):
    """A table in 4 bits: integers (rows, size), scales (rows, blocks), zero points likewise or None."""

    values: NDArray[Any]
    scale: NDArray[Any]
    zero_point: NDArray[Any] | None


LOOKUP: Final = "GatherBlockQuantized"
_LOGITS: Final = "logits"
_BEHIND_HEAD: Final = ("Add", "Cast", "Div", "Mul", "Reshape", "Slice", "Squeeze", "Tanh")
"""Operators between the product and the output: a bias, a limit of logits, another shape."""

_FLOATS: Final = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


def is_lm_head(layer: WeightedLayer) -> bool:
    """Whether a product makes `logits`, one for each row of a table of embeddings."""
    weight, graph = layer.weight, layer.node.graph
    if weight is None or weight.const_value is None or not isinstance(graph, ir.Graph):
        return False
    value: ir.Value = layer.node.outputs[0]
    while not (value.is_graph_output() and value.name == _LOGITS):
        reader = only_consumer(value)
        if reader is None or not is_standard(reader, *_BEHIND_HEAD):
            return False
        value = reader.outputs[0]
    outputs = weight.const_value.shape.numpy()[layer.axis]
    return any(table.shape.numpy()[0] == outputs for _, table in _tables(graph))


def _tables(graph: ir.Graph) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """Float matrices whose rows are looked up."""
    for node in graph:
        table = node.inputs[0] if is_standard(node, "Gather") else None
        if table is not None and table.const_value is not None:
            tensor = table.const_value
            if tensor.dtype in _FLOATS and len(tensor.shape) == 2:
                yield table, tensor


def tied_table(graph: ir.Graph, layer: WeightedLayer) -> ir.Value | None:
    """The table of embeddings that holds the same numbers as a head, transposed or not; or None."""
    if layer.weight is None or layer.weight.const_value is None:
        return None
    content = np.moveaxis(layer.weight.const_value.numpy(), layer.axis, 0)
    for table, tensor in _tables(graph):
        if tuple(tensor.shape.numpy()) == content.shape and _is_equal(tensor.numpy(), content):
            return table
    return None


def _is_equal(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Compared a few rows at a time: of tables that are not tied the first ones differ."""
    step = 256
    return all(
        np.array_equal(one[start : start + step], other[start : start + step])
        for start in range(0, len(one), step)
    )


def head_facts(model: ir.Model) -> dict[str, str | bool] | None:
    """The name of the product that is the LM head, and whether it is tied; None without one."""
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for layer in find_weighted_layers(model.graph):
        if is_lm_head(layer):
            return {"layer": layer.name, "is_tied": tied_table(model.graph, layer) is not None}
    return None


def quantize_tables(
    graph: ir.Graph,
    editor: GraphEditor,
    width: Width,
    forms: Mapping[str, TableForm],
    ready: Mapping[str, TableNumbers],
) -> tuple[str, ...]:
    """Store the tables that are looked up by token in few bits.

    Args:
        graph: Edited in place; float32.
        editor: Of this graph.
        width: How many; of 4 bits, rows have blocks of `TABLE_BLOCK`.
        forms: Name of a table -> how it is rounded to 4 bits, where that is not the usual way.
        ready: Name of a table -> its numbers, where they are known already.

    Returns:
        Names of the lookups.

    Raises:
        QuantizationError: when there is no table to store so.
    """
    if width == "float":
        return ()
    lookups = lookups_in_bits(graph, width, forms)
    if not lookups:
        raise QuantizationError(
            f"embeddings are to have {width}, and no table is looked up by token alone"
            + (
                f", in rows of a whole number of blocks of {TABLE_BLOCK}"
                if width == "int4"
                else ""
            )
            + f"; tables below {SMALLEST_EMBEDDING_BYTES >> 10} KiB do not count",
            hint="leave `embeddings` out; a table that something else reads as well stays float",
        )
    if width == "int8":
        return quantize_embeddings(graph, editor)
    return tuple(_in_blocks(node, editor, form_of(node, forms), ready) for node in lookups)


def lookups_in_bits(
    graph: ir.Graph, width: Width, forms: Mapping[str, TableForm]
) -> list[ir.Node]:
    """The lookups whose tables `quantize_tables` stores in few bits."""
    found = [] if width == "float" else embedding_lookups(graph)
    if width == "int4":
        found = [node for node in found if _row_size(node) % form_of(node, forms).block_size == 0]
    return found


def form_of(lookup: ir.Node, forms: Mapping[str, TableForm]) -> TableForm:
    """How its table is rounded to 4 bits."""
    table = lookup.inputs[0]
    return forms.get("" if table is None else table.name or "", TableForm())


def _row_size(lookup: ir.Node) -> int:
    table = lookup.inputs[0]
    return 1 if table is None or table.const_value is None else table.const_value.shape.numpy()[1]


def _in_blocks(
    node: ir.Node, editor: GraphEditor, form: TableForm, ready: Mapping[str, TableNumbers]
) -> str:
    name = node_name(node)
    table, indices = node.inputs
    if table is None or table.const_value is None:
        raise ValueError(f"`{name}` has no table")
    size = form.block_size
    numbers = ready.get(table.name or "")
    if numbers is None:
        content = table.const_value.numpy()
        made = quantize_blocks(content, axis=1, bits=4, block_size=size, method=form.method)
        numbers = TableNumbers(made.values, made.scale, None)
    zeros = []
    if numbers.zero_point is not None:
        zeros.append(editor.store(f"{table.name}_zero_point", numbers.zero_point))
    stored = editor.store(f"{table.name}_quantized", numbers.values)
    rows = editor.insert(
        node,
        LOOKUP,
        [stored, indices, editor.store(f"{table.name}_scale", numbers.scale), *zeros],
        output=f"{name}_rows",
        attributes={"block_size": size, "gather_axis": 0, "quantize_axis": 1},
        domain=CONTRIB_DOMAIN,
    )
    replace_value(node.outputs[0], rows)
    return name


def float_share(graph: ir.Graph) -> float:
    """Share of the bytes of constants that are floats, and no scales of integers."""
    total = floats = 0
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None:
            continue
        total += tensor.nbytes
        if tensor.dtype in _FLOATS and not _is_scale(value.uses()):
            floats += tensor.nbytes
    return floats / total if total else 0.0


def _is_scale(uses: Iterable[tuple[ir.Node, int]]) -> bool:
    """Whether a constant is read as the scales of integers, and as nothing else."""
    places = [(node.op_type, index) for node, index in uses]
    tables = [node for node, index in uses if node.op_type == "Gather" and index == 0]
    is_row_scale = bool(tables) and all(
        (value := node.inputs[0]) is not None and (value.name or "").endswith("_scale")
        for node in tables
    )
    known = {("DequantizeLinear", 1), ("MatMulBnb4", 2), (LOOKUP, 2)}
    known |= {("Gather", 0)} if is_row_scale else set()
    return bool(places) and set(places) <= known
