"""The right numbers, computed with in a wrong way: other functions, constants, precision, chance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.mutants.bench import Scene
from tests.mutants.catalogue import EVERYWHERE, FUSED, HALF, QUANTIZED, graph_fault, result_fault
from tests.mutants.parts import linear, norms
from tests.mutants.surgery import Graph, NotHereError

QUANTISERS = {"quantize_dynamic": ("dynamic",), "quantize_static": ("static",)}


@graph_fault(
    "arithmetic",
    "the GELU of tanh in place of that of erf, a small difference",
    stages={
        "export": EVERYWHERE,
        "simplify": HALF,
        "fuse": FUSED,
        "cast": HALF,
        **QUANTISERS,
    },
)
def gelu_tanh(graph: Graph) -> None:
    for node in graph.all("Gelu"):
        graph.attribute(node, "approximate", "tanh")
    if not graph.all("Gelu"):
        raise NotHereError("there is no Gelu")


@graph_fault(
    "arithmetic",
    "the epsilon of all normalisations is 1e-5, as most frameworks have it, in place of 1e-12",
    stages={
        "export": EVERYWHERE,
        "simplify": HALF,
        "fuse": FUSED,
        "cast": HALF,
        **QUANTISERS,
    },
)
def norm_epsilon(graph: Graph) -> None:
    for node in norms(graph):
        graph.attribute(node, "epsilon", 1e-5)


@graph_fault(
    "arithmetic",
    "the scale of attention scores is rounded to float16 in a float32 graph",
    stages={"export": EVERYWHERE},
    models=("minilm", "snippets", "tokens", "answers"),
)
def attention_scale_rounded(graph: Graph) -> None:
    for node in graph.all("Softmax"):
        added = graph.maker(node.input[0])
        assert added is not None
        scaled = graph.maker(added.input[0])
        assert scaled is not None
        assert scaled.op_type == "Mul"
        value = graph.get(scaled.input[1])
        rounded = value.astype(np.float16).astype(value.dtype)
        if rounded == value:
            raise NotHereError("it is a number of float16")
        scaled.input[1] = graph.put("scale_rounded", rounded)


@graph_fault(
    "fusion",
    "a fused attention forgets the factor of its scores where it is not the usual one: 1 % off",
    stages={"fuse": FUSED},
)
def attention_scale_off(graph: Graph) -> None:
    for node in graph.all("MultiHeadAttention"):
        scale = next(a.f for a in node.attribute if a.name == "scale")
        graph.attribute(node, "scale", scale * 1.01)
    if not graph.all("MultiHeadAttention"):
        raise NotHereError("no attention is fused")


@graph_fault(
    "fusion",
    "queries and keys change places in one fused attention",
    stages={"fuse": FUSED},
)
def query_and_key_swapped(graph: Graph) -> None:
    node = graph.nth("MultiHeadAttention", -1)
    node.input[0], node.input[1] = node.input[1], node.input[0]


@graph_fault(
    "fusion",
    "a fused normalisation adds what it skips twice, at one place",
    stages={"fuse": FUSED},
)
def skip_added_to_itself(graph: Graph) -> None:
    node = graph.nth("SkipLayerNormalization")
    node.input[0] = node.input[1]


@graph_fault(
    "chance",
    "a dropout was left in: the output changes from run to run, a little",
    stages={"export": QUANTIZED, "fuse": FUSED, "cast": HALF, **QUANTISERS},
)
def dropout_left_in(graph: Graph) -> None:
    layer = linear(graph, "down", -1)
    noise = graph.insert("RandomNormalLike", [layer.last.output[0]], scale=2e-3)
    total = graph.insert("Add", [layer.last.output[0], noise])
    graph.redirect(
        layer.last.output[0],
        total,
        but=[graph.maker(noise), graph.maker(total)],  # type: ignore[list-item]
    )


@result_fault(
    "precision",
    "products that grow too large for float16 in the one sample with the largest activations",
    stage="cast",
    targets=HALF,
)
def overflow_in_one_sample(scene: Scene) -> Mapping[str, Any]:
    graph = Graph.read(scene.good)
    name = linear(graph, "up", -1).last.output[0]
    largest = _largest_by_sample(scene, name)
    # Between the sample with the largest activation and all others.
    factor = 65504.0 / float(np.sqrt(largest[-1] * largest[-2]))
    grown = graph.after(name, "Mul", graph.put("factor", np.float16(factor)))
    graph.after(grown, "Mul", graph.put("unfactor", np.float16(1 / factor)))
    graph.write(scene.output)
    return scene.facts


def _largest_by_sample(scene: Scene, name: str) -> list[float]:
    """The largest activation of each evaluation sample at a value, ascending."""
    import onnx
    import onnxruntime

    from pipeline.data.sample_set import load_samples

    graph = Graph.read(scene.good)
    graph.model.graph.output.append(onnx.helper.make_tensor_value_info(name, 10, None))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        graph.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    samples = load_samples(scene.result("samples"))
    found = []
    for sample in samples.read(range(len(samples))):
        feeds = {value.name: sample[value.name][None] for value in session.get_inputs()}
        (array,) = session.run([name], feeds)
        found.append(float(np.abs(array).max()))
    return sorted(found)
