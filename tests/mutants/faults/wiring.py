"""Values that go to the wrong place, or do not arrive: masks, positions, layers, pooling, outputs."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from tests.mutants.catalogue import EVERYWHERE, FUSED, HALF, QUANTIZED, TEXTS, graph_fault
from tests.mutants.parts import (
    attention_bias,
    int64,
    linear,
    mask,
    position_lookup,
    type_lookup,
)
from tests.mutants.surgery import Graph, NotHereError

CLASSIFIERS = ("snippets", "digits", "tokens", "answers")


@graph_fault(
    "inputs",
    "two inputs became one: token types are read from the attention mask",
    stages={"export": QUANTIZED, "simplify": HALF},
    models=TEXTS,
)
def inputs_merged(graph: Graph) -> None:
    type_lookup(graph).input[1] = "attention_mask"


@graph_fault(
    "inputs",
    "the exporter saw only zeros and made a constant of them; it shows with pairs of texts",
    stages={"export": QUANTIZED, "fuse": FUSED, "cast": HALF},
    models=TEXTS,
)
def token_types_dropped(graph: Graph) -> None:
    node = type_lookup(graph)
    node.input[1] = graph.insert("Mul", ["token_type_ids", graph.put("no_types", int64(0))])


@graph_fault(
    "mask",
    "the attention mask is not used; it shows only where there is padding",
    stages={"export": EVERYWHERE, "fuse": FUSED},
    models=TEXTS,
)
def mask_ignored(graph: Graph) -> None:
    graph.after(mask(graph), "Or", graph.put("always", np.asarray(True)))


@graph_fault(
    "mask", "1 means padding here and text there", stages={"export": QUANTIZED}, models=TEXTS
)
def mask_inverted(graph: Graph) -> None:
    graph.after(mask(graph), "Not")


@graph_fault(
    "mask",
    "masked scores get -10 instead of the smallest number: a little of the padding is read",
    stages={
        "export": EVERYWHERE,
        "simplify": HALF,
        "fuse": FUSED,
        "cast": HALF,
        "quantize_dynamic": ("dynamic",),
    },
    models=TEXTS,
)
def mask_weak(graph: Graph) -> None:
    graph.change(attention_bias(graph).input[2], lambda least: np.full_like(least, -10))


@graph_fault(
    "mask",
    "masked scores get -inf: a row that is masked altogether becomes NaN",
    stages={"export": QUANTIZED, "cast": HALF},
    models=TEXTS,
)
def mask_infinite(graph: Graph) -> None:
    graph.change(attention_bias(graph).input[2], lambda least: np.full_like(least, -np.inf))


@graph_fault(
    "mask",
    "every sample of a batch gets the mask of the first: right for batches of one",
    stages={"export": EVERYWHERE, "fuse": FUSED, "simplify": HALF},
    models=TEXTS,
)
def mask_of_first_sample(graph: Graph) -> None:
    name = mask(graph)
    readers = graph.readers(name)
    shape = graph.insert("Shape", ["attention_mask"])
    ends = [graph.put(f"mask_{part}", int64(value)) for part, value in (("from", 0), ("to", 1))]
    first = graph.insert("Slice", [name, *ends, ends[0]])
    expanded = graph.insert("Expand", [first, shape])
    for node in readers:
        node.input[list(node.input).index(name)] = expanded


@graph_fault(
    "positions",
    "positions are counted from the mask, which differs where padding is on the left",
    stages={"export": QUANTIZED, "simplify": HALF},
    models=TEXTS,
)
def positions_by_mask(graph: Graph) -> None:
    node = position_lookup(graph)
    counted = graph.insert("CumSum", ["attention_mask", graph.put("mask_axis", np.asarray(1))])
    from_zero = graph.insert("Sub", [counted, graph.put("mask_one", int64(1))])
    node.input[1] = graph.insert("Max", [from_zero, graph.put("mask_zero", int64(0))])


@graph_fault(
    "positions",
    "positions begin at 1, as other models have them",
    stages={"export": EVERYWHERE},
    models=TEXTS,
)
def positions_shifted(graph: Graph) -> None:
    node = position_lookup(graph)
    rows = graph.get(node.input[0]).shape[0]
    moved = graph.insert("Add", [node.input[1], graph.put("position_one", int64(1))])
    node.input[1] = graph.insert("Min", [moved, graph.put("position_last", int64(rows - 1))])


@graph_fault(
    "shapes",
    "made for the length it was exported with: positions end there, silently",
    stages={"export": QUANTIZED, "fuse": FUSED, "cast": HALF, "quantize_static": ("static",)},
    models=TEXTS,
)
def positions_of_exported_length(graph: Graph) -> None:
    node = position_lookup(graph)
    node.input[1] = graph.insert("Min", [node.input[1], graph.put("position_limit", int64(63))])


@graph_fault(
    "shapes",
    "the batch size of the example input is written into a reshape",
    stages={"export": QUANTIZED, "simplify": HALF},
)
def batch_size_fixed(graph: Graph) -> None:
    for node in graph.all("Reshape"):
        maker = graph.maker(node.input[1])
        if maker is not None and maker.op_type == "Concat" and len(maker.input) == 4:
            maker.input[0] = graph.put("one_batch", int64(1))
            return
    raise NotHereError("there is no reshape into heads")


@graph_fault(
    "shapes",
    "the length of the example input is written into a reshape",
    stages={"export": FUSED},
    models=TEXTS,
)
def length_fixed(graph: Graph) -> None:
    for node in graph.all("Reshape"):
        maker = graph.maker(node.input[1])
        if maker is not None and maker.op_type == "Concat" and len(maker.input) == 4:
            maker.input[1] = graph.put("one_length", int64(32))
            return
    raise NotHereError("there is no reshape into heads")


@graph_fault("layers", "an off-by-one: the last layer is not run", stages={"export": EVERYWHERE})
def layer_skipped(graph: Graph) -> None:
    last, before = (_layer_output(graph, layer) for layer in (-1, -2))
    graph.redirect(last, before)


def _layer_output(graph: Graph, layer: int) -> str:
    """What a layer gives to the next: behind the residual sum, and its norm where it comes after."""
    made = linear(graph, "down", layer).last.output[0]
    (total,) = graph.readers(made)
    output = str(total.output[0])
    (first, *others) = graph.readers(output)
    is_norm_after = first.op_type == "LayerNormalization" and not others
    # ViT's own last norm stands alone behind the sum too; the norm of BERT is named by the layer.
    return (
        str(first.output[0]) if is_norm_after and "output.LayerNorm" in first.input[1] else output
    )


@graph_fault(
    "pooling",
    "another token than the first is pooled",
    stages={"export": EVERYWHERE},
    models=("snippets", "digits"),
)
def wrong_token_pooled(graph: Graph) -> None:
    node = next(n for n in reversed(graph.all("Gather")) if n.attribute and n.attribute[0].i == 1)
    node.input[1] = graph.put("second", np.asarray(1, dtype=np.int64))


@graph_fault(
    "pooling",
    "the mean of a sentence counts its padding",
    stages={"export": QUANTIZED, "fuse": FUSED},
    models=("minilm",),
)
def padding_pooled(graph: Graph) -> None:
    for node in graph.readers("attention_mask"):
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT:
            ones = graph.insert("Mul", [node.output[0], graph.put("zero_f", np.float32(0))])
            full = graph.insert("Add", [ones, graph.put("one_f", np.float32(1))])
            graph.redirect(node.output[0], full, but=[graph.maker(ones)])  # type: ignore[list-item]
            return
        if node.op_type == "Unsqueeze":
            ones = graph.insert("Mul", [node.output[0], graph.put("zero_i", int64(0))])
            full = graph.insert("Add", [ones, graph.put("one_i", int64(1))])
            graph.redirect(node.output[0], full, but=[graph.maker(ones)])  # type: ignore[list-item]
            return
    raise NotHereError("pooling does not read the mask")


@graph_fault(
    "pooling",
    "the first token of a sentence instead of the mean of all",
    stages={"export": QUANTIZED},
    models=("minilm",),
)
def first_token_pooled(graph: Graph) -> None:
    inner = graph.before_output("sentence_embedding")
    del inner
    zero = graph.put("first", np.asarray(0, dtype=np.int64))
    token = graph.insert("Gather", ["token_embeddings", zero], axis=1)
    graph.insert("LpNormalization", [token], output="sentence_embedding", axis=-1, p=2)


@graph_fault(
    "pooling",
    "the embedding is not normalised; its angle is right",
    stages={"export": QUANTIZED, "fuse": FUSED},
    models=("minilm",),
)
def not_normalised(graph: Graph) -> None:
    node = graph.maker("sentence_embedding")
    assert node is not None
    source = node.input[0]
    graph.before_output("sentence_embedding")
    graph.insert("Identity", [source], output="sentence_embedding")


@graph_fault(
    "outputs",
    "the names of two outputs of one shape are swapped",
    stages={"export": EVERYWHERE, "quantize_static": ("static",)},
    models=("answers",),
)
def outputs_swapped(graph: Graph) -> None:
    start, end = (graph.before_output(name) for name in ("start_logits", "end_logits"))
    graph.insert("Identity", [end], output="start_logits")
    graph.insert("Identity", [start], output="end_logits")


@graph_fault(
    "outputs",
    "classes in the order of another label file",
    stages={"export": EVERYWHERE},
    models=("snippets", "digits", "tokens"),
)
def labels_reordered(graph: Graph) -> None:
    layer = linear(graph, "classifier")
    layer.change(graph, lambda weight: weight[:, [1, 0, *range(2, weight.shape[1])]])
    graph.change(layer.bias, lambda bias: bias[[1, 0, *range(2, len(bias))]])


@graph_fault(
    "inputs",
    "images in BGR order; grey images do not show it",
    stages={"export": EVERYWHERE},
    models=("digits",),
)
def channels_swapped(graph: Graph) -> None:
    graph.change(graph.nth("Conv").input[1], lambda weight: weight[:, ::-1])


@graph_fault(
    "inputs",
    "pixels are normalised in the graph as well as before it",
    stages={"export": QUANTIZED},
    models=("digits",),
)
def normalised_twice(graph: Graph) -> None:
    node = graph.nth("Conv")
    centred = graph.insert("Sub", ["pixel_values", graph.put("pixel_mean", np.float32(0.5))])
    node.input[0] = graph.insert("Div", [centred, graph.put("pixel_std", np.float32(0.5))])


@graph_fault(
    "positions",
    "patches are counted by columns instead of by rows",
    stages={"export": EVERYWHERE, "simplify": HALF},
    models=("digits",),
)
def patches_transposed(graph: Graph) -> None:
    (name,) = graph.find("position_embeddings")

    def transposed(table: np.ndarray) -> np.ndarray:
        side = int((table.shape[1] - 1) ** 0.5)
        grid = table[:, 1:].reshape(1, side, side, -1).transpose(0, 2, 1, 3)
        return np.concatenate([table[:, :1], grid.reshape(1, side * side, -1)], axis=1)

    graph.change(name, transposed)


@graph_fault(
    "not as asked",
    "an older set of operators than was asked for: Gelu is written out, numbers are the same",
    stages={"export": QUANTIZED},
)
def opset_downgraded(graph: Graph) -> None:
    root, half, one = (
        graph.put(f"gelu_{name}", np.float32(value))
        for name, value in (("root", 2**-0.5), ("half", 0.5), ("one", 1.0))
    )
    for node in graph.all("Gelu"):
        value, output = node.input[0], node.output[0]
        graph.model.graph.node.remove(node)
        scaled = graph.insert("Erf", [graph.insert("Mul", [value, root])])
        halved = graph.insert("Mul", [value, half])
        graph.insert("Mul", [halved, graph.insert("Add", [scaled, one])], output=output)
    for entry in graph.model.opset_import:
        if not entry.domain:
            entry.version = 18
