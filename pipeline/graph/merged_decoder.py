"""A pair of graphs whose decoder makes what it reads of the source itself, in its first step.

Our encoder gives keys and values of the source for every layer of the decoder. Optimum and transformers.js
feed the decoder `encoder_hidden_states` instead, and an empty cache in the first step. What computes the
source's keys and values moves from one graph to the other, behind one `If`:

    encoder_hidden_states, use_cache_branch, past_key_values.N.encoder.*  ->  present.N.encoder.*
        use_cache_branch: they are what came in; otherwise they are computed

All else of the decoder is outside of it, so every weight is there once and nothing is fused or quantised
otherwise. Source of the names: `optimum.exporters.onnx.base.OnnxSeq2SeqConfigWithPast`, optimum-onnx 0.1,
and `src/models/modeling_utils.js` of transformers.js 4.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from pipeline.errors import ArtifactError, StageError
from pipeline.graph.files import load_ir_model, save_ir_model
from pipeline.graph.opsets import raise_opset
from pipeline.graph.renaming import rename_outside
from pipeline.stages.base import EXTERNAL_DATA_FILE, MODEL_FILE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

STATES: Final = "last_hidden_state"
HIDDEN: Final = "encoder_hidden_states"
BRANCH: Final = "use_cache_branch"
_PAST: Final = "past_key_values."
_PRESENT: Final = "present."
_OF_SOURCE: Final = ".encoder."
_MOVED: Final = "source."
_SOURCE_AXIS: Final = "past_encoder_sequence"
_WIDTH_AXIS: Final = "past_width"
_LENGTH, _WIDTH = 2, 3
"""Axes of keys and values, (batch, heads, tokens, width)."""


def write_merged_pair(
    encoder: Path,
    decoder: Path,
    scratch: Path,
    places: tuple[Path, Path],
    *,
    axes: Mapping[str, str],
    has_any_width: bool = False,
) -> None:
    """Write both graphs as programs want them that run the encoder for its states alone.

    Args:
        encoder: The graph of an artifact that reads the source.
        decoder: The graph that takes what it gives.
        scratch: An empty folder on the same disk.
        places: Where the new ones go; weights outside lie beside them as `NAME_data`.
        axes: Other names for free axes.
        has_any_width: The decoder's own first, empty cache may have another width, as Optimum makes it
            where heads are not as wide as the model's width over their number.

    Raises:
        ArtifactError: when keys and values of the source are not computed from the encoder's states.
    """
    source, target = load_ir_model(encoder), load_ir_model(decoder)
    _speak_alike(source, target)
    _move(source, target)
    if has_any_width:
        _take_any_width(target.graph)
    _drop(source)
    for model, place in zip((source, target), places, strict=True):
        folder = scratch / place.name
        folder.mkdir()
        save_ir_model(model, folder)
        data = place.with_name(f"{place.name}_data")
        here = {old: new for old, new in axes.items() if old in _axes(model.graph)}
        place.parent.mkdir(parents=True, exist_ok=True)
        rename_outside(
            folder / MODEL_FILE, place, files={EXTERNAL_DATA_FILE: data.name}, axes=here
        )
        if (folder / EXTERNAL_DATA_FILE).is_file():
            (folder / EXTERNAL_DATA_FILE).rename(data)


def _speak_alike(source: ir.Model, target: ir.Model) -> None:
    """Give both the same versions of operators.

    Raises:
        ArtifactError: there is none in which both mean what they do.
    """
    newest = max(model.opset_imports.get("", 0) for model in (source, target))
    try:
        for model in (source, target):
            raise_opset(model, newest)
    except StageError as error:
        raise ArtifactError(error.message) from error
    for domain, version in source.opset_imports.items():
        if target.opset_imports.setdefault(domain, version) != version:
            raise ArtifactError(
                f"encoder and decoder are written in different versions of `{domain}`: "
                f"{version} and {target.opset_imports[domain]}"
            )
    if source.functions:
        raise ArtifactError("the encoder defines operators of its own, which cannot be moved")


def _move(source: ir.Model, target: ir.Model) -> None:
    """Let the decoder compute keys and values of the source, where it was given none."""
    graph = target.graph
    made = {
        value.name: value for value in source.graph.outputs if _OF_SOURCE in (value.name or "")
    }
    taken = [value for value in graph.inputs if _OF_SOURCE in (value.name or "")]
    names = [f"{_PRESENT}{str(value.name).removeprefix(_PAST)}" for value in taken]
    states = _named(source.graph.outputs, STATES)
    if not taken or set(names) != set(made) or states is None:
        raise ArtifactError(
            f"the encoder gives no `{STATES}`, or not what the decoder takes of the source: "
            f"{', '.join(sorted(set(names).symmetric_difference(map(str, made))))[:200]}"
        )
    hidden = ir.val(HIDDEN, dtype=states.dtype, shape=states.shape)
    inner = _Slice(source.graph, graph, states, hidden)
    computed = ir.Graph(
        [], [inner.copy(made[name]) for name in names], nodes=inner.nodes, name="made"
    )
    given = [ir.node("Identity", [value]) for value in taken]
    for number, node in enumerate(given):
        node.outputs[0].name = f"{_MOVED}given.{number}"
        node.outputs[0].type = taken[number].type
    kept = ir.Graph([], [node.outputs[0] for node in given], nodes=given, name="given")
    branch = ir.val(BRANCH, dtype=ir.DataType.BOOL, shape=ir.Shape([1]))
    chosen = ir.node(
        "If",
        [branch],
        attributes={"then_branch": kept, "else_branch": computed},
        num_outputs=len(taken),
        name=f"{_MOVED}choose",
    )
    for value, name, result in zip(taken, names, chosen.outputs, strict=True):
        result.name, result.type, result.shape = name, value.type, made[name].shape
        for user, place in list(value.uses()):
            if user.graph is not kept:
                user.replace_input_with(place, result)
        value.shape = _changed(value, _LENGTH, _SOURCE_AXIS)
    graph.insert_before(graph[0], chosen)
    tokens = [value for value in graph.inputs if not str(value.name).startswith(_PAST)]
    graph.inputs[:] = [*tokens, hidden, *_in_order(graph.inputs, _PAST), branch]
    outputs = [value for value in graph.outputs if not str(value.name).startswith(_PRESENT)]
    graph.outputs[:] = [*outputs, *_in_order([*graph.outputs, *chosen.outputs], _PRESENT)]


class _Slice:
    """Copies of the nodes between the encoder's states and its keys and values.

    Args:
        source: The encoder.
        target: The decoder, which gets the weights.
        states: The encoder's output.
        hidden: What stands for it in the decoder.
    """

    def __init__(
        self, source: ir.Graph, target: ir.Graph, states: ir.Value, hidden: ir.Value
    ) -> None:
        self.nodes: list[ir.Node] = []
        self._target = target
        self._states = states
        self._inputs = set(source.inputs)
        self._copies: dict[ir.Value, ir.Value] = {states: hidden}
        before = states.producer()
        if before is not None and before.op_type == "Cast" and before.inputs[0] is not None:
            # In half precision they are read before they are widened for the output.
            inner = before.inputs[0]
            narrow = ir.node(
                "Cast", [hidden], attributes={"to": inner.dtype or ir.DataType.FLOAT16}
            )
            self._copies[inner] = self._add(narrow, [inner])

    def copy(self, value: ir.Value) -> ir.Value:
        """What a value of the encoder is in the decoder.

        Raises:
            ArtifactError: when it is not computed from the states.
        """
        waiting = [value]
        while waiting:
            now = waiting[-1]
            if now in self._copies:
                waiting.pop()
                continue
            if now.const_value is not None and now.is_initializer():
                self._copies[now] = self._store(now)
                continue
            node = now.producer()
            if node is None:
                raise ArtifactError(
                    f"the source's keys and values come from the encoder's `{now.name}`, not from "
                    f"`{STATES}` alone"
                )
            if self._is_size(node):
                self._measure(node)
                continue
            missing = [v for v in node.inputs if v is not None and v not in self._copies]
            if missing:
                waiting += missing
                continue
            inputs = [None if v is None else self._copies[v] for v in node.inputs]
            again = ir.node(
                node.op_type,
                inputs,
                attributes=dict(node.attributes),
                domain=node.domain,
                overload=node.overload,
                num_outputs=len(node.outputs),
                name=f"{_MOVED}{node.name}" if node.name else None,
            )
            self._add(again, node.outputs)
        return self._copies[value]

    def _add(self, node: ir.Node, olds: Iterable[ir.Value]) -> ir.Value:
        for old, new in zip(olds, node.outputs, strict=True):
            new.name, new.type, new.shape = f"{_MOVED}{old.name}", old.type, old.shape
            self._copies[old] = new
        self.nodes.append(node)
        return node.outputs[0]

    def _store(self, value: ir.Value) -> ir.Value:
        tensor = value.const_value
        assert tensor is not None
        name = f"{_MOVED}{value.name}"
        stored = ir.val(name, const_value=tensor, type=value.type, shape=value.shape)
        self._target.register_initializer(stored)
        return stored

    def _is_size(self, node: ir.Node) -> bool:
        return node.op_type == "Shape" and node.inputs[0] in self._inputs

    def _measure(self, node: ir.Node) -> None:
        """The size of an encoder's input, where the states have the same.

        Raises:
            ArtifactError: they have not.
        """
        taken = node.inputs[0]
        assert taken is not None
        ours, theirs = list(taken.shape or ()), list(self._states.shape or ())
        start = node.attributes.get_int("start", 0)
        end = node.attributes.get_int("end", len(ours))
        start, end = (n + len(ours) if n < 0 else n for n in (start, end))
        if [str(size) for size in ours[start:end]] != [str(size) for size in theirs[start:end]]:
            raise ArtifactError(
                f"the source's keys and values depend on the size of the encoder's `{taken.name}`, "
                f"which `{STATES}` has not"
            )
        hidden = self._copies[self._states]
        again = ir.node("Shape", [hidden], attributes={"start": start, "end": end})
        again.name = f"{_MOVED}{node.name}" if node.name else None
        self._add(again, node.outputs)


def _drop(source: ir.Model) -> None:
    """Take keys and values out of the encoder, and all that nothing else needs."""
    graph = source.graph
    graph.outputs[:] = [value for value in graph.outputs if _OF_SOURCE not in (value.name or "")]
    RemoveUnusedNodesPass()(source)


def _take_any_width(graph: ir.Graph) -> None:
    """Let empty keys and values have any width: a view gives them the right one."""
    for value in graph.inputs:
        if not str(value.name).startswith(_PAST) or value.shape is None:
            continue
        width = value.shape[_WIDTH]
        value.shape = _changed(value, _WIDTH, _WIDTH_AXIS)
        if _OF_SOURCE in str(value.name):
            continue  # it is not read in the first step
        sizes = ir.tensor(
            np.array([0, 0, -1, width], np.int64), name=f"{_MOVED}{value.name}.sizes"
        )
        stored = ir.val(sizes.name, const_value=sizes, type=ir.TensorType(ir.DataType.INT64))
        stored.shape = ir.Shape([4])
        graph.register_initializer(stored)
        users = list(value.uses())
        view = ir.node("Reshape", [value, stored], name=f"{_MOVED}{value.name}.view")
        view.outputs[0].name = f"{_MOVED}{value.name}"
        view.outputs[0].type = value.type
        for user, place in users:
            user.replace_input_with(place, view.outputs[0])
        graph.insert_before(graph[0], view)


def _changed(value: ir.Value, axis: int, name: str) -> ir.Shape:
    sizes = list(value.shape or ())
    sizes[axis] = ir.SymbolicDim(name)
    return ir.Shape(sizes)


def _in_order(values: Iterable[ir.Value], prefix: str) -> list[ir.Value]:
    """Layer by layer: the decoder's own keys and values, then those of the source."""

    def place(value: ir.Value) -> tuple[int, bool, str]:
        layer, kind = str(value.name).removeprefix(prefix).split(".", 1)
        return int(layer), not kind.startswith("decoder"), kind

    return sorted((v for v in values if str(v.name).startswith(prefix)), key=place)


def _named(values: Iterable[ir.Value], name: str) -> ir.Value | None:
    return next((value for value in values if value.name == name), None)


def _axes(graph: ir.Graph) -> set[str]:
    values = [*graph.inputs, *graph.outputs]
    return {
        str(size) for value in values for size in value.shape or () if not isinstance(size, int)
    }
