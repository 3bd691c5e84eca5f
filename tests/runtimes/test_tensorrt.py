"""The runner of engines against strict fakes of CUDA and TensorRT, through which data really flows."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.engines.facts_file import read_engine_facts, write_engine_facts
from pipeline.engines.preflight import require_loadable
from pipeline.errors import ArtifactError, DigestMismatch, EnvironmentMissing, StageError
from pipeline.runtimes import tensorrt as runner_module
from pipeline.runtimes.base import FeedError
from pipeline.runtimes.cuda_memory import API, Cuda, DeviceBuffer, PinnedBuffer, Stream
from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner
from pipeline.runtimes.tensorrt import TensorRTRunner
from tests.parity.graphs import write_graph
from tests.runtimes.devices import BARE, H200, install_device
from tests.runtimes.fake_cuda import MS_PER_BYTE, FakeCuda
from tests.runtimes.fake_tensorrt import (
    COMPUTE_MS,
    CudaGraphStrategy,
    DynamicShapesKernelSpecializationStrategy,
    FakeTensorRT,
    ICudaEngine,
    IExecutionContext,
    IRuntimeConfig,
    RTXEngine,
    RTXRuntime,
    Runtime,
    Severity,
    write_engine,
)

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SMALL = {"batch": (1, 1, 2), "sequence": (1, 8, 16)}
LARGE = {"batch": (1, 4, 8), "sequence": (1, 16, 32)}


def _feeds(batch: int = 2, sequence: int = 3, seed: int = 0) -> dict[str, NDArray[np.int64]]:
    ids = np.random.default_rng(seed).integers(0, 10, (batch, sequence))
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }


class Setting:
    """An engine of a little graph, the fakes it runs on, and what ONNX Runtime says of the graph."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.graph = write_graph(tmp_path / "graph") / "model.onnx"
        self.full = options.get("full", False)
        self.cuda, self.trt = install_device(monkeypatch, **options)
        self.folder = tmp_path / "engine"
        magic = b"ftrt" if self.full else b"vtrt"
        self.sha256 = write_engine(self.folder, self.graph, [SMALL, LARGE], magic=magic)

    def runner(self, **options: Any) -> TensorRTRunner:
        return TensorRTRunner(self.folder / "model.engine", sha256=self.sha256, **options)

    def expected(self, feeds: dict[str, NDArray[np.int64]]) -> dict[str, NDArray[Any]]:
        with OnnxRuntimeRunner(self.graph, threads=1) as runner:
            return runner.run(feeds)


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    return Setting(tmp_path, monkeypatch)


@pytest.fixture(params=[False, True], ids=["tensorrt_rtx", "tensorrt"])
def either(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Setting:
    return Setting(tmp_path, monkeypatch, full=request.param)


def _same(found: dict[str, NDArray[Any]], wanted: dict[str, NDArray[Any]]) -> bool:
    return list(found) == list(wanted) and all(
        found[name].dtype == wanted[name].dtype and np.array_equal(found[name], wanted[name])
        for name in wanted
    )


@pytest.mark.parametrize("uses_cuda_graph", [False, True])
def test_what_comes_out_is_what_the_graph_computes_for_every_shape_in_turn(
    either: Setting, uses_cuda_graph: bool
) -> None:
    shapes = [(2, 3), (1, 16), (8, 32), (2, 3), (3, 5), (1, 1), (2, 3)]
    with either.runner(uses_cuda_graph=uses_cuda_graph) as runner:
        for seed, (batch, sequence) in enumerate(shapes):
            feeds = _feeds(batch, sequence, seed)
            assert _same(runner.run(feeds), either.expected(feeds))
        assert runner.load_time_ms > 0
    assert either.cuda.left() == []


def test_the_interface_is_read_with_the_names_of_its_axes(setting: Setting) -> None:
    with setting.runner() as runner:
        assert [str(spec) for spec in runner.inputs] == ["int64 [batch, sequence]"] * 3
        assert runner.outputs[0].shape == ("batch", "sequence", 8)
        assert runner.session == "tensorrt-rtx 1.7.1.116 on NVIDIA L4, driver 580.65.06"


def test_without_facts_the_axes_have_no_names_and_it_runs_all_the_same(setting: Setting) -> None:
    (setting.folder / "engine.json").unlink()
    feeds = _feeds()
    with setting.runner() as runner:
        assert runner.inputs[0].shape == (None, None)
        assert _same(runner.run(feeds), setting.expected(feeds))


def test_the_smallest_profile_that_fits_is_taken(setting: Setting) -> None:
    with setting.runner() as runner:
        for shape in ((2, 16), (3, 16), (2, 17), (8, 32), (1, 1)):
            runner.run(_feeds(*shape))
    assert setting.trt._selected == [1, 0]


def test_a_shape_that_no_profile_takes_is_refused_with_all_ranges(setting: Setting) -> None:
    with setting.runner() as runner:
        with pytest.raises(FeedError) as caught:
            runner.run(_feeds(9, 4))
        assert setting.trt._runs == 0
        runner.run(_feeds())  # and it can still be used
    assert "input_ids [9, 4]" in caught.value.message
    assert "profile 0: " in caught.value.message
    assert "input_ids [1, 1] to [8, 32]" in caught.value.message


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"attention_mask": None}, "`attention_mask` is missing"),
        ({"position_ids": np.ones((2, 3), np.int64)}, "`position_ids` is no input"),
        ({"input_ids": np.ones((2, 3), np.int32)}, "`input_ids` is int32, the model takes int64"),
        ({"input_ids": np.ones(3, np.int64)}, r"`input_ids` has shape \[3\]"),
    ],
)
def test_feeds_that_do_not_fit_are_refused_before_anything_runs(
    setting: Setting, change: dict[str, Any], reason: str
) -> None:
    feeds = {name: array for name, array in (_feeds() | change).items() if array is not None}
    with setting.runner() as runner, pytest.raises(FeedError, match=reason):
        runner.run(feeds)
    assert setting.trt._runs == 0


def test_arrays_belong_to_the_caller(setting: Setting) -> None:
    with setting.runner() as runner:
        first = runner.run(_feeds(seed=1))
        kept = {name: array.copy() for name, array in first.items()}
        runner.run(_feeds(seed=2))
    assert _same(first, kept)  # and memory was given back, which the fake fills with rubbish


def test_feeds_in_any_memory_layout_are_taken_as_they_are(setting: Setting) -> None:
    feeds = _feeds(2, 6)
    strided = {name: np.asfortranarray(array) for name, array in feeds.items()}
    strided["input_ids"] = np.repeat(feeds["input_ids"], 2, axis=1)[:, ::2]
    with setting.runner() as runner:
        assert _same(runner.run(strided), setting.expected(feeds))


def test_memory_is_taken_once_for_the_largest_shapes(setting: Setting) -> None:
    with setting.runner() as runner:
        runner.run(_feeds(1, 1))
        taken = setting.cuda.allocations
        for sequence in range(2, 17):
            runner.run(_feeds(2, sequence))
        assert setting.cuda.allocations == taken
        runner.run(_feeds(8, 32))
        assert len(setting.cuda.on_device) == 5  # the smaller buffers were given back
        runner.run(_feeds(2, 3))
        assert setting.cuda.allocations == 2 * taken


def test_bound_feeds_can_be_run_in_any_order(setting: Setting) -> None:
    feeds = [_feeds(2, 3, 1), _feeds(8, 32, 2), _feeds(2, 3, 3)]
    with setting.runner() as runner:
        bound = [runner.bind(each) for each in feeds]
        for place in (0, 1, 2, 0, 2, 1):
            bound[place].run()
            assert _same(bound[place].read(), setting.expected(feeds[place]))
        with pytest.raises(RuntimeError, match="others since"):
            bound[0].read()


# --- CUDA graphs ----------------------------------------------------------------------------


def test_full_tensorrt_is_captured_once_for_each_change_of_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting(tmp_path, monkeypatch, full=True)
    with setting.runner(uses_cuda_graph=True) as runner:
        assert runner.session.endswith(", CUDA graph")
        for seed in range(4):
            feeds = _feeds(2, 3, seed)
            assert _same(runner.run(feeds), setting.expected(feeds))
        assert (setting.cuda.captures, setting.cuda.launches) == (1, 4)
        runner.run(_feeds(2, 4))
        assert (setting.cuda.captures, setting.cuda.launches) == (2, 5)
    assert setting.cuda.left() == []


def test_tensorrt_rtx_is_told_to_capture_graphs_itself(setting: Setting) -> None:
    with setting.runner() as runner, setting.runner(uses_cuda_graph=True) as other:
        runner.run(_feeds())
        other.run(_feeds())
    plain, graph = setting.trt._configs
    assert plain.cuda_graph_strategy is CudaGraphStrategy.DISABLED
    assert graph.cuda_graph_strategy is CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    for config in (plain, graph):
        eager = DynamicShapesKernelSpecializationStrategy.EAGER
        assert config.dynamic_shapes_kernel_specialization_strategy is eager
    assert setting.cuda.captures == 0


def test_a_failed_capture_leaves_the_stream_usable(setting: Setting) -> None:
    cuda = Cuda()
    stream = Stream(cuda)

    def fail() -> None:
        raise StageError("it cannot be captured")

    with pytest.raises(StageError, match="cannot be captured"):
        stream.capture(fail)
    stream.synchronize()
    stream.close()
    assert setting.cuda.left() == []


# --- times ----------------------------------------------------------------------------------


def test_each_part_of_a_call_has_its_time(either: Setting) -> None:
    feeds = _feeds(2, 3)
    wanted = either.expected(feeds)
    with either.runner() as runner:
        bound = runner.bind(feeds)
        bound.run()
        times = bound.run_timed()
        assert _same(bound.read(), wanted)
    sizes = [sum(array.nbytes for array in arrays.values()) for arrays in (feeds, wanted)]
    assert times.h2d_ms == pytest.approx(sizes[0] * MS_PER_BYTE)
    assert times.d2h_ms == pytest.approx(sizes[1] * MS_PER_BYTE)
    assert times.compute_ms == pytest.approx(COMPUTE_MS)
    assert times.enqueue_ms > 0
    assert either.cuda.left() == []


# --- what is not loaded, and what fails -----------------------------------------------------


def test_nothing_is_loaded_whose_digest_nobody_vouches_for(setting: Setting) -> None:
    for digest in ("", "0" * 64):
        runner = TensorRTRunner(setting.folder / "model.engine", sha256=digest)
        with pytest.raises(DigestMismatch, match="is vouched for: it is not loaded"), runner:
            pass
    assert setting.cuda.left() == []


def test_a_flipped_bit_is_found_before_tensorrt_sees_it(setting: Setting) -> None:
    path = setting.folder / "model.engine"
    content = bytearray(path.read_bytes())
    for place in (0, 20, 70, len(content) - 1):
        flipped = bytearray(content)
        flipped[place] ^= 0x10
        path.write_bytes(flipped)
        with pytest.raises(ArtifactError), setting.runner():
            pass


def test_what_is_loaded_is_what_was_checked_whatever_becomes_of_the_file(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_then_change(engine: Path, *, sha256: str) -> bytes:
        content = require_loadable(engine, sha256=sha256)
        engine.write_bytes(content[:-1] + b"]")  # no JSON any more: the fake could not load it
        return content

    monkeypatch.setattr(runner_module, "require_loadable", check_then_change)
    with setting.runner() as runner:
        assert _same(runner.run(_feeds()), setting.expected(_feeds()))


def test_a_machine_without_a_driver_is_said_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting(tmp_path, monkeypatch, machine=BARE)
    with pytest.raises(EnvironmentMissing, match="has no NVIDIA driver"), setting.runner():
        pass


def test_tensorrt_rtx_is_refused_on_a_gpu_it_does_not_support(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting(tmp_path, monkeypatch, machine=H200)
    expected = (
        r"does not support the compute capability of this machine's GPU \(sm90, NVIDIA H200\)"
    )
    with pytest.raises(EnvironmentMissing, match=expected), setting.runner():
        pass


def test_what_the_runtime_says_against_an_engine_comes_in_words(setting: Setting) -> None:
    setting.trt._diagnostics = 4 | 16
    expected = "the NVIDIA driver is older than the engine needs; the GPU has too little memory"
    with pytest.raises(EnvironmentMissing, match=expected), setting.runner():
        pass
    assert setting.cuda.left() == []


def test_only_an_engine_that_is_said_to_have_host_code_may_bring_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines that later versions read have a runtime of their own in them."""
    setting = Setting(tmp_path, monkeypatch, full=True)
    setting.trt._has_host_code = True
    with pytest.raises(StageError, match="host code are not allowed"), setting.runner():
        pass
    path = setting.folder / "engine.json"
    facts = read_engine_facts(path)
    changed = facts.model_copy(update={"compatibility": ("version_compatible",)})
    write_engine_facts(changed, path)
    feeds = _feeds()
    with setting.runner() as runner:
        assert _same(runner.run(feeds), setting.expected(feeds))


def test_warnings_of_every_call_are_not_gathered(setting: Setting) -> None:
    with setting.runner() as runner:
        for _ in range(20):
            runner._log.log(Severity.WARNING, "slow")
            runner._log.log(Severity.ERROR, "odd")
        assert len(runner._log.records) <= 5


def test_reasons_from_the_log_reach_the_reader(either: Setting) -> None:
    either.trt._refuses = "magic tag does not match"
    with pytest.raises(StageError, match=r"cannot load the engine\n  magic tag does not match"):
        either.runner().__enter__()
    assert either.cuda.left() == []


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("run", r"cannot run the engine\n  the kernel failed"),
        ("shape", r"cannot take `input_ids` of shape \[2, 3\]\n  input_ids"),
        ("data-dependent", "its size hangs on values"),
    ],
)
def test_a_failing_run_is_an_error_with_its_reason(
    setting: Setting, fault: str, reason: str
) -> None:
    with setting.runner() as runner:
        setting.trt._breaks = fault
        with pytest.raises(StageError, match=reason):
            runner.run(_feeds())
        setting.trt._breaks = ""
        assert _same(runner.run(_feeds()), setting.expected(_feeds()))
    assert setting.cuda.left() == []


def test_an_element_type_that_numpy_lacks_is_refused(setting: Setting) -> None:
    setting.trt._breaks = "dtype"
    with pytest.raises(StageError, match="`input_ids` of the engine is FP8"), setting.runner():
        pass
    assert setting.cuda.left() == []


def test_too_little_memory_on_the_gpu_is_said_with_the_amount(setting: Setting) -> None:
    setting.cuda.memory_bytes = 1000
    expected = r"CUDA cannot take 0.0 MiB of the GPU's memory: out of memory \(cudaErrorMemoryA"
    with setting.runner() as runner, pytest.raises(StageError, match=expected):
        runner.run(_feeds())
    assert setting.cuda.left() == []


def test_an_error_on_the_gpu_surfaces_when_the_stream_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    FakeCuda().install(monkeypatch)
    cuda = Cuda()
    stream, pinned, device = Stream(cuda), PinnedBuffer(cuda, 64), DeviceBuffer(cuda, 64)
    stream.copy_in(device, pinned, 64)
    device.close()
    with pytest.raises(StageError, match="cannot finish its work: an illegal address"):
        stream.synchronize()


def test_running_outside_of_the_with_block_is_a_mistake_of_the_caller(setting: Setting) -> None:
    with pytest.raises(RuntimeError, match="outside of its `with` block"):
        setting.runner().run(_feeds())


# --- the fakes themselves -------------------------------------------------------------------


def test_the_fakes_have_nothing_that_the_real_modules_lack() -> None:
    """Names only: the real ones cannot be made to work without a GPU."""
    real = pytest.importorskip("tensorrt_rtx")
    pairs = [
        (RTXRuntime, real.Runtime),
        (Runtime, real.Runtime),
        (RTXEngine, real.ICudaEngine),
        (IExecutionContext, real.IExecutionContext),
        (IRuntimeConfig, real.IRuntimeConfig),
    ]
    for fake, genuine in pairs:
        assert {name for name in vars(fake) if not name.startswith("_")} <= set(dir(genuine))
    module = {name for name in vars(FakeTensorRT(FakeCuda())) if not name.startswith("_")}
    assert module <= set(dir(real))
    for name in ("num_io_tensors", "num_optimization_profiles", "create_runtime_config"):
        assert hasattr(real.ICudaEngine, name)
    assert {"active_optimization_profile"} <= set(dir(real.IExecutionContext))
    assert issubclass(RTXEngine, ICudaEngine)


def test_the_fake_of_cuda_has_nothing_that_the_real_one_lacks() -> None:
    real = pytest.importorskip(API)
    names = {name for name in vars(FakeCuda) if name.startswith("cuda")}
    assert len(names) > 20
    assert names <= set(dir(real))


def test_the_real_cuda_says_that_there_is_no_driver() -> None:
    pytest.importorskip(API)
    from pipeline.environment import nvidia_driver_version

    if nvidia_driver_version():
        pytest.skip("this machine has a driver")
    assert not isinstance(sys.modules[API], FakeCuda)
    with pytest.raises(EnvironmentMissing, match=r"count the GPUs: .* \(cudaErrorInsuff"):
        Cuda()
