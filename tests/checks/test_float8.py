"""The check of a quantisation to float8: a good graph passes, each damage fails where it is."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest

from pipeline.checks.base import Measured
from pipeline.checks.quantization import QUANTIZATION, QuantizationLimits
from pipeline.stages.check_quantization import CHECK_QUANTIZATION, CheckQuantizationConfig
from pipeline.stages.quantize_static import QUANTIZE_STATIC, QuantizeStaticConfig
from tests.stages.context import RecordingContext
from tests.stages.test_quantize_static import FLOAT8, TENSORRT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from onnx import NodeProto

    from pipeline.parity.types import GateResult
    from tests.checks.chain import Chain
    from tests.mutants.surgery import Graph

CONFIG = QuantizeStaticConfig(**FLOAT8)
STAGE = "static-float8"


def _check(
    chain: Chain, model: Path, scratch: Path, config: QuantizeStaticConfig = CONFIG
) -> dict[str, GateResult]:
    """Results by the last part of their metric."""
    scratch.mkdir()
    ports = chain.ports(model, "samples", "probes", "ranges") | {"float": chain.root / "cast"}
    facts = CHECK_QUANTIZATION.run(
        CheckQuantizationConfig(static=config), ports, scratch, RecordingContext(scratch)
    )
    measured = Measured(
        target="rtx",
        component="model",
        stage="quantize_static",
        node="quantize",
        arithmetic="quantized",
        is_proxy=True,
        facts=json.loads(json.dumps(facts, allow_nan=False)),
        floors=chain.floors,
    )
    results = QUANTIZATION.judge(measured, QuantizationLimits())
    return {result.metric.partition(".")[2]: result for result in results}


def _failed(results: dict[str, GateResult]) -> dict[str, str]:
    return {name: result.layer for name, result in results.items() if not result.is_allowed}


def test_a_good_graph_passes(chain: Chain, tmp_path: Path) -> None:
    results = _check(chain, chain.root / STAGE, tmp_path / "scratch")
    assert _failed(results) == {}
    assert {"weight_error", "weight_step", "activation_scales", "activation_loss"} <= set(results)
    assert results["weight_error"].measured == pytest.approx(0.5, abs=0.01)
    assert results["weight_step"].measured == pytest.approx(1.0)
    assert results["activation_scales"].measured == 0.0


def _pair(graph: Graph, place: int) -> NodeProto:
    """A quantiser of an activation."""
    return graph.all("QuantizeLinear")[place]


def _weights(graph: Graph) -> list[NodeProto]:
    """The nodes that dequantise weights."""
    stored = {name for name, _ in graph.initializers()}
    return [node for node in graph.all("DequantizeLinear") if node.input[0] in stored]


def _weight_scale_doubled(graph: Graph) -> None:
    """Numbers and scale fit each other, but one bit is given away: no output shows it."""
    node = _weights(graph)[3]
    graph.change(node.input[1], lambda scale: (scale * 2).astype(scale.dtype))
    graph.change(node.input[0], lambda numbers: _scaled(numbers, 0.5))


def _scaled(numbers: np.ndarray, factor: float) -> np.ndarray:
    made = numbers.astype(np.float32) * np.float32(factor)
    return made.astype(ml_dtypes.float8_e4m3fn)


def _scale_of_another(graph: Graph) -> None:
    node = _weights(graph)[3]
    graph.change(node.input[1], lambda scale: np.roll(scale, 1))


def _stale(graph: Graph) -> None:
    """Numbers of another layer of the same shape."""
    first, second = (
        node
        for node in _weights(graph)[:2]
        if graph.get(node.input[0]).shape == graph.get(_weights(graph)[0].input[0]).shape
    )
    other = graph.get(second.input[0])
    graph.change(first.input[0], lambda _: other)


def _cut_off(graph: Graph) -> None:
    """Numbers are rounded toward zero."""
    node = _weights(graph)[3]

    def smaller(numbers: np.ndarray) -> np.ndarray:
        bits = numbers.view(np.uint8).copy()
        bits[(bits & 0x7F) > 0] -= 1
        return bits.view(numbers.dtype)

    graph.change(node.input[0], smaller)


def _nan(graph: Graph) -> None:
    def spoilt(numbers: np.ndarray) -> np.ndarray:
        numbers = numbers.copy()
        numbers[0, 0] = math.nan
        return numbers

    graph.change(_weights(graph)[3].input[0], spoilt)


def _activation_doubled(graph: Graph) -> None:
    """Float8 hardly minds: the outputs would not show it."""
    name = _pair(graph, 2).input[1]
    graph.change(name, lambda scale: (scale * 2).astype(scale.dtype))


def _activation_cut(graph: Graph) -> None:
    name = _pair(graph, 2).input[1]
    graph.change(name, lambda scale: (scale / 8).astype(scale.dtype))


def _halves_differ(graph: Graph) -> None:
    pair = _pair(graph, 2)
    back = next(n for n in graph.all("DequantizeLinear") if n.input[0] == pair.output[0])
    other = graph.put("other_scale", graph.get(pair.input[1]) * np.float16(1.5))
    back.input[1] = other


def _float_again(graph: Graph) -> None:
    """A layer reads its activation as it was."""
    pair = _pair(graph, 2)
    back = next(n for n in graph.all("DequantizeLinear") if n.input[0] == pair.output[0])
    for reader in graph.model.graph.node:
        for place, name in enumerate(reader.input):
            if name == back.output[0]:
                reader.input[place] = pair.input[0]


@pytest.mark.parametrize(
    ("damage", "kinds"),
    [
        (_weight_scale_doubled, {"weight_step"}),
        (_scale_of_another, {"weight_error", "weight_step"}),
        (_stale, {"weight_error"}),
        (_cut_off, {"weight_error"}),
        (_nan, {"weight_error", "wrong_formats"}),
        (_activation_doubled, {"activation_scales"}),
        (_activation_cut, {"activation_scales", "activation_loss"}),
        (_halves_differ, {"wrong_formats"}),
        (_float_again, {"missing_layers"}),
    ],
)
def test_a_damage_fails(
    chain: Chain, tmp_path: Path, damage: Callable[[Graph], None], kinds: set[str]
) -> None:
    model = chain.damaged(STAGE, tmp_path / "damaged", damage)
    failed = _failed(_check(chain, model, tmp_path / "scratch"))
    assert set(failed) == kinds
    assert all(failed.values())


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"per_channel": False}, {"wrong_formats", "weight_step"}),
        ({"exclude_nodes": ("*MatMul_6*",)}, {"missing_layers"}),
        (TENSORRT | {"weight_dtype": "int8"}, {"wrong_formats", "weight_error", "weight_step"}),
    ],
)
def test_what_was_asked_for_and_not_done_fails(
    chain: Chain, tmp_path: Path, changes: dict[str, Any], kinds: set[str]
) -> None:
    (tmp_path / "other").mkdir()
    ports = {"model": chain.root / "cast", "ranges": chain.root / "ranges"}
    config = QuantizeStaticConfig(**(FLOAT8 | changes))
    QUANTIZE_STATIC.run(config, ports, tmp_path / "other", RecordingContext(tmp_path))
    failed = _failed(_check(chain, tmp_path / "other", tmp_path / "scratch"))
    assert kinds <= set(failed)
    # The other way round it is as it was asked for.
    good = _check(chain, tmp_path / "other", tmp_path / "again", config)
    assert _failed(good) == {}
