"""A foreign graph as a link of a chain: weights inside, our names outside, nothing else changed.

What is computed between its inputs and its outputs stays node by node as it was. Around it are put
casts of inputs and outputs, inputs that follow from others, and, where it takes one size only, the
padding that its users must do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import onnx
from onnx import TensorProto, helper

from pipeline.errors import ArtifactError
from pipeline.graph.adoption_caches import (
    PAST_AXES,
    PRESENT_AXES,
    past_input,
    past_node,
    present_node,
    present_output,
    unused_input,
)
from pipeline.graph.adoption_shims import (
    FED_TYPES,
    feed_nodes,
    inner_name,
    read_nodes,
    supply_nodes,
)
from pipeline.tasks import CHOICES_AXIS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.candidates.records import AdoptedInput, AdoptedOutput, Interface

LEAST_OPSET: Final = 11
"""Of the nodes that are put around a graph: Range, and Pad and Slice with sizes from the data."""


def adopt_model(model: onnx.ModelProto, interface: Interface) -> None:
    """Give a graph our names and its shims; outputs that are not looked at go.

    Args:
        model: With all weights in it; is changed.
        interface: What was found of its signature.

    Raises:
        ArtifactError: the graph's operators are too old for what would have to be put around it.
    """
    graph = model.graph
    opset = next((e.version for e in model.opset_import if e.domain in {"", "ai.onnx"}), 0)
    if (interface.supplied or interface.fixed) and opset < LEAST_OPSET:
        raise ArtifactError(
            f"its inputs must be adapted, which takes opset {LEAST_OPSET}, and it has {opset}",
            hint="export it again with a newer opset",
        )
    _rename(graph, interface)
    _rename_axes(graph, interface)
    known = {value.name: value for value in (*graph.input, *graph.output)}
    inputs: list[onnx.ValueInfoProto] = []
    before: list[onnx.NodeProto] = []
    for adopted in interface.inputs:
        value = known[inner_name(adopted.name)]
        inputs.append(_outer_input(adopted, value))
        rank = len(value.type.tensor_type.shape.dim)
        before += feed_nodes(adopted, interface.fixed, rank)
    for supplied in interface.supplied:
        before += supply_nodes(supplied)
    outputs: list[onnx.ValueInfoProto] = []
    after: list[onnx.NodeProto] = []
    for output in interface.outputs:
        outputs.append(_outer_output(output, known[inner_name(output.name)]))
        after += read_nodes(output, interface)
    for cache in interface.caches:
        # Without its shape ONNX Runtime (1.31) takes what GroupQueryAttention gives for as long as its past,
        # and writes it into the same memory.
        graph.value_info.append(known[inner_name(cache.present)])
        inputs.append(past_input(cache))
        outputs.append(present_output(cache))
        before.append(past_node(cache))
        after.append(present_node(cache))
    inputs += [unused_input(name) for name in interface.unused]
    initializers = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.input if value.name in initializers]
    nodes = [*before, *graph.node, *after]
    for field, values in (
        (graph.node, nodes),
        (graph.input, [*inputs, *kept]),
        (graph.output, outputs),
    ):
        del field[:]
        field.extend(values)


def _rename(graph: onnx.GraphProto, interface: Interface) -> None:
    """Call what is adopted by inner names, so that ours are free for the outside."""
    inputs = {each.given: inner_name(each.name) for each in interface.inputs}
    inputs |= {each.given: inner_name(each.given) for each in interface.supplied}
    outputs = {each.given: inner_name(each.name) for each in interface.outputs}
    inputs |= {each.given: inner_name(each.name) for each in interface.caches}
    outputs |= {each.given_present: inner_name(each.present) for each in interface.caches}
    ours = [each.name for each in interface.inputs] + [each.name for each in interface.outputs]
    ours += [name for each in interface.caches for name in (each.name, each.present)]
    ours += interface.unused
    # A value inside that happens to have one of our names makes room.
    names = {name: inner_name(f"own.{name}") for name in ours} | outputs | inputs
    for value in graph.output:  # an input that is given out as it is
        if value.name in inputs and value.name in outputs:
            graph.node.append(helper.make_node("Identity", [value.name], [outputs[value.name]]))
            value.name = outputs[value.name]
    _replace(graph, names)


def _replace(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for values in (graph.input, graph.output, graph.value_info, graph.initializer):
        for value in values:
            value.name = names.get(value.name, value.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = names.get(sparse.values.name, sparse.values.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _replace(attribute.g, names)
            for inner in attribute.graphs:
                _replace(inner, names)


def _rename_axes(graph: onnx.GraphProto, interface: Interface) -> None:
    """Call the axes inside as outside: two names of one axis would be two axes to ONNX Runtime."""
    names: dict[str, str] = {}
    values = {value.name: value for value in (*graph.input, *graph.output)}
    adopted = [(each.name, each.axes) for each in interface.inputs]
    adopted += [(each.name, each.axes) for each in interface.outputs]
    for each in interface.caches:
        adopted += [(each.name, PAST_AXES), (each.present, PRESENT_AXES)]
    for own, axes in adopted:
        dims = values[inner_name(own)].type.tensor_type.shape.dim
        for dim, axis in zip(dims, axes, strict=False):
            if dim.dim_param and axis and axis not in interface.fixed:
                names.setdefault(dim.dim_param, axis)
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]


def _outer_input(adopted: AdoptedInput, value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    sizes = _sizes(value)[len(adopted.axes) :]
    return helper.make_tensor_value_info(
        adopted.name, FED_TYPES[adopted.fed], [*adopted.axes, *sizes]
    )


def _outer_output(output: AdoptedOutput, value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """With named axes first; where the graph declares no shape, with the task's usual rank."""
    tensor = value.type.tensor_type
    dtype = tensor.elem_type if output.is_comparable else TensorProto.FLOAT
    sizes = _sizes(value) if tensor.HasField("shape") else []
    rank = len(sizes) or _usual_rank(output)
    if not rank:
        return helper.make_tensor_value_info(output.name, dtype, None)
    rest = (sizes or [None] * rank)[len(output.axes) :]
    return helper.make_tensor_value_info(output.name, dtype, [*output.axes, *rest])


def _sizes(value: onnx.ValueInfoProto) -> list[int | str | None]:
    return [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
        for dim in value.type.tensor_type.shape.dim
    ]


def _usual_rank(output: AdoptedOutput) -> int:
    """Axes of the task's own output; 0 when models differ in it."""
    if output.name in {"start_logits", "end_logits"} or CHOICES_AXIS in output.axes:
        return len(output.axes)
    is_map_or_patches = output.name == "last_hidden_state" and len(output.axes) == 1
    return 0 if is_map_or_patches else len(output.axes) + 1
