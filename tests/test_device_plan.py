"""What a GPU adds to a plan: the engine is compared and timed itself, and stands in for nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pipeline.environment import MACHINE_FACTS
from pipeline.errors import EnvironmentMissing, RecipeError
from pipeline.planning import node_preimage, torch_runs
from pipeline.targets import tensorrt as full_target
from tests.recipes import FP32, RTX
from tests.runtimes.devices import BARE, H200, L4, gpu, install_device
from tests.test_plan import _keys, _plan

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.gpu import Machine
    from pipeline.planning import Plan

SEVERAL = {**RTX, "compute_capability": ["sm86", "sm89", "sm120"]}
TIMED: dict[str, Any] = {"benchmark": {"shapes": [[1, 8]]}}


def _with(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
    install_device(monkeypatch, machine=machine)


def _stages(plan: Plan) -> list[str]:
    return [node.stage.name for node in plan.nodes]


@pytest.fixture
def bare(tmp_path: Path, sentence_encoder: Path) -> Plan:
    return _plan(tmp_path, sentence_encoder, targets=[FP32, SEVERAL], **TIMED)


def test_without_a_driver_nothing_is_planned_for_a_device(bare: Plan) -> None:
    _, target = bare.targets
    assert target.chain.device_runs == {}
    assert (target.chain.proxy, target.chain.runtime) == ("onnxruntime-cpu", None)
    assert target.chain.not_run_reason == "this machine has no NVIDIA driver"
    assert target.benchmarks == {}
    assert not {"validate_engine", "benchmark_engine"} & set(_stages(bare))


def test_the_engine_of_this_gpu_is_compared_and_timed(
    tmp_path: Path, sentence_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with(monkeypatch, L4)
    plan = _plan(tmp_path, sentence_encoder, targets=[FP32, {**RTX}], **TIMED)
    _, target = plan.targets
    assert (target.chain.proxy, target.chain.not_run_reason) == ("", "")
    *graphs, (link, check) = target.validations["model"]
    assert [plan.nodes[made.node].stage.name for _, made in graphs] == ["validate"] * 4
    compared, engine = plan.nodes[check.node], plan.nodes[link.node.node]
    assert (compared.stage.name, engine.stage.name) == ("validate_engine", "engine")
    assert (compared.config.runtime, compared.config.batch_size) == ("tensorrt-rtx", 2)
    assert link.arithmetic == "float16"
    assert link not in target.chain.models["model"]  # checks look at graphs
    timed = plan.nodes[target.benchmarks["model"].node]
    assert timed.stage.name == "benchmark_engine"
    assert timed.inputs["model"] == link.node
    assert timed.config.runtime == "tensorrt"


def test_all_else_in_the_plan_keeps_its_key(
    tmp_path: Path, sentence_encoder: Path, bare: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _keys(bare)
    _with(monkeypatch, L4)
    after = _keys(_plan(tmp_path, sentence_encoder, targets=[FP32, SEVERAL], **TIMED))
    assert before.items() <= after.items()
    assert {name.partition("@")[0] for name in after.keys() - before.keys()} == {
        "validate_engine",
        "benchmark_engine",
    }


def test_engines_for_other_gpus_are_said_not_to_have_run(
    tmp_path: Path, sentence_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with(monkeypatch, L4)
    plan = _plan(tmp_path, sentence_encoder, targets=[SEVERAL])
    (target,) = plan.targets
    assert target.chain.not_run_reason == (
        "of its engines this machine's GPU runs sm89 alone; not run: engines for sm86, sm120"
    )
    node = plan.nodes[target.chain.device_runs["model"].node.node]
    assert node.config.compute_capability == "sm89"


def test_the_portable_engine_runs_where_there_is_none_of_its_own(
    tmp_path: Path, sentence_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.gpu import Machine

    _with(monkeypatch, Machine(driver="580.65", gpu=gpu(8, 6)))
    target = {**RTX, "compute_capability": ["sm89", "portable"]}
    (made,) = _plan(tmp_path, sentence_encoder, targets=[target]).targets
    assert "runs portable alone" in made.chain.not_run_reason


@pytest.mark.parametrize(
    ("machine", "reason"), [(H200, "TensorRT-RTX does not support"), (BARE, "no NVIDIA driver")]
)
def test_a_gpu_that_runs_none_of_them_leaves_the_proxy(
    tmp_path: Path,
    sentence_encoder: Path,
    monkeypatch: pytest.MonkeyPatch,
    machine: Machine,
    reason: str,
) -> None:
    _with(monkeypatch, machine)
    plan = _plan(tmp_path, sentence_encoder, targets=[SEVERAL], **TIMED)
    (target,) = plan.targets
    assert reason in target.chain.not_run_reason
    assert target.chain.proxy == "onnxruntime-cpu"
    assert "validate_engine" not in _stages(plan)


def test_the_key_holds_engine_gpu_and_driver(
    tmp_path: Path, sentence_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with(monkeypatch, L4)
    plan = _plan(tmp_path, sentence_encoder, targets=[{**RTX}], **TIMED)
    (target,) = plan.targets
    for node in (target.validations["model"][-1][1], target.benchmarks["model"]):
        preimage = node_preimage(plan.nodes[node.node], {"model": "digest of the engine's tree"})
        assert {"gpu_name", "gpu_target", "nvidia_driver"} <= set(preimage["machine"])
        assert {"tensorrt-rtx", "cuda-bindings"} <= set(preimage["packages"])
        assert preimage["inputs"]["model"] == "digest of the engine's tree"
    assert {"gpu_name", "gpu_target", "nvidia_driver"} <= set(MACHINE_FACTS)


def test_batches_are_no_smaller_than_what_some_profile_takes(
    tmp_path: Path, sentence_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with(monkeypatch, L4)
    target = {**RTX, "profiles": [{"batch": {"min": 3, "opt": 4, "max": 4}}]}
    plan = _plan(tmp_path, sentence_encoder, targets=[target])
    node = plan.nodes[plan.targets[0].validations["model"][-1][1].node]
    assert node.config.batch_size == 3


def test_full_tensorrt_is_compared_on_the_gpu_it_was_built_for(
    tmp_path: Path, sentence_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    planning = importlib.import_module("pipeline.planning.keys")
    install_device(monkeypatch, full=True, machine=H200)
    monkeypatch.setattr(full_target, "this_machine", lambda: H200)
    monkeypatch.setattr(full_target, "require_module", lambda _module: "11.4.0")
    monkeypatch.setattr(planning, "require_packages", lambda _stage: {})
    target = {"name": "trt", "runtime": "tensorrt", "precision": "fp16"}
    (made,) = _plan(tmp_path, sentence_encoder, targets=[target]).targets
    assert made.chain.device_runs["model"].runtime == "tensorrt"
    assert (made.chain.proxy, made.chain.not_run_reason) == ("", "")


def test_an_engine_without_its_weights_is_not_run(
    tmp_path: Path, sentence_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with(monkeypatch, L4)
    monkeypatch.setattr("pipeline.targets.tensorrt_rtx.nvidia_driver_version", lambda: L4.driver)
    plan = _plan(tmp_path, sentence_encoder, targets=[{**RTX, "strip_weights": True}], **TIMED)
    (target,) = plan.targets
    assert target.chain.device_runs == {}
    assert target.chain.proxy == "onnxruntime-cpu"
    assert "weights were stripped" in target.chain.not_run_reason
    assert "engine" in _stages(plan)
    assert not {"validate_engine", "benchmark_engine"} & set(_stages(plan))


def test_an_engine_is_measured_in_shapes_that_a_profile_takes(
    tmp_path: Path, sentence_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profiles = [
        {"batch": {"min": 1, "opt": 1, "max": 1}, "sequence": {"min": 2, "opt": 4, "max": 8}},
        {"batch": {"min": 2, "opt": 2, "max": 4}},
    ]
    target = {**RTX, "profiles": profiles}

    def plan(shapes: list[list[int]]) -> Plan:
        return _plan(tmp_path, sentence_encoder, targets=[target], benchmark={"shapes": shapes})

    plan([[1, 16]])  # without a GPU it is not measured
    _with(monkeypatch, L4)
    assert plan([[1, 8], [2, 16]]).targets[0].benchmarks
    with pytest.raises(
        RecipeError, match="batch 1, sequence 16 is measured, and no profile of `rtx"
    ):
        plan([[1, 8], [1, 16]])


# --- torch on the GPU, and CUDA graphs ------------------------------------------------------


def _with_torch(monkeypatch: pytest.MonkeyPatch, machine: Machine, *, cuda: bool = True) -> None:
    _with(monkeypatch, machine)
    monkeypatch.setattr(torch_runs, "this_machine", lambda: machine)
    monkeypatch.setattr(torch_runs, "torch_has_cuda", lambda: cuda)


def test_torch_is_compared_and_timed_in_each_way_that_the_recipe_wants(
    tmp_path: Path, sentence_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_torch(monkeypatch, L4)
    wanted = {"benchmark": {"shapes": [[1, 8]], "torch_cuda": ["fp16", "compiled"]}}
    plan = _plan(tmp_path, sentence_encoder, targets=[FP32], **wanted)
    assert [run.variant for run in plan.torch_runs] == ["fp16", "compiled"]
    for run in plan.torch_runs:
        compared, timed = plan.nodes[run.validation.node], plan.nodes[run.benchmark.node]
        assert compared.name == f"validate_torch@{run.variant}"
        assert timed.name == f"benchmark_torch@{run.variant}"
        assert (compared.config.variant, compared.config.device) == (run.variant, "cuda")
        assert (timed.config.variant, timed.config.reference_device) == (run.variant, "cuda")
        assert timed.inputs["model"] == timed.inputs["checkpoint"]
        assert timed.stage.is_exclusive
    plain = _plan(tmp_path, sentence_encoder, targets=[FP32], **TIMED)
    assert plain.torch_runs == ()
    assert _keys(plain).items() <= _keys(plan).items()


@pytest.mark.parametrize(
    ("machine", "cuda", "reason"),
    [
        (BARE, True, "this machine has no NVIDIA driver"),
        (L4, False, "the torch that is installed is built for the CPU"),
    ],
)
def test_torch_on_a_gpu_that_cannot_be_is_refused_with_its_place(
    tmp_path: Path,
    sentence_encoder: Path,
    monkeypatch: pytest.MonkeyPatch,
    machine: Machine,
    cuda: bool,
    reason: str,
) -> None:
    _with_torch(monkeypatch, machine, cuda=cuda)
    with pytest.raises(EnvironmentMissing) as caught:
        _plan(tmp_path, sentence_encoder, targets=[FP32], benchmark={"torch_cuda": ["fp16"]})
    assert reason in caught.value.message
    assert "benchmark.torch_cuda" in caught.value.where
    assert caught.value.hint


def test_cuda_graphs_are_of_engines(
    tmp_path: Path, sentence_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with(monkeypatch, L4)
    graphs = {"benchmark": {"shapes": [[1, 8]], "cuda_graphs": True}}
    plan = _plan(tmp_path, sentence_encoder, targets=[FP32, {**RTX}], **graphs)
    first, second = (plan.nodes[target.benchmarks["model"].node] for target in plan.targets)
    assert (first.config.cuda_graphs, second.config.cuda_graphs) == (False, True)
    with pytest.raises(RecipeError, match="CUDA graphs are of engines") as caught:
        _plan(tmp_path, sentence_encoder, targets=[FP32], **graphs)
    assert caught.value.where.endswith("benchmark.cuda_graphs")
    assert caught.value.hint
