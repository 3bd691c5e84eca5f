"""Products of one input as one product: its weight is read in one go, and the input is rounded once.

    MatMulNBits(x, Q) , MatMulNBits(x, K) , MatMulNBits(x, V)  ->  Split(MatMulNBits(x, [Q; K; V]))

Packed weights, scales, zero points and what is added lie by outputs first (`pipeline.graph.packed_weight`), so
those of several products are put behind each other, and each result is a slice of the last axis. Every
value of the packed form is what it was. ONNX Runtime 1.31 computes the results of one column from its weights
alone, in the same order, where columns begin at a multiple of 16: then results are the same in
every bit. It was tried with 1 to 33 rows, 1 and 2 threads, blocks of 16 to 128, with and without zero points.
Products of 8 bits that leave activations in float32 are not: with several rows they become products of
floats, whose sums are cut by the width of the whole.

What is added to a product, a constant for each output, becomes a part of it: so ONNX Runtime does itself when it
loads the graph, but not behind a Split.

Joined are products with the same operator attributes, of 16 outputs or a multiple each, whose
constants nobody else reads. More than `MOST` are left: those are of all layers, as the keys and values
of a cross-attention, and their results would all be copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.errors import StageError
from pipeline.graph.fusions.matching import (
    CONTRIB_DOMAIN,
    GraphEditor,
    input_of,
    int_attribute,
    is_standard,
    node_name,
    only_consumer,
    replace_value,
)
from pipeline.graph.fusions.outcome import Outcome, Refusal, Refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

MOST: Final = 5
"""Query, key, value, and the two products of a gated layer beside the attention."""

COLUMNS: Final = 16
"""Kernels of `MatMulNBits` work on so many outputs at a time, or on a part of so many."""

JOINED: Final = "_joined"
"""Behind the name of the first product: the name of the product of all."""

_PRODUCT: Final = "MatMulNBits"
_SPLIT: Final = "Split"
_WEIGHTS: Final = ("packed", "scales", "zero_points")
"""The inputs behind the first one."""

_GROUPS: Final = 4
"""An order of the inputs of a layer, which we never write."""

_BIAS: Final = 5


def join_products(model: ir.Model) -> Outcome:
    """Join products of the main graph that read the same value, in place.

    Args:
        model: Behind `pipeline.graph.shared_table.share_tables`.

    Returns:
        How many products became a part of another, and which of several with the same input did not.

    Raises:
        StageError: when a joined constant is not what its parts were.
    """
    graph = model.graph
    editor = GraphEditor(graph)
    outcome = Outcome()
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node in graph:
        source = node.inputs[0] if _is_product(node) else None
        if source is not None:
            readers.setdefault(source, []).append(node)
    for products in readers.values():
        if len(products) > 1:
            _join_alike(products, editor, outcome)
    return outcome


def joined_parts(node: ir.Node) -> tuple[tuple[str, int], ...]:
    """Name of the result and number of outputs of each product that is in one; itself when it is alone."""
    output = node.outputs[0]
    whole = ((str(output.name), int_attribute(node, "N", 0)),)
    users = [reader for reader, _ in output.uses()]
    if not (node.name or "").endswith(JOINED) or len(users) != 1 or users[0].op_type != _SPLIT:
        return whole
    sizes = users[0].inputs[1]
    if sizes is None or sizes.const_value is None:
        return whole
    names = [str(value.name) for value in users[0].outputs]
    return tuple(zip(names, sizes.const_value.numpy().tolist(), strict=True))


def _is_product(node: ir.Node) -> bool:
    return node.domain == CONTRIB_DOMAIN and node.op_type == _PRODUCT


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A product of several, with what it adds.

    Attributes:
        node: The product.
        weights: Its constants up to the zero points.
        bias: Added to each row; None: nothing.
        addition: The node that adds it, where the product does not do so itself.
    """

    node: ir.Node
    weights: tuple[ir.Value | None, ...]
    bias: ir.Value | None
    addition: ir.Node | None

    @property
    def outputs(self) -> int:
        return int_attribute(self.node, "N", 0)

    @property
    def result(self) -> ir.Value:
        return (self.addition or self.node).outputs[0]

    @property
    def kind(self) -> object:
        """Equal for products that can be joined: all but their number of outputs."""
        attributes = sorted(
            (name, str(each.value)) for name, each in self.node.attributes.items() if name != "N"
        )
        constants = (*self.weights, self.bias)
        types = [None if value is None else value.dtype for value in constants]
        return tuple(attributes), tuple(types)


def _join_alike(products: Sequence[ir.Node], editor: GraphEditor, outcome: Outcome) -> None:
    """Join those of one input that are alike; say of the others why they are not."""
    groups: dict[object, list[_Part]] = {}
    for node in products:
        try:
            part = _read(node)
        except Refused as refusal:
            outcome.refused.append(Refusal(node=node_name(node), reason=str(refusal)))
            continue
        groups.setdefault(part.kind, []).append(part)
    for group in groups.values():
        reason = ""
        if len(group) == 1:
            reason = "the other products of its input have other bits, blocks, or form"
        elif len(group) > MOST:
            reason = f"{len(group)} products read its input, {MOST} are joined at most"
        if reason:
            names = [node_name(part.node) for part in group]
            outcome.refused += [Refusal(node=name, reason=reason) for name in names]
            continue
        _join(group, editor)
        outcome.fired += len(group)


def _read(node: ir.Node) -> _Part:
    """A product that can be a part of another without a change of its result.

    Raises:
        Refused: when it cannot.
    """
    outputs = int_attribute(node, "N", 0)
    if outputs % COLUMNS:
        raise Refused(f"its {outputs} outputs are no multiple of {COLUMNS}")
    if int_attribute(node, "bits", 4) == 8 and int_attribute(node, "accuracy_level", 0) != 4:
        raise Refused("with 8 bits and activations in float32 its sums would be cut elsewhere")
    if input_of(node, _GROUPS) is not None:
        raise Refused("its inputs have an order of their own")
    weights = tuple(input_of(node, index) for index in range(1, _GROUPS))
    for value in weights:
        if value is None:
            continue
        _require_constant(value)
        if len(value.uses()) > 1:
            raise Refused(f"`{value.name}` is also read by another node")
    bias = input_of(node, _BIAS)
    addition = None
    if bias is not None:
        _require_constant(bias)
    else:
        addition, bias = _added(node, outputs)
    return _Part(node=node, weights=weights, bias=bias, addition=addition)


def _is_constant(value: ir.Value) -> bool:
    return value.is_initializer() and value.const_value is not None and not value.is_graph_input()


def _require_constant(value: ir.Value) -> None:
    if not _is_constant(value) or value.is_graph_output():
        raise Refused(f"`{value.name}` is not constant")


def _added(node: ir.Node, outputs: int) -> tuple[ir.Node | None, ir.Value | None]:
    """The node that adds a number to each output of a product and nothing else, and the numbers."""
    product = node.outputs[0]
    reader = only_consumer(product)
    if reader is None or not is_standard(reader, "Add"):
        return None, None
    for value in reader.inputs:
        if value is not None and value is not product and _is_constant(value):
            assert value.const_value is not None
            if value.const_value.shape.numpy() == (outputs,):
                return reader, value
    return None, None


def _join(parts: Sequence[_Part], editor: GraphEditor) -> None:
    first = parts[0].node
    graph = first.graph
    assert graph is not None
    name = f"{node_name(first)}{JOINED}"
    inputs: list[ir.Value | None] = [first.inputs[0]]
    for place, what in enumerate(_WEIGHTS):
        values = [part.weights[place] for part in parts]
        inputs.append(_stacked(values, f"{name}_{what}", editor))
    inputs += [None, _stacked([part.bias for part in parts], f"{name}_bias", editor)]
    while inputs[-1] is None:
        inputs.pop()
    sizes = [part.outputs for part in parts]
    result = parts[0].result
    whole = editor.insert(
        first,
        _PRODUCT,
        inputs,
        output=f"{result.name}{JOINED}",
        attributes={key: each.value for key, each in first.attributes.items()} | {"N": sum(sizes)},
        domain=CONTRIB_DOMAIN,
    )
    results = editor.insert_with_outputs(
        first,
        _SPLIT,
        [whole, editor.integers(sizes)],
        outputs=[f"{part.result.name}_part" for part in parts],
        attributes={"axis": -1},
    )
    made, split = whole.producer(), results[0].producer()
    assert made is not None
    assert split is not None
    made.name, split.name = name, f"{name}_parts"
    whole.type = result.type
    if result.shape is not None:
        whole.shape = result.shape.copy()
        whole.shape[-1] = sum(sizes)
    for part, value in zip(parts, results, strict=True):
        value.shape, value.type = part.result.shape, part.result.type
        replace_value(part.result, value)
        if part.addition is not None:
            graph.remove(part.addition, safe=True)
        graph.remove(part.node, safe=True)
        for constant in (*part.weights, part.bias):
            # At once: otherwise all weights are held twice.
            if constant is not None and constant.name is not None and not constant.uses():
                del graph.initializers[constant.name]


def _stacked(values: Sequence[ir.Value | None], name: str, editor: GraphEditor) -> ir.Value | None:
    """Constants behind each other along the outputs; None where they are left out.

    Raises:
        StageError: when one is not, bit for bit, where it belongs.
    """
    found = [value.const_value for value in values if value is not None]
    arrays = [tensor.numpy() for tensor in found if tensor is not None]
    if not arrays:
        return None
    whole = np.concatenate(arrays)
    start = 0
    for array in arrays:
        part = whole[start : start + len(array)]
        if part.dtype != array.dtype or part.tobytes() != array.tobytes():
            raise StageError("a weight is not what it was after products were joined", where=name)
        start += len(array)
    return editor.store(name, whole)
