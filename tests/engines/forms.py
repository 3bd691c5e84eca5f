"""One attention and its four products, with the numbers in every form that engines are built in."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.engines.graphs import HIDDEN, model

FORMS = ("fp32", "fp16", "bf16", "int8", "int8-weights", "fp8", "int4")
PROFILE = {"batch": (1, 2, 4), "sequence": (8, 16, 32)}

_FLOATS = {
    "fp32": (TensorProto.FLOAT, np.float32),
    "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
}
_HALF = (TensorProto.FLOAT16, np.float16)
_BLOCK = 32
_SCALE = 0.02


def one_attention(form: str, *, is_operator: bool = False) -> onnx.ModelProto:
    """`x` [batch, sequence, 64] -> the same shape; all four products in one of `FORMS`.

    Args:
        form: What the products compute in, or hold their weights in.
        is_operator: The attention is one `Attention` of opset 23 in place of its parts.
    """
    kind, dtype = _FLOATS.get(form, _HALF)
    nodes: list[onnx.NodeProto] = []
    tensors = [
        numpy_helper.from_array(np.array([0, 0, 4, 16], np.int64), "heads"),
        numpy_helper.from_array(np.array([0, 0, HIDDEN], np.int64), "merged"),
        numpy_helper.from_array(np.asarray(0.25, dtype), "factor"),
    ]

    def node(op: str, inputs: list[str], name: str, **attributes: object) -> None:
        nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))

    def multiply(data: str, name: str) -> None:
        values = (
            np.random.default_rng(sum(name.encode())).standard_normal((HIDDEN, HIDDEN))
        ) * 0.1
        more, made, left, right = _operands(form, data, name, values.astype(np.float32), dtype)
        nodes.extend(more)
        tensors.extend(made)
        node("MatMul", [left, right], name)

    order = {"q": [0, 2, 1, 3], "k": [0, 2, 1, 3] if is_operator else [0, 2, 3, 1]}
    for letter in "qkv":
        multiply("x", f"project_{letter}")
        node("Reshape", [f"project_{letter}", "heads"], f"split_{letter}")
        node("Transpose", [f"split_{letter}"], letter, perm=order.get(letter, [0, 2, 1, 3]))
    if is_operator:
        node("Attention", ["q", "k", "v"], "context", scale=0.25)
    else:
        node("MatMul", ["q", "k"], "scores")
        node("Mul", ["scores", "factor"], "scaled")
        node("Softmax", ["scaled"], "softmax", axis=-1)
        node("MatMul", ["softmax", "v"], "context")
    node("Transpose", ["context"], "turned", perm=[0, 2, 1, 3])
    node("Reshape", ["turned", "merged"], "joined")
    multiply("joined", "project_o")
    node("Relu", ["project_o"], "y")
    dims: list[int | str | None] = ["batch", "sequence", HIDDEN]
    return model(
        nodes,
        tensors,
        inputs={"x": (kind, dims)},
        outputs={"y": (kind, dims)},
        opset=23 if is_operator else 21,
    )


def _operands(
    form: str, data: str, name: str, values: np.ndarray, dtype: type
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto], str, str]:
    """Nodes and tensors in front of a product, and the names of its two operands."""
    weights = f"{name}.weights"
    if form in {"fp32", "fp16", "bf16"}:
        return [], [numpy_helper.from_array(values.astype(dtype), weights)], data, weights
    stored = {
        "fp8": (TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn),
        "int4": (TensorProto.INT4, ml_dtypes.int4),
    }.get(form, (TensorProto.INT8, np.int8))
    limit = {"fp8": 448, "int4": 7}.get(form, 127)
    axis = {} if form == "fp8" else {"axis": 0 if form == "int4" else 1}
    if form == "int4":
        blocks = np.abs(values).reshape(-1, _BLOCK, HIDDEN).max(axis=1) / limit
        scales, spread = blocks, np.repeat(blocks, _BLOCK, axis=0)
        axis["block_size"] = _BLOCK
    elif form == "fp8":
        scales = spread = np.asarray(np.abs(values).max() / limit)
    else:
        scales = spread = np.abs(values).max(axis=0) / limit
    numbers = values / spread
    if form != "fp8":
        numbers = np.clip(np.rint(numbers), -limit, limit)
    content = numbers.astype(stored[1])
    tensors = [
        numpy_helper.from_array(content, weights),
        numpy_helper.from_array(np.asarray(scales, dtype), f"{weights}.scales"),
    ]
    out = f"{weights}.float"
    nodes = [
        helper.make_node(
            "DequantizeLinear", [weights, f"{weights}.scales"], [out], name=out, **axis
        )
    ]
    if form in {"int4", "int8-weights"}:
        return nodes, tensors, data, out
    zero = f"{name}.zero"
    tensors += [
        numpy_helper.from_array(np.asarray(_SCALE, dtype), f"{name}.scale"),
        numpy_helper.from_array(np.zeros((), stored[1]), zero),
    ]
    for op, source, target in (
        ("QuantizeLinear", data, f"{name}.quantized"),
        ("DequantizeLinear", f"{name}.quantized", f"{name}.data"),
    ):
        nodes.append(helper.make_node(op, [source, f"{name}.scale", zero], [target], name=target))
    return nodes, tensors, f"{name}.data", out
