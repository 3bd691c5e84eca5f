"""The benchmark stage on a real checkpoint and a graph that is far slower than it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from pydantic import ValidationError

from pipeline.bench.job import LaunchLog
from pipeline.bench.types import BenchmarkResult
from pipeline.errors import StageError
from pipeline.stages.benchmark import BENCHMARK, BenchmarkConfig
from tests.bench.models import write_checkpoint, write_graph, write_samples
from tests.stages.context import RecordingContext

REPOSITORY = Path(__file__).resolve().parents[2]


def make_config(**changes: object) -> BenchmarkConfig:
    values = {
        "task": "feature-extraction",
        "component": "model",
        "runtime": "onnxruntime",
        "axes": ("batch", "sequence"),
        "shapes": ((1, 8),),
        "launches": 3,
        "threads": 1,
        "margin": 0.05,
        "seconds_per_shape": 0.05,
    }
    return BenchmarkConfig.model_validate(values | changes)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def make_inputs(root: Path, checkpoint: Path) -> dict[str, Path]:
    return {
        "checkpoint": checkpoint,
        "model": root / "model",
        "samples": write_samples(root / "samples"),
    }


@dataclass
class Measured:
    result: BenchmarkResult
    log: LaunchLog
    context: RecordingContext
    inputs: dict[str, Path]


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Measured:
    """A graph with some fifty times the work of the checkpoint, through the real stage."""
    root = tmp_path_factory.mktemp("slow")
    inputs = make_inputs(root, checkpoint)
    write_graph(inputs["model"], width=512, products=3)
    output, scratch = root / "output", root / "scratch"
    output.mkdir()
    scratch.mkdir()
    context = RecordingContext(scratch)
    files = [path for folder in inputs.values() for path in folder.rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    BENCHMARK.run(make_config(), inputs, output, context)
    assert {path: path.stat().st_mtime_ns for path in files} == before
    return Measured(
        BenchmarkResult.model_validate_json((output / "benchmark.json").read_bytes()),
        LaunchLog.model_validate_json((output / "launches.json").read_bytes()),
        context,
        inputs,
    )


def test_a_deliberately_slow_candidate_is_slower(slow: Measured) -> None:
    (shape,) = slow.result.shapes
    assert shape.verdict == "slower"
    assert shape.speedup < 0.5
    assert shape.speedup_interval.low <= shape.speedup <= shape.speedup_interval.high < 1
    assert shape.candidate.latency_p50_ms > shape.reference.latency_p50_ms


def test_the_result_says_what_was_compared_and_how(slow: Measured) -> None:
    result = slow.result
    assert result.reference.startswith("torch ")
    assert result.candidate.startswith("onnxruntime ")
    assert (result.threads, result.margin) == (1, 0.05)
    assert result.size_bytes == (slow.inputs["model"] / "model.onnx").stat().st_size
    weights = slow.inputs["checkpoint"] / "model.safetensors"
    assert result.reference_size_bytes == weights.stat().st_size
    assert result.load_time_ms > 0
    # The candidate's memory is that of a process that never imported torch.
    assert result.peak_rss_mib < 200 < result.reference_peak_rss_mib


def test_every_launch_is_filed_with_its_raw_durations(slow: Measured) -> None:
    launches = slow.log.launches
    assert [launch.kind for launch in launches] == ["ab", "aa"] * slow.result.launches
    versus = [launch for launch in launches if launch.kind == "ab"]
    assert {launch.job.first for launch in versus} == {"reference", "candidate"}
    assert {launch.job.reference.runtime for launch in versus} == {"torch"}
    assert len({launch.job.seed for launch in launches}) == len(launches)
    itself = [launch.job for launch in launches if launch.kind == "aa"]
    assert all(job.reference == job.candidate for job in itself)
    assert all(launch.record.shapes[0].pairs for launch in launches)
    assert len(slow.result.shapes[0].launch_speedups) == slow.result.launches


def test_progress_counts_launches(slow: Measured) -> None:
    done, total, unit = slow.context.steps[-1]
    assert unit == "launches"
    assert done == total == len(slow.log.launches)


def test_no_process_is_left_behind(slow: Measured) -> None:
    assert slow.log.launches
    commands = [child.cmdline() for child in psutil.Process().children(recursive=True)]
    assert not [command for command in commands if "pipeline.bench.launch" in command]


def test_launches_die_with_the_process_group_of_the_stage(
    tmp_path: Path, checkpoint: Path
) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from tests.stages.test_benchmark import *\n"
        "root = Path(sys.argv[1]); inputs = make_inputs(root, Path(sys.argv[2])); write_graph(inputs['model'])\n"
        "(root / 'o').mkdir(); (root / 's').mkdir()\n"
        "BENCHMARK.run(make_config(), inputs, root / 'o', RecordingContext(root / 's'))\n"
    )
    stage = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), str(checkpoint)],
        cwd=REPOSITORY,
        start_new_session=True,
    )
    try:
        launches: list[psutil.Process] = []
        while not launches and stage.poll() is None:
            time.sleep(0.02)
            launches = psutil.Process(stage.pid).children(recursive=True)
    finally:
        os.killpg(stage.pid, signal.SIGKILL)
        stage.wait()
    assert launches
    gone, alive = psutil.wait_procs(launches, timeout=10)
    assert gone
    assert not alive


def test_a_graph_that_cannot_be_loaded_fails_the_stage_and_writes_nothing(
    tmp_path: Path, checkpoint: Path
) -> None:
    inputs = make_inputs(tmp_path, checkpoint)
    inputs["model"].mkdir()
    output, scratch = tmp_path / "output", tmp_path / "scratch"
    output.mkdir()
    scratch.mkdir()
    (inputs["model"] / "model.onnx").write_bytes(b"no graph at all")
    with pytest.raises(StageError, match="last lines"):
        BENCHMARK.run(make_config(), inputs, output, RecordingContext(scratch))
    assert not list(output.iterdir())


@pytest.mark.parametrize(
    "changes",
    [
        {"launches": 2},
        {"margin": 0.0},
        {"shapes": ()},
        {"shapes": ((0, 8),)},
        {"shapes": ((1, 8), (1,))},
        {"shapes": ((1, 8, 4),)},
        {"axes": ()},
        {"axes": ("sequence", "batch")},
        {"axes": ("batch", "batch")},
        {"axes": ("batch", "a", "b", "c"), "shapes": ((1, 2, 3, 4),)},
        {"threads": 0},
    ],
)
def test_a_config_that_cannot_give_a_verdict_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        make_config(**changes)


def test_the_result_depends_on_the_machine_and_runs_alone() -> None:
    assert set(BENCHMARK.machine) == {"cpu_model", "cpu_flags", "cores"}
    assert BENCHMARK.is_exclusive
