"""The parts of calls on a GPU: their figures, their warnings, and an engine as a contender."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from pipeline.bench.device import describe_device, percentile, summarise_device, variation
from pipeline.bench.job import Contender, DeviceRecord, LaunchJob, LaunchRecord
from pipeline.bench.launch import DEVICE_CALLS, run_launch
from pipeline.bench.session import _candidate, _device_notes
from pipeline.bench.types import ShapeResult
from pipeline.errors import ArtifactError, DigestMismatch, EnvironmentMissing, StageError
from pipeline.manifest import scan_directory
from pipeline.runtimes.ort_providers import ProviderPlan
from pipeline.runtimes.torch_variants import PlacedModel
from pipeline.stages.benchmark import BenchmarkConfig
from tests.bench.models import write_graph, write_samples
from tests.runtimes.devices import install_device
from tests.runtimes.fake_cuda import MS_PER_BYTE
from tests.runtimes.fake_tensorrt import COMPUTE_MS, write_engine


def _record(**parts: list[float]) -> DeviceRecord:
    usual = {"h2d": [0.1] * 10, "compute": [2.0] * 10, "d2h": [0.1] * 10, "enqueue": [0.2] * 10}
    return DeviceRecord(**{f"{name}_ms": tuple(v) for name, v in (usual | parts).items()})


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.5, 0.9, 0.95, 0.99, 1.0)] == [
        50.0,
        90.0,
        95.0,
        99.0,
        100.0,
    ]
    assert percentile([7.0], 0.99) == 7.0
    assert variation([1.0, 3.0]) == 0.5
    assert variation([0.0, 0.0]) == 0.0


def test_figures_are_medians_over_launches_of_each_launchs_own() -> None:
    launches = [_record(compute=[ms] * 9 + [10 * ms]) for ms in (1.0, 2.0, 30.0)]
    times = summarise_device(launches)
    assert times is not None
    assert (times.compute.median_ms, times.compute.p90_ms, times.compute.p99_ms) == (
        2.0,
        2.0,
        20.0,
    )
    assert times.compute.p95_ms == 20.0
    assert "compute 2.000 ms" in describe_device(times)
    assert summarise_device([]) is None


def test_a_quiet_gpu_that_does_the_work_is_no_cause_for_a_warning() -> None:
    times = summarise_device([_record(enqueue=[1.6] * 10), _record(enqueue=[1.6] * 10)])
    assert times is not None
    assert times.warnings == ()  # 0.8 of the compute time, and not above it


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"enqueue": [1.7] * 10}, "handing the work over takes 1.700 ms"),
        ({"h2d": [2.0] * 10}, "copying the inputs to the GPU takes 2.000 ms"),
        ({"d2h": [2.5] * 10}, "copying the outputs from the GPU takes 2.500 ms"),
        ({"compute": [1.9, 2.1] * 5}, "vary by 5.0%"),
    ],
)
def test_each_warning_of_trtexec_is_given(parts: dict[str, list[float]], words: str) -> None:
    times = summarise_device([_record(**parts)])
    assert times is not None
    (warning,) = times.warnings
    assert words in warning


# --- an engine as a contender ---------------------------------------------------------------


def _engine(folder: Path, graph: Path) -> Path:
    write_engine(folder, graph, [{"batch": (1, 2, 4), "sequence": (1, 8, 16)}])
    (folder / "MANIFEST.json").write_text(scan_directory(folder).to_json(), encoding="utf-8")
    return folder


def _job(tmp_path: Path, **changes: Any) -> LaunchJob:
    graph = write_graph(tmp_path / "graph")
    engine = _engine(tmp_path / "engine", graph / "model.onnx")
    values = {
        "reference": Contender(runtime="onnxruntime", path=str(graph)),
        "candidate": Contender(runtime="tensorrt", path=str(engine)),
        "first": "candidate",
        "axes": ("batch", "sequence"),
        "shapes": ((1, 4), (2, 8)),
        "samples": str(write_samples(tmp_path / "samples")),
        "threads": 1,
        "seconds_per_shape": 0.05,
        "seed": 1,
    }
    return LaunchJob.model_validate(values | changes)


def test_an_engine_is_timed_with_the_parts_of_its_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_device(monkeypatch)
    record = run_launch(_job(tmp_path))
    assert record.candidate.description.startswith("tensorrt-rtx 1.7.1.116 on NVIDIA L4")
    for shape in record.shapes:
        assert all(pair.candidate_ns and pair.reference_ns for pair in shape.pairs)
        assert shape.device is not None
        assert len(shape.device.compute_ms) == DEVICE_CALLS
        assert shape.device.compute_ms == pytest.approx([COMPUTE_MS] * DEVICE_CALLS)
        two_inputs = 2 * 8 * shape.shape[0] * shape.shape[1]
        assert shape.device.h2d_ms == pytest.approx([two_inputs * MS_PER_BYTE] * DEVICE_CALLS)
    assert LaunchRecord.model_validate_json(record.model_dump_json()) == record


def test_an_engine_against_itself_is_two_engines_in_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, trt = install_device(monkeypatch)
    job = _job(tmp_path)
    run_launch(job.model_copy(update={"reference": job.candidate}))
    assert len(trt._configs) == 2


def test_an_engine_that_nobody_vouches_for_is_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_device(monkeypatch)
    job = _job(tmp_path)
    engine = tmp_path / "engine" / "model.engine"
    engine.write_bytes(engine.read_bytes()[:-1] + b"]")
    with pytest.raises(DigestMismatch):
        run_launch(job)
    (tmp_path / "engine" / "MANIFEST.json").unlink()
    with pytest.raises(ArtifactError, match="nobody vouches"):
        run_launch(job)


def test_records_of_the_cpu_are_written_as_before(tmp_path: Path) -> None:
    job = _job(tmp_path, candidate=Contender(runtime="onnxruntime", path=str(tmp_path / "graph")))
    record = run_launch(job.model_copy(update={"shapes": ((1, 4),)}))
    (shape,) = json.loads(record.model_dump_json())["shapes"]
    assert set(shape) == {"axes", "shape", "pairs"}
    assert set(json.loads(job.model_dump_json())["candidate"]) == {
        "runtime",
        "path",
        "task",
        "component",
    }
    assert "device" not in ShapeResult.model_construct(device=None).model_dump()


# --- a provider of ONNX Runtime as a contender ----------------------------------------------


def _config(**changes: Any) -> BenchmarkConfig:
    values = {
        "task": "feature-extraction",
        "component": "model",
        "runtime": "onnxruntime",
        "axes": ("batch", "sequence"),
        "shapes": ((1, 8),),
        "launches": 3,
        "threads": 1,
        "margin": 0.05,
    }
    return BenchmarkConfig.model_validate(values | changes)


def test_every_launch_of_a_provider_is_told_the_same_and_shares_a_cache(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "graph")
    (tmp_path / "kept" / "engines").mkdir(parents=True)
    (tmp_path / "kept" / "engines" / "a.engine").write_bytes(b"engine")
    scratch = tmp_path / "scratch"
    config = _config(
        provider=ProviderPlan(provider="tensorrt"),
        profile={"batch": (1, 2, 4), "sequence": (1, 8, 16)},
    )
    inputs = {"model": graph, "cache": tmp_path / "kept"}
    contender = _candidate(config, inputs, scratch)
    assert contender.provider == "TensorrtExecutionProvider"
    options = contender.provider_options
    assert options["trt_profile_max_shapes"] == "input_ids:4x16,attention_mask:4x16"
    cache = Path(options["trt_engine_cache_path"])
    assert cache.is_relative_to(scratch)
    assert (cache / "a.engine").read_bytes() == b"engine"
    assert Contender.model_validate_json(contender.model_dump_json()) == contender


def test_a_provider_that_is_not_here_stops_the_launch(tmp_path: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the provider")
    graph = write_graph(tmp_path / "graph")
    contender = Contender(runtime="onnxruntime", path=str(graph), provider="CUDAExecutionProvider")
    with pytest.raises(EnvironmentMissing, match="has no CUDAExecutionProvider"):
        run_launch(_job(tmp_path, candidate=contender))


def test_what_a_call_consists_of_is_told_with_the_result() -> None:
    times = summarise_device([_record(h2d=[3.0] * 10)])
    result = ShapeResult.model_construct(axes=("batch",), shape=(4,), device=times)
    first, second = _device_notes([result])
    assert first.startswith("batch 4: host to device 3.000 ms, compute 2.000 ms")
    assert second.startswith("batch 4: copying the inputs to the GPU takes")
    assert list(_device_notes([ShapeResult.model_construct(device=None)])) == []


def test_torch_on_the_gpu_is_refused_where_torch_has_none() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this torch can use a GPU")
    loaded = SimpleNamespace(module=torch.nn.Identity(), input_names=("x",))
    with pytest.raises(StageError, match="cannot use this machine's GPU"):
        PlacedModel(loaded, "fp32", device="cuda")  # type: ignore[arg-type]
