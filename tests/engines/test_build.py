"""Real builds with TensorRT-RTX, each in a process of its own, of graphs that take a second."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import onnx
import psutil
import pytest

from pipeline.engines import builder_program
from pipeline.engines.build import EngineBuilder, EngineRequest, build_engine
from pipeline.engines.module import TENSORRT_RTX
from pipeline.engines.profiles import profile_from_axes
from pipeline.errors import EngineBuildError
from pipeline.stages.engine import ENGINE, EngineConfig
from tests.engines.graphs import (
    HIDDEN,
    PROFILE,
    encoder,
    product,
    product_with_dead_input,
    product_with_positions,
)
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

pytest.importorskip("tensorrt_rtx")

X_PROFILE = {"x": ((1, HIDDEN), (2, HIDDEN), (4, HIDDEN))}


def _request(
    graph: onnx.ModelProto,
    directory: Path,
    *,
    capability: str = "sm89",
    profile: Mapping[str, object] | None = None,
    workspace_bytes: int | None = None,
) -> EngineRequest:
    directory.mkdir(parents=True, exist_ok=True)
    onnx.save(graph, directory / "model.onnx")
    return EngineRequest(
        module=TENSORRT_RTX,
        model=directory / "model.onnx",
        compute_capabilities=(capability,),
        profiles=(profile or X_PROFILE,),  # type: ignore[arg-type]
        workspace_bytes=workspace_bytes,
    )


def _encoder_profile(ranges: Mapping[str, tuple[int, int, int]]) -> Mapping[str, object]:
    axes = ("batch", "sequence")
    return profile_from_axes(
        dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), axes), ranges
    )


def _build(request: EngineRequest, scratch: Path) -> str:
    scratch.mkdir(parents=True)
    return hashlib.sha256(build_engine(request, scratch).path.read_bytes()).hexdigest()


def test_same_request_same_bytes_whatever_surrounds_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = _encoder_profile(PROFILE)
    first = _build(_request(encoder(2), tmp_path / "a", profile=profile), tmp_path / "s1")
    elsewhere = tmp_path / ("long" * 40) / "b"
    monkeypatch.setenv("CONVERT_TEST_PADDING", "x" * 20_000)
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    monkeypatch.chdir(tmp_path)
    second = _build(_request(encoder(2), elsewhere, profile=profile), tmp_path / ("s" * 90))
    assert first == second


@pytest.mark.slow
def test_five_rebuilds_are_the_same_bytes_whenever_the_builder_is_told(tmp_path: Path) -> None:
    ranges = {"batch": (1, 8, 32), "sequence": (1, 32, 64)}
    request = _request(encoder(6), tmp_path / "in", profile=_encoder_profile(ranges))
    digests = set()
    for number in range(5):
        scratch = tmp_path / f"scratch{number}"
        scratch.mkdir()
        with EngineBuilder(request.module, scratch) as builder:
            time.sleep(0.4 * number)  # it may still be importing, or wait since long
            built = builder.build(request)
        digests.add(hashlib.sha256(built.path.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_the_request_directory_is_not_written_to(tmp_path: Path) -> None:
    request = _request(product(), tmp_path / "in")
    before = sorted(path.name for path in (tmp_path / "in").iterdir())
    _build(request, tmp_path / "scratch")
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == before


def test_shapes_longer_than_the_positions_are_an_error_though_tensorrt_builds(
    tmp_path: Path,
) -> None:
    profile = {"x": ((1, 8, HIDDEN), (1, 16, HIDDEN), (2, 128, HIDDEN))}
    request = _request(product_with_positions(64), tmp_path / "in", profile=profile)
    with pytest.raises(EngineBuildError, match="kMAX values are not self-consistent") as caught:
        _build(request, tmp_path / "scratch")
    assert "number of positions" in caught.value.hint


def test_an_input_used_for_its_shape_alone_is_an_error_though_tensorrt_builds(
    tmp_path: Path,
) -> None:
    profile = dict.fromkeys(("x", "dead"), X_PROFILE["x"])
    request = _request(product_with_dead_input(), tmp_path / "in", profile=profile)
    with pytest.raises(EngineBuildError, match="Input Tensor dead is unused"):
        _build(request, tmp_path / "scratch")


def test_a_missing_profile_is_refused_with_the_builders_words(tmp_path: Path) -> None:
    request = _request(product_with_dead_input(), tmp_path / "in", profile=X_PROFILE)
    with pytest.raises(EngineBuildError, match=r"could not build the engine\n.*dead"):
        _build(request, tmp_path / "scratch")


def test_a_profile_out_of_order_is_refused(tmp_path: Path) -> None:
    profile = {"x": ((4, HIDDEN), (2, HIDDEN), (1, HIDDEN))}
    with pytest.raises(EngineBuildError, match="profile"):
        _build(_request(product(), tmp_path / "in", profile=profile), tmp_path / "scratch")


def test_a_target_that_the_builder_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineBuildError, match="compute capability sm90 is refused"):
        _build(_request(product(), tmp_path / "in", capability="sm90"), tmp_path / "scratch")


def test_fp32_for_sm75_fails_with_a_way_out(tmp_path: Path) -> None:
    request = _request(product(np.float32), tmp_path / "in", capability="sm75")
    with pytest.raises(EngineBuildError, match="FP32 GEMM is not supported") as caught:
        _build(request, tmp_path / "scratch")
    assert caught.value.hint.startswith("cast the graph to fp16")
    assert "cudaError" not in caught.value.message


def test_too_little_workspace_is_named_with_the_option_that_raises_it(tmp_path: Path) -> None:
    ranges = {"batch": (1, 8, 64), "sequence": (8, 32, 64)}
    request = _request(
        encoder(), tmp_path / "in", profile=_encoder_profile(ranges), workspace_bytes=1 << 20
    )
    with pytest.raises(EngineBuildError, match=r"scratch memory.*\(1 MiB\)") as caught:
        _build(request, tmp_path / "scratch")
    assert "workspace_mib" in caught.value.hint


def test_parser_errors_name_every_node(tmp_path: Path) -> None:
    graph = product()
    graph.graph.node[0].op_type = "Mystery"
    graph.graph.node[1].op_type = "Enigma"
    with pytest.raises(EngineBuildError, match="refuses 2 nodes") as caught:
        _build(_request(graph, tmp_path / "in"), tmp_path / "scratch")
    assert "  product (Mystery): " in caught.value.message
    assert "  relu (Enigma): " in caught.value.message


def _kill_builder(done: threading.Event) -> None:
    while not done.is_set():
        for child in psutil.Process().children():
            if any(builder_program.__file__ in part for part in child.cmdline()):
                child.send_signal(signal.SIGKILL)
                return
        time.sleep(0.005)


def test_a_killed_builder_is_reported_with_its_signal_and_the_likely_reason(
    tmp_path: Path,
) -> None:
    request = _request(encoder(4), tmp_path / "in", profile=_encoder_profile(PROFILE))
    done = threading.Event()
    killer = threading.Thread(target=_kill_builder, args=(done,))
    killer.start()
    try:
        with pytest.raises(EngineBuildError, match="was killed by SIGKILL") as caught:
            _build(request, tmp_path / "scratch")
    finally:
        done.set()
        killer.join()
    assert "ran out of memory" in caught.value.hint


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_builder_without_memory_fails_with_its_last_lines(tmp_path: Path) -> None:
    _request(product(), tmp_path / "in")
    (tmp_path / "scratch").mkdir()
    code = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from pipeline.engines.build import EngineRequest, build_engine
        from pipeline.engines.module import TENSORRT_RTX
        from pipeline.errors import EngineBuildError
        resource.setrlimit(resource.RLIMIT_AS, (200 << 20, 200 << 20))
        request = EngineRequest(module=TENSORRT_RTX, model=Path("in/model.onnx"),
                                compute_capabilities=("sm89",), profiles=({},))
        try:
            build_engine(request, Path("scratch"))
        except EngineBuildError as error:
            print(error)
    """)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "the builder's process ended with exit code 1" in done.stdout
    assert "memory limit too low" in done.stdout


def test_a_builder_does_not_outlive_its_parent(tmp_path: Path) -> None:
    request = _request(encoder(4), tmp_path / "in", profile=_encoder_profile(PROFILE))
    assert request.model.exists()
    (tmp_path / "scratch").mkdir()
    code = textwrap.dedent(f"""
        from pathlib import Path
        from pipeline.engines.build import EngineRequest, build_engine
        from pipeline.engines.module import TENSORRT_RTX
        build_engine(EngineRequest(module=TENSORRT_RTX, model=Path("in/model.onnx"),
            compute_capabilities=("sm89",), profiles=({dict(request.profiles[0])!r},)),
            Path("scratch"))
    """)
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    children: list[psutil.Process] = []
    while not children and parent.poll() is None:
        children = psutil.Process(parent.pid).children()
        time.sleep(0.01)
    time.sleep(0.3)  # let it ask for the signal
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert not (tmp_path / "scratch" / builder_program.RESULT_FILE).exists()
    assert gone


def test_a_graph_that_is_refused_is_never_built_though_the_builder_was_started(
    tmp_path: Path,
) -> None:
    graph = product()
    graph.graph.node[0].op_type = "NonZero"
    _request(graph, tmp_path / "in")
    for name in ("out", "scratch"):
        (tmp_path / name).mkdir()
    config = EngineConfig(
        compute_capability="sm89", precision="fp16", profiles=({"batch": (1, 2, 4)},)
    )
    context = RecordingContext(tmp_path / "scratch")
    with pytest.raises(EngineBuildError, match="NonZero"):
        ENGINE.run(config, {"model": tmp_path / "in"}, tmp_path / "out", context)
    started = {path.name for path in context.scratch.iterdir()}
    assert started == {builder_program.PACKAGE_FILE, "builder.log"}
    assert not list((tmp_path / "out").iterdir())
    programs = [" ".join(child.cmdline()) for child in psutil.Process().children()]
    assert not any(builder_program.__file__ in program for program in programs)


def test_a_builder_that_is_told_nothing_ends_by_itself(tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text('{"module": "json", "search_path": []}')
    command = [sys.executable, "-s", "-S", "-P", builder_program.__file__]
    done = subprocess.run(command, cwd=tmp_path, stdin=subprocess.DEVNULL, check=True, timeout=60)
    assert done.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["package.json"]
