"""Targets of ONNX Runtime on GPUs: what is refused, and what is planned where there is a GPU."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline import gpu
from pipeline.errors import EnvironmentMissing, RecipeError, StageError
from pipeline.gpu import Machine
from pipeline.hashing import sha256_file
from pipeline.parity.types import Parity
from pipeline.runtimes import onnxruntime as runtime
from pipeline.runtimes import ort_providers
from pipeline.runtimes.ort_providers import NAMES, ProviderPlan
from pipeline.stages.provider_engine import PROVIDER_ENGINE, ProviderEngineConfig
from pipeline.stages.validate_provider import VALIDATE_PROVIDER, ValidateProviderConfig
from tests.parity.graphs import write_graph, write_samples
from tests.recipes import FP32
from tests.runtimes.devices import BOTH, H200, L4
from tests.stages.context import RecordingContext
from tests.test_plan import _plan

if TYPE_CHECKING:
    from pipeline.planning import Plan

CUDA = {"name": "gpu", "runtime": "onnxruntime", "precision": "fp32", "provider": "cuda"}
TENSORRT = {**CUDA, "provider": "tensorrt"}
TIMED: dict[str, Any] = {"benchmark": {"shapes": [[1, 8]]}}
RANGES = {"batch": (1, 2, 8), "sequence": (1, 8, 64)}
planning = importlib.import_module("pipeline.planning")


def _with_gpu(
    monkeypatch: pytest.MonkeyPatch, machine: Machine = L4, *, has_library: bool = True
) -> None:
    monkeypatch.setattr(ort_providers, "this_machine", lambda: machine)
    monkeypatch.setattr(ort_providers, "_has_library", lambda _provider: has_library)


def _stages(plan: Plan) -> list[str]:
    return [node.stage.name for node in plan.nodes]


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"provider": "cpu", "precision": "fp16"}, "precision fp16 needs `provider: cuda`"),
        ({"provider": "cpu", "provider_options": {}}, "`provider_options` are for"),
        (
            {"precision": "int8", "quantization": {"mode": "dynamic"}},
            "operators of int8 would run on the CPU in its place",
        ),
        ({"provider_options": {"trt_fp16_enable": True}}, "`trt_fp16_enable`: of no meaning to"),
        (
            {"provider": "tensorrt", "provider_options": {"use_tf32": True}},
            "`use_tf32`: of no meaning to provider tensorrt",
        ),
        (
            {
                "provider": "tensorrt",
                "precision": "fp16",
                "provider_options": {"trt_fp16_enable": True},
            },
            "lets TensorRT cast a float32 graph, and precision is fp16",
        ),
        ({"provider_options": {"use_tf33": True}}, "use_tf33"),
        ({"provider": "rocm"}, "rocm"),
        ({"precision": "fp16", "quantization": {"mode": "dynamic"}}, "takes no `quantization`"),
    ],
)
def test_a_target_that_cannot_be_is_refused(
    tmp_path: Path, sentence_encoder: Path, change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        _plan(tmp_path, sentence_encoder, targets=[{**CUDA, **change}])
    assert reason in str(caught.value)


@pytest.mark.parametrize("target", [CUDA, TENSORRT], ids=["cuda", "tensorrt"])
def test_what_is_missing_is_said_when_the_plan_is_made(
    tmp_path: Path, sentence_encoder: Path, monkeypatch: pytest.MonkeyPatch, target: dict[str, Any]
) -> None:
    def refused() -> str:
        with pytest.raises(EnvironmentMissing) as caught:
            _plan(tmp_path, sentence_encoder, targets=[target])
        assert caught.value.exit_code == 4
        assert caught.value.hint
        return caught.value.message

    _with_gpu(monkeypatch, has_library=False)
    assert "is not in the ONNX Runtime that is installed here" in refused()
    _with_gpu(monkeypatch, Machine(driver=""))
    assert "runs on a GPU, and this machine has no NVIDIA driver" in refused()
    _with_gpu(monkeypatch, Machine(driver="580.65", trouble="cuInit answers 802"))
    assert "the NVIDIA driver 580.65 shows none: cuInit answers 802" in refused()


def test_the_library_of_a_provider_is_looked_for_where_onnx_runtime_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime" / "capi").mkdir(parents=True)
    (tmp_path / "onnxruntime" / "__init__.py").touch()
    (tmp_path / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so").touch()
    spec = importlib.util.spec_from_file_location(
        "onnxruntime", tmp_path / "onnxruntime" / "__init__.py"
    )
    monkeypatch.setattr(ort_providers.importlib.util, "find_spec", lambda _name: spec)
    assert ort_providers._has_library("cuda")
    assert not ort_providers._has_library("tensorrt")


# --- plans ----------------------------------------------------------------------------------


def test_a_graph_for_cuda_is_compared_and_timed_with_its_provider(
    tmp_path: Path, sentence_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_gpu(monkeypatch, H200)
    plan = _plan(tmp_path, sentence_encoder, targets=[CUDA], **TIMED)
    (target,) = plan.targets
    assert (target.chain.proxy, target.chain.not_run_reason) == ("", "")
    link, check = target.validations["model"][-1]
    node = plan.nodes[check.node]
    assert node.stage is VALIDATE_PROVIDER
    assert "cache" not in node.inputs
    assert link.arithmetic == "float32"
    assert node.config.plan.provider == "cuda"
    assert node.config.profile == {"batch": (1, 2, 4), "sequence": (2, 8, 16)}
    timed = plan.nodes[target.benchmarks["model"].node]
    assert timed.stage.name == "benchmark_provider"
    assert timed.config.provider == node.config.plan
    assert timed.inputs["model"] == link.node
    assert {"gpu_name", "gpu_target", "nvidia_driver"} <= set(timed.stage.machine)
    assert "fuse" in _stages(plan)


def test_tensorrt_builds_its_engines_once_in_a_stage_of_their_own(
    tmp_path: Path, sentence_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_gpu(monkeypatch)
    plan = _plan(tmp_path, sentence_encoder, targets=[{**TENSORRT, "precision": "fp16"}], **TIMED)
    (target,) = plan.targets
    assert _stages(plan).count("provider_engine") == 1
    assert "fuse" not in _stages(plan)  # TensorRT knows none of ONNX Runtime's own operators
    check = plan.nodes[target.validations["model"][-1][1].node]
    timed = plan.nodes[target.benchmarks["model"].node]
    assert check.inputs["cache"] == timed.inputs["cache"]
    engine = plan.nodes[check.inputs["cache"].node]
    assert engine.stage is PROVIDER_ENGINE
    assert plan.nodes[engine.inputs["model"].node].stage.name == "cast"
    assert target.validations["model"][-1][0].arithmetic == "float16"


def test_what_the_provider_leaves_to_the_cpu_is_checked(
    tmp_path: Path, sentence_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_gpu(monkeypatch)
    plan = _plan(tmp_path, sentence_encoder, targets=[{**TENSORRT, "precision": "fp16"}, FP32])
    first, second = plan.targets
    (check,) = (check for check in first.checks if check.check == "assignment")
    node = plan.nodes[check.node.node]
    validation = plan.nodes[first.validations["model"][-1][1].node]
    assert node.stage.name == "check_assignment"
    assert node.inputs == {name: validation.inputs[name] for name in ("model", "cache")}
    assert "assignment" not in {check.check for check in second.checks}


@pytest.mark.parametrize("target", [CUDA, TENSORRT], ids=["cuda", "tensorrt"])
def test_the_key_has_the_facts_of_the_gpu_that_is_asked_for(
    tmp_path: Path, sentence_encoder: Path, monkeypatch: pytest.MonkeyPatch, target: dict[str, Any]
) -> None:
    _with_gpu(monkeypatch, BOTH)
    monkeypatch.setattr(gpu, "this_machine", lambda: BOTH)
    for number, name in enumerate(["NVIDIA L4", "NVIDIA H200"]):
        other = {**target, "provider_options": {"device_id": number}}
        plan = _plan(tmp_path, sentence_encoder, targets=[other], **TIMED)
        facts = [
            planning.node_preimage(node, dict.fromkeys(node.inputs, ""))["machine"]
            for node in plan.nodes
            if "gpu_name" in node.stage.machine
        ]
        assert len(facts) == (3 if target is CUDA else 4)
        assert {fact["gpu_name"] for fact in facts} == {name}
        assert {fact["gpu_target"] for fact in facts} == {BOTH.gpus[number].target}


def test_a_gpu_that_is_not_there_is_refused(
    tmp_path: Path, sentence_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_gpu(monkeypatch, BOTH)
    absent = {**CUDA, "provider_options": {"device_id": 2}}
    with pytest.raises(EnvironmentMissing) as caught:
        _plan(tmp_path, sentence_encoder, targets=[absent])
    assert "`provider_options.device_id` is 2" in caught.value.message
    assert "0 (NVIDIA L4), 1 (NVIDIA H200)" in caught.value.message
    assert caught.value.hint


def test_tf32_is_judged_by_what_it_is(
    tmp_path: Path, sentence_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_gpu(monkeypatch)
    target = {**CUDA, "provider_options": {"use_tf32": True}}
    plan = _plan(tmp_path, sentence_encoder, targets=[target])
    assert plan.targets[0].validations["model"][-1][0].arithmetic == "float16"


def test_a_target_of_the_cpu_is_planned_as_ever(tmp_path: Path, sentence_encoder: Path) -> None:
    plain = {name: value for name, value in CUDA.items() if name != "provider"}
    first = _plan(tmp_path, sentence_encoder, targets=[plain], **TIMED)
    second = _plan(tmp_path, sentence_encoder, targets=[{**plain, "provider": "cpu"}], **TIMED)
    assert [n.config for n in first.nodes] == [n.config for n in second.nodes]
    timed = first.nodes[first.targets[0].benchmarks["model"].node].config.model_dump(mode="json")
    assert not {"provider", "profile", "reference_device"} & set(timed)


# --- the stages, with the CPU's provider in the place of the GPU's ---------------------------


def _as_cpu(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The stages then run for real, buffers bound; what the provider was told is kept."""
    told: list[dict[str, str]] = []
    made = ProviderPlan.session_options

    def keep(self: ProviderPlan, profile: Any, cache: Path) -> dict[str, str]:
        told.append(made(self, profile, cache))
        if self.provider == "tensorrt":
            assert Path(told[-1]["trt_engine_cache_path"]).parent == cache
        return {}

    monkeypatch.setattr(ProviderPlan, "session_options", keep)
    monkeypatch.setattr(ProviderPlan, "name", property(lambda _: NAMES["cpu"]))
    start = runtime.OnnxRuntimeRunner.__enter__

    def enter(self: runtime.OnnxRuntimeRunner) -> runtime.OnnxRuntimeRunner:
        self._binds = True
        return start(self)

    monkeypatch.setattr(runtime.OnnxRuntimeRunner, "__enter__", enter)
    return told


def _validate(tmp_path: Path, kind: str = "", provider: str = "cuda", **inputs: Path) -> Parity:
    data = write_samples(tmp_path / "data")
    graph = write_graph(tmp_path / "graph", kind) if kind else write_graph(tmp_path / "graph")
    output = tmp_path / "out"
    output.mkdir()
    config = ValidateProviderConfig(
        task="feature-extraction",
        plan=ProviderPlan(provider=provider),
        profile=RANGES,
        batch_size=4,
    )
    ports = {"model": graph, "samples": data, "reference": data, **inputs}
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    VALIDATE_PROVIDER.run(config, ports, output, RecordingContext(scratch))
    return Parity.model_validate_json((output / "parity.json").read_bytes())


def test_parity_is_of_what_the_provider_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = _as_cpu(monkeypatch)
    parity = _validate(tmp_path)
    assert parity.problems == ()
    assert all(output.metrics.cosine_similarity > 0.999999 for output in parity.outputs)
    assert told == [{"device_id": "0", "use_tf32": "0"}]


def test_a_wrong_graph_is_found_with_bound_buffers_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _as_cpu(monkeypatch)
    parity = _validate(tmp_path, "mask_ignored")
    assert any(output.metrics.cosine_similarity < 0.9999 for output in parity.outputs)


def test_a_cache_is_copied_before_the_provider_writes_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = _as_cpu(monkeypatch)
    kept = tmp_path / "kept" / "engines"
    kept.mkdir(parents=True)
    (kept / "a.engine").write_bytes(b"engine")
    before = sha256_file(kept / "a.engine")
    for path in (kept / "a.engine", kept, tmp_path / "kept"):  # as in the store
        path.chmod(0o555 if path.is_dir() else 0o444)
    _validate(tmp_path, provider="tensorrt", cache=tmp_path / "kept")
    cache = Path(told[0]["trt_engine_cache_path"])
    assert cache.is_relative_to(tmp_path / "scratch")
    assert (cache / "a.engine").read_bytes() == b"engine"
    assert sha256_file(kept / "a.engine") == before
    for path in (tmp_path / "kept", kept):
        path.chmod(0o755)
    assert all(path.stat().st_mode & 0o200 for path in (cache, cache / "a.engine"))
    assert told[0]["trt_profile_max_shapes"].startswith("input_ids:8x64,attention_mask:8x64,")


def test_a_graph_of_which_tensorrt_takes_nothing_is_no_tensorrt_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU's provider writes no engine, as TensorRT's does when it takes no part of a graph."""
    _as_cpu(monkeypatch)
    output = tmp_path / "out"
    output.mkdir()
    config = ProviderEngineConfig(plan=ProviderPlan(provider="tensorrt"), profile=RANGES)
    graph = write_graph(tmp_path / "graph")
    with pytest.raises(StageError, match="TensorRT took no part of the graph"):
        PROVIDER_ENGINE.run(config, {"model": graph}, output, RecordingContext(tmp_path))
    (output / "engines").mkdir()
    (output / "engines" / "a.engine").write_bytes(b"engine")
    facts = PROVIDER_ENGINE.run(config, {"model": graph}, output, RecordingContext(tmp_path))
    assert facts["engines"] == ["engines/a.engine"]


@pytest.mark.gpu
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_the_real_provider_is_as_right_as_the_cpu(tmp_path: Path, provider: str) -> None:
    ort_providers.require_provider(provider)
    parity = _validate(tmp_path, provider=provider)
    assert parity.problems == ()
    assert all(output.metrics.cosine_similarity > 0.9999 for output in parity.outputs)
