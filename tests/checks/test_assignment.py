"""The check of what a provider for GPUs leaves to the CPU, with real answers of ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
import onnx.parser
import pytest

from pipeline.checks.assignment import ASSIGNMENT, AssignmentLimits
from pipeline.checks.base import Measured
from pipeline.runtimes.onnxruntime import AssignedNode, OnnxRuntimeRunner
from pipeline.runtimes.ort_providers import NAMES, ProviderPlan
from pipeline.stages.check_assignment import (
    CHECK_ASSIGNMENT,
    CheckAssignmentConfig,
    assignment_facts,
)
from tests.parity.graphs import write_graph
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.parity.types import GateResult

CPU, CUDA = NAMES["cpu"], NAMES["cuda"]
GRAPH = """
<ir_version: 10, opset_import: ["" : 20]>
two (float[batch, 4] x, float[4, 4] w) => (float[batch, 4] y)
{
    [product] a = MatMul (x, w)
    [bend] b = Relu (a)
    [shape] s = Shape (b)
    [form] y = Reshape (b, s)
}
"""


def _judge(facts: dict[str, Any], **limits: Any) -> dict[str, GateResult]:
    measured = Measured(
        target="gpu",
        component="model",
        stage="fuse",
        node="fuse",
        arithmetic="float32",
        is_proxy=False,
        facts=facts,
        floors={},
    )
    results = ASSIGNMENT.judge(measured, AssignmentLimits(**limits))
    return {result.metric: result for result in results}


def _facts(*, product: str, rest: str) -> dict[str, Any]:
    kinds = [("MatMul", product), ("Relu", rest), ("Shape", CPU), ("Reshape", rest)]
    return assignment_facts(
        AssignedNode(provider=provider, name=op.lower(), op_type=op) for op, provider in kinds
    )


def test_onnx_runtime_says_who_has_each_node(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(GRAPH), path)
    with OnnxRuntimeRunner(path, optimizations="disabled").recording() as runner:
        nodes = runner.assignment()
    assert [(node.op_type, node.provider) for node in nodes] == [
        (op, CPU) for op in ("MatMul", "Relu", "Shape", "Reshape")
    ]
    assert [node.name for node in nodes] == ["product", "bend", "shape", "form"]
    facts = assignment_facts(nodes)
    assert facts["products"] == {CPU: 1}
    result = _judge(facts)["fuse.products_on_cpu"]
    assert not result.is_allowed
    assert "MatMul `product`" in result.reason


def test_who_did_not_ask_in_time_is_not_answered(tmp_path: Path) -> None:
    graph = write_graph(tmp_path) / "model.onnx"
    with (
        OnnxRuntimeRunner(graph) as runner,
        pytest.raises(RuntimeError, match="asked for in time"),
    ):
        runner.assignment()


def test_shapes_on_the_cpu_are_no_fault_and_products_are() -> None:
    good = _facts(product=CUDA, rest=CUDA)
    assert good["nodes"] == {CUDA: 3, CPU: 1}
    assert [entry["op"] for entry in good["on_cpu"]] == ["Shape"]
    assert [result.is_allowed for result in _judge(good).values()] == [True]
    bad = _judge(_facts(product=CPU, rest=CUDA))["fuse.products_on_cpu"]
    assert (bad.measured, bad.limit, bad.is_allowed) == (1.0, "<= 0", False)
    assert "not on the GPU: MatMul `matmul`" in bad.reason
    allowed = _judge(_facts(product=CPU, rest=CUDA), max_products_on_cpu=1)
    assert allowed["fuse.products_on_cpu"].is_allowed


def test_a_share_of_all_nodes_is_limited_where_the_recipe_says_so() -> None:
    facts = _facts(product=CUDA, rest=CPU)
    assert list(_judge(facts)) == ["fuse.products_on_cpu"]
    share = _judge(facts, max_share_on_cpu=0.5)["fuse.share_on_cpu"]
    assert (share.measured, share.is_allowed) == (0.75, False)
    assert "75.0% of the nodes run on the CPU: Relu `relu`" in share.reason
    assert _judge(facts, max_share_on_cpu=0.75)["fuse.share_on_cpu"].is_allowed


def test_the_stage_asks_the_provider_of_its_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU's provider in the place of the GPU's: everything is then left to the CPU."""
    monkeypatch.setattr(ProviderPlan, "session_options", lambda *_: {})
    monkeypatch.setattr(ProviderPlan, "name", property(lambda _: CPU))
    config = CheckAssignmentConfig(
        plan=ProviderPlan(provider="cuda"), profile={"batch": (1, 2, 8), "sequence": (1, 8, 64)}
    )
    graph = write_graph(tmp_path / "graph")
    facts = CHECK_ASSIGNMENT.run(config, {"model": graph}, tmp_path, RecordingContext(tmp_path))
    assert facts["nodes"] == {CPU: 14}
    assert facts["products"] == {}  # this encoder has none


@pytest.mark.gpu
def test_the_real_provider_takes_the_product(tmp_path: Path) -> None:
    import onnxruntime

    if CUDA not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime lacks the provider")
    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(GRAPH), path)
    with OnnxRuntimeRunner(path, provider=CUDA).recording() as runner:
        facts = assignment_facts(runner.assignment())
    assert facts["products"] == {CUDA: 1}
