"""Keeps the few neurons of a feed-forward block that would spoil its quantisation in float.

    f(x A + a) B  =  f(x A' + a') B'  +  f(x A'' + a'') B''

where the second part holds some columns of A and rows of B, and the first one has zeros in their
place (f(0) = 0, so they stay zero). Both parts together are the block as it was. Trained encoders
have single neurons that answer one token with a number five to ten times as large as all others: on
their account the 256 levels of the whole tensor lie too far apart. Such a neuron has a single
connection that is far stronger than those of other neurons, and is found by that, without data.

Source: M. Sun et al., "Massive Activations in Large Language Models", 2024, arXiv:2402.17762, and
T. Dettmers et al., "LLM.int8()", 2022, arXiv:2208.07339, which takes columns out at run time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.graph.fusions.matching import (
    CONTRIB_DOMAIN,
    GraphEditor,
    input_of,
    is_standard,
    node_name,
    only_consumer,
    replace_value,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    import onnx_ir as ir
    from numpy.typing import NDArray

STRONG: Final = 5.0
"""Times the median over the neurons of their strongest connections; above it lies an outlier."""

MOST_NEURONS: Final = 8
"""Of one block; with more, the float part would cost time that can be measured."""

_KEEPS_ZERO: Final = frozenset({"FastGelu", "Gelu", "QuickGelu", "Relu", "Swish"})
"""Activations with f(0) = 0 that are one operator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatNeurons:
    """The part of one block that stays float.

    Attributes:
        layer: Name of the product before the activation.
        neurons: Their numbers.
        nodes: The products of the float part.
        weight_bytes: Of its weights.
    """

    layer: str
    neurons: tuple[int, ...]
    nodes: tuple[ir.Node, ir.Node]
    weight_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """x A + a, its activation, and the product with B."""

    first: ir.Node
    source: ir.Value
    bias: ir.Value
    add: ir.Node
    activation: ir.Node
    second: ir.Node


def split_outlier_neurons(
    graph: ir.Graph, *, kept_float: Collection[str] = ()
) -> tuple[FloatNeurons, ...]:
    """Gives every block with outliers a float part; the graph computes the same up to rounding.

    Args:
        graph: Edited in place; float32, with constants as initializers. Nodes that nothing reads any
            longer stay in it.
        kept_float: Names of products that will not be quantised; where the second one of a block is
            among them, no tensor is coarsened.
    """
    editor = GraphEditor(graph)
    return tuple(
        _split(block, neurons, editor)
        for block in list(_blocks(graph))
        if node_name(block.second) not in kept_float and (neurons := outliers(_strengths(block)))
    )


def outliers(strengths: NDArray[np.float32]) -> tuple[int, ...]:
    """The neurons whose strongest connection is far above the usual, strongest first.

    Args:
        strengths: (neurons,), the absolute value of each one's strongest connection.
    """
    order = np.argsort(-strengths, kind="stable")[:MOST_NEURONS]
    limit = STRONG * float(np.median(strengths))
    return tuple(int(neuron) for neuron in order if strengths[neuron] > limit)


def _blocks(graph: ir.Graph) -> Iterator[_Block]:
    for node in graph:
        is_known = node.op_type in _KEEPS_ZERO and node.domain in {"", CONTRIB_DOMAIN}
        block = _block(node) if is_known and len(node.inputs) == 1 else None
        if block is not None:
            yield block


def _block(activation: ir.Node) -> _Block | None:
    """The block around an activation, when no other node looks inside and its weights are its own."""
    second = only_consumer(activation.outputs[0])
    add = _own_producer(activation.inputs[0])
    if second is None or not _is_product(second) or add is None or not is_standard(add, "Add"):
        return None
    for product, bias in (add.inputs, add.inputs[::-1]):
        first = _own_producer(product)
        if first is None or bias is None or not _is_product(first):
            continue
        if _is_own_constant(bias, 1) and first.inputs[0] is not None:
            return _Block(
                first=first,
                source=first.inputs[0],
                bias=bias,
                add=add,
                activation=activation,
                second=second,
            )
    return None


def _own_producer(value: ir.Value | None) -> ir.Node | None:
    """The node that computes a value, when one node alone reads it."""
    return None if value is None or only_consumer(value) is None else value.producer()


def _is_product(node: ir.Node | None) -> bool:
    """Whether a node is a MatMul of a computed value and a weight of its own."""
    return node is not None and is_standard(node, "MatMul") and is_own_matrix(node.inputs[1])


def is_own_matrix(value: ir.Value | None) -> bool:
    """Whether a value is a constant float32 matrix that one node alone reads."""
    return value is not None and _is_own_constant(value, 2)


def _is_own_constant(value: ir.Value, axes: int) -> bool:
    tensor = value.const_value
    if tensor is None or value.is_graph_input() or only_consumer(value) is None:
        return False
    return len(tensor.shape) == axes and tensor.dtype.name == "FLOAT"


def _strengths(block: _Block) -> NDArray[np.float32]:
    """Strongest connection of each neuron, as seen from before the normalisation's own weights."""
    connections = np.abs(constant_array(block.first.inputs[1]))
    weights = norm_weights(block.source.producer())
    if weights is not None and weights.shape == connections.shape[:1]:
        connections *= np.abs(weights)[:, None]
    return connections.max(axis=0)  # type: ignore[no-any-return]


def norm_weights(norm: ir.Node | None) -> NDArray[np.float32] | None:
    """The weights of a layer normalisation, (channels,); None for another node."""
    places = {"LayerNormalization": 1, "SkipLayerNormalization": 2}
    if norm is None or norm.op_type not in places:
        return None
    weights = input_of(norm, places[norm.op_type])
    if weights is None or weights.const_value is None or len(weights.const_value.shape) != 1:
        return None
    return constant_array(weights)


def constant_array(value: ir.Value | None) -> NDArray[np.float32]:
    """A copy of a constant's content, to change."""
    if value is None or value.const_value is None:
        raise ValueError("not a constant")
    return np.array(value.const_value.numpy(), dtype=np.float32)


def _split(block: _Block, neurons: tuple[int, ...], editor: GraphEditor) -> FloatNeurons:
    places = list(neurons)
    name = node_name(block.first)
    for node in (block.first, block.second):  # layers are known by it, whatever becomes of results
        node.name = node_name(node)
    before, bias = constant_array(block.first.inputs[1]), constant_array(block.bias)
    after = constant_array(block.second.inputs[1])
    parts = (before[:, places], bias[places], after[places])
    stored = [
        editor.constant(editor.name(f"{name}_outlier_{part}"), np.ascontiguousarray(array))
        for part, array in zip(("first", "bias", "second"), parts, strict=True)
    ]
    end = _end(block.second)
    hidden = editor.insert(
        end, "MatMul", [block.source, stored[0]], output=f"{name}_outliers_product"
    )
    biased = editor.insert(end, "Add", [hidden, stored[1]], output=f"{name}_outliers_biased")
    active = editor.insert(
        end,
        block.activation.op_type,
        [biased],
        output=f"{name}_outliers_active",
        attributes={key: each.value for key, each in block.activation.attributes.items()},
        domain=block.activation.domain,
    )
    result = editor.insert(end, "MatMul", [active, stored[2]], output=f"{name}_outliers")
    before[:, places], bias[places], after[places] = 0, 0, 0
    rests = ((block.first, before), (block.add, bias), (block.second, after))
    for (node, array), part in zip(rests, ("first", "bias", "second"), strict=True):
        old = block.bias if node is block.add else node.inputs[1]
        rest = editor.constant(editor.name(f"{name}_rest_{part}"), array)
        node.replace_input_with(list(node.inputs).index(old), rest)
    # These no longer hold what they held: nobody may take them for it by their names.
    for node in (block.first, block.add, block.activation, block.second):
        if node is not end:  # the sum takes that name over
            node.outputs[0].name = editor.name(f"{node.outputs[0].name}_rest")
    # `end` is written again before itself, so that the sum can stand behind it.
    rest = editor.insert(end, end.op_type, end.inputs, output=f"{name}_rest")
    copy = rest.producer()
    if end is block.second and copy is not None:
        copy.name = end.name
    replace_value(
        end.outputs[0], editor.insert(end, "Add", [rest, result], output=f"{name}_whole")
    )
    nodes = (hidden.producer(), result.producer())
    assert nodes[0] is not None
    assert nodes[1] is not None
    return FloatNeurons(
        layer=name,
        neurons=neurons,
        nodes=(nodes[0], nodes[1]),
        weight_bytes=parts[0].nbytes + parts[2].nbytes,
    )


def _end(second: ir.Node) -> ir.Node:
    """The product, or the addition of its bias, which a runtime takes into it."""
    reader = only_consumer(second.outputs[0])
    if reader is None or not is_standard(reader, "Add"):
        return second
    others = [value for value in reader.inputs if value is not second.outputs[0]]
    is_bias = len(others) == 1 and others[0] is not None and others[0].const_value is not None
    return reader if is_bias else second
