"""A decoder whose cache grows -> one whose cache has a fixed length and is written in place.

    present = past with new tokens behind it          (batch, heads, past + sequence, width)
    ->  present = TensorScatter(past, new, position)  (batch, heads, length, width)

`past_key_values.N.key` and `present.N.key` then have one shape, so that a runner binds the same memory as
both. `cache_position`, int64 (1,), says where the first new token goes: how many tokens the cache holds.
`attention_mask` is (batch, length), so that no input grows; what stands in it, and in the cache, behind
the new tokens is never looked at. All else stays what the graph made of its inputs: within the graph the
mask is cut to the tokens there are, and masks, windows and positions are computed as before.

Whoever reads the cache gets its tokens cut off, `Attention` too, which costs a copy of them; that is no
more than making it longer did. Given the whole cache and `nonpad_kv_seqlen`, `Attention` of opset 24 gives
the same, but ONNX Runtime 1.31 computes all of its length on the CPU (2048 tokens, 64 of them used: 20
times the time; a prompt of 512: 5 times), and numbers that are NaN behind the tokens come through.

Source: `TensorScatter` of ONNX opset 24, onnx 1.23.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import onnx_ir as ir
from onnx_ir.passes.common import IdentityEliminationPass, RemoveUnusedNodesPass

from pipeline.data.decoder_inputs import CACHE_POSITION, CACHE_PREFIX, MASK, PRESENT_PREFIX
from pipeline.errors import StageError
from pipeline.graph.fusions.matching import (
    GraphEditor,
    input_of,
    int_attribute,
    is_standard,
    node_name,
    replace_value,
)
from pipeline.graph.opsets import raise_opset

if TYPE_CHECKING:
    from collections.abc import Sequence

OPSET: Final = 24
"""The first with `TensorScatter`."""
TOKENS: Final = "input_ids"

_TOKEN_AXIS: Final = 2
_MASK_AXIS: Final = 1
_MASK: Final = 3
"""Input of `Attention`; behind it are the keys and values of the past."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticCacheReport:
    """What was rewritten.

    Attributes:
        caches: How many tensors are written in place.
        attentions: How many operators made two of them longer, and now read them.
    """

    caches: int
    attentions: int


def write_static_cache(model: ir.Model, length: int) -> StaticCacheReport:
    """Rewrites a decoder in place.

    Args:
        model: With the names of `pipeline.runtimes.torch_decoder`, fused or not.
        length: Tokens that the cache has room for, padding included.

    Raises:
        StageError: when the graph is no decoder with a cache that grows by new tokens, or an operator
            would mean something else in opset 24.
    """
    graph = model.graph
    pairs = [
        (value, value.name.removeprefix(CACHE_PREFIX))
        for value in graph.inputs
        if value.name and value.name.startswith(CACHE_PREFIX)
    ]
    names = {value.name for value in graph.inputs}
    if not pairs or not {TOKENS, MASK} <= names or CACHE_POSITION in names:
        raise StageError(
            "the graph is no decoder with a cache that grows: its inputs are "
            + ", ".join(f"`{value.name}`" for value in graph.inputs)
        )
    raise_opset(model, OPSET)
    IdentityEliminationPass()(model)
    writer = _Writer(graph, length)
    grown = [writer.grown(past, name) for past, name in pairs]
    for node in dict.fromkeys(each.node for each in grown):
        writer.rewrite([each for each in grown if each.node is node])
    RemoveUnusedNodesPass()(model)
    return StaticCacheReport(caches=len(grown), attentions=writer.attentions)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grown:
    """A cached tensor and what makes it longer: `Concat`, or `Attention` for keys and values at once."""

    past: ir.Value
    new: ir.Value
    present: ir.Value
    node: ir.Node


class _Writer:
    """Puts what is written in place where something grew."""

    def __init__(self, graph: ir.Graph, length: int) -> None:
        self._graph = graph
        self._length = length
        self._editor = GraphEditor(graph)
        self.attentions = 0
        self._cuts: dict[ir.Value, ir.Value] = {}
        inputs = {value.name: value for value in graph.inputs}
        self._position = ir.Value(
            name=self._editor.name(CACHE_POSITION),
            shape=ir.Shape([1]),
            type=ir.TensorType(ir.DataType.INT64),
        )
        graph.inputs.append(self._position)
        first = next(iter(graph))
        tokens, mask = inputs[TOKENS], inputs[MASK]
        readers = list(mask.uses())
        rows = self._integers("Shape", [tokens], "cache_rows", first, start=0, end=1)
        new = self._integers("Shape", [tokens], "cache_new_tokens", first, start=1, end=2)
        self._total = self._integers("Add", [self._position, new], "cache_tokens", first)
        self._starts = self._integers("Expand", [self._position, rows], "cache_starts", first)
        seen = self._cut(mask, self._total, _MASK_AXIS, first)
        for node, index in readers:
            node.replace_input_with(index, seen)
        assert mask.shape is not None
        mask.shape = ir.Shape([mask.shape[0], length])
        self._first = first

    def grown(self, past: ir.Value, name: str) -> _Grown:
        """What makes the output that belongs to an input of the cache.

        Raises:
            StageError: when it is something else than the past with new tokens behind it.
        """
        wanted = f"{PRESENT_PREFIX}{name}"
        present = next((value for value in self._graph.outputs if value.name == wanted), None)
        node = None if present is None else present.producer()
        if present is None or node is None:
            raise StageError(f"the graph has an input `{past.name}` and makes no `{wanted}`")
        read: ir.Value | None = None
        new: ir.Value | None = None
        if is_standard(node, "Attention"):
            # Its masks are given; made by the operator they would be those of another opset.
            if input_of(node, _MASK) is not None and not int_attribute(node, "is_causal", 0):
                place = present.index() or 0
                read, new = input_of(node, _MASK + place), input_of(node, place)
        elif is_standard(node, "Concat") and len(node.inputs) == 2:
            is_along = int_attribute(node, "axis", 0) in {_TOKEN_AXIS, _TOKEN_AXIS - 4}
            read, new = node.inputs if is_along else (None, None)
        if read is not past or new is None:
            raise StageError(
                f"`{wanted}` is not `{past.name}` with new tokens behind it, but made by "
                f"`{node_name(node)}` ({node.op_type}): this cache cannot be written in place",
                hint="leave `static_cache` out: the cache then grows",
            )
        return _Grown(past=past, new=new, present=present, node=node)

    def rewrite(self, grown: Sequence[_Grown]) -> None:
        """One `Concat` with its tensor, or one `Attention` with keys and values."""
        node = grown[0].node
        written = [self._write(each) for each in grown]
        if is_standard(node, "Attention"):
            if len(written) != 2:
                raise StageError(f"`{node_name(node)}` keeps keys without values, or the reverse")
            self._attend(node, written)
        for index in range(len(node.inputs)):  # it reads the past no more
            node.replace_input_with(index, None)
        for each, whole in zip(grown, written, strict=True):
            writer = whole.producer()
            self._correct_readers(each.present, whole, self._total, node, but=writer)
            self._correct_readers(each.past, each.past, self._position, self._first, but=writer)
            replace_value(each.present, whole)
            for value in (each.past, whole):
                assert value.shape is not None
                rows, heads, _, width = value.shape
                value.shape = ir.Shape([rows, heads, self._length, width])
        self._graph.remove(node, safe=True)

    def _write(self, grown: _Grown) -> ir.Value:
        return self._editor.insert(
            grown.node,
            "TensorScatter",
            [grown.past, grown.new, self._starts],
            output=f"{grown.present.name}_written",
            attributes={"axis": _TOKEN_AXIS},
            dtype=grown.past.dtype or ir.DataType.FLOAT,
        )

    def _attend(self, node: ir.Node, written: Sequence[ir.Value]) -> None:
        """The same operator on the tokens of the cache, which no longer makes it longer itself."""
        result = node.outputs[0]
        tokens = [self._cut(whole, self._total, _TOKEN_AXIS, node) for whole in written]
        found = self._editor.insert(
            node,
            "Attention",
            [node.inputs[0], *tokens, node.inputs[_MASK]],
            output=f"{node_name(node)}_static",
            dtype=result.dtype or ir.DataType.FLOAT,
        )
        made = found.producer()
        assert made is not None
        made.attributes.update(node.attributes)
        found.shape = result.shape
        replace_value(result, found)
        self.attentions += 1

    def _correct_readers(
        self,
        old: ir.Value,
        whole: ir.Value,
        count: ir.Value,
        before: ir.Node,
        *,
        but: ir.Node | None,
    ) -> None:
        """Whoever read a tensor as long as its tokens gets one, or its length."""
        for reader, index in list(old.uses()):
            if reader is but:
                continue
            if is_standard(reader, "Shape"):
                self._tell_shape(reader, whole, count)
                continue
            reader.replace_input_with(index, self._cut(whole, count, _TOKEN_AXIS, before))

    def _tell_shape(self, reader: ir.Node, whole: ir.Value, count: ir.Value) -> None:
        """A shape with the number of tokens in place of the length of the cache."""
        name = node_name(reader)
        sizes = self._integers("Shape", [whole], f"{name}_outer", reader, start=0, end=_TOKEN_AXIS)
        width = self._integers("Shape", [whole], f"{name}_width", reader, start=3, end=4)
        shape = self._integers("Concat", [sizes, count, width], f"{name}_tokens", reader, axis=0)
        start = int_attribute(reader, "start", 0) % 4
        stop = int_attribute(reader, "end", 4)
        stop = min(stop, 4) if stop >= 0 else stop + 4
        if (start, stop) != (0, 4):
            bounds = [self._editor.integers((each,)) for each in (start, stop)]
            shape = self._integers("Slice", [shape, *bounds], f"{name}_part", reader)
        replace_value(reader.outputs[0], shape)
        reader.replace_input_with(0, None)
        self._graph.remove(reader, safe=True)

    def _cut(self, value: ir.Value, count: ir.Value, axis: int, before: ir.Node) -> ir.Value:
        """The first `count` of an axis: a copy, which is made once."""
        if value not in self._cuts:
            self._cuts[value] = self._editor.insert(
                before,
                "Slice",
                [value, self._editor.integers((0,)), count, self._editor.integers((axis,))],
                output=f"{value.name}_tokens",
                dtype=value.dtype or ir.DataType.FLOAT,
            )
        return self._cuts[value]

    def _integers(
        self,
        operator: str,
        inputs: Sequence[ir.Value],
        name: str,
        before: ir.Node,
        **attributes: int,
    ) -> ir.Value:
        return self._editor.insert(
            before,
            operator,
            inputs,
            output=name,
            attributes=attributes,
            dtype=ir.DataType.INT64,
        )
