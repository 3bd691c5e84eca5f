from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnxruntime import quantization as ort_quantization

from pipeline.errors import QuantizationError
from pipeline.stages.fuse import FUSE, FuseConfig
from pipeline.stages.quantize_dynamic import QUANTIZE_DYNAMIC, QuantizeDynamicConfig
from tests.graph.fusions.graphs import SPELLINGS, GraphBuilder, attention_model, feeds_for, run
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from pathlib import Path

SIZES = {"batch": 3, "sequence": 7}


class Workbench:
    """Runs the stage on models that it writes to a directory of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.count = 0

    def directory(self) -> Path:
        self.count += 1
        path = self.root / str(self.count)
        path.mkdir()
        return path

    def store(self, model: onnx.ModelProto) -> Path:
        source = self.directory()
        (source / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
        return source

    def quantize(
        self, model: onnx.ModelProto | Path, **options: Any
    ) -> tuple[onnx.ModelProto, dict[str, Any]]:
        source = self.store(model) if isinstance(model, onnx.ModelProto) else model
        output, context = self.directory(), RecordingContext(self.directory())
        config = QuantizeDynamicConfig(**options)
        facts = QUANTIZE_DYNAMIC.run(config, {"model": source}, output, context)
        return onnx.load(output / "model.onnx"), dict(facts)


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def linear_model(count: int = 2) -> onnx.ModelProto:
    g = GraphBuilder()
    value = g.input("x", ["batch", "sequence", 32])
    for _ in range(count):
        value = g.node("Add", g.node("MatMul", value, g.weight(32, 32)), g.weight(32))
    g.output(value)
    return g.model()


def worst_cosine(model: onnx.ModelProto, quantized: onnx.ModelProto) -> float:
    feeds = feeds_for(model, SIZES)
    (left,), (right,) = run(model, feeds), run(quantized, feeds)
    norms = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    return float(((left * right).sum(-1) / norms).min())


def test_every_linear_layer_of_a_fused_graph_is_quantised_and_close(bench: Workbench) -> None:
    model = attention_model(SPELLINGS["gemm_between_reshapes"])
    fused = bench.directory()
    FUSE.run(FuseConfig(), {"model": bench.store(model)}, fused, RecordingContext(bench.root))

    quantized, facts = bench.quantize(fused)

    assert len(facts["quantized"]) == 4
    assert facts["kept_float"] == []
    assert facts["coverage"]["quantized_weights"] == 1.0
    assert facts["coverage"]["quantized_matmuls"] == 1.0
    operators = [node.op_type for node in quantized.graph.node]
    assert operators.count("MatMulInteger") == 4
    assert "MultiHeadAttention" in operators
    assert worst_cosine(model, quantized) > 0.95


def test_products_of_two_computed_tensors_stay_float_and_are_named(bench: Workbench) -> None:
    model = attention_model(SPELLINGS["plain"])
    _, facts = bench.quantize(model)

    reasons = {item["reason"] for item in facts["kept_float"]}
    assert reasons == {"both factors are computed"}
    assert len(facts["kept_float"]) == 2
    assert facts["coverage"]["quantized_weights"] == 1.0


def test_a_graph_in_which_nothing_can_be_quantised_is_refused(bench: Workbench) -> None:
    g = GraphBuilder()
    x = g.input("x", ["batch", "sequence", 8])
    g.output(g.node("MatMul", x, g.node("Transpose", x, perm=[0, 2, 1])))

    with pytest.raises(QuantizationError, match="1 times: both factors are computed"):
        bench.quantize(g.model())


def test_what_cannot_be_quantised_lowers_the_coverage(bench: Workbench) -> None:
    g = GraphBuilder()
    x = g.input("x", ["batch", 16])
    scaled = g.node("Gemm", x, g.weight(16, 16), alpha=2.0)
    g.output(g.node("MatMul", g.node("MatMul", scaled, g.weight(16, 48)), g.weight(48, 16)), 2)

    _, facts = bench.quantize(g.model())

    assert facts["kept_float"] == [
        {"node": "Gemm_0", "reason": "it scales or transposes its input"}
    ]
    assert facts["coverage"]["quantized_weights"] == pytest.approx(1536 / 1792)
    assert facts["coverage"]["quantized_matmuls"] == pytest.approx(2 / 3)


def test_a_plain_gemm_is_quantised(bench: Workbench) -> None:
    g = GraphBuilder()
    x = g.input("x", ["batch", 16])
    g.output(g.node("Gemm", x, g.weight(16, 16), g.weight(16), transB=1), 2)

    _, facts = bench.quantize(g.model())

    assert facts["quantized"] == ["Gemm_0"]
    assert facts["coverage"]["quantized_weights"] == 1.0


def test_nodes_without_names_are_told_apart_by_their_outputs(bench: Workbench) -> None:
    model = linear_model()
    for node in model.graph.node:
        node.name = ""

    _, facts = bench.quantize(model)

    assert len(set(facts["quantized"])) == 2
    assert facts["coverage"]["quantized_weights"] == 1.0


def test_a_scale_for_each_column_is_closer_than_one_for_all(bench: Workbench) -> None:
    model = linear_model(1)
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0]) * np.logspace(-3, 0, 32)
    model.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(weight.astype(np.float32), model.graph.initializer[0].name)
    )
    del model.graph.node[1:]
    model.graph.output[0].name = model.graph.node[0].output[0]

    errors = []
    # Seven bits: x86 CPUs without VNNI saturate the sums of eight.
    for per_channel in (True, False):
        quantized, _ = bench.quantize(model, per_channel=per_channel, reduce_range=True)
        feeds = feeds_for(model, SIZES)
        exact, rough = run(model, feeds)[0], run(quantized, feeds)[0]
        errors.append(float((np.abs(rough - exact) / np.abs(exact).max((0, 1))).max()))

    assert errors[0] < errors[1] / 10


@pytest.mark.parametrize(
    ("options", "dtype", "largest"),
    [
        ({}, onnx.TensorProto.INT8, 127),
        ({"reduce_range": True}, onnx.TensorProto.INT8, 64),
        ({"weight_dtype": "uint8"}, onnx.TensorProto.UINT8, 255),
    ],
)
def test_weights_have_the_type_and_the_range_asked_for(
    bench: Workbench, options: dict[str, Any], dtype: int, largest: int
) -> None:
    quantized, _ = bench.quantize(linear_model(), **options)

    weights = [
        tensor for tensor in quantized.graph.initializer if tensor.name.endswith("_quantized")
    ]
    assert [tensor.data_type for tensor in weights] == [dtype, dtype]
    values = np.stack([onnx.numpy_helper.to_array(tensor) for tensor in weights]).astype(int)
    assert np.abs(values).max() == largest


def embedding_model(rows: int = 1000, *, is_read_twice: bool = False) -> onnx.ModelProto:
    g = GraphBuilder()
    ids = g.input("ids", ["batch", "sequence"], onnx.TensorProto.INT64)
    table = g.constant(g.random.normal(size=(rows, 32)) * np.logspace(-3, 3, rows)[:, None])
    result = g.node("MatMul", g.node("Gather", table, ids), g.weight(32, 32))
    if is_read_twice:
        result = g.node("Add", result, g.node("ReduceSum", table, g.ints(0), keepdims=0))
    g.output(result)
    return g.model()


def table_type(model: onnx.ModelProto) -> int:
    table = next(node.input[0] for node in model.graph.node if node.op_type == "Gather")
    types = {item.name: int(item.data_type) for item in model.graph.initializer}
    return types[table]


@pytest.mark.parametrize("is_asked_for", [False, True])
def test_embeddings_are_quantised_when_asked_for(bench: Workbench, is_asked_for: bool) -> None:
    quantized, facts = bench.quantize(embedding_model(), quantize_embeddings=is_asked_for)

    assert (table_type(quantized) == onnx.TensorProto.INT8) == is_asked_for
    assert len(facts["quantized_embeddings"]) == is_asked_for
    assert (facts["coverage"]["size_ratio"] < 0.4) == is_asked_for
    assert facts["coverage"]["quantized_weights"] == 1.0


def test_each_row_of_an_embedding_is_as_close_as_its_own_scale(bench: Workbench) -> None:
    model = embedding_model()
    del model.graph.node[1:]
    model.graph.output[0].name = model.graph.node[0].output[0]

    quantized, _ = bench.quantize(model)

    feeds = {"ids": np.arange(1000)[None]}
    exact, rough = run(model, feeds)[0], run(quantized, feeds)[0]
    step = np.abs(exact).max(axis=-1, keepdims=True) / 127
    assert (np.abs(exact - rough) <= step * 0.5001).all()


@pytest.mark.parametrize("model", [embedding_model(rows=100), embedding_model(is_read_twice=True)])
def test_a_small_table_and_one_that_is_read_otherwise_stay_float(
    bench: Workbench, model: onnx.ModelProto
) -> None:
    quantized, facts = bench.quantize(model)

    assert facts["quantized_embeddings"] == []
    assert table_type(quantized) == onnx.TensorProto.FLOAT


@pytest.mark.parametrize("weight_dtype", ["int8", "uint8"])
@pytest.mark.parametrize("reduce_range", [False, True])
def test_the_numbers_are_those_of_the_tool_of_onnxruntime(
    bench: Workbench, weight_dtype: str, reduce_range: bool
) -> None:
    model = linear_model()
    theirs = bench.directory() / "theirs.onnx"
    ort_quantization.quantize_dynamic(
        model,
        theirs,
        per_channel=True,
        reduce_range=reduce_range,
        weight_type=ort_quantization.QuantType[
            "Q" + {"int8": "Int8", "uint8": "UInt8"}[weight_dtype]
        ],
    )

    ours, _ = bench.quantize(model, weight_dtype=weight_dtype, reduce_range=reduce_range)

    feeds = feeds_for(model, SIZES)
    left, right = run(onnx.load(theirs), feeds)[0], run(ours, feeds)[0]
    assert np.abs(left - right).max() <= 0.02 * np.abs(left).max()
    assert np.median(np.abs(left - right)) <= 1e-6 * np.abs(left).max()


def test_onnxruntime_makes_one_kernel_of_each_quantised_layer(bench: Workbench) -> None:
    quantized, _ = bench.quantize(linear_model())
    options = ort.SessionOptions()
    optimized = bench.directory() / "optimized.onnx"
    options.optimized_model_filepath = str(optimized)
    options.log_severity_level = 3
    ort.InferenceSession(
        quantized.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    operators = [node.op_type for node in onnx.load(optimized).graph.node]

    assert operators == ["DynamicQuantizeMatMul"] * 2


def test_a_weight_that_two_layers_share_is_stored_once(bench: Workbench) -> None:
    g = GraphBuilder()
    weight = g.weight(32, 32)
    x = g.input("x", ["batch", 32])
    g.output(g.node("Add", g.node("MatMul", x, weight), g.node("MatMul", x, weight)), 2)

    quantized, facts = bench.quantize(g.model())

    operators = [node.op_type for node in quantized.graph.node]
    assert operators.count("DynamicQuantizeLinear") == 1
    assert operators.count("MatMulInteger") == 2
    assert len(quantized.graph.initializer) == 3
    assert facts["coverage"]["quantized_weights"] == 1.0


def test_a_weight_that_one_layer_needs_in_float_is_not_counted(bench: Workbench) -> None:
    g = GraphBuilder()
    weight = g.weight(16, 16)
    x = g.input("x", ["batch", 16])
    scaled = g.node("Gemm", x, weight, alpha=2.0)
    g.output(g.node("MatMul", scaled, weight), 2)

    _, facts = bench.quantize(g.model())

    assert facts["coverage"]["quantized_weights"] == 0.0
    assert facts["coverage"]["quantized_matmuls"] == 0.5


def test_equal_inputs_give_equal_bytes_and_nothing_is_written_beside_them(
    bench: Workbench,
) -> None:
    source = bench.store(attention_model(SPELLINGS["plain"]))
    source.chmod(0o555)
    first, first_facts = bench.quantize(source)
    second, second_facts = bench.quantize(source)

    assert first.SerializeToString() == second.SerializeToString()
    assert json.dumps(first_facts) == json.dumps(second_facts)
    assert [file.name for file in source.iterdir()] == ["model.onnx"]


def test_external_data_is_read(bench: Workbench) -> None:
    model = linear_model()
    source = bench.directory()
    onnx.save_model(
        model,
        source / "model.onnx",
        save_as_external_data=True,
        location="model.onnx_data",
        size_threshold=1024,
    )
    quantized, facts = bench.quantize(source)

    assert facts["coverage"]["quantized_weights"] == 1.0
    assert worst_cosine(linear_model(), quantized) > 0.95


def test_excluded_layers_stay_float(bench: Workbench) -> None:
    model = linear_model(3)
    names = [node.name or node.output[0] for node in model.graph.node if node.op_type == "MatMul"]
    _, everything = bench.quantize(model)
    made, facts = bench.quantize(model, exclude_nodes=(names[1],))
    assert facts["quantized"] == [name for name in everything["quantized"] if name != names[1]]
    assert facts["coverage"]["quantized_matmuls"] == pytest.approx(2 / 3)
    assert facts["coverage"]["quantized_weights"] == pytest.approx(2 / 3)
    assert [node.op_type for node in made.graph.node].count("MatMul") == 1
    with pytest.raises(QuantizationError, match="`nothing` matches no layer"):
        bench.quantize(model, exclude_nodes=("nothing",))
