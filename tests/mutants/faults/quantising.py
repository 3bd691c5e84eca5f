"""Damages that quantisers make: scales, zero points, axes, rounding, and what was not done at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.mutants.bench import Scene
from tests.mutants.catalogue import graph_fault, result_fault
from tests.mutants.surgery import Graph, NotHereError

STATIC = {"quantize_static": ("static", "rtx-int8")}
BOTH = {"quantize_dynamic": ("dynamic",), **STATIC}
DYNAMIC_ALONE = {"quantize_dynamic": ("dynamic",)}


def _weights(graph: Graph) -> list[str]:
    """Stems of all quantised matrices, in order."""
    return [
        name.removesuffix("_quantized")
        for name, array in graph.initializers()
        if name.endswith("_quantized") and array.ndim == 2 and "embeddings" not in name
        if array.dtype.name in {"int8", "uint8"}
    ]


def _square(graph: Graph) -> str:
    for stem in _weights(graph):
        rows, columns = graph.get(f"{stem}_quantized").shape
        if rows == columns:
            return stem
    raise NotHereError("there is no square matrix")


@graph_fault("scales", "the scale of one weight is twice what it should be", stages=BOTH)
def weight_scale_doubled(graph: Graph) -> None:
    graph.change(f"{_weights(graph)[-2]}_scale", lambda scale: scale * 2)


@graph_fault(
    "scales", "the scale of one channel of one weight is twice what it should be", stages=BOTH
)
def channel_scale_doubled(graph: Graph) -> None:
    def doubled(scale: np.ndarray) -> np.ndarray:
        scale[3] *= 2
        return scale

    graph.change(f"{_weights(graph)[-2]}_scale", doubled)


@graph_fault("scales", "two weights of one shape have each other's scales", stages=BOTH)
def weight_scales_swapped(graph: Graph) -> None:
    stems = _weights(graph)
    for place, left in enumerate(stems):
        for right in stems[place + 1 :]:
            first, second = graph.get(f"{left}_scale"), graph.get(f"{right}_scale")
            if first.shape == second.shape and first.size > 1:
                graph.put(f"{left}_scale", second)
                graph.put(f"{right}_scale", first)
                return
    raise NotHereError("no two weights have one shape")


@graph_fault(
    "scales", "the scales of a square weight are those of its rows: wrong axis", stages=STATIC
)
def wrong_axis(graph: Graph) -> None:
    stem = _square(graph)
    (node,) = graph.readers(f"{stem}_quantized")
    graph.attribute(node, "axis", 0)


@graph_fault("zero points", "the zero point of one weight is off by one", stages=BOTH)
def weight_zero_point_off(graph: Graph) -> None:
    graph.change(f"{_weights(graph)[1]}_zero_point", lambda point: point + 1)


@graph_fault(
    "zero points",
    "one activation is quantised with one zero point and read with the next",
    stages=STATIC,
)
def activation_zero_point_off(graph: Graph) -> None:
    node = [n for n in graph.all("DequantizeLinear") if graph.maker(n.input[0]) is not None][1]
    moved = graph.get(node.input[2]) + 1
    node.input[2] = graph.put("zero_point_moved", moved.astype(graph.get(node.input[2]).dtype))


@graph_fault(
    "scales", "one activation is quantised with twice the scale: half of the 8 bits", stages=STATIC
)
def activation_scale_doubled(graph: Graph) -> None:
    node = graph.nth("QuantizeLinear", 2)
    graph.change(node.input[1], lambda scale: scale * 2)


@graph_fault(
    "scales",
    "one activation is quantised with half the scale: large values are cut off",
    stages=STATIC,
)
def activation_clipped(graph: Graph) -> None:
    node = graph.nth("QuantizeLinear", 2)
    graph.change(node.input[1], lambda scale: scale * 0.5)


@graph_fault(
    "scales",
    "each row of the table of tokens has the scale of the row before",
    stages=BOTH | {"quantize_static": ("static",)},
    models=("minilm", "snippets", "tokens", "answers"),
)
def row_scales_shifted(graph: Graph) -> None:
    for name in graph.find("word_embeddings", "_scale"):
        graph.change(name, lambda scale: np.roll(scale, 1, axis=0))
        return
    raise NotHereError("the table of tokens is not quantised")


@graph_fault("rounding", "one weight uses 7 of its 8 bits", stages=BOTH)
def seven_bits(graph: Graph) -> None:
    stem = _weights(graph)[0]
    graph.change(f"{stem}_quantized", lambda q: np.round(q.astype(np.float32) / 2))
    graph.change(f"{stem}_scale", lambda scale: scale * 2)


@graph_fault("rounding", "one weight is saturated at half of its range", stages=BOTH)
def weight_saturated(graph: Graph) -> None:
    graph.change(f"{_weights(graph)[0]}_quantized", lambda q: np.clip(q, -64, 63))


def _truncated(scene: Scene) -> Mapping[str, Any]:
    graph = Graph.read(scene.good)
    source = Graph.read(scene.inputs["model"])
    for stem in _weights(graph):
        if not source.is_stored(stem):
            continue
        scale, weight = graph.get(f"{stem}_scale"), source.get(stem)
        if weight.shape != graph.get(f"{stem}_quantized").shape or scale.size != weight.shape[1]:
            continue
        exact = weight.astype(np.float64) / scale.astype(np.float64)
        cut = np.clip(np.trunc(exact), -127, 127)
        graph.put(f"{stem}_quantized", cut.astype(graph.get(f"{stem}_quantized").dtype))
    graph.write(scene.output)
    return scene.facts


@result_fault(
    "rounding",
    "weights are truncated instead of rounded",
    stage="quantize_static",
    targets=("static", "rtx-int8"),
)
def weights_truncated(scene: Scene) -> Mapping[str, Any]:
    return _truncated(scene)


@result_fault(
    "not as asked",
    "one scale for a whole weight where one for each channel was asked",
    stage="quantize_static",
    targets=("static", "rtx-int8"),
)
def per_tensor(scene: Scene) -> Mapping[str, Any]:
    return _with_config(scene, per_channel=False)


@result_fault(
    "not as asked",
    "one scale for a whole weight where one for each channel was asked",
    stage="quantize_dynamic",
    targets=("dynamic",),
)
def per_tensor_dynamic(scene: Scene) -> Mapping[str, Any]:
    return _with_config(scene, per_channel=False)


@result_fault(
    "not as asked",
    "one layer was left in float without a word",
    stage="quantize_static",
    targets=("static", "rtx-int8"),
)
def layer_left_float(scene: Scene) -> Mapping[str, Any]:
    source = Graph.read(scene.inputs["model"])
    name = [node.name for node in source.all("MatMul") if source.is_stored(node.input[1])][2]
    facts = _with_config(scene, exclude_nodes=(*scene.node.config.exclude_nodes, name))
    del facts
    return scene.facts


def _with_config(scene: Scene, **changes: Any) -> Mapping[str, Any]:
    config = scene.node.config.model_copy(update=changes)
    scene.node.stage.run(config, scene.inputs, scene.output, scene.context)
    # It says what was asked, not what was done.
    return scene.facts


@result_fault(
    "stale",
    "a result of an older checkpoint comes out of a cache: one matrix differs by 5 %",
    stage="quantize_dynamic",
    targets=("dynamic",),
)
def stale_result(scene: Scene) -> Mapping[str, Any]:
    return _of_stale_model(scene)


@result_fault(
    "stale",
    "a result of an older checkpoint comes out of a cache: one matrix differs by 5 %",
    stage="quantize_static",
    targets=("static", "rtx-int8"),
)
def stale_static_result(scene: Scene) -> Mapping[str, Any]:
    return _of_stale_model(scene)


@result_fault(
    "stale",
    "a result of an older checkpoint comes out of a cache: one matrix differs by 5 %",
    stage="fuse",
    targets=("dynamic", "static"),
)
def stale_fused_result(scene: Scene) -> Mapping[str, Any]:
    return _of_stale_model(scene)


def _of_stale_model(scene: Scene) -> Mapping[str, Any]:
    from tests.mutants.parts import linear

    older = scene.context.scratch / "older"
    older.mkdir()
    graph = Graph.read(scene.inputs["model"])
    generator = np.random.default_rng(5)
    linear(graph, "down", -1).change(
        graph, lambda weight: weight * (1 + 0.05 * generator.standard_normal(weight.shape))
    )
    graph.write(older)
    return scene.node.stage.run(
        scene.node.config, {**scene.inputs, "model": older}, scene.output, scene.context
    )


@result_fault(
    "files",
    "the file of the weights was cut off when it was copied",
    stage="fuse",
    targets=("dynamic", "static"),
)
def external_data_truncated(scene: Scene) -> Mapping[str, Any]:
    from pipeline.graph.files import load_ir_model, save_ir_model
    from pipeline.stages.base import EXTERNAL_DATA_FILE, MODEL_FILE

    save_ir_model(load_ir_model(scene.good / MODEL_FILE), scene.output, inline_limit_bytes=0)
    data = scene.output / EXTERNAL_DATA_FILE
    data.write_bytes(data.read_bytes()[:-512])
    return scene.facts
