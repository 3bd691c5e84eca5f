"""Random attention layers in all the spellings that exporters use, and a way to compare graphs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Mapping

LOWEST = float(np.finfo(np.float32).min)


@dataclass
class GraphBuilder:
    """Writes an ONNX graph node by node; every method returns the name of a value."""

    seed: int = 0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def input(self, name: str, shape: list[Any], dtype: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, name: str, rank: int = 3) -> None:
        shape = [f"{name}_{axis}" for axis in range(rank)]
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def node(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op_type}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], name, **attributes))
        return name

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"const_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def weight(self, *shape: int) -> str:
        return self.constant(self.random.normal(size=shape) / np.sqrt(shape[0]))

    def shape_of(self, value: str, start: int, end: int) -> str:
        return self.node("Shape", value, start=start, end=end)

    def model(self, opset: int = 20) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "test", self.inputs, self.outputs, self.initializers)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10
        )


@dataclass(frozen=True, kw_only=True)
class Spelling:
    """One way to write attention."""

    heads: int = 4
    size: int = 8
    linear: str = "matmul_bias"  # bias_matmul, gemm, gemm_transposed, no_bias
    split: str = "four_axes"  # three_axes
    key: str = "one_transpose"  # two_transposes, sdpa
    scale: str = "mul_scores"  # div_scores, div_query, mul_both, none
    mask: str = "full"  # none, row, reversed, fill, fill_infinite, fill_kept, infinite, per_head
    guard: bool = False
    memory: bool = False  # keys and values from another sequence
    merge: str = "constant_hidden"  # flattened

    @property
    def hidden(self) -> int:
        return self.heads * self.size


PLAIN = Spelling()

SPELLINGS = {
    "plain": PLAIN,
    "bias_first": replace(PLAIN, linear="bias_matmul"),
    "no_bias": replace(PLAIN, linear="no_bias"),
    "gemm_between_reshapes": replace(PLAIN, linear="gemm", merge="flattened"),
    "gemm_with_transposed_weight": replace(PLAIN, linear="gemm_transposed"),
    "three_axes": replace(PLAIN, split="three_axes"),
    "three_axes_without_mask": replace(PLAIN, split="three_axes", mask="none"),
    "key_transposed_twice": replace(PLAIN, key="two_transposes"),
    "sdpa": replace(PLAIN, key="sdpa", scale="mul_both", mask="infinite", guard=True),
    "scores_divided": replace(PLAIN, scale="div_scores"),
    "query_divided": replace(PLAIN, scale="div_query"),
    "unscaled": replace(PLAIN, scale="none"),
    "no_mask": replace(PLAIN, mask="none"),
    "mask_for_all_queries": replace(PLAIN, mask="row"),
    "mask_first": replace(PLAIN, mask="reversed"),
    "filled": replace(PLAIN, mask="fill"),
    "filled_with_infinity": replace(PLAIN, mask="fill_infinite"),
    "filled_where_not_kept": replace(PLAIN, mask="fill_kept"),
    "filled_and_guarded": replace(PLAIN, mask="fill_infinite", guard=True),
    "infinite_mask": replace(PLAIN, mask="infinite"),
    "position_bias_per_head": replace(PLAIN, mask="per_head"),
    "cross_attention": replace(PLAIN, memory=True),
    "cross_attention_guarded": replace(PLAIN, memory=True, mask="infinite", guard=True),
    "one_head": replace(PLAIN, heads=1, size=16),
    "twelve_heads": replace(PLAIN, heads=12, size=4),
    "heads_as_many_as_positions": replace(PLAIN, heads=7, size=7),
}
"""All spellings that must fuse."""


def attention_model(spelling: Spelling, **changes: Any) -> onnx.ModelProto:
    """One attention layer; `changes` break it in the ways that `_Layer` names."""
    return _Layer(spelling, changes).build()


class _Layer:
    def __init__(self, spelling: Spelling, changes: Mapping[str, Any]) -> None:
        self.s = spelling
        self.changes = dict(changes)
        self.g = GraphBuilder()

    def build(self) -> onnx.ModelProto:
        g, s = self.g, self.s
        x = g.input("x", ["batch", "sequence", s.hidden])
        memory = g.input("memory", ["batch", "memory", s.hidden]) if s.memory else x
        query = self.split(self.linear(x), scale=self.operand_scale())
        key = self.key(self.linear(memory))
        value_source = memory
        if self.changes.get("value_of_another_sequence"):
            value_source = g.input("other", ["batch", "other", s.hidden])
        value = self.split(self.linear(value_source))
        if self.changes.get("bias_per_head"):
            query = g.node("Add", query, g.weight(1, s.heads, 1, s.size))
        scores = g.node("MatMul", query, key)
        weights = self.softmax(self.masked(scores, x, memory))
        result = g.node("MatMul", weights, value)
        if self.changes.get("result_used_unmerged"):
            g.outputs.append(
                helper.make_tensor_value_info(result, TensorProto.FLOAT, ["a", "b", "c", "d"])
            )
        g.output(self.project(result, x))
        return g.model()

    def linear(self, x: str) -> str:
        g, hidden = self.g, self.s.hidden
        if self.s.linear in {"gemm", "gemm_transposed"}:
            rows = g.node("Reshape", x, g.ints(-1, hidden))
            transposed = int(self.s.linear == "gemm_transposed")
            product = g.node(
                "Gemm", rows, g.weight(hidden, hidden), g.weight(hidden), transB=transposed
            )
            shape = g.node("Concat", g.shape_of(x, 0, 2), g.ints(hidden), axis=0)
            return g.node("Reshape", product, shape)
        product = g.node("MatMul", x, g.weight(hidden, hidden))
        if self.s.linear == "no_bias":
            return product
        operands = [product, g.weight(hidden)]
        if self.s.linear == "bias_matmul":
            operands.reverse()
        return g.node("Add", *operands)

    def operand_scale(self) -> float:
        root = self.s.size**0.5
        return {"div_query": 1 / root, "mul_both": root**-0.5}.get(self.s.scale, 1.0)

    def split(self, x: str, scale: float = 1.0) -> str:
        g, s = self.g, self.s
        if s.split == "three_axes":
            shape = g.node("Concat", g.shape_of(x, 0, 2), g.ints(s.heads, s.size), axis=0)
        else:
            shape = g.ints(0, 0, s.heads, s.size)
        perm = self.changes.get("perm", [0, 2, 1, 3])
        result = g.node("Transpose", g.node("Reshape", x, shape), perm=perm)
        if s.split == "three_axes":
            length = g.shape_of(x, 1, 2)
            flat = g.node("Concat", g.ints(-1), length, g.ints(s.size), axis=0)
            result = g.node("Reshape", result, flat)
        if scale != 1.0:
            result = g.node("Div", result, g.constant(1 / scale))
        return result

    def key(self, x: str) -> str:
        g, s = self.g, self.s
        if s.split == "three_axes":
            return g.node("Transpose", self.split(x), perm=[0, 2, 1])
        if s.key == "one_transpose":
            axes = g.node("Reshape", x, g.ints(0, 0, s.heads, s.size))
            return g.node("Transpose", axes, perm=[0, 2, 3, 1])
        heads = self.split(x)
        if s.key == "two_transposes":
            return g.node("Transpose", heads, perm=[0, 1, 3, 2])
        length = g.shape_of(heads, 2, 3)
        flat = g.node("Concat", g.ints(-1), length, g.ints(s.size), axis=0)
        swapped = g.node("Transpose", g.node("Reshape", heads, flat), perm=[0, 2, 1])
        full = g.node("Concat", g.shape_of(heads, 0, 2), g.ints(s.size), length, axis=0)
        result = g.node("Reshape", swapped, full)
        if s.scale == "mul_both":
            result = g.node("Mul", g.constant(self.operand_scale()), result)
        return result

    def masked(self, scores: str, x: str, memory: str) -> str:
        g, s = self.g, self.s
        root = self.changes.get("scale", s.size**0.5)
        if s.scale == "mul_scores":
            scores = g.node("Mul", scores, g.constant(1 / np.asarray(root)))
        elif s.scale == "div_scores":
            scores = g.node("Div", scores, g.constant(root))
        if s.mask == "none":
            return scores
        batch = None
        if s.split == "three_axes":
            batch = g.node("Concat", g.shape_of(x, 0, 1), g.ints(s.heads), axis=0)
            lengths = [g.shape_of(x, 1, 2), g.shape_of(memory, 1, 2)]
            scores = g.node("Reshape", scores, g.node("Concat", batch, *lengths, axis=0))
        scores = self.with_mask(scores, x)
        if "second_mask" in self.changes:
            scores = g.node("Add", scores, g.input("second", self.changes["second_mask"]))
        if self.changes.get("scaled_after_mask"):
            scores = g.node("Mul", scores, g.constant(0.5))
        if batch is not None:
            flat = g.node("Concat", g.ints(-1), *lengths, axis=0)
            scores = g.node("Reshape", scores, flat)
        return scores

    def keys(self) -> str:
        return "memory" if self.s.memory else "sequence"

    def with_mask(self, scores: str, x: str) -> str:
        g, s, keys = self.g, self.s, self.keys()
        if s.mask == "per_head":
            bias = g.input("bias", [1, s.heads, "sequence", keys])
            return g.node("Add", bias, scores)
        flags = g.input("mask", self.changes.get("mask_shape", ["batch", keys]), TensorProto.INT64)
        kept = g.node("Cast", flags, to=TensorProto.BOOL)
        if "mask_shape" not in self.changes:
            kept = g.node("Unsqueeze", kept, g.ints(1, 2))
        number = self.changes.get("fill", -np.inf if "infinite" in s.mask else LOWEST)
        filler = g.constant(number)
        if s.mask in {"fill", "fill_infinite"}:
            return g.node("Where", g.node("Not", kept), filler, scores)
        if s.mask == "fill_kept":
            return g.node("Where", kept, scores, filler)
        added = g.node("Where", kept, g.constant(0.0), filler)
        if s.mask in {"full", "infinite"}:
            ones = g.node("Concat", g.ints(1, 1), g.shape_of(x, 1, 2), g.ints(1), axis=0)
            added = g.node("Expand", added, ones)
        operands = [added, scores] if s.mask == "reversed" else [scores, added]
        return g.node("Add", *operands)

    def softmax(self, scores: str) -> str:
        g = self.g
        weights = g.node("Softmax", scores, axis=self.changes.get("softmax_axis", -1))
        if self.changes.get("weights_are_output"):
            g.outputs.append(
                helper.make_tensor_value_info(weights, TensorProto.FLOAT, ["a", "b", "c", "d"])
            )
        if not self.s.guard:
            return weights
        return g.node("Where", g.node("IsNaN", weights), g.constant(0.0), weights)

    def project(self, result: str, x: str) -> str:
        g, s = self.g, self.s
        if s.split == "three_axes":
            shape = g.node("Concat", g.shape_of(x, 0, 1), g.ints(s.heads), axis=0)
            shape = g.node("Concat", shape, g.shape_of(x, 1, 2), g.ints(s.size), axis=0)
            result = g.node("Reshape", result, shape)
        merged = g.node("Transpose", result, perm=[0, 2, 1, 3])
        if s.merge == "flattened":
            rows = g.node("Reshape", merged, g.ints(-1, s.hidden))
            product = g.node("Gemm", rows, g.weight(s.hidden, s.hidden), g.weight(s.hidden))
            shape = g.node("Concat", g.shape_of(x, 0, 2), g.ints(s.hidden), axis=0)
            return g.node("Reshape", product, shape)
        joined = g.node("Reshape", merged, g.ints(0, 0, s.hidden))
        return (
            self.linear(joined)
            if "gemm" in s.linear
            else g.node("MatMul", joined, g.weight(s.hidden, s.hidden))
        )


def feeds_for(
    model: onnx.ModelProto, sizes: Mapping[str, int], *, masked_row: bool = False, seed: int = 1
) -> dict[str, np.ndarray]:
    """Random inputs; each row of a mask is padded differently, the last one in full if wanted."""
    random = np.random.default_rng(seed)
    feeds: dict[str, np.ndarray] = {}
    for item in model.graph.input:
        shape = [dim.dim_value or sizes[dim.dim_param] for dim in item.type.tensor_type.shape.dim]
        if item.type.tensor_type.elem_type == TensorProto.INT64:
            mask = np.ones(shape, np.int64)
            for row in range(shape[0]):
                mask[row, ..., max(1, shape[-1] - 2 * row) :] = 0
            if masked_row:
                mask[-1] = 0
            feeds[item.name] = mask
        else:
            feeds[item.name] = random.normal(size=shape).astype(np.float32)
    return feeds


def run(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of a model as it is written, without ONNX Runtime's own optimisations."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, dict(feeds))


def run_all(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every value that a node of a model makes, by name."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    names = [name for node in model.graph.node for name in node.output]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return dict(zip(names, run(watched, feeds), strict=True))


def operators(model: ir.Model) -> list[str]:
    """The operators of a graph, in order."""
    return [node.op_type for node in model.graph]
