"""The check of invariance on real graphs of a tiny encoder: good ones pass, each damage fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import numpy_helper

from pipeline.checks.base import Measured
from pipeline.checks.invariance import INVARIANCE, InvarianceLimits
from pipeline.stages.invariance import InvarianceConfig
from tests.checks.chain import PROFILE, Chain
from tests.mutants.parts import mask
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.parity.tolerances import Arithmetic
    from pipeline.parity.types import GateResult
    from tests.mutants.surgery import Graph

ARITHMETIC: dict[str, Arithmetic] = {
    "export": "float32",
    "fuse": "float32",
    "cast": "float16",
    "cast-bf16": "bfloat16",
    "dynamic": "quantized",
    "static": "quantized",
    "static-tensorrt": "quantized",
    "static-float8": "quantized",
}
AS_WRITTEN = {"export", "cast", "cast-bf16", "static-tensorrt", "static-float8"}
OUTPUT = "sentence_embedding"


def _measure(chain: Chain, stage: str, model: Path | None = None) -> dict[str, Any]:
    config = InvarianceConfig(
        optimizations="disabled" if stage in AS_WRITTEN else "all", extents=PROFILE
    )
    ports = chain.ports(model or chain.root / stage, "samples", "probes", "reference")
    context = RecordingContext(chain.root, threads=2)
    facts = INVARIANCE.stage.run(config, ports, chain.root, context)
    done, total, _ = context.steps[-1]
    assert done == total
    return dict(facts)


def _judge(
    chain: Chain, stage: str, facts: dict[str, Any], **limits: float | None
) -> tuple[GateResult, ...]:
    measured = Measured(
        target="cpu",
        component="model",
        stage=stage,
        node=stage,
        arithmetic=ARITHMETIC[stage],
        is_proxy=False,
        facts=facts,
        floors=chain.floors,
    )
    return INVARIANCE.judge(measured, InvarianceLimits(**limits))


def _failed(results: tuple[GateResult, ...]) -> dict[str, GateResult]:
    """Output and case -> result, of those that fail; all of them accuse the graph's node."""
    failed = [result for result in results if not result.is_allowed]
    assert all(result.node and result.verdict == "failed" for result in failed)
    return {result.metric.partition(".")[2]: result for result in failed}


@pytest.mark.parametrize("stage", ARITHMETIC)
def test_good_graphs_pass_and_every_case_is_there(chain: Chain, stage: str) -> None:
    results = _judge(chain, stage, _measure(chain, stage))
    assert not _failed(results)
    cases = ["repeated", "batch", "padding", "smallest", "longest", "largest_batch"]
    cases += ["largest", "masked_neighbour"]
    metrics = {result.metric for result in results}
    outputs = ("last_hidden_state", OUTPUT)
    assert metrics == {f"{stage}.{output}.{case}" for output in outputs for case in cases}
    assert all(result.measured is not None for result in results)


def test_scales_taken_at_run_time_are_only_measured_unless_the_recipe_limits_them(
    chain: Chain,
) -> None:
    facts = _measure(chain, "dynamic")
    assert facts["scales_at_run_time"]
    results = {result.metric: result for result in _judge(chain, "dynamic", facts)}
    beside = results[f"dynamic.{OUTPUT}.batch"]
    assert beside.limit == "only measured"
    assert beside.measured is not None
    assert beside.measured > 1e-4
    assert results[f"dynamic.{OUTPUT}.repeated"].limit == "<= 0"
    failed = _failed(_judge(chain, "dynamic", facts, noise=1e-5))
    assert f"{OUTPUT}.batch" in failed


@pytest.mark.parametrize("stage", ["static", "static-tensorrt"])
def test_scales_taken_beforehand_make_no_difference(chain: Chain, stage: str) -> None:
    facts = _measure(chain, stage)
    assert not facts["scales_at_run_time"]
    assert facts["least_float"] == ("float16" if stage == "static-tensorrt" else "float32")
    for case in facts["cases"]:
        assert np.median(case["noises"]) < 1e-4, case


def _mask_ignored(graph: Graph) -> None:
    graph.after(mask(graph), "Or", graph.put("damage_true", np.array(True)))


def _pools_padding(graph: Graph) -> None:
    graph.before_output(OUTPUT)
    axis = graph.put("axis", np.array([1]))
    graph.insert("ReduceMean", ["last_hidden_state", axis], keepdims=0, output=OUTPUT)


def _sees_neighbours(graph: Graph, share: float = 1e-3) -> None:
    inner = graph.before_output(OUTPUT)
    axis = graph.put("axis", np.array([0]))
    mean = graph.insert("ReduceMean", [inner, axis], keepdims=1)
    small = graph.insert("Mul", [mean, graph.put("part", np.array(share, np.float32))])
    graph.insert("Add", [inner, small], output=OUTPUT)


def _batch_of_one(graph: Graph) -> None:
    inner = graph.before_output(OUTPUT)
    graph.insert("Reshape", [inner, graph.put("shape", np.array([1, 32]))], output=OUTPUT)


def _one_length(graph: Graph) -> None:
    inner = graph.before_output("last_hidden_state")
    shape = graph.put("shape", np.array([-1, 8, 32]))
    graph.insert("Reshape", [inner, shape], output="last_hidden_state")


def _fed_one_length(graph: Graph) -> None:
    for value in graph.model.graph.input:
        value.type.tensor_type.shape.dim[1].dim_value = 8


def _batch_flattened(graph: Graph) -> None:
    inner = graph.before_output("last_hidden_state")
    shape = graph.put("shape", np.array([1, -1, 32]))
    graph.insert("Reshape", [inner, shape], output="last_hidden_state")


def _draws_noise(graph: Graph) -> None:
    inner = graph.before_output(OUTPUT)
    drawn = graph.insert("RandomNormalLike", [inner], scale=1e-6)
    graph.insert("Add", [inner, drawn], output=OUTPUT)


def _trains(graph: Graph) -> None:
    inner = graph.before_output(OUTPUT)
    for name, value in (("ratio", np.array(0.1, np.float32)), ("on", np.array(True))):
        graph.model.graph.initializer.append(numpy_helper.from_array(value, name))
    graph.insert("Dropout", [inner, "ratio", "on"], output=OUTPUT)


def _divides_by_tokens(graph: Graph) -> str:
    """A value (batch, 1) that is 0, and NaN for rows without a token."""
    numbers = graph.insert("Cast", ["attention_mask"], to=1)
    count = graph.insert("ReduceSum", [numbers, graph.put("axis", np.array([1]))], keepdims=1)
    zero = graph.insert("Sub", [count, count])
    return graph.insert("Div", [zero, count])


def _masked_is_nan(graph: Graph) -> None:
    inner = graph.before_output(OUTPUT)
    graph.insert("Add", [inner, _divides_by_tokens(graph)], output=OUTPUT)


def _masked_spoils_others(graph: Graph) -> None:
    """A row without a token makes others of the batch wrong, and is right itself."""
    inner = graph.before_output(OUTPUT)
    numbers = graph.insert("Cast", ["attention_mask"], to=1)
    count = graph.insert("ReduceSum", [numbers, graph.put("axis", np.array([1]))], keepdims=1)
    least = graph.insert("ReduceMin", [count], keepdims=0)
    one = graph.put("one", np.array(1, np.float32))
    share = graph.insert("Min", [least, one])
    graph.insert("Mul", [inner, share], output=OUTPUT)


FAULTS: dict[Callable[[Graph], Any], tuple[str, str]] = {
    _mask_ignored: (f"{OUTPUT}.padding", "comes out differently with more padding (sequence "),
    _pools_padding: (f"{OUTPUT}.padding", "comes out differently with more padding (sequence "),
    _sees_neighbours: (f"{OUTPUT}.batch", "comes out differently in a batch with others"),
    _batch_of_one: (f"{OUTPUT}.batch", "runs alone, so a batch of 1 is built into it"),
    _one_length: ("last_hidden_state.alone", "cannot be run on `input_ids` [1, "),
    _fed_one_length: ("last_hidden_state.alone", "the model takes int64 [batch, 8]"),
    _batch_flattened: ("last_hidden_state.batch", "gives [1, 72, 32] for a batch of 6"),
    _draws_noise: ("random_nodes", "draws other numbers: damage_"),
    _trains: ("random_nodes", "(Dropout)"),
    _masked_is_nan: (f"{OUTPUT}.masked_neighbour", "a row that is masked altogether has elements"),
    _masked_spoils_others: (f"{OUTPUT}.masked_neighbour", "differently beside a row that is"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_graph_fails_with_a_sentence_that_says_how(
    chain: Chain, tmp_path: Path, fault: Callable[[Graph], Any]
) -> None:
    metric, sentence = FAULTS[fault]
    facts = _measure(chain, "export", chain.damaged("export", tmp_path / "damaged", fault))
    failed = _failed(_judge(chain, "export", facts))
    assert metric in failed
    assert sentence in failed[metric].reason


def test_random_numbers_are_also_seen_in_the_results(chain: Chain, tmp_path: Path) -> None:
    model = chain.damaged("export", tmp_path / "damaged", _draws_noise)
    failed = _failed(_judge(chain, "export", _measure(chain, "export", model)))
    assert "comes out differently when it is run again" in failed[f"{OUTPUT}.repeated"].reason


@pytest.mark.parametrize("stage", ["static", "static-tensorrt"])
@pytest.mark.parametrize(
    ("fault", "case"),
    [(_pools_padding, "padding"), (lambda graph: _sees_neighbours(graph, 0.05), "batch")],
)
def test_faults_of_graphs_with_scales_taken_beforehand_do_not_hide_behind_flipped_integers(
    chain: Chain, tmp_path: Path, stage: str, fault: Callable[[Graph], Any], case: str
) -> None:
    facts = _measure(chain, stage, chain.damaged(stage, tmp_path / "damaged", fault))
    failed = _failed(_judge(chain, stage, facts))
    assert f"{OUTPUT}.{case}" in failed


def test_a_single_row_of_flipped_integers_is_no_fault(chain: Chain) -> None:
    facts = _measure(chain, "static")
    case = next(fact for fact in facts["cases"] if fact["case"] == "batch")
    single = next(fact for fact in facts["cases"] if fact["case"] == "smallest")
    case["noises"][0] = single["noises"][0] = 0.2
    assert not _failed(_judge(chain, "static", facts))
    case["noises"][0] = 0.6
    assert _failed(_judge(chain, "static", facts))


def test_a_dropped_mask_shows_in_padding(chain: Chain, tmp_path: Path) -> None:
    def drop(graph: Graph) -> None:
        ones = graph.insert("Equal", ["input_ids", "input_ids"])
        same = graph.insert("Cast", [ones], to=7)
        graph.redirect("attention_mask", same)
        (gone,) = [v for v in graph.model.graph.input if v.name == "attention_mask"]
        graph.model.graph.input.remove(gone)

    facts = _measure(chain, "export", chain.damaged("export", tmp_path / "damaged", drop))
    failed = _failed(_judge(chain, "export", facts))
    assert f"{OUTPUT}.padding" in failed
    assert not [metric for metric in failed if metric.endswith("masked_neighbour")]


def test_an_input_that_no_sample_has_is_said(chain: Chain, tmp_path: Path) -> None:
    def rename(graph: Graph) -> None:
        graph.redirect("token_type_ids", "position_ids")
        (value,) = [v for v in graph.model.graph.input if v.name == "token_type_ids"]
        value.name = "position_ids"

    model = chain.damaged("export", tmp_path / "damaged", rename)
    context = RecordingContext(tmp_path)
    config = InvarianceConfig(optimizations="disabled", extents=PROFILE)
    ports = chain.ports(model, "samples")
    facts = dict(INVARIANCE.stage.run(config, ports, tmp_path, context))
    failed = _failed(_judge(chain, "export", facts))
    assert "input `position_ids` is unknown" in failed["problems"].reason
