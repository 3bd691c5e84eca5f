"""Tiny seeded graphs for the engine tests."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HIDDEN = 64
PROFILE = {"batch": (1, 2, 4), "sequence": (8, 16, 32)}


def model(
    nodes: list[onnx.NodeProto],
    initializers: list[onnx.TensorProto],
    *,
    inputs: dict[str, tuple[int, list[int | str | None]]],
    outputs: dict[str, tuple[int, list[int | str | None]]],
    opset: int = 21,
) -> onnx.ModelProto:
    """A model; `inputs` and `outputs` map names to (element type, dims)."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(n, t, dims) for n, (t, dims) in inputs.items()],
        [helper.make_tensor_value_info(n, t, dims) for n, (t, dims) in outputs.items()],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def weights(name: str, shape: tuple[int, ...], dtype: type) -> onnx.TensorProto:
    """Random weights that depend on the name alone."""
    rng = np.random.default_rng(sum(name.encode()))
    return numpy_helper.from_array((rng.standard_normal(shape) * 0.1).astype(dtype), name)


def encoder(layers: int = 1, *, dtype: type = np.float16, positions: int = 64) -> onnx.ModelProto:
    """Token ids, a mask and type ids -> hidden states, through attention and a two-layer MLP."""
    kind = TensorProto.FLOAT16 if dtype is np.float16 else TensorProto.FLOAT
    node = helper.make_node
    tables = {"words": 100, "positions": positions, "types": 2}
    tensors = [weights(name, (rows, HIDDEN), dtype) for name, rows in tables.items()]
    tensors += [
        numpy_helper.from_array(np.array([0, 0, 4, 16], np.int64), "heads"),
        numpy_helper.from_array(np.array([0, 0, HIDDEN], np.int64), "merged"),
        numpy_helper.from_array(np.array([1, 2], np.int64), "mask_axes"),
        numpy_helper.from_array(np.array(0, np.int64), "zero"),
        numpy_helper.from_array(np.array(1, np.int64), "one"),
        numpy_helper.from_array(np.array(0.25, dtype), "scale"),
        numpy_helper.from_array(np.array(-1e4, dtype), "minus"),
    ]
    nodes = [
        node("Gather", ["words", "input_ids"], ["e0"], name="embed_words"),
        node("Gather", ["types", "token_type_ids"], ["e1"], name="embed_types"),
        node("Shape", ["input_ids"], ["extent"], start=1, end=2, name="extent"),
        node("Squeeze", ["extent"], ["length"], name="length"),
        node("Range", ["zero", "length", "one"], ["index"], name="range"),
        node("Gather", ["positions", "index"], ["e2"], name="embed_positions"),
        node("Add", ["e0", "e1"], ["e3"], name="add_types"),
        node("Add", ["e3", "e2"], ["x0"], name="add_positions"),
        node("Cast", ["attention_mask"], ["m0"], to=TensorProto.BOOL, name="mask_bool"),
        node("Not", ["m0"], ["m1"], name="mask_not"),
        node("Cast", ["m1"], ["m2"], to=kind, name="mask_cast"),
        node("Mul", ["m2", "minus"], ["m3"], name="mask_scale"),
        node("Unsqueeze", ["m3", "mask_axes"], ["mask"], name="mask_4d"),
    ]
    for index in range(layers):
        made, more = _encoder_layer(index, dtype)
        nodes += made
        tensors += more
    nodes.append(node("Identity", [f"x{layers}"], ["last_hidden_state"], name="out"))
    ids = (TensorProto.INT64, ["batch", "sequence"])
    return model(
        nodes,
        tensors,
        inputs={"input_ids": ids, "attention_mask": ids, "token_type_ids": ids},
        outputs={"last_hidden_state": (kind, ["batch", "sequence", HIDDEN])},
    )


def _encoder_layer(index: int, dtype: type) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    def named(name: str) -> str:
        return f"{name}_{index}"

    def node(op: str, inputs: list[str], output: str, **attributes: object) -> onnx.NodeProto:
        return helper.make_node(op, inputs, [named(output)], name=named(output), **attributes)

    square = (HIDDEN, HIDDEN)
    tensors = [weights(named(f"w{name}"), square, dtype) for name in "qkvo12"]
    nodes = []
    for letter, order in {"q": [0, 2, 1, 3], "k": [0, 2, 3, 1], "v": [0, 2, 1, 3]}.items():
        nodes += [
            node("MatMul", [f"x{index}", named(f"w{letter}")], f"project_{letter}"),
            node("Reshape", [named(f"project_{letter}"), "heads"], f"split_{letter}"),
            node("Transpose", [named(f"split_{letter}")], letter, perm=order),
        ]
    nodes += [
        node("MatMul", [named("q"), named("k")], "scores"),
        node("Mul", [named("scores"), "scale"], "scaled"),
        node("Add", [named("scaled"), "mask"], "masked"),
        node("Softmax", [named("masked")], "softmax", axis=-1),
        node("MatMul", [named("softmax"), named("v")], "context"),
        node("Transpose", [named("context")], "turned", perm=[0, 2, 1, 3]),
        node("Reshape", [named("turned"), "merged"], "joined"),
        node("MatMul", [named("joined"), named("wo")], "project_o"),
        node("Add", [named("project_o"), f"x{index}"], "residual"),
        node("MatMul", [named("residual"), named("w1")], "up"),
        node("Relu", [named("up")], "relu"),
        node("MatMul", [named("relu"), named("w2")], "down"),
        helper.make_node("Add", [named("down"), named("residual")], [f"x{index + 1}"]),
    ]
    return nodes, tensors


def product(
    dtype: type = np.float16, *, dims: tuple[int | str | None, ...] = ("batch", HIDDEN)
) -> onnx.ModelProto:
    """`y = relu(x @ w)`: the smallest graph that has an engine."""
    kind = TensorProto.FLOAT16 if dtype is np.float16 else TensorProto.FLOAT
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="product"),
        helper.make_node("Relu", ["m"], ["y"], name="relu"),
    ]
    return model(
        nodes,
        [weights("w", (HIDDEN, HIDDEN), dtype)],
        inputs={"x": (kind, list(dims))},
        outputs={"y": (kind, list(dims))},
    )


def product_with_positions(positions: int) -> onnx.ModelProto:
    """`product` of (batch, sequence, 64), to which the first rows of a position table are added."""
    graph = product(dims=("batch", "sequence", HIDDEN))
    graph.graph.initializer.extend(
        [
            weights("table", (positions, HIDDEN), np.float16),
            numpy_helper.from_array(np.array([0], np.int64), "start"),
        ]
    )
    del graph.graph.node[:]
    graph.graph.node.extend(
        [
            helper.make_node("Shape", ["x"], ["length"], start=1, end=2, name="length"),
            helper.make_node(
                "Slice", ["table", "start", "length", "start"], ["rows"], name="rows"
            ),
            helper.make_node("Add", ["x", "rows"], ["a"], name="add_positions"),
            helper.make_node("MatMul", ["a", "w"], ["y"], name="product"),
        ]
    )
    return graph


def product_with_dead_input() -> onnx.ModelProto:
    """`product` whose second input, of the same shape, is used for its shape alone."""
    graph = product()
    graph.graph.input.append(
        helper.make_tensor_value_info("dead", TensorProto.FLOAT16, ["batch", HIDDEN])
    )
    del graph.graph.node[:]
    graph.graph.node.extend(
        [
            helper.make_node("MatMul", ["x", "w"], ["m"], name="product"),
            helper.make_node("Shape", ["dead"], ["shape"], name="shape_of_dead"),
            helper.make_node("Reshape", ["m", "shape"], ["y"], name="reshape"),
        ]
    )
    return graph
