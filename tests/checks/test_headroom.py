"""The check of headroom on a real float16 graph of a tiny encoder: what only a device would show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
import pytest

from pipeline.checks.base import Measured
from pipeline.checks.headroom import HEADROOM, HeadroomLimits
from pipeline.data.sample_set import load_samples
from pipeline.graph.files import load_ir_model, save_ir_model
from pipeline.graph.half import cast_to_half
from pipeline.stages.headroom import HeadroomConfig
from tests.mutants.parts import linear
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.parity.types import GateResult
    from tests.checks.chain import Chain
    from tests.mutants.surgery import Graph

SCALE = 2.0**15


def _measure(chain: Chain, model: Path, scratch: Path) -> dict[str, Any]:
    scratch.mkdir()
    context = RecordingContext(scratch, threads=2)
    ports = chain.ports(model, "export", "samples", "probes")
    facts = HEADROOM.stage.run(HeadroomConfig(), ports, scratch, context)
    runs = facts["samples"] + facts["probes"]
    assert context.steps[-1] == (runs, runs, "samples")
    return dict(facts)


def _judge(facts: dict[str, Any], **limits: float) -> dict[str, GateResult]:
    measured = Measured(
        target="rtx",
        component="model",
        stage="cast",
        node="cast",
        arithmetic="float16",
        is_proxy=True,
        facts=facts,
        floors={},
    )
    results = HEADROOM.judge(measured, HeadroomLimits(**limits))
    assert all(result.node == "cast" and result.is_proxy for result in results)
    return {result.metric: result for result in results}


def _cast(directory: Path, half: Path) -> Path:
    model = load_ir_model(directory / "model.onnx")
    cast_to_half(model)
    half.mkdir()
    save_ir_model(model, half)
    return half


def _run(model: Path, feeds: dict[str, Any]) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model / "model.onnx", options)
    return session.run(["last_hidden_state"], feeds)[0]


def _feeds(chain: Chain) -> dict[str, np.ndarray]:
    samples = load_samples(chain.root / "samples")
    (sample,) = samples.read([0])
    return {name: sample[name][None] for name in samples.input_names}


def test_a_good_cast_has_room(chain: Chain, tmp_path: Path) -> None:
    facts = _measure(chain, chain.root / "cast", tmp_path / "scratch")
    assert facts["watched"] > 30
    assert facts["stand_ins"]
    results = _judge(facts)
    assert list(results) == ["cast.headroom"]
    assert results["cast.headroom"].is_allowed
    # The fill of the mask, half of the largest number, is no quantity.
    assert (results["cast.headroom"].measured or 0.0) > 50
    headrooms = [value["headroom"] for value in facts["values"]]
    assert headrooms == sorted(headrooms)
    assert all(65504 / value["largest"] == value["headroom"] for value in facts["values"])


def test_the_largest_magnitudes_are_those_of_the_float32_graph(
    chain: Chain, tmp_path: Path
) -> None:
    facts = _measure(chain, chain.root / "cast", tmp_path / "scratch")
    value = facts["values"][0]
    kind, place = value["of"].split()[:2]
    (sample,) = load_samples(chain.root / f"{kind}s").read([int(place)])
    # The value has the same name in the graph before the cast.
    observed = chain.damaged(
        "simplify", tmp_path / "observed", lambda graph: _expose(graph, value["value"])
    )
    session = ort.InferenceSession(observed / "model.onnx")
    feeds = {spec.name: sample[spec.name][None] for spec in session.get_inputs()}
    (array,) = session.run([value["value"]], feeds)
    assert np.abs(array).max() == pytest.approx(value["largest"], rel=0.01)


def _expose(graph: Graph, name: str) -> None:
    graph.model.graph.output.add().name = name


def _scale_values(graph: Graph) -> None:
    """Attention's values are made larger and what comes of them smaller: the same function."""
    graph.change(linear(graph, "value").bias, lambda array: array * SCALE)
    linear(graph, "value").change(graph, lambda weight: weight * SCALE)
    linear(graph, "attention").change(graph, lambda weight: weight / SCALE)


def test_an_overflow_names_its_layer(chain: Chain, tmp_path: Path) -> None:
    scaled = chain.damaged("simplify", tmp_path / "scaled", _scale_values)
    feeds = _feeds(chain)
    assert np.abs(_run(scaled, feeds) - _run(chain.root / "simplify", feeds)).max() < 1e-4
    half = _cast(scaled, tmp_path / "half")
    result = _judge(_measure(chain, half, tmp_path / "scratch"))["cast.headroom"]
    assert not result.is_allowed
    assert (result.measured or 0.0) < 1
    assert "is infinite in float16: its largest number is 65504" in result.reason
    assert result.layer == "encoder.layer.0.attention.self.value"


def _overflows_for_one_token(token: int) -> Callable[[Graph], Any]:
    """The rows of one token, and of the first kind, are large, and the first norm hides it."""

    def change(graph: Graph) -> None:
        def enlarge(row: int) -> Callable[[np.ndarray], np.ndarray]:
            def how(table: np.ndarray) -> np.ndarray:
                table[row] *= 40000 / np.abs(table[row]).max()
                return table

            return how

        graph.change(graph.find("word_embeddings")[0], enlarge(token))
        graph.change(graph.find("token_type_embeddings")[0], enlarge(0))

    return change


def test_one_sample_of_all_is_enough(chain: Chain, tmp_path: Path) -> None:
    samples = load_samples(chain.root / "samples")
    ids = [set(each["input_ids"].tolist()) for each in samples.read(range(len(samples)))]
    token, owner = next(
        (token, place)
        for place, own in enumerate(ids)
        for token in sorted(own)
        if sum(token in other for other in ids) == 1
    )
    damaged = chain.damaged("simplify", tmp_path / "rare", _overflows_for_one_token(token))
    facts = _measure(chain, _cast(damaged, tmp_path / "half"), tmp_path / "scratch")
    result = _judge(facts)["cast.headroom"]
    assert not result.is_allowed
    assert f"sample {owner}" in result.reason or "probe" in result.reason


def _detour(graph: Graph, by: float, *, in_float32: bool) -> None:
    """Multiply an inner value and divide it again."""
    (norm, *_) = graph.all("LayerNormalization")
    name = str(norm.output[0])
    dtype = np.float32 if in_float32 else np.float16
    up = graph.put("up", np.array([by], dtype))
    down = graph.put("down", np.array([1 / by], dtype))
    if in_float32:
        name = graph.after(name, "Cast", to=1)
    name = graph.after(name, "Mul", up)
    name = graph.after(name, "Mul", down)
    if in_float32:
        graph.after(name, "Cast", to=10)


def test_an_overflow_that_a_cpu_does_not_show_is_seen(chain: Chain, tmp_path: Path) -> None:
    model = chain.damaged(
        "cast", tmp_path / "model", lambda graph: _detour(graph, 3e4, in_float32=False)
    )
    # ONNX Runtime multiplies in float32, and nothing is stored between the two.
    feeds = _feeds(chain)
    assert np.abs(_run(model, feeds) - _run(chain.root / "cast", feeds)).max() < 0.1
    result = _judge(_measure(chain, model, tmp_path / "scratch"))["cast.headroom"]
    assert not result.is_allowed
    assert "(Mul)" in result.reason


def test_values_that_stay_in_float32_do_not_count(chain: Chain, tmp_path: Path) -> None:
    model = chain.damaged(
        "cast", tmp_path / "model", lambda graph: _detour(graph, 1e6, in_float32=True)
    )
    good = _judge(_measure(chain, chain.root / "cast", tmp_path / "good"))["cast.headroom"]
    same = _judge(_measure(chain, model, tmp_path / "scratch"))["cast.headroom"]
    assert same.is_allowed
    assert same.measured == pytest.approx(good.measured)


def test_the_limit_is_the_recipes(chain: Chain, tmp_path: Path) -> None:
    facts = _measure(chain, chain.root / "cast", tmp_path / "scratch")
    result = _judge(facts, min=1e5)["cast.headroom"]
    assert not result.is_allowed
    assert result.limit == ">= 100000"
    assert "other data may well go further" in result.reason


def test_infinite_weights_are_named(chain: Chain, tmp_path: Path) -> None:
    def change(graph: Graph) -> None:
        name = graph.find("position_embeddings")[0]
        table = graph.get(name)
        table[-1, -1] = np.inf
        graph.put(name, table)

    model = chain.damaged("cast", tmp_path / "model", change)
    results = _judge(_measure(chain, model, tmp_path / "scratch"))
    assert not results["cast.infinite_weights"].is_allowed
    assert "position_embeddings" in results["cast.infinite_weights"].reason


def test_what_is_infinite_in_float32_already_has_no_room(chain: Chain, tmp_path: Path) -> None:
    def change(graph: Graph) -> None:
        (norm, *_) = graph.all("LayerNormalization")
        name = str(norm.output[0])
        power = graph.put("power", np.array([1.0], np.float16))
        for _ in range(7):
            name = graph.after(name, "Mul", power)
            (maker,) = [node for node in graph.all("Mul") if name in node.output]
            maker.input[1] = maker.input[0]  # the square, seven times

    model = chain.damaged("cast", tmp_path / "model", change)
    result = _judge(_measure(chain, model, tmp_path / "scratch"))["cast.headroom"]
    assert not result.is_allowed
    assert result.measured == 0.0
    assert "is not finite even in float32" in result.reason


def test_a_graph_of_one_length_is_said_to_be(chain: Chain, tmp_path: Path) -> None:
    def change(graph: Graph) -> None:
        for value in graph.model.graph.input:
            value.type.tensor_type.shape.dim[1].dim_value = 8

    model = chain.damaged("cast", tmp_path / "model", change)
    results = _judge(_measure(chain, model, tmp_path / "scratch"))
    assert not results["cast.problems"].is_allowed
    assert "the model takes int64 [batch, 8]" in results["cast.problems"].reason


def test_an_input_that_no_sample_has_is_said(chain: Chain, tmp_path: Path) -> None:
    def change(graph: Graph) -> None:
        graph.redirect("token_type_ids", "position_ids")
        (value,) = [v for v in graph.model.graph.input if v.name == "token_type_ids"]
        value.name = "position_ids"

    model = chain.damaged("cast", tmp_path / "model", change)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    ports = chain.ports(model, "export", "samples", "probes")
    context = RecordingContext(scratch)
    results = _judge(dict(HEADROOM.stage.run(HeadroomConfig(), ports, scratch, context)))
    assert "input `position_ids` is unknown" in results["cast.problems"].reason
