"""Execution providers for GPUs: option names, buffers that are bound, and no silent way around them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
from pydantic import ValidationError

from pipeline.errors import EnvironmentMissing, StageError
from pipeline.runtimes import onnxruntime as module
from pipeline.runtimes.base import FeedError
from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner
from pipeline.runtimes.ort_providers import NAMES, ProviderOptions, ProviderPlan, shapes_text
from tests.parity.graphs import write_graph

if TYPE_CHECKING:
    from numpy.typing import NDArray

AVAILABLE = onnxruntime.get_available_providers()
RECORDED = Path(__file__).parent / "recorded"
PROFILE = {
    "input_ids": ((1, 2), (4, 8), (8, 16)),
    "attention_mask": ((1, 2), (4, 8), (8, 16)),
}
EVERYTHING: dict[str, dict[str, Any]] = {
    "cuda": {
        "device_id": 1,
        "use_tf32": False,
        "cudnn_conv_algo_search": "heuristic",
        "prefer_nhwc": True,
        "fuse_conv_bias": True,
        "gpu_memory_mib": 512,
    },
    "tensorrt": {
        "device_id": 1,
        "trt_fp16_enable": True,
        "workspace_mib": 64,
        "builder_optimization_level": 5,
        "timing_cache": True,
    },
}


def _told(provider: Any, **options: Any) -> dict[str, str]:
    plan = ProviderPlan(provider=provider, options=ProviderOptions(**options))
    return plan.session_options(PROFILE, Path("/cache"))


def _feeds(batch: int = 2, sequence: int = 3, seed: int = 0) -> dict[str, NDArray[np.int64]]:
    ids = np.random.default_rng(seed).integers(0, 10, (batch, sequence))
    mask = np.ones_like(ids)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": mask * 0}


# --- options --------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_every_option_has_a_name_that_the_library_of_the_provider_holds(provider: str) -> None:
    """Recorded from the libraries of onnxruntime-gpu 1.31.1 with `strings`."""
    known = set((RECORDED / f"{provider}_options.txt").read_text("ascii").split())
    told = _told(provider, **EVERYTHING[provider])
    assert len(told) >= len(EVERYTHING[provider])
    assert set(told) <= known
    assert all(isinstance(value, str) and value for value in told.values())


def test_all_options_belong_to_a_provider() -> None:
    assert {name for options in EVERYTHING.values() for name in options} == set(
        ProviderOptions.model_fields
    )
    for provider, options in EVERYTHING.items():
        assert ProviderOptions(**options).foreign_to(provider) == ()
    assert ProviderOptions(use_tf32=True).foreign_to("tensorrt") == ("use_tf32",)
    assert ProviderOptions(workspace_mib=1, device_id=0).foreign_to("cuda") == ("workspace_mib",)
    assert ProviderOptions(device_id=0).foreign_to("cpu") == ("device_id",)


def test_nothing_is_told_that_nobody_asked_for() -> None:
    assert _told("cuda") == {"device_id": "0", "use_tf32": "0"}  # ONNX Runtime's own default is 1
    assert not {"trt_fp16_enable", "trt_timing_cache_enable"} & set(_told("tensorrt"))


def test_tensorrt_is_given_the_shapes_and_a_cache_of_our_own() -> None:
    told = _told("tensorrt", timing_cache=True)
    assert told["trt_profile_min_shapes"] == "input_ids:1x2,attention_mask:1x2"
    assert told["trt_profile_opt_shapes"] == "input_ids:4x8,attention_mask:4x8"
    assert told["trt_profile_max_shapes"] == "input_ids:8x16,attention_mask:8x16"
    assert told["trt_engine_cache_path"] == "/cache/engines"
    assert told["trt_timing_cache_path"] == "/cache/timing"
    assert shapes_text({"pixel_values": (1, 3, 224, 224)}) == "pixel_values:1x3x224x224"


def test_values_have_the_form_that_the_providers_read() -> None:
    told = _told("cuda", **EVERYTHING["cuda"])
    assert told["use_tf32"] == "0"
    assert told["cudnn_conv_algo_search"] == "HEURISTIC"
    assert told["gpu_mem_limit"] == str(512 << 20)


@pytest.mark.parametrize(
    "options",
    [
        {"use_tf33": True},
        {"device_id": -1},
        {"builder_optimization_level": 6},
        {"cudnn_conv_algo_search": "fastest"},
        {"use_tf32": "yes"},
    ],
)
def test_what_is_no_option_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ProviderOptions(**options)


# --- buffers that are bound, on the CPU's provider ------------------------------------------


def _bound(graph: Path) -> OnnxRuntimeRunner:
    """A runner that treats the CPU's provider as a device: the same code, other memory."""
    runner = OnnxRuntimeRunner(graph, threads=1)
    runner._binds = True
    return runner


def test_bound_buffers_give_the_same_arrays_for_every_shape_in_turn(tmp_path: Path) -> None:
    graph = write_graph(tmp_path) / "model.onnx"
    shapes = [(2, 3), (1, 16), (2, 3), (8, 5), (2, 3), (2, 3)]
    with _bound(graph) as bound, OnnxRuntimeRunner(graph, threads=1) as plain:
        for seed, (batch, sequence) in enumerate(shapes):
            feeds = _feeds(batch, sequence, seed)
            ours, theirs = bound.run(feeds), plain.run(feeds)
            assert list(ours) == list(theirs)
            assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_buffers_are_bound_once_for_each_shape(tmp_path: Path) -> None:
    with _bound(write_graph(tmp_path) / "model.onnx") as runner:
        runner.run(_feeds(seed=1))
        first = runner._bound
        runner.run(_feeds(seed=2))
        assert runner._bound is first
        runner.run(_feeds(3, 4))
        assert runner._bound is not first


def test_arrays_belong_to_the_caller_and_feeds_are_not_written_to(tmp_path: Path) -> None:
    with _bound(write_graph(tmp_path) / "model.onnx") as runner:
        feeds = _feeds(seed=1)
        kept_feeds = {name: array.copy() for name, array in feeds.items()}
        first = runner.run(feeds)
        kept = {name: array.copy() for name, array in first.items()}
        runner.run(_feeds(seed=2))
    assert all(np.array_equal(first[name], kept[name]) for name in kept)
    assert all(np.array_equal(feeds[name], kept_feeds[name]) for name in feeds)


def test_a_part_of_the_outputs_and_strided_feeds(tmp_path: Path) -> None:
    graph = write_graph(tmp_path) / "model.onnx"
    feeds = {name: np.asfortranarray(array) for name, array in _feeds(2, 6).items()}
    with _bound(graph) as bound, OnnxRuntimeRunner(graph, threads=1) as plain:
        (name,) = bound.run(feeds, ["sentence_embedding"])
        assert name == "sentence_embedding"
        assert np.array_equal(bound.run(feeds)[name], plain.run(feeds)[name])


def test_bad_feeds_and_failing_runs_are_told_as_ever(tmp_path: Path) -> None:
    graph = write_graph(tmp_path, "batch_of_one_inside") / "model.onnx"
    with _bound(graph) as runner:
        with pytest.raises(FeedError, match="is missing"):
            runner.run({})
        with pytest.raises(StageError, match="cannot run the graph"):
            runner.run(_feeds(2, 3))


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_this_build_lacks_is_refused(tmp_path: Path, provider: str) -> None:
    if NAMES[provider] in AVAILABLE:
        pytest.skip("this ONNX Runtime has the provider")
    runner = OnnxRuntimeRunner(write_graph(tmp_path) / "model.onnx", provider=NAMES[provider])
    with pytest.raises(EnvironmentMissing, match=f"has no {NAMES[provider]}, only"), runner:
        pass


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_does_not_start_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The CPU's build believes to have CUDA's provider: what comes up is the CPU's, and is refused."""
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(module.onnxruntime, "get_available_providers", lambda: names)
    if NAMES["cuda"] in AVAILABLE:
        pytest.skip("this ONNX Runtime has the provider")
    runner = OnnxRuntimeRunner(write_graph(tmp_path) / "model.onnx", provider=NAMES["cuda"])
    with (
        pytest.raises(EnvironmentMissing, match="CUDAExecutionProvider did not start here"),
        runner,
    ):
        pass
    assert "Falling back" not in capfd.readouterr().out


def test_a_reason_is_told_without_the_place_in_the_source() -> None:
    said = (
        "/onnxruntime_src/onnxruntime/python/onnxruntime_pybind_state.cc:729 void onnxruntime::"
        "python::Register(PySessionOptions&, const onnxruntime::ProviderOptions&) Please install"
    )
    assert module.error_reason(RuntimeError(said)) == "Please install"


def test_the_session_line_names_what_stands_behind_the_provider(tmp_path: Path) -> None:
    runner = OnnxRuntimeRunner(tmp_path / "model.onnx", provider=NAMES["tensorrt"])
    assert "TensorrtExecutionProvider with CUDAExecutionProvider behind it" in runner.session
    assert "behind" not in OnnxRuntimeRunner(tmp_path / "model.onnx").session


# --- on a GPU -------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_the_real_providers_agree_with_the_cpu(tmp_path: Path, provider: Any) -> None:
    if NAMES[provider] not in AVAILABLE:
        pytest.skip("this ONNX Runtime lacks the provider")
    graph = write_graph(tmp_path) / "model.onnx"
    plan = ProviderPlan(provider=provider, options=ProviderOptions())
    profile = dict.fromkeys(_feeds(), ((1, 1), (2, 8), (8, 32)))
    options = plan.session_options(profile, tmp_path / "cache")
    device = OnnxRuntimeRunner(graph, provider=plan.name, provider_options=options)
    with device, OnnxRuntimeRunner(graph, threads=1) as plain:
        for seed, (batch, sequence) in enumerate([(2, 3), (8, 32), (2, 3)]):
            feeds = _feeds(batch, sequence, seed)
            ours, theirs = device.run(feeds), plain.run(feeds)
            for name, array in theirs.items():
                np.testing.assert_allclose(ours[name], array, rtol=1e-2, atol=1e-3)
