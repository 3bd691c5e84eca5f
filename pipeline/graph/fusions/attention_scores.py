"""Reads what stands between the two products of an attention: scale, mask, softmax, guard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.graph.fusions.matching import (
    constant_scalar,
    consumers,
    input_of,
    int_attribute,
    is_standard,
    node_name,
)
from pipeline.graph.fusions.outcome import Refused
from pipeline.graph.fusions.views import scale_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from pipeline.graph.fusions.shapes import SymbolicShapes

LARGEST_FILL = -1e30
"""A fill this low swallows any score it is added to, so adding it equals filling with it."""

_RESHAPES = ("Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """A `Where` that overwrites scores.

    Attributes:
        number: What is written.
        where_true: Whether it is written where the condition holds (else where it does not).
    """

    number: float
    where_true: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """Something that is added to the scores: a padding mask, a bias of relative positions.

    Attributes:
        value: What is added, or the condition of `fill`.
        rank: Number of axes the scores have where it is applied.
        fill: Set when the value is the condition of a `Where`.
    """

    value: ir.Value
    rank: int
    fill: Fill | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """`product * scale + masks`, as it enters the softmax.

    Attributes:
        product: The node that multiplies query and key.
        scale: The constant factor between product and masks.
        masks: All that is added, the first one first.
    """

    product: ir.Node
    scale: float
    masks: tuple[Mask, ...]


class _Reader:
    """Walks from the softmax to the product, one node at a time."""

    def __init__(self, shapes: SymbolicShapes) -> None:
        self._shapes = shapes
        self._scale = 1.0
        self._masks: list[Mask] = []

    def read(self, value: ir.Value) -> Scores:
        """Walks up from the softmax's input."""
        current = value
        while True:
            node = current.producer()
            if node is None:
                raise Refused(f"the scores come from `{current.name}`, which no product makes")
            if is_standard(node, "MatMul"):
                return Scores(product=node, scale=self._scale, masks=tuple(self._masks[::-1]))
            current = self._step(node, current)

    def _step(self, node: ir.Node, current: ir.Value) -> ir.Value:
        if len(consumers(current)) != 1 or current.is_graph_output():
            raise Refused(f"the scores `{current.name}` are used elsewhere")
        scaled = scale_of(node)
        if scaled is not None:
            self._scale *= scaled[1]
            return scaled[0]
        if is_standard(node, *_RESHAPES):
            return self._through_reshape(node, current)
        if is_standard(node, "Add"):
            return self._through_add(node, current)
        if is_standard(node, "Where"):
            return self._through_where(node, current)
        raise Refused(f"`{node.op_type}` stands between the product and the softmax")

    def _through_reshape(self, node: ir.Node, current: ir.Value) -> ir.Value:
        source = input_of(node, 0)
        inner, outer = self._shapes.of(source), self._shapes.of(current)
        if source is None or inner is None or outer is None or inner[-2:] != outer[-2:]:
            raise Refused(f"`{node_name(node)}` reshapes the scores' last two axes")
        return source

    def _through_add(self, node: ir.Node, current: ir.Value) -> ir.Value:
        sides = [side for side in node.inputs if side is not None]
        leading = [side for side in sides if _leads_to_product(side)]
        if len(leading) != 1:
            count = "both inputs" if leading else "neither input"
            raise Refused(f"{count} of `{node_name(node)}` can be the scores")
        mask = sides[1] if sides[0] is leading[0] else sides[0]
        self._add_mask(mask, current)
        return leading[0]

    def _through_where(self, node: ir.Node, current: ir.Value) -> ir.Value:
        condition, if_true, if_false = node.inputs
        for fill, scores, where_true in ((if_true, if_false, True), (if_false, if_true, False)):
            number = constant_scalar(fill)
            if number is None or scores is None or condition is None:
                continue
            # Not `number > LARGEST_FILL`: NaN must be refused as well.
            if not number <= LARGEST_FILL:
                raise Refused(f"masked scores are set to {number:g}, which adding cannot give")
            self._add_mask(condition, current, Fill(number=number, where_true=where_true))
            return scores
        raise Refused(f"`{node_name(node)}` chooses between two computed scores")

    def _add_mask(self, mask: ir.Value, current: ir.Value, fill: Fill | None = None) -> None:
        if self._scale != 1.0:
            raise Refused("the mask is multiplied together with the scores")
        rank = len(self._shapes.of(current) or ())
        self._masks.append(Mask(value=mask, rank=rank, fill=fill))


def _leads_to_product(value: ir.Value | None) -> bool:
    """Whether a product of two computed tensors is behind factors, reshapes, masks and fills."""
    node = None if value is None else value.producer()
    if node is None:
        return False
    if is_standard(node, "MatMul"):
        right = input_of(node, 1)
        return right is not None and right.const_value is None
    scaled = scale_of(node)
    if scaled is not None:
        return _leads_to_product(scaled[0])
    if is_standard(node, *_RESHAPES):
        return _leads_to_product(input_of(node, 0))
    if is_standard(node, "Add", "Where"):
        return any(_leads_to_product(source) for source in node.inputs)
    return False


def read_scores(softmax: ir.Node, shapes: SymbolicShapes) -> Scores:
    """Reads everything above the softmax.

    Raises:
        Refused: when it is more than a scaled and masked product.
    """
    source = input_of(softmax, 0)
    shape = shapes.of(source)
    if source is None or shape is None:
        raise Refused("the shape of the scores is not known")
    axis = int_attribute(softmax, "axis", -1)
    if axis not in {-1, len(shape) - 1}:
        raise Refused(f"the softmax is taken over axis {axis}, not the last")
    return _Reader(shapes).read(source)


def read_guard(softmax: ir.Node, shapes: SymbolicShapes) -> tuple[bool, ir.Node]:
    """Reads everything below the softmax, up to the product with the value.

    Returns:
        Whether a guard turns NaN into zero, and the product.

    Raises:
        Refused: when the weights are used for anything else.
    """
    current, is_guarded = softmax.outputs[0], False
    while True:
        readers = consumers(current)
        if current.is_graph_output():
            raise Refused("the attention weights are an output of the graph")
        guard = _guard_of(current, readers)
        if guard is not None:
            current, is_guarded = guard.outputs[0], True
            continue
        if len(readers) != 1:
            raise Refused(f"the attention weights `{current.name}` are used elsewhere")
        reader = readers[0]
        if is_standard(reader, "MatMul") and reader.inputs[0] is current:
            return is_guarded, reader
        after, before = shapes.of(reader.outputs[0]), shapes.of(current)
        keeps_axes = after is not None and before is not None and after[-2:] == before[-2:]
        if not is_standard(reader, *_RESHAPES) or not keeps_axes:
            raise Refused(f"`{reader.op_type}` stands between the softmax and the value")
        current = reader.outputs[0]


def _guard_of(weights: ir.Value, readers: tuple[ir.Node, ...]) -> ir.Node | None:
    """The `Where(IsNaN(weights), 0, weights)` that reads `weights`, if that is all that does."""
    tests = [reader for reader in readers if is_standard(reader, "IsNaN")]
    choices = [reader for reader in readers if is_standard(reader, "Where")]
    if len(readers) != 2 or len(tests) != 1 or len(choices) != 1:
        return None
    condition, zero, kept = choices[0].inputs
    is_guard = (
        condition is tests[0].outputs[0]
        and consumers(tests[0].outputs[0]) == (choices[0],)
        and constant_scalar(zero) == 0.0
        and kept is weights
    )
    return choices[0] if is_guard else None
