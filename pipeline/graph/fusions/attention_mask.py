"""Brings the mask of an attention into the form that the fused operator takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from pipeline.graph.fusions.attention_scores import LARGEST_FILL
from pipeline.graph.fusions.dims import ONE, Shape
from pipeline.graph.fusions.outcome import Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.graph.fusions.attention_scores import Fill, Mask, Scores
    from pipeline.graph.fusions.matching import GraphEditor
    from pipeline.graph.fusions.shapes import SymbolicShapes

LOWEST_FLOAT = float(np.finfo(np.float32).min)
"""Added to a score it gives itself, so that a row of it has equal weights and not NaN."""


def check_mask(scores: Scores, full: Shape, shapes: SymbolicShapes, *, is_guarded: bool) -> None:
    """Requires masks to broadcast to the scores in a way that the fused operator can follow.

    Args:
        scores: What the masks are added to.
        full: (batch, heads, length of the query, length of the key).
        shapes: Of the graph.
        is_guarded: Whether NaN rows become zeros.

    Raises:
        Refused: with the reason.
    """
    if is_guarded and not scores.masks:
        raise Refused("a guard against NaN stands behind scores without a mask")
    for mask in scores.masks:
        _check_one(mask, full, shapes, is_guarded=is_guarded)


def _check_one(mask: Mask, full: Shape, shapes: SymbolicShapes, *, is_guarded: bool) -> None:
    name, shape = mask.value.name, shapes.of(mask.value)
    if shape is None:
        raise Refused(f"the shape of the mask `{name}` is not known")
    if mask.rank != 4 and any(dim != ONE for dim in shape[:-2]):
        raise Refused("the mask is added while batch and heads share an axis")
    padded = (ONE,) * (4 - len(shape)) + shape
    if len(padded) != 4 or any(
        dim not in {ONE, wanted} for dim, wanted in zip(padded, full, strict=True)
    ):
        raise Refused(
            f"the mask `{name}` of ({_text(shape)}) is not known to broadcast to ({_text(full)})"
        )
    if is_guarded and padded[1] != ONE:
        raise Refused("a guard against NaN stands behind a mask that differs between heads")


def _text(shape: Shape) -> str:
    return ", ".join(map(str, shape))


class MaskBuilder:
    """Prepares masks; those that layers share are prepared once.

    Args:
        editor: Of the graph.
        shapes: Of the graph.
        has_heads: Operands and result are (batch, heads, length, size), in place of (batch,
            length, heads * size).
    """

    def __init__(
        self, editor: GraphEditor, shapes: SymbolicShapes, *, has_heads: bool = False
    ) -> None:
        self._editor = editor
        self._shapes = shapes
        self._has_heads = has_heads
        self._length_axis = 2 if has_heads else 1
        # ONNX Runtime's `Attention` takes the lowest float for infinite, and gives zeros for a row of
        # it. Nothing else is lost: a fill this low swallows any score as well.
        self._lowest = LARGEST_FILL if has_heads else LOWEST_FLOAT
        self._made: dict[tuple[object, ...], ir.Value] = {}

    def bias(
        self, scores: Scores, operands: tuple[ir.Value, ir.Value], before: ir.Node,
        *, is_guarded: bool,
    ) -> ir.Value:  # fmt: skip
        """The sum of the masks (batch|1, heads|1, length, length), for which `check_mask` holds.

        Args:
            scores: Holds the masks, one at least.
            operands: Query and key.
            before: Where to insert.
            is_guarded: Whether infinite entries must become finite, see `zero_masked_rows`.
        """
        query, key = (self._shapes.of(operand) or () for operand in operands)
        lengths = (query[self._length_axis], key[self._length_axis])
        value = self._additive(scores, before)
        if is_guarded or self._has_heads:
            value = self._once(("finite", value), lambda: self._finite(value, before))
        shape = self._shapes.of(value) or ()
        if len(shape) == 4 and shape[2:] == lengths:
            return value
        unexpanded = value
        return self._once(
            ("expanded", value, lengths), lambda: self._expanded(unexpanded, operands, before)
        )

    def zero_masked_rows(self, scores: Scores, result: ir.Value, before: ir.Node) -> ir.Value:
        """Zeros where every key is masked with -infinity; `result` else."""
        mask = self._additive(scores, before)
        rows = self._once(("rows", mask), lambda: self._masked_rows(mask, before))
        zero = self._editor.float_scalar(0.0)
        return self._editor.insert(
            before, "Where", [rows, zero, result], output=f"{result.name}_guarded"
        )

    def _once(self, key: tuple[object, ...], make: Callable[[], ir.Value]) -> ir.Value:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _additive(self, scores: Scores, before: ir.Node) -> ir.Value:
        # Scores are too small to change a mask's lowest number, so the order of sums is free.
        total, *others = (self._addend(mask, before) for mask in scores.masks)
        for other in others:
            total = self._sum(total, other, before)
        return total

    def _sum(self, left: ir.Value, right: ir.Value, before: ir.Node) -> ir.Value:
        def add() -> ir.Value:
            name = f"{left.name}_{right.name}"
            return self._editor.insert(before, "Add", [left, right], output=name)

        return self._once(("sum", left, right), add)

    def _addend(self, mask: Mask, before: ir.Node) -> ir.Value:
        value, fill = mask.value, mask.fill
        if fill is None:
            return value
        return self._once(("filled", value, fill), lambda: self._filled(value, fill, before))

    def _filled(self, condition: ir.Value, fill: Fill, before: ir.Node) -> ir.Value:
        branches = [self._editor.float_scalar(fill.number), self._editor.float_scalar(0.0)]
        if not fill.where_true:
            branches.reverse()
        return self._editor.insert(
            before, "Where", [condition, *branches], output=f"{condition.name}_bias"
        )

    def _finite(self, mask: ir.Value, before: ir.Node) -> ir.Value:
        lowest = self._editor.float_scalar(self._lowest)
        return self._editor.insert(before, "Max", [mask, lowest], output=f"{mask.name}_finite")

    def _expanded(
        self, mask: ir.Value, operands: tuple[ir.Value, ir.Value], before: ir.Node
    ) -> ir.Value:
        lengths = [
            self._editor.insert(
                before, "Shape", [operand], output=f"{operand.name}_length",
                attributes={"start": self._length_axis, "end": self._length_axis + 1},
                dtype=ir.DataType.INT64,
            )
            for operand in operands
        ]  # fmt: skip
        target = self._editor.insert(
            before, "Concat", [self._editor.integers((1, 1)), *lengths],
            output=f"{mask.name}_target", attributes={"axis": 0}, dtype=ir.DataType.INT64,
        )  # fmt: skip
        return self._editor.insert(
            before, "Expand", [mask, target], output=f"{mask.name}_expanded"
        )

    def _masked_rows(self, mask: ir.Value, before: ir.Node) -> ir.Value:
        """Whether a row is masked in full: bool (batch|1, length|1, 1), with heads (.., 1, .., 1)."""
        highest = self._editor.insert(
            before, "ReduceMax", [mask, self._editor.integers((-1,))],
            output=f"{mask.name}_highest", attributes={"keepdims": 1},
        )  # fmt: skip
        if not self._has_heads and len(self._shapes.of(mask) or ()) == 4:
            highest = self._editor.insert(
                before, "Squeeze", [highest, self._editor.integers((1,))],
                output=f"{mask.name}_rows",
            )  # fmt: skip
        return self._editor.insert(
            before, "IsInf", [highest], output=f"{mask.name}_masked_rows",
            attributes={"detect_positive": 0}, dtype=ir.DataType.BOOL,
        )  # fmt: skip
