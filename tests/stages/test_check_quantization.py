"""The check of a quantisation on a real graph: good ones pass by its limits, damaged ones do not."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from pipeline.calibration.ranges import load_ranges, save_ranges
from pipeline.checks.base import Measured
from pipeline.checks.quantization import QUANTIZATION, QuantizationLimits
from pipeline.parity.types import NoiseFloor
from pipeline.stages.calibrate import CALIBRATE, CalibrateConfig
from pipeline.stages.cast import CAST, CastConfig
from pipeline.stages.check_quantization import CHECK_QUANTIZATION, CheckQuantizationConfig
from pipeline.stages.export import EXPORT, ExportConfig
from pipeline.stages.fuse import FUSE, FuseConfig
from pipeline.stages.probes import PROBES, ProbesConfig
from pipeline.stages.quantize_dynamic import QUANTIZE_DYNAMIC, QuantizeDynamicConfig
from pipeline.stages.quantize_static import QUANTIZE_STATIC, QuantizeStaticConfig
from pipeline.stages.simplify import SIMPLIFY, SimplifyConfig
from tests.checkpoints import bert_config, save_model
from tests.stages.test_calibrate import random_samples
from tests.stages.test_quantize_static import ONNXRUNTIME, TENSORRT, Workbench

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.parity.types import GateResult

VOCABULARY = 1200
"""Enough for a table that is stored in 8 bits."""

FORMS = ("dynamic", "onnxruntime", "tensorrt")
CONFIGS: dict[str, Any] = {
    "dynamic": QuantizeDynamicConfig(),
    "onnxruntime": QuantizeStaticConfig(**ONNXRUNTIME),
    "tensorrt": QuantizeStaticConfig(**TENSORRT),
}
SOURCES = {"dynamic": "fuse", "onnxruntime": "fuse", "tensorrt": "cast"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """A text classifier, so that there are products with a bias of their own, quantised thrice."""
    from transformers import BertForSequenceClassification

    root = tmp_path_factory.mktemp("check")
    config = bert_config(num_labels=3, vocab_size=VOCABULARY)
    checkpoint = save_model(BertForSequenceClassification, config, root / "checkpoint", 0)
    bench = Workbench(root)
    export = ExportConfig(task="text-classification", component="model")
    bench.run(EXPORT, export, "export", checkpoint=checkpoint)
    bench.run(SIMPLIFY, SimplifyConfig(), "simplify", model="export")
    bench.run(FUSE, FuseConfig(), "fuse", model="simplify")
    bench.run(CAST, CastConfig(), "cast", model="simplify")
    random_samples(root / "samples", 48, VOCABULARY)
    probes = ProbesConfig(task="text-classification", lengths=(2, 16))
    bench.run(PROBES, probes, "probes", samples="samples", tokenizer=checkpoint)
    bench.run(CALIBRATE, CalibrateConfig(), "ranges", model="simplify", samples="samples")
    for form in FORMS:
        _quantize(bench, form, form)
    return bench


def _quantize(
    bench: Workbench, form: str, name: str, *, ranges: str = "ranges", **changes: Any
) -> None:
    config = CONFIGS[form].model_copy(update=changes)
    ports = {"model": SOURCES[form]} | ({} if form == "dynamic" else {"ranges": ranges})
    bench.run(QUANTIZE_DYNAMIC if form == "dynamic" else QUANTIZE_STATIC, config, name, **ports)


def _check(
    bench: Workbench, form: str, model: str, *, ranges: str = "ranges", samples: str = "samples"
) -> dict[str, GateResult]:
    """Results by the last part of their metric."""
    kind = "dynamic" if form == "dynamic" else "static"
    ports = {"model": model, "float": SOURCES[form], "samples": samples, "probes": "probes"}
    if kind == "static":
        ports["ranges"] = ranges
    for folder in bench.root.glob("checked*"):
        shutil.rmtree(folder)
    config = CheckQuantizationConfig(**{kind: CONFIGS[form]})
    facts = bench.run(CHECK_QUANTIZATION, config, "checked", **ports)
    measured = Measured(
        target="t",
        component="model",
        stage="quantize",
        node="quantize@t",
        arithmetic="quantized",
        is_proxy=False,
        facts=json.loads(json.dumps(facts)),
        floors={
            "logits": NoiseFloor(
                component="model", output="logits", float64=2e-7, threads=1e-7, samples=12
            )
        },
    )
    results = QUANTIZATION.judge(measured, QuantizationLimits())
    assert all(result.gate == "quantization" for result in results)
    assert all(result.node == "quantize@t" for result in results)
    return {result.metric.partition(".")[2]: result for result in results}


def _failed(results: dict[str, GateResult]) -> dict[str, str]:
    """Metric -> layer, of those that failed."""
    return {name: result.layer for name, result in results.items() if not result.is_allowed}


@pytest.mark.parametrize("form", FORMS)
def test_a_good_graph_passes(bench: Workbench, form: str) -> None:
    results = _check(bench, form, form)
    assert _failed(results) == {}
    wanted = {"missing_layers", "wrong_formats", "weight_error", "weight_step", "logits.noise"}
    if form != "dynamic":
        wanted |= {"activation_scales", "activation_loss", "impossible_ranges"}
        wanted |= {"activation_clipping", "calibration_samples", "unseen_values"}
    if form == "onnxruntime":
        wanted |= {"bias_error"}
    assert set(results) == wanted | {"changed_constants", "changed_nodes"}
    assert results["logits.noise"].measured == 0.0
    assert results["weight_error"].measured == pytest.approx(0.5, abs=0.01)


Damage = "Callable[[onnx.ModelProto], str]"
"""Changes a model, and says which layer it is in."""


def _damaged(bench: Workbench, form: str, damage: Callable[[onnx.ModelProto], str]) -> str:
    model = onnx.load_model(bench.model(form))
    layer = damage(model)
    folder = bench.root / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    onnx.save_model(model, folder / "model.onnx")
    return layer


def _tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def _replace(tensor: onnx.TensorProto, array: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))


def _heads_swapped(model: onnx.ModelProto) -> str:
    """Columns of two of four heads, with their scales: a projection of the right numbers."""
    integers = next(
        tensor
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and list(tensor.dims) == [32, 32]
    )
    scale = _tensor(model, integers.name.replace("quantized", "scale"))
    order = np.arange(32)
    order[:8], order[8:16] = np.arange(8, 16), np.arange(8)
    for tensor in (integers, scale):
        _replace(tensor, numpy_helper.to_array(tensor)[..., order])
    node = next(each for each in model.graph.node if integers.name in each.input)
    readers = [each for each in model.graph.node if node.output[0] in each.input]
    is_product = node.op_type == "MatMulInteger"
    return node.name.removesuffix("_integer") if is_product else readers[0].name


@pytest.mark.parametrize("form", FORMS)
def test_two_swapped_heads_fail_in_their_layer(bench: Workbench, form: str) -> None:
    layer = _damaged(bench, form, _heads_swapped)
    assert _failed(_check(bench, form, "damaged")) == {"weight_error": layer, "weight_step": layer}


def _mask_dropped(model: onnx.ModelProto) -> str:
    """What is added to the scores of attention is multiplied by zero."""
    for node in model.graph.node:
        mask = {"Attention": 5, "MultiHeadAttention": 5, "Add": 1}.get(node.op_type)
        name = node.input[mask] if mask is not None and len(node.input) > mask else ""
        maker = next((each for each in model.graph.node if name and name in each.output), None)
        if maker is not None and maker.op_type in {"Where", "Mul", "Expand", "Unsqueeze"}:
            kind = 10 if "fp16" in name or _is_half(model) else 1
            zero = np.zeros((), np.float16 if kind == 10 else np.float32)
            model.graph.initializer.append(numpy_helper.from_array(zero, "nothing"))
            made = onnx.helper.make_node("Mul", [name, "nothing"], ["unmasked"], name="unmasked")
            place = list(model.graph.node).index(node)
            node.input[mask or 0] = "unmasked"
            model.graph.node.insert(place, made)
            return node.name or node.output[0]
    raise AssertionError({node.op_type for node in model.graph.node})


def _is_half(model: onnx.ModelProto) -> bool:
    return any(tensor.data_type == 10 for tensor in model.graph.initializer)


def _residual_miswired(model: onnx.ModelProto) -> str:
    """A normalisation reads its second addend in the place of the first."""
    for node in model.graph.node:
        if node.op_type == "SkipLayerNormalization":
            node.input[1] = node.input[0]
            return node.name or node.output[0]
    for node in model.graph.node:
        if node.op_type == "LayerNormalization":
            add = next(each for each in model.graph.node if node.input[0] in each.output)
            add.input[1] = add.input[0]
            return add.name or add.output[0]
    raise AssertionError


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("damage", [_mask_dropped, _residual_miswired])
def test_a_graph_that_changed_besides_its_quantisation_fails(
    bench: Workbench, form: str, damage: Callable[[onnx.ModelProto], str]
) -> None:
    layer = _damaged(bench, form, damage)
    results = _check(bench, form, "damaged")
    failed = _failed(results)
    assert failed["changed_nodes"] == layer
    assert "logits.noise" in failed  # of probes, some are masked
    assert set(failed) == {"changed_nodes", "logits.noise"}


@pytest.mark.parametrize("form", FORMS)
def test_what_was_asked_for_and_not_done_fails(bench: Workbench, form: str) -> None:
    changes = {"per_channel": False, "exclude_nodes": ("*MatMul_6*",)}
    _quantize(bench, form, f"other-{form}", **changes)
    failed = _failed(_check(bench, form, f"other-{form}"))
    assert set(failed) == {"missing_layers", "wrong_formats", "weight_step"}
    assert "MatMul_6" in failed["missing_layers"]


def _activations(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "QuantizeLinear"]


def _activation_scale_doubled(model: onnx.ModelProto) -> str:
    tensor = _tensor(model, _activations(model)[2].input[1])
    array = numpy_helper.to_array(tensor)
    _replace(tensor, array * array.dtype.type(2))
    return ""


def _activation_zero_point_off(model: onnx.ModelProto) -> str:
    tensor = _tensor(model, _activations(model)[2].input[2])
    array = numpy_helper.to_array(tensor)
    _replace(tensor, array + array.dtype.type(7))
    return ""


def _ranges_of_the_next(model: onnx.ModelProto) -> str:
    nodes = _activations(model)
    arrays = [
        [numpy_helper.to_array(_tensor(model, name)) for name in node.input[1:]] for node in nodes
    ]
    for node, others in zip(nodes, arrays[1:] + arrays[:1], strict=True):
        for name, array in zip(node.input[1:], others, strict=True):
            _replace(_tensor(model, name), array)
    return ""


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize(
    "damage", [_activation_scale_doubled, _activation_zero_point_off, _ranges_of_the_next]
)
def test_scales_that_are_not_those_of_their_ranges_fail(
    bench: Workbench, form: str, damage: Callable[[onnx.ModelProto], str]
) -> None:
    _damaged(bench, form, damage)
    failed = _failed(_check(bench, form, "damaged"))
    assert failed["activation_scales"]
    if damage is _ranges_of_the_next:
        assert "activation_loss" in failed
    assert not {"weight_error", "changed_nodes", "logits.noise"} & set(failed)


def _recalibrate(bench: Workbench, count: int, name: str, **options: Any) -> None:
    for folder in bench.root.glob(f"{name}*"):
        shutil.rmtree(folder)
    random_samples(bench.root / f"{name}-samples", count, VOCABULARY)
    ports = {"model": "simplify", "samples": f"{name}-samples"}
    bench.run(CALIBRATE, CalibrateConfig(**options), f"{name}-ranges", **ports)


@pytest.mark.parametrize("form", FORMS[1:])
def test_calibration_on_one_sample_fails(bench: Workbench, form: str) -> None:
    _recalibrate(bench, 1, "one")
    _quantize(bench, form, "one", ranges="one-ranges")
    results = _check(bench, form, "one", ranges="one-ranges")
    failed = _failed(results)
    assert {"calibration_samples", "activation_loss"} <= set(failed)
    assert results["calibration_samples"].measured == 1.0
    assert "activation_scales" not in failed


@pytest.mark.parametrize(
    ("form", "method"),
    [("onnxruntime", "minmax"), ("tensorrt", "percentile"), ("onnxruntime", "entropy")],
)
def test_every_method_passes(bench: Workbench, form: str, method: str) -> None:
    _recalibrate(bench, 32, "method", method=method)
    _quantize(bench, form, "method", ranges="method-ranges")
    assert _failed(_check(bench, form, "method", ranges="method-ranges")) == {}


@pytest.mark.parametrize("form", ["tensorrt"])
def test_ranges_that_no_method_makes_fail(bench: Workbench, form: str) -> None:
    """Twice the range of one tensor, in the calibration itself: the scales are those of it."""
    for folder in bench.root.glob("wide*"):
        shutil.rmtree(folder)
    ranges = load_ranges(bench.root / "ranges")
    tensor = ranges.tensors[0]
    wide = tensor.model_copy(
        update={name: getattr(tensor, name) * 2.5 for name in ("low", "high", "magnitude")}
    )
    (bench.root / "wide-ranges").mkdir()
    changed = ranges.model_copy(update={"tensors": (wide, *ranges.tensors[1:])})
    save_ranges(changed, bench.root / "wide-ranges")
    _quantize(bench, form, "wide", ranges="wide-ranges")
    failed = _failed(_check(bench, form, "wide", ranges="wide-ranges"))
    assert set(failed) == {"impossible_ranges", "activation_loss"}


@pytest.mark.parametrize("form", ["onnxruntime", "tensorrt"])
def test_calibration_that_saw_other_numbers_fails(bench: Workbench, form: str) -> None:
    """A tensor as calibration would have seen it behind a Relu; its width is nearly the same."""
    for folder in bench.root.glob("seen*"):
        shutil.rmtree(folder)
    ranges = load_ranges(bench.root / "ranges")
    first, *others = ranges.tensors
    low = first.minimum * 0.05
    other = first.model_copy(update={"minimum": low, "low": max(first.low, low)})
    (bench.root / "seen-ranges").mkdir()
    changed = ranges.model_copy(update={"tensors": (other, *others)})
    save_ranges(changed, bench.root / "seen-ranges")
    _quantize(bench, form, "seen", ranges="seen-ranges")
    results = _check(bench, form, "seen", ranges="seen-ranges")
    assert not results["unseen_values"].is_allowed
    assert results["unseen_values"].measured == pytest.approx(20, rel=0.5)


def test_no_tensor_with_infinite_numbers_is_judged_as_a_good_one(
    bench: Workbench, tmp_path: Path
) -> None:
    """A float graph that overflows on the samples: the check says so and does not fall over."""
    for name in ("ranges", "samples", "probes", "onnxruntime", "fuse"):
        shutil.copytree(bench.root / name, tmp_path / name)
    for name in ("onnxruntime", "fuse"):
        path = tmp_path / name / "model.onnx"
        model = onnx.load_model(path)
        tensor = next(
            each for each in model.graph.initializer if each.name.endswith("LayerNorm.weight")
        )
        _replace(tensor, np.full_like(numpy_helper.to_array(tensor), np.inf))
        onnx.save_model(model, path)
    results = _check(Workbench(tmp_path), "onnxruntime", "onnxruntime")
    assert results["activation_loss"].measured is None
    assert not results["activation_loss"].is_allowed


def test_a_graph_that_cannot_be_run_is_a_finding(bench: Workbench) -> None:
    def damage(model: onnx.ModelProto) -> str:
        node = next(each for each in model.graph.node if "LayerNormalization" in each.op_type)
        node.op_type = "NoSuchOperator"
        return node.name or node.output[0]

    layer = _damaged(bench, "onnxruntime", damage)
    results = _check(bench, "onnxruntime", "damaged")
    assert _failed(results) == {"changed_nodes": layer, "logits.noise": ""}
    assert "NoSuchOperator" in results["logits.noise"].reason


def test_limits_can_be_changed_and_left_out(bench: Workbench) -> None:
    _damaged(bench, "onnxruntime", _heads_swapped)
    facts: dict[str, Any] = bench.run(
        CHECK_QUANTIZATION,
        CheckQuantizationConfig(static=CONFIGS["onnxruntime"]),
        "checked-again",
        model="damaged",
        float="fuse",
        samples="samples",
        probes="probes",
        ranges="ranges",
    )
    measured = Measured(
        target="t",
        component="model",
        stage="quantize_static",
        node="quantize_static",
        arithmetic="quantized",
        is_proxy=False,
        facts=facts,
        floors={},
    )
    loose = QuantizationLimits(weight_error=None, weight_step=None, bias_error=1e9)
    assert all(result.is_allowed for result in QUANTIZATION.judge(measured, loose))
    tight = QuantizationLimits(calibration_samples=100)
    failed = [r.metric for r in QUANTIZATION.judge(measured, tight) if not r.is_allowed]
    assert "quantize_static.calibration_samples" in failed
