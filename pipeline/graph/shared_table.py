"""One table for both ends of a tied model: the lookup of tokens reads what the LM head multiplies with.

    GatherBlockQuantized(table4, ids, scales)  ->  GatherBlockQuantized(Reshape(W), ids, scales of W)
    MatMulNBits(x, W, scales)                      the same

`MatMulNBits` has the integers as (outputs, blocks, bytes of a block), unsigned, the first of two in the lower
half of a byte, 8 standing for zero. `GatherBlockQuantized` reads bytes in the same order when its table is
uint8 (rows, bytes of a row), and without zero points 8 stands for zero as well; scales are (rows, blocks)
for both, and so are zero points, two to a byte. So the same bytes serve where rows and outputs,
block sizes and numbers are the same. `Reshape` only takes an axis away.

Source: kernels of ONNX Runtime 1.31.1, gather_block_quantized.cc and matmul_nbits.cc; its generator of
language models (onnxruntime-genai 0.18) writes tied models so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from pipeline.graph.fusions.matching import (
    CONTRIB_DOMAIN,
    GraphEditor,
    input_of,
    int_attribute,
    node_name,
    replace_value,
)
from pipeline.graph.fusions.outcome import Refused
from pipeline.graph.packed_weight import pack_weight

if TYPE_CHECKING:
    from pipeline.hashing import JSON

_LOOKUP: Final = "GatherBlockQuantized"
_PRODUCT: Final = "MatMulNBits"


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedTable:
    """What became of one lookup beside a product of the same size.

    Attributes:
        lookup: Name of the node.
        product: Name of the product whose weight has as many rows and columns.
        reason: Why each keeps its own copy; empty when one serves both.
        bytes_saved: Of integers and scales that are no longer stored.
    """

    lookup: str
    product: str
    reason: str = ""
    bytes_saved: int = 0

    def as_json(self) -> dict[str, JSON]:
        """For the facts of a stage."""
        return {
            "lookup": self.lookup,
            "product": self.product,
            "is_shared": not self.reason,
            "reason": self.reason,
            "bytes_saved": self.bytes_saved,
        }


def share_tables(model: ir.Model) -> tuple[SharedTable, ...]:
    """Let lookups read the packed weight of a product that holds the same numbers, in place.

    Args:
        model: Behind `pipeline.graph.matmul_nbits.pack_products`.

    Returns:
        What became of each lookup that has a product of its size; none where there is no such pair.
    """
    graph = model.graph
    editor = GraphEditor(graph)
    products = [node for node in graph if _is(node, _PRODUCT)]
    found = []
    for lookup in [node for node in graph if _is(node, _LOOKUP)]:
        table = _constant(lookup, 0)
        if table is None or len(table.shape) != 2 or table.dtype not in _SIGNED:
            continue
        same_size = [each for each in products if _size(each) == tuple(table.shape.numpy())]
        outcomes = []
        for product in same_size:
            outcomes.append(_shared(lookup, product, editor))
            if not outcomes[-1].reason:
                break
        found += outcomes[-1:]
    RemoveUnusedNodesPass()(model)
    return tuple(found)


_SIGNED: Final = {ir.DataType.INT4, ir.DataType.UINT4}


def _is(node: ir.Node, op_type: str) -> bool:
    return node.domain == CONTRIB_DOMAIN and node.op_type == op_type


def _size(product: ir.Node) -> tuple[int, int]:
    return int_attribute(product, "N", 0), int_attribute(product, "K", 0)


def _constant(node: ir.Node, index: int) -> ir.TensorProtocol | None:
    value = input_of(node, index)
    return None if value is None or value.is_graph_input() else value.const_value


def _shared(lookup: ir.Node, product: ir.Node, editor: GraphEditor) -> SharedTable:
    names = (node_name(lookup), node_name(product))
    try:
        saved, reason = _share(lookup, product, editor), ""
    except Refused as refusal:
        saved, reason = 0, str(refusal)
    return SharedTable(lookup=names[0], product=names[1], reason=reason, bytes_saved=saved)


def _share(lookup: ir.Node, product: ir.Node, editor: GraphEditor) -> int:
    """Bytes that are no longer stored.

    Raises:
        Refused: when the two are not the same, bit for bit.
    """
    table, scales = _constant(lookup, 0), _constant(lookup, 2)
    weight, steps = input_of(product, 1), input_of(product, 2)
    if table is None or scales is None or weight is None or steps is None:
        raise Refused("a table or its scales are not constant")
    bits, size = int_attribute(product, "bits", 4), int_attribute(product, "block_size", 0)
    own = int_attribute(lookup, "block_size", 128)
    if bits != 4:
        raise Refused(f"the product has {bits} bits, the table 4")
    if own != size:
        raise Refused(f"the product has blocks of {size}, the table of {own}")
    zero, zero_of_product = input_of(lookup, 3), input_of(product, 3)
    if (zero is None) != (zero_of_product is None):
        raise Refused("only one of the two has zero points")
    packed = pack_weight(
        table.numpy(),
        scales.numpy(),
        output_axis=0,
        block_size=size,
        zero_points=None if zero is None else _numbers(zero),
    )
    pairs = [(packed.values, weight), (packed.scales, steps)]
    if packed.zero_points is not None and zero_of_product is not None:
        pairs.append((packed.zero_points, zero_of_product))
    if not all(_same(array, _numbers(value)) for array, value in pairs):
        raise Refused(
            "their numbers differ: the model is not tied, or they were rounded differently"
        )
    rows = editor.insert(
        lookup,
        "Reshape",
        [weight, editor.integers((packed.outputs, -1))],
        output=f"{weight.name}_rows",
        dtype=ir.DataType.UINT8,
    )
    inputs = [rows, lookup.inputs[1], steps, *([zero_of_product] if zero is not None else [])]
    result = lookup.outputs[0]
    made = editor.insert(
        lookup,
        _LOOKUP,
        inputs,
        output=f"{result.name}_shared",
        attributes={
            "bits": 4,
            "block_size": size,
            "gather_axis": 0,
            "quantize_axis": 1,
        },
        domain=CONTRIB_DOMAIN,
    )
    made.shape, made.type = result.shape, result.type
    saved = table.nbytes + scales.nbytes
    saved += 0 if zero is None or zero.const_value is None else zero.const_value.nbytes
    name = lookup.name
    replace_value(result, made)
    new, graph = made.producer(), lookup.graph
    assert new is not None
    assert graph is not None
    graph.remove(lookup, safe=True)
    new.name = name
    return int(saved)


def _numbers(value: ir.Value) -> Any:
    if value.const_value is None:
        raise Refused(f"`{value.name}` is not constant")
    return value.const_value.numpy()


def _same(left: Any, right: Any) -> bool:
    """Bit for bit."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return bool((left.view(np.uint8) == right.view(np.uint8)).all())
