"""Weights in 4 and 8 bits as the stage makes them: what runtimes take, what the check says of them."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from pydantic import ValidationError

from pipeline.checks.base import Measured
from pipeline.checks.quantization import QUANTIZATION, QuantizationLimits
from pipeline.engines.build import EngineRequest, build_engine
from pipeline.engines.builder_log import parse_layers
from pipeline.engines.module import TENSORRT_RTX
from pipeline.errors import QuantizationError, StageError
from pipeline.graph.engine_checks import read_engine_graph
from pipeline.parity.types import NoiseFloor
from pipeline.stages.cast import CAST, CastConfig
from pipeline.stages.check_quantization import CHECK_QUANTIZATION, CheckQuantizationConfig
from pipeline.stages.choose_bits import CHOOSE_BITS, ChooseBitsConfig, MixedOptions
from pipeline.stages.export import EXPORT, ExportConfig
from pipeline.stages.fuse import FUSE, FuseConfig
from pipeline.stages.fuse_attention import FUSE_ATTENTION, FuseAttentionConfig
from pipeline.stages.observe_products import OBSERVE_PRODUCTS, ObserveProductsConfig
from pipeline.stages.probes import PROBES, ProbesConfig
from pipeline.stages.quantize_weights import QUANTIZE_WEIGHTS, QuantizeWeightsConfig
from pipeline.stages.simplify import SIMPLIFY, SimplifyConfig
from tests.checkpoints import bert_config, save_model
from tests.stages.test_calibrate import random_samples
from tests.stages.test_quantize_static import Workbench

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pipeline.parity.types import GateResult

VOCABULARY = 1200
LAYERS = 2
PRODUCTS = 6 * LAYERS + 2  # the pooler and the classifier besides
CONFIGS = {
    "int4": QuantizeWeightsConfig(block_size=16),
    "int8": QuantizeWeightsConfig(bits=8),
    "half": QuantizeWeightsConfig(block_size=16),
    "brain": QuantizeWeightsConfig(block_size=16),
    "operator": QuantizeWeightsConfig(block_size=16),
}
SOURCES = {
    "int4": "fuse", "int8": "fuse", "half": "cast", "brain": "cast-bf16", "operator": "attention",
}  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """A text classifier in every form that weights are quantised in."""
    from transformers import BertForSequenceClassification

    root = tmp_path_factory.mktemp("weights")
    config = bert_config(num_labels=3, vocab_size=VOCABULARY, num_hidden_layers=LAYERS)
    checkpoint = save_model(BertForSequenceClassification, config, root / "checkpoint", 0)
    bench = Workbench(root)
    export = ExportConfig(task="text-classification", component="model")
    bench.run(EXPORT, export, "export", checkpoint=checkpoint)
    bench.run(SIMPLIFY, SimplifyConfig(), "simplify", model="export")
    bench.run(FUSE, FuseConfig(), "fuse", model="simplify")
    bench.run(FUSE_ATTENTION, FuseAttentionConfig(), "attention", model="simplify")
    bench.run(CAST, CastConfig(), "cast", model="simplify")
    bench.run(CAST, CastConfig(precision="bf16"), "cast-bf16", model="simplify")
    random_samples(root / "samples", 16, VOCABULARY)
    probes = ProbesConfig(task="text-classification", lengths=(2, 16))
    bench.run(PROBES, probes, "probes", samples="samples", tokenizer=checkpoint)
    for form, each in CONFIGS.items():
        facts = bench.run(QUANTIZE_WEIGHTS, each, form, model=SOURCES[form])
        (root / f"{form}.json").write_text(json.dumps(facts))
    return bench


def _facts(bench: Workbench, form: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((bench.root / f"{form}.json").read_text())
    return facts


@pytest.mark.parametrize("form", sorted(CONFIGS))
def test_every_weight_is_quantised_and_what_is_not_has_a_reason(
    bench: Workbench, form: str
) -> None:
    facts = _facts(bench, form)
    assert facts["coverage"]["quantized_weights"] == 1.0
    assert facts["coverage"]["quantized_matmuls"] == 1.0
    assert len(facts["quantized"]) == PRODUCTS
    assert 0.1 < facts["coverage"]["size_ratio"] < 0.95
    assert {each["reason"] for each in facts["kept_float"]} <= {"both factors are computed"}
    assert (facts["bits"], facts["block_size"]) == ((8, None) if form == "int8" else (4, 16))


def _outputs(path: Path, *, is_optimised: bool) -> np.ndarray:
    options = ort.SessionOptions()
    if not is_optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    ids = np.random.default_rng(3).integers(5, VOCABULARY, (3, 9))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    feeds |= {"token_type_ids": np.zeros_like(ids)}
    names = [item.name for item in session.get_inputs()]
    result: np.ndarray = session.run(None, {name: feeds[name] for name in names})[0]
    return result


@pytest.mark.parametrize("form", ["int4", "int8", "half", "operator"])
@pytest.mark.parametrize("is_optimised", [False, True])
def test_onnxruntime_runs_it_and_is_near_the_float_graph(
    bench: Workbench, form: str, is_optimised: bool
) -> None:
    wanted = _outputs(bench.model(SOURCES[form]), is_optimised=is_optimised)
    got = _outputs(bench.model(form), is_optimised=is_optimised)
    noise = np.sqrt(np.square(got - wanted).mean() / np.square(wanted).mean())
    assert 0 < noise < (0.05 if form == "int8" else 0.5)


def _profile(path: Path) -> Mapping[str, Any]:
    names = [each.name for each in read_engine_graph(path).inputs]
    return dict.fromkeys(names, ((1, 2), (2, 8), (4, 16)))


@pytest.mark.parametrize(("form", "kind"), [("half", "Half x Int4"), ("brain", "BFloat16 x Int4")])
def test_an_engine_multiplies_floats_and_integers(
    bench: Workbench, tmp_path: Path, form: str, kind: str
) -> None:
    pytest.importorskip("tensorrt_rtx")
    path = bench.model(form)
    assert read_engine_graph(path).problems == ()
    request = EngineRequest(
        module=TENSORRT_RTX,
        model=path,
        compute_capabilities=("sm89",),
        profiles=(_profile(path),),
    )
    layers = parse_layers(build_engine(request, tmp_path).result.layers)
    kinds = [layer.gemm_kind for layer in layers if layer.is_gemm and layer.weights]
    assert kinds.count(kind) / len(kinds) > 0.8


def _check(
    bench: Workbench,
    form: str,
    model: Path,
    name: str,
    config: QuantizeWeightsConfig | None = None,
    **ports: str | Path,
) -> dict[str, GateResult]:
    """Results by the last part of their metric."""
    facts = bench.run(
        CHECK_QUANTIZATION,
        CheckQuantizationConfig(weight_only=config or CONFIGS[form]),
        name,
        model=model,
        float=SOURCES[form],
        samples="samples",
        probes="probes",
        **ports,
    )
    floor = NoiseFloor(component="model", output="logits", float64=2e-7, threads=1e-7, samples=12)
    measured = Measured(
        target="t",
        component="model",
        stage="quantize_weights",
        node="quantize_weights@t",
        arithmetic="quantized",
        is_proxy=False,
        facts=json.loads(json.dumps(facts)),
        floors={"logits": floor},
    )
    results = QUANTIZATION.judge(measured, QuantizationLimits())
    return {result.metric.partition(".")[2]: result for result in results}


def _failed(results: dict[str, GateResult]) -> set[str]:
    return {name for name, result in results.items() if not result.is_allowed}


@pytest.mark.parametrize("form", sorted(CONFIGS))
def test_the_check_passes_what_the_stage_makes(bench: Workbench, form: str) -> None:
    results = _check(bench, form, bench.root / form, f"good-{form}")
    assert _failed(results) == set()
    assert {"missing_layers", "wrong_formats", "weight_error", "weight_step"} <= set(results)
    assert results["logits.noise"].measured == 0.0


def _swap_heads(model: onnx.ModelProto) -> str:
    """Two heads of a query trade their integers; the scales stay where they were."""
    name = next(
        tensor.name
        for tensor in model.graph.initializer
        if tensor.name.endswith("_quantized") and list(tensor.dims) == [32, 32]
    )
    tensor = next(each for each in model.graph.initializer if each.name == name)
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.roll(array, 16, axis=1), name))
    return "weight_error"


def _half_a_scale(model: onnx.ModelProto) -> str:
    tensor = next(t for t in model.graph.initializer if t.name.endswith("_scale"))
    array = numpy_helper.to_array(tensor).copy()
    array[0, 0] *= array.dtype.type(0.5)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return "weight_error"


def _float_again(model: onnx.ModelProto) -> str:
    """One layer reads floats: what DequantizeLinear would have given it."""
    node = next(each for each in model.graph.node if each.op_type == "DequantizeLinear")
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    values, scale = (numpy_helper.to_array(held[name]) for name in node.input)
    wide = np.repeat(scale.astype(np.float32), 16, axis=node.attribute[0].i)
    array = (values.astype(np.float32) * wide).astype(scale.dtype)
    model.graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
    model.graph.node.remove(node)
    return "missing_layers"


@pytest.mark.parametrize("damage", [_swap_heads, _half_a_scale, _float_again])
def test_the_check_refuses_a_damaged_graph(
    bench: Workbench, tmp_path: Path, damage: Callable[[onnx.ModelProto], str]
) -> None:
    twin = tmp_path / "twin"
    shutil.copytree(bench.root / "int4", twin)
    model = onnx.load(twin / "model.onnx")
    kind = damage(model)
    onnx.save(model, twin / "model.onnx")
    assert kind in _failed(_check(bench, "int4", twin, damage.__name__))


@pytest.fixture(scope="module")
def observed(bench: Workbench) -> Workbench:
    """The same with the moments of what goes into its products."""
    ports: dict[str, str | Path] = {"model": "simplify", "samples": "samples"}
    bench.run(OBSERVE_PRODUCTS, ObserveProductsConfig(), "moments", **ports)
    return bench


@pytest.mark.parametrize("form", ["int4", "half", "operator"])
def test_calibrated_weights_find_what_goes_into_every_product(
    observed: Workbench, form: str
) -> None:
    """The graph that was observed is the simplified one; these were fused or cast since."""
    config = QuantizeWeightsConfig(block_size=16, method="gptq")
    ports: dict[str, str | Path] = {"moments": "moments"}
    facts = observed.run(QUANTIZE_WEIGHTS, config, f"gptq-{form}", model=SOURCES[form], **ports)
    assert len(facts["quantized"]) == PRODUCTS
    made = observed.root / f"gptq-{form}"
    results = _check(observed, form, made, f"good-gptq-{form}", config, **ports)
    assert _failed(results) == set()


def test_mixed_bits_keep_a_budget_and_are_checked(observed: Workbench) -> None:
    config = CONFIGS["int4"]
    ports: dict[str, str | Path] = {"moments": "moments"}
    choice = ChooseBitsConfig(bits_budget=5.0, quantizer=config)
    chosen = observed.run(CHOOSE_BITS, choice, "bits", model="fuse", **ports)
    facts = observed.run(QUANTIZE_WEIGHTS, config, "mixed", model="fuse", bits="bits")
    assert 4.5 < facts["bits_per_weight"] == chosen["bits_per_weight"] <= 5.0
    assert 0 < len(facts["eight_bits"]) == chosen["eight_bits"] < PRODUCTS
    wide = {name for row in chosen["layers"] if row["bits"] == 8 for name in row["layers"]}
    assert wide == set(facts["eight_bits"])
    results = _check(observed, "int4", observed.root / "mixed", "good-mixed", bits="bits")
    assert _failed(results) == set()
    # All in 4 bits, where some were to have 8.
    results = _check(observed, "int4", observed.root / "int4", "bad-mixed", bits="bits")
    assert "wrong_formats" in _failed(results)
    # ... and the other way round.
    results = _check(observed, "int4", observed.root / "mixed", "bad-plain")
    assert "wrong_formats" in _failed(results)


def test_products_that_lose_too_much_get_8_bits(observed: Workbench) -> None:
    config, ports = CONFIGS["int4"], {"moments": "moments"}
    losses = []
    for limit in (1e-9, 0.08, 10.0):
        choice = ChooseBitsConfig(max_noise=limit, quantizer=config)
        facts = observed.run(CHOOSE_BITS, choice, f"bits-{limit}", model="fuse", **ports)
        losses.append((facts["eight_bits"], facts["bits_per_weight"]))
        for row in facts["layers"]:
            assert (row["bits"] == 8) == (row["noise_with_4"] > limit)
            assert row["noise_with_8"] < 0.2 * row["noise_with_4"]
    assert losses[0] == (PRODUCTS, 8.0)
    assert losses[2] == (0, 4.0)


def test_blocks_of_8_bits_are_stored_and_checked(observed: Workbench) -> None:
    config = QuantizeWeightsConfig(bits=8, block_size=16)
    facts = observed.run(QUANTIZE_WEIGHTS, config, "int8-blocks", model="fuse")
    assert (facts["bits"], facts["block_size"], facts["bits_per_weight"]) == (8, 16, 8.0)
    made = observed.root / "int8-blocks"
    assert _failed(_check(observed, "int8", made, "good-blocks", config)) == set()
    assert "wrong_formats" in _failed(_check(observed, "int8", made, "bad-blocks"))


def test_a_choice_of_bits_that_is_none_is_refused(observed: Workbench, tmp_path: Path) -> None:
    for text, error, message in (
        ("{}", StageError, "not a choice of bits"),
        ('{"eight_bits": ["nothing"]}', QuantizationError, "`nothing` is to have 8 bits"),
    ):
        (tmp_path / "bits.json").write_text(text)
        bench = Workbench(tmp_path / message[:7])
        bench.root.mkdir()
        ports = {"model": observed.root / "fuse", "bits": tmp_path}
        with pytest.raises(error, match=message):
            bench.run(QUANTIZE_WEIGHTS, CONFIGS["int4"], "none", **ports)


def test_a_pattern_that_matches_nothing_is_an_error(bench: Workbench, tmp_path: Path) -> None:
    config = QuantizeWeightsConfig(exclude_nodes=("nothing*",))
    with pytest.raises(QuantizationError, match=r"`nothing\*` matches no layer"):
        Workbench(tmp_path).run(QUANTIZE_WEIGHTS, config, "none", model=bench.root / "fuse")


def test_blocks_that_fit_no_layer_are_an_error_and_no_float_model(
    bench: Workbench, tmp_path: Path
) -> None:
    config = QuantizeWeightsConfig(block_size=256)
    with pytest.raises(QuantizationError, match="no whole number of blocks of 256") as none:
        Workbench(tmp_path).run(QUANTIZE_WEIGHTS, config, "none", model=bench.root / "fuse")
    assert "smaller" in none.value.hint


def test_configs_say_what_is_meant() -> None:
    assert QuantizeWeightsConfig().block_size == 32
    assert QuantizeWeightsConfig(bits=8).block_size is None
    assert QuantizeWeightsConfig(block_size=None).block_size is None
    for config in (*CONFIGS.values(), QuantizeWeightsConfig(block_size=None)):
        assert QuantizeWeightsConfig.model_validate_json(config.model_dump_json()) == config
    assert QuantizeWeightsConfig(bits=8, block_size=32).block_size == 32
    with pytest.raises(ValidationError, match="method awq is `clip`, after channels were scaled"):
        QuantizeWeightsConfig(method="awq")
    for limits in ({}, {"bits_budget": 5.0, "max_noise": 0.1}):
        with pytest.raises(ValidationError, match="needs one of bits_budget and max_noise"):
            MixedOptions(**limits)
