"""Whole builds on a machine with a GPU, which is a fake in every process: store, workers, gates, report.

What is faked is CUDA, TensorRT's runtime and the driver; the engine is a real one, built by TensorRT-RTX, and
what "runs" it is the graph that it was built from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import pipeline
from pipeline.build import BuildOptions, BuildResult, build
from pipeline.engines.facts_file import read_engine_facts
from pipeline.recipe import load_recipe_file
from pipeline.report.summary import target_verdict
from tests.recipes import RTX, write_recipe
from tests.runtimes.devices import install_device
from tests.runtimes.fake_tensorrt import COMPUTE_MS

if TYPE_CHECKING:
    from pipeline.report.schema import TargetReport

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.usefixtures("store")  # at tmp_path/store: what is not changed is a hit

GATES = {"parity": {"cosine_similarity": {"min": 0.5}}}  # and nothing may stay unrun

SITE = """
import json, sys
from pipeline.engines import preflight
from pipeline.runtimes import tensorrt as runner
from tests.runtimes.devices import L4
preflight.this_machine = runner.this_machine = lambda: L4
preflight.is_importable = lambda name: True
from tests.runtimes.fake_cuda import FakeCuda
from tests.runtimes.fake_tensorrt import FakeTensorRT
class Site:
    def setitem(self, mapping, name, value): mapping[name] = value
cuda = FakeCuda().install(Site())
trt = FakeTensorRT(cuda)
trt._plan = json.loads({plan!r})
trt.__version__ = {version!r}
# The builder is a process of its own, which is not started here: every engine is in the store.
sys.modules["tensorrt_rtx"] = trt
preflight.installed_version = lambda module: {version!r}
"""


def _build(tmp_path: Path, checkpoint: Path, **changes: Any) -> BuildResult:
    recipe = write_recipe(
        tmp_path / "recipe.yaml", checkpoint, **{"targets": [RTX], "gates": GATES, **changes}
    )
    options = BuildOptions(output=tmp_path / "artifacts", store=tmp_path / "store", threads=1)
    return build(load_recipe_file(recipe), options)


def _tree(tmp_path: Path, result: BuildResult, stage: str) -> Path:
    """The output of a stage in the store."""
    (record,) = (o.record for o in result.outcomes if o.node.stage.name == stage)
    assert record is not None
    (found,) = (path for path in (tmp_path / "store").rglob(record.tree) if path.is_dir())
    return Path(found)


def _fake_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graph: Path, engine: Path) -> None:
    """The GPU in this process, and by `sitecustomize` in every worker."""
    facts = read_engine_facts(engine / "engine.json")
    plan = {
        "graph": str(graph),
        "profiles": [profile.model_dump(mode="json")["inputs"] for profile in facts.profiles],
    }
    site = tmp_path / "site"
    site.mkdir()
    text = SITE.format(plan=json.dumps(plan), version=facts.version)
    (site / "sitecustomize.py").write_text(text, encoding="utf-8")
    root = Path(pipeline.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{site}:{root}")
    install_device(monkeypatch)


def _target(result: BuildResult) -> TargetReport:
    (target,) = result.report().targets
    return target


def test_the_engine_itself_is_compared_and_the_gates_are_of_it(
    tmp_path: Path, sentence_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = _build(tmp_path, sentence_encoder, gates={**GATES, "allow_not_run": ["device_parity"]})
    assert _target(bare).proxy == "onnxruntime-cpu"
    graph = _tree(tmp_path, bare, "cast") / "model.onnx"
    _fake_gpu(tmp_path, monkeypatch, graph, _tree(tmp_path, bare, "engine"))
    result = _build(tmp_path, sentence_encoder)
    assert result.verdict == "passed", result.reasons
    ran = {outcome.node.stage.name for outcome in result.outcomes if outcome.has_run}
    assert ran == {"validate_engine"}  # all else keeps its key, and its result
    target = _target(result)
    assert (target.proxy, target.not_run_reason) == ("", "")
    assert target_verdict(result.report(), target) == "passed"
    last = target.parity[-1]
    assert (last.stage, last.arithmetic) == ("engine", "float16")
    assert last.parity is not None
    assert last.parity.session == "tensorrt-rtx 1.7.1.116 on NVIDIA L4, driver 580.65.06"
    mine = [gate for gate in result.report().gates if gate.target == target.name]
    assert {gate.gate for gate in mine} >= {"parity", "stages"}
    assert not any(gate.is_proxy for gate in mine)
    assert "device_parity" not in {gate.gate for gate in mine}
    text = (result.directory / "report.md").read_text(encoding="utf-8")
    assert "proxy" not in text.lower()
    assert target.weights == _target(bare).weights != ()


def test_a_wrong_engine_fails_the_build_and_is_what_is_accused(
    tmp_path: Path, sentence_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the engine computes here is another graph than the one that it is said to be of."""
    import onnx
    from onnx import numpy_helper

    bare = _build(tmp_path, sentence_encoder, gates={**GATES, "allow_not_run": ["device_parity"]})
    model = onnx.load(_tree(tmp_path, bare, "cast") / "model.onnx")
    matrices = [t for t in model.graph.initializer if len(t.dims) == 2]
    for tensor in matrices[2:]:
        tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    _fake_gpu(tmp_path, monkeypatch, tmp_path / "wrong.onnx", _tree(tmp_path, bare, "engine"))
    result = _build(tmp_path, sentence_encoder)
    assert result.verdict == "failed"
    (finding,) = result.report().findings
    assert finding.stage == "engine"


@pytest.mark.slow
def test_the_engine_itself_is_timed_and_its_calls_taken_apart(
    tmp_path: Path, sentence_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = _build(tmp_path, sentence_encoder, gates={**GATES, "allow_not_run": ["device_parity"]})
    graph = _tree(tmp_path, bare, "cast") / "model.onnx"
    _fake_gpu(tmp_path, monkeypatch, graph, _tree(tmp_path, bare, "engine"))
    result = _build(
        tmp_path, sentence_encoder, benchmark={"shapes": [[1, 8]], "launches": 3, "threads": 1}
    )
    assert result.verdict == "passed", result.reasons
    benchmark = _target(result).benchmark
    assert benchmark is not None
    assert benchmark.candidate.startswith("tensorrt-rtx 1.7.1.116 on NVIDIA L4")
    (shape,) = benchmark.shapes
    assert shape.device is not None
    assert shape.device.compute.median_ms == pytest.approx(COMPUTE_MS)
    assert any(note.startswith("batch 1, sequence 8: host to dev") for note in benchmark.notes)
    text = (result.directory / "report.md").read_text(encoding="utf-8")
    assert "Calls on the GPU" in text
    assert "| copies to the GPU |" in text
    assert list(shape.device.warnings) == [
        warning.removeprefix("rtx-fp16: batch 1, sequence 8: ")
        for warning in result.report().warnings
        if warning.startswith("rtx-fp16: batch 1")
    ]
    (size,) = (f.size_bytes for f in _target(result).files if f.path.endswith("sm89.engine"))
    assert benchmark.size_bytes == size


def test_a_worker_that_finds_no_gpu_fails_with_the_reason(
    tmp_path: Path, sentence_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan was made where there is one: nothing falls back to the proxy."""
    install_device(monkeypatch)
    result = _build(tmp_path, sentence_encoder)
    assert result.verdict == "error"
    assert any("no NVIDIA driver" in reason for reason in result.reasons)
    assert _target(result).parity[-1].parity is None
