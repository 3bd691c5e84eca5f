"""Real TensorRT-RTX engines: as far as they come without a GPU, and on one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from pipeline.engines.build import EngineRequest, build_engine
from pipeline.engines.module import TENSORRT_RTX
from pipeline.engines.preflight import choose_engine, loading_problem, require_loadable
from pipeline.engines.profiles import profile_from_axes
from pipeline.environment import nvidia_driver_version
from pipeline.errors import EnvironmentMissing, PipelineError
from pipeline.gpu import Machine, this_machine
from pipeline.hashing import sha256_file
from pipeline.runtimes import tensorrt as runner_module
from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner
from pipeline.runtimes.tensorrt import TensorRTRunner
from tests.engines.graphs import PROFILE, encoder
from tests.runtimes.devices import H200, L4, gpu
from tests.runtimes.fake_cuda import FakeCuda

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

pytest.importorskip("tensorrt_rtx")

SMALL = {"batch": (1, 1, 1), "sequence": (8, 8, 16)}


def _build(folder: Path, capabilities: tuple[str, ...]) -> tuple[Path, Path]:
    """The graph, and a real engine of it with two profiles."""
    graph = encoder(dtype=np.float16)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(graph, folder / "model.onnx")
    scratch = folder / "scratch"
    scratch.mkdir()
    axes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in graph.graph.input
    }
    request = EngineRequest(
        module=TENSORRT_RTX,
        model=folder / "model.onnx",
        compute_capabilities=capabilities,
        profiles=tuple(profile_from_axes(axes, ranges) for ranges in (SMALL, PROFILE)),
    )
    return folder / "model.onnx", build_engine(request, scratch).path


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(tmp_path_factory.mktemp("real"), ("sm89",))[1]


def test_a_real_engine_is_judged_by_its_header(engine: Path) -> None:
    assert loading_problem(engine, machine=Machine(driver="")) == (
        "this machine has no NVIDIA driver"
    )
    assert loading_problem(engine, machine=L4) in {"", "package cuda-bindings is not installed"}
    assert "does not support" in loading_problem(engine, machine=H200)
    other = Machine(driver="580", gpu=gpu(8, 6))
    assert "it was built for sm89" in loading_problem(engine, machine=other)


def test_this_machine_refuses_it_before_tensorrt_is_asked(engine: Path) -> None:
    if nvidia_driver_version():
        pytest.skip("this machine has a driver")
    with pytest.raises(EnvironmentMissing, match="has no NVIDIA driver"):
        require_loadable(engine, sha256=sha256_file(engine))


def test_the_real_runtime_says_no_in_our_words(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a fake of CUDA alone: logger, runtime and `get_engine_validity` are TensorRT-RTX's own."""
    if nvidia_driver_version():
        pytest.skip("this machine has a driver")
    cuda = FakeCuda().install(monkeypatch)
    monkeypatch.setattr(runner_module, "require_loadable", lambda path, **_: path.read_bytes())
    monkeypatch.setattr(runner_module, "_LOGGERS", {})
    runner = TensorRTRunner(engine, sha256=sha256_file(engine))
    with pytest.raises(EnvironmentMissing, match="TensorRT cannot run this engine here"), runner:
        pass
    assert cuda.left() == []


# --- on a GPU -------------------------------------------------------------------------------


def _feeds(batch: int, sequence: int, seed: int = 0) -> dict[str, NDArray[np.int64]]:
    ids = np.random.default_rng(seed).integers(0, 100, (batch, sequence))
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Graph and engine for this machine's GPU; skipped where TensorRT-RTX does not support it."""
    machine = this_machine()
    assert machine.gpu is not None, machine.trouble
    choice = choose_engine(TENSORRT_RTX, (machine.gpu.target,))
    if not choice.target:
        pytest.skip(choice.reason)
    return _build(tmp_path_factory.mktemp("here"), (choice.target,))


@pytest.mark.gpu
@pytest.mark.parametrize("uses_cuda_graph", [False, True])
def test_an_engine_on_the_gpu_computes_what_the_graph_does(
    here: tuple[Path, Path], uses_cuda_graph: bool
) -> None:
    graph, engine = here
    runner = TensorRTRunner(engine, sha256=sha256_file(engine), uses_cuda_graph=uses_cuda_graph)
    with runner, OnnxRuntimeRunner(graph, optimizations="disabled", threads=1) as plain:
        for seed, shape in enumerate([(1, 8), (4, 32), (1, 16), (2, 16), (1, 8)]):
            feeds = _feeds(*shape, seed)
            ours, theirs = runner.run(feeds), plain.run(feeds)
            for name, array in theirs.items():
                np.testing.assert_allclose(
                    ours[name].astype(np.float32), array.astype(np.float32), rtol=0.05, atol=0.01
                )
        times = runner.bind(_feeds(1, 8)).run_timed()
        assert min(times.h2d_ms, times.compute_ms, times.d2h_ms, times.enqueue_ms) > 0


@pytest.mark.gpu
def test_fifty_flipped_bits_are_all_refused(here: tuple[Path, Path], tmp_path: Path) -> None:
    """By the digest always; and without it by us or by TensorRT, never by a crash."""
    _, engine = here
    content = engine.read_bytes()
    digest = sha256_file(engine)
    random = np.random.default_rng(0)
    damaged = tmp_path / "model.engine"
    for place in random.integers(0, len(content), 50):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(random.integers(8))
        damaged.write_bytes(flipped)
        with pytest.raises(PipelineError), TensorRTRunner(damaged, sha256=digest):
            pass


@pytest.mark.gpu
def test_hopper_is_refused_with_its_reason(engine: Path) -> None:
    machine = this_machine()
    if machine.gpu is None or machine.gpu.target != "sm90":
        pytest.skip("this is no SM90")
    with pytest.raises(EnvironmentMissing, match="does not support the compute capability"):
        require_loadable(engine, sha256=sha256_file(engine))
