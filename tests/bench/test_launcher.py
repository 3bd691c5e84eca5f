"""Real launches of a tiny graph: what comes back, what is kept out, and how failures look."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from pipeline.bench.job import Contender, LaunchJob
from pipeline.bench.launcher import launch
from pipeline.bench.processes import launch_environment
from pipeline.errors import StageError
from tests.bench.models import (
    write_choice_graph,
    write_choices,
    write_graph,
    write_image_graph,
    write_images,
    write_samples,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def make_job(tmp_path: Path) -> LaunchJob:
    candidate = Contender(runtime="onnxruntime", path=str(tmp_path / "model"))
    return LaunchJob(
        reference=candidate,
        candidate=candidate,
        first="candidate",
        axes=("batch", "sequence"),
        shapes=((1, 4), (2, 8)),
        samples=str(write_samples(tmp_path / "samples")),
        threads=1,
        seconds_per_shape=0.02,
        seed=3,
    )


def make_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "launch"
    folder.mkdir()
    return folder


def test_a_launch_measures_both_models_at_every_shape(tmp_path: Path) -> None:
    write_graph(tmp_path / "model")
    record = launch(make_job(tmp_path), make_folder(tmp_path))
    assert [shape.shape for shape in record.shapes] == [(1, 4), (2, 8)]
    assert {shape.axes for shape in record.shapes} == {("batch", "sequence")}
    for shape in record.shapes:
        assert len(shape.pairs) >= 4
        for pair in shape.pairs:
            assert len(pair.reference_ns) == len(pair.candidate_ns) >= 1
            assert min(pair.reference_ns + pair.candidate_ns) > 0
        firsts = [pair.first for pair in shape.pairs]
        assert firsts.count("reference") == firsts.count("candidate")
    assert record.candidate.description.endswith("CPUExecutionProvider")
    assert record.candidate.load_time_ns > 0


def test_memory_is_read_when_only_the_first_model_is_loaded(tmp_path: Path) -> None:
    write_graph(tmp_path / "model")
    record = launch(make_job(tmp_path), make_folder(tmp_path))
    assert record.reference.peak_rss_bytes is None
    # More than a bare Python, far less than a process that has imported torch.
    assert record.candidate.peak_rss_bytes is not None
    assert 10 << 20 < record.candidate.peak_rss_bytes < 200 << 20


def test_the_memory_of_the_process_that_starts_a_launch_is_not_counted(tmp_path: Path) -> None:
    write_graph(tmp_path / "model")
    ballast = bytearray(400 << 20)
    ballast[::4096] = b"x" * len(ballast[::4096])  # touch every page
    record = launch(make_job(tmp_path), make_folder(tmp_path))
    assert record.candidate.peak_rss_bytes is not None
    assert record.candidate.peak_rss_bytes < 200 << 20


def test_settings_of_the_shell_do_not_reach_a_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.setenv("HF_HOME", "/somewhere")
    monkeypatch.setenv("API_TOKEN", "secret")
    environment = launch_environment(tmp_path, 2)
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["HOME"] == str(tmp_path)
    assert "HF_HOME" not in environment
    assert "API_TOKEN" not in environment


def test_a_launch_that_fails_shows_its_last_lines(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.onnx").write_bytes(b"no graph at all")
    with pytest.raises(
        StageError, match=r"ended with exit code 1; its last lines:\n(.*\n)*.*model\.onnx"
    ) as caught:
        launch(make_job(tmp_path), make_folder(tmp_path))
    assert "Traceback" not in caught.value.message
    assert "launch.py" not in caught.value.message


def test_samples_that_do_not_fit_the_model_are_named(tmp_path: Path) -> None:
    write_graph(tmp_path / "model")
    job = make_job(tmp_path)
    (tmp_path / "samples" / "samples.safetensors").unlink()
    with pytest.raises(StageError, match=r"there is no `samples\.safetensors`") as caught:
        launch(job, make_folder(tmp_path))
    assert 'File "' not in caught.value.message


def test_a_launch_that_is_killed_names_the_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho out of luck\nkill -SEGV $$\n", encoding="utf-8")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(StageError, match=r"was killed by SIGSEGV; its last lines:\nout of luck"):
        launch(make_job(tmp_path), make_folder(tmp_path))


@pytest.mark.parametrize(
    ("write_model", "write_data", "axes", "shapes"),
    [
        (write_image_graph, write_images, ("batch",), ((1,), (5,))),
        (
            write_choice_graph,
            write_choices,
            ("batch", "num_choices", "sequence"),
            ((1, 2, 4), (3, 4, 8)),
        ),
    ],
)
def test_images_and_choices_are_measured_at_shapes_of_their_own_axes(
    tmp_path: Path,
    write_model: Callable[[Path], Path],
    write_data: Callable[[Path], Path],
    axes: tuple[str, ...],
    shapes: tuple[tuple[int, ...], ...],
) -> None:
    write_model(tmp_path / "model")
    samples = str(write_data(tmp_path / "data"))
    changes = {"axes": axes, "shapes": shapes, "samples": samples}
    job = make_job(tmp_path).model_copy(update=changes)
    record = launch(job, make_folder(tmp_path))
    assert [(shape.axes, shape.shape) for shape in record.shapes] == [
        (axes, shape) for shape in shapes
    ]
    assert all(shape.pairs for shape in record.shapes)


def test_an_input_that_the_samples_lack_fails_the_launch_without_a_traceback(
    tmp_path: Path,
) -> None:
    write_image_graph(tmp_path / "model")
    with pytest.raises(StageError, match="no input `pixel_values`; they have") as caught:
        launch(make_job(tmp_path), make_folder(tmp_path))
    assert 'File "' not in caught.value.message
