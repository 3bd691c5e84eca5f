"""Engines that are broken on purpose fail the gates of parity when they are run on a (fake) GPU."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from pipeline.errors import ArtifactError, DigestMismatch, EnvironmentMissing, StageError
from pipeline.manifest import scan_directory
from pipeline.parity.gates import judge_parity
from pipeline.parity.types import Parity
from pipeline.recipe.types import Bound, ParityGates
from pipeline.runtimes.base import FeedError
from pipeline.stages.validate import VALIDATE, ValidateConfig
from pipeline.stages.validate_engine import VALIDATE_ENGINE, ValidateEngineConfig
from tests.parity.graphs import BROKEN, LENGTHS, write_graph, write_samples
from tests.runtimes.devices import BARE, install_device
from tests.runtimes.fake_tensorrt import write_engine
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.gpu import Machine

GATES = ParityGates(cosine_similarity=Bound(min=0.999), relative_l2=Bound(max=0.001))
AXES = {"batch": (1, 4, 8), "sequence": (1, 16, 64)}


NO_ENGINE = {"batch_flattened", "batch_of_one_inside", "token_axis_without_a_name"}
"""Faults in shapes: TensorRT tells the shape of every output before it computes, the fake from names."""


def _engine(
    tmp_path: Path, graph: Path, *profiles: dict[str, tuple[int, int, int]]
) -> tuple[Path, str]:
    """An engine as a stage leaves it in the store: with facts and a manifest."""
    folder = tmp_path / "engine"
    digest = write_engine(folder, graph, profiles or [AXES])
    manifest = scan_directory(folder)
    (folder / "MANIFEST.json").write_text(manifest.to_json(), encoding="utf-8")
    return folder, digest


def _inputs(tmp_path: Path, model: Path) -> dict[str, Path]:
    data = tmp_path / "data"
    if not data.exists():
        write_samples(data)
    return {"model": model, "samples": data, "reference": data}


def _validate(tmp_path: Path, model: Path) -> Parity:
    output = tmp_path / "out"
    output.mkdir(parents=True, exist_ok=True)
    config = ValidateEngineConfig(task="feature-extraction", runtime="tensorrt-rtx", batch_size=4)
    facts = VALIDATE_ENGINE.run(
        config, _inputs(tmp_path, model), output, RecordingContext(tmp_path)
    )
    parity = Parity.model_validate_json((output / "parity.json").read_bytes())
    assert facts["problems"] == list(parity.problems)
    assert len(str(facts["engine_sha256"])) == 64
    return parity


def _is_passed(parity: Parity) -> bool:
    results = judge_parity(parity, GATES, target="rtx", component="model", is_proxy=False)
    return all(result.verdict == "passed" for result in results)


def test_a_right_engine_passes_and_its_numbers_are_those_of_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda, _ = install_device(monkeypatch)
    graph = write_graph(tmp_path / "graph")
    folder, digest = _engine(tmp_path, graph / "model.onnx")
    parity = _validate(tmp_path, folder)
    assert cuda.left() == []
    assert parity.session == "tensorrt-rtx 1.7.1.116 on NVIDIA L4, driver 580.65.06"
    assert parity.samples_seen == len(LENGTHS)
    assert _is_passed(parity)
    plain = ValidateConfig(task="feature-extraction", optimizations="all", batch_size=4, threads=1)
    output = tmp_path / "plain"
    output.mkdir()
    VALIDATE.run(plain, _inputs(tmp_path, graph), output, RecordingContext(tmp_path))
    other = json.loads((output / "parity.json").read_text("utf-8"))
    mine = json.loads(parity.model_dump_json())
    assert other.pop("session") != mine.pop("session")
    assert mine == other
    assert len(digest) == 64


@pytest.mark.parametrize("kind", sorted(set(BROKEN) - NO_ENGINE))
def test_every_broken_engine_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    install_device(monkeypatch)
    folder, _ = _engine(tmp_path, write_graph(tmp_path / "graph", kind) / "model.onnx")
    assert not _is_passed(_validate(tmp_path, folder))


@pytest.mark.parametrize(
    "profiles",
    [
        [{**AXES, "batch": (4, 4, 8)}],
        [{**AXES, "batch": (1, 1, 3)}],
        [{**AXES, "sequence": (12, 16, 64)}],
        [
            {"batch": (1, 1, 1), "sequence": (1, 8, 10)},
            {"batch": (2, 3, 3), "sequence": (11, 16, 64)},
        ],
    ],
    ids=["rows_filled", "rows_in_parts", "positions_filled", "several"],
)
def test_samples_are_fed_in_shapes_that_a_profile_takes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    profiles: list[dict[str, tuple[int, int, int]]],
) -> None:
    install_device(monkeypatch)
    graph = write_graph(tmp_path / "graph") / "model.onnx"
    whole, _ = _engine(tmp_path / "whole", graph)
    expected = _validate(tmp_path, whole)
    folder, _ = _engine(tmp_path, graph, *profiles)
    parity = _validate(tmp_path, folder)
    assert parity.samples_seen == len(LENGTHS)
    assert _is_passed(parity)
    assert parity.problems == ()
    for mine, other in zip(parity.outputs, expected.outputs, strict=True):
        assert mine.metrics.elements == other.metrics.elements


def test_samples_that_no_profile_can_hold_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_device(monkeypatch)
    graph = write_graph(tmp_path / "graph") / "model.onnx"
    folder, _ = _engine(tmp_path, graph, {**AXES, "sequence": (1, 8, max(LENGTHS) - 1)})
    with pytest.raises(FeedError, match="no profile of the engine takes"):
        _validate(tmp_path, folder)


def test_an_engine_that_its_manifest_does_not_vouch_for_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, trt = install_device(monkeypatch)
    folder, _ = _engine(tmp_path, write_graph(tmp_path / "graph") / "model.onnx")
    engine = folder / "model.engine"
    engine.write_bytes(engine.read_bytes()[:-1] + b"]")
    with pytest.raises(DigestMismatch, match="is vouched for: it is not loaded"):
        _validate(tmp_path, folder)
    (folder / "MANIFEST.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ArtifactError, match="not a manifest"):
        _validate(tmp_path, folder)
    (folder / "MANIFEST.json").unlink()
    with pytest.raises(ArtifactError, match="nobody vouches for the engine"):
        _validate(tmp_path, folder)
    assert trt._runs == 0


@pytest.mark.parametrize("machine", [BARE])
def test_a_machine_that_cannot_run_it_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: Machine
) -> None:
    install_device(monkeypatch, machine=machine)
    folder, _ = _engine(tmp_path, write_graph(tmp_path / "graph") / "model.onnx")
    with pytest.raises(EnvironmentMissing, match="no NVIDIA driver"):
        _validate(tmp_path, folder)


def test_a_failing_run_is_a_failed_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, trt = install_device(monkeypatch)
    folder, _ = _engine(tmp_path, write_graph(tmp_path / "graph") / "model.onnx")
    trt._breaks = "run"
    with pytest.raises(StageError, match="the kernel failed"):
        _validate(tmp_path, folder)
    assert cuda.left() == []
