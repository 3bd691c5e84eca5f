"""Engines of a decoder: real ones, built from its graph, with the cache as inputs and outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from pipeline.engines.facts_file import read_engine_facts
from pipeline.errors import EngineBuildError
from pipeline.parity.tolerances import TOLERANCES
from pipeline.stages.arrange_attention import ARRANGE_ATTENTION, ArrangeAttentionConfig
from pipeline.stages.cast import CAST, CastConfig
from pipeline.stages.engine import ENGINE, EngineConfig
from pipeline.stages.export import EXPORT, ExportConfig
from pipeline.stages.fuse_attention import FUSE_ATTENTION, FuseAttentionConfig
from pipeline.stages.quantize_weights import QUANTIZE_WEIGHTS, QuantizeWeightsConfig
from pipeline.stages.simplify import SIMPLIFY, SimplifyConfig
from tests.decoders import TASK, VOCABULARY, build_tiny_llama
from tests.stages.test_quantize_static import Workbench

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

LAYERS, HEADS, KV_HEADS, SIZE = 2, 4, 2, 32
PREFILL = {
    "batch": (1, 1, 2),
    "sequence": (1, 8, 16),
    "past_sequence": (0, 0, 0),
    "total_sequence": (1, 8, 16),
}
DECODE = {
    "batch": (1, 2, 4),
    "sequence": (1, 1, 1),
    "past_sequence": (1, 8, 31),
    "total_sequence": (2, 9, 32),
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """Heads have a size that TensorRT has a kernel for."""
    root = tmp_path_factory.mktemp("decoder-engine")
    checkpoint = build_tiny_llama(root / "checkpoint", hidden_size=HEADS * SIZE, vocab_size=128)
    bench = Workbench(root)
    export = ExportConfig(task=TASK, component="model")
    bench.run(EXPORT, export, "export", checkpoint=checkpoint)
    bench.run(SIMPLIFY, SimplifyConfig(), "simplify", model="export")
    bench.run(ARRANGE_ATTENTION, ArrangeAttentionConfig(), "arrange", model="simplify")
    bench.run(FUSE_ATTENTION, FuseAttentionConfig(), "attention", model="arrange")
    bench.run(CAST, CastConfig(), "fp16", model="attention")
    return bench


def _feeds(past: int, new: int) -> dict[str, np.ndarray]:
    """Two rows, the second with two tokens of padding in front."""
    generator = np.random.default_rng(past + new)
    mask = np.ones((2, past + new), np.int64)
    mask[1, :2] = 0
    positions = np.maximum(mask.cumsum(-1) - 1, 0)[:, past:]
    feeds = {
        "input_ids": generator.integers(0, VOCABULARY, (2, new)),
        "attention_mask": mask,
        "position_ids": positions,
    }
    for layer in range(LAYERS):
        for kind in ("key", "value"):
            shape = (2, KV_HEADS, past, SIZE)
            feeds[f"past_key_values.{layer}.{kind}"] = generator.normal(size=shape).astype("f4")
    return feeds


def _run(path: Path, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [np.asarray(output) for output in session.run(None, dict(feeds))]


def _noise(right: np.ndarray, found: np.ndarray) -> float:
    return float(np.sqrt(np.square(right - found).mean() / np.square(right).mean()))


def _engine(bench: Workbench, tmp_path: Path, model: str, **options: Any) -> dict[str, Any]:
    config = EngineConfig(
        **{"compute_capability": "sm89", "profiles": (PREFILL, DECODE), "precision": "fp16"}
        | options
    )
    return Workbench(tmp_path).run(ENGINE, config, "engine", model=bench.root / model)


@pytest.mark.parametrize(("past", "new"), [(0, 5), (3, 4), (7, 1)])
def test_the_graph_of_an_engine_has_the_numbers_of_the_exported_one(
    bench: Workbench, past: int, new: int
) -> None:
    feeds = _feeds(past, new)
    seen = feeds["attention_mask"][:, past:] == 1
    right = _run(bench.model("export"), feeds)
    # In float16 these weights and this cache, which are random, cost 2.8e-3.
    for name, limit in (("attention", TOLERANCES["float32"].limit(0.0)), ("fp16", 6e-3)):
        found = _run(bench.model(name), feeds)
        assert _noise(right[0][seen], found[0][seen]) <= limit
        for mine, theirs in zip(right[1:], found[1:], strict=True):
            assert _noise(mine[:, :, 2:], theirs[:, :, 2:]) <= limit


def test_attention_is_one_operator_that_keeps_shared_heads_shared(bench: Workbench) -> None:
    graph = onnx.load(bench.model("attention"))
    assert {each.version for each in graph.opset_import if not each.domain} == {23}
    values = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.graph.value_info, *graph.graph.output)
    }
    nodes = [node for node in graph.graph.node if node.op_type == "Attention"]
    assert len(nodes) == LAYERS
    for number, node in enumerate(nodes):
        assert values[node.input[0]][1] == HEADS
        assert list(node.input[1:3]) == [f"present.{number}.{kind}" for kind in ("key", "value")]


def test_every_attention_is_one_kernel_in_both_profiles(bench: Workbench, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    facts = _engine(bench, tmp_path, "fp16")
    assert facts["coverage"]["fused_attention"] == 1.0
    assert facts["coverage"]["fp16_gemms"] == 1.0
    assert [row["fused_attention"] for row in facts["by_profile"]] == [LAYERS, LAYERS]
    written = read_engine_facts(tmp_path / "engine" / "engine.json")
    first, then = written.profiles
    assert first.inputs["past_key_values.0.key"][0] == (1, KV_HEADS, 0, SIZE)
    assert then.inputs["past_key_values.1.value"][2] == (4, KV_HEADS, 31, SIZE)
    assert then.inputs["attention_mask"] == ((1, 2), (2, 9), (4, 32))


def test_weights_of_four_bits_stay_narrow_in_the_engine(bench: Workbench, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    made = Workbench(tmp_path)
    config = QuantizeWeightsConfig(bits=4, block_size=32)
    made.run(QUANTIZE_WEIGHTS, config, "int4", model=bench.root / "fp16")
    facts = _engine(made, tmp_path, "int4", precision="int4", profiles=(DECODE,))
    assert facts["coverage"]["int4_gemms"] == 1.0, facts["gemm_kinds"]
    assert facts["coverage"]["fused_attention"] == 1.0


def test_only_a_cache_may_be_empty(bench: Workbench, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    for axis in ("sequence", "batch"):
        wrong = PREFILL | {axis: (0, 1, 2)}
        folder = tmp_path / axis
        folder.mkdir()
        with pytest.raises(EngineBuildError, match=f"`{axis}` does not hold 1 <= min"):
            _engine(bench, folder, "fp16", profiles=(wrong,))


def test_a_cache_without_a_range_is_refused(bench: Workbench, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    wrong = {axis: sizes for axis, sizes in PREFILL.items() if axis != "past_sequence"}
    with pytest.raises(EngineBuildError, match=r"axis 2 of past_key_values\.0\.key"):
        _engine(bench, tmp_path, "fp16", profiles=(wrong,))
