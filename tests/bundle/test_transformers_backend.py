"""`ExportedModel.from_pretrained` of a target: the numbers of the artifact, or the reason why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoTokenizer
from transformers.exporters import ExportedModel
from transformers.exporters.metadata import load_treespec

from pipeline.bundle.transformers_backend import ConvertConfig, ConvertExporter, register
from pipeline.bundle.transformers_export import output_spec
from pipeline.errors import ArtifactError, EnvironmentMissing
from pipeline.gpu import this_machine
from pipeline.tasks import TASKS
from tests.bundle.conftest import add_engine, remake
from tests.runtimes.devices import install_device
from tests.runtimes.fake_tensorrt import write_engine

TEXTS = ["Return the name of a file.", "a"]


@pytest.fixture(autouse=True)
def _registered() -> None:
    register()


@pytest.mark.parametrize("target", ["cpu-fp32", "cpu-int8"])
def test_a_target_gives_the_numbers_of_its_graph(artifact: Path, target: str) -> None:
    model = ExportedModel.from_pretrained(artifact / target)
    tokens = AutoTokenizer.from_pretrained(artifact / target)(
        TEXTS, padding=True, return_tensors="pt"
    )
    found = model(**tokens)
    session = onnxruntime.InferenceSession(artifact / target / "model.onnx")
    names = [node.name for node in session.get_inputs()]
    expected = session.run(None, {name: tokens[name].numpy() for name in names})
    for node, array in zip(session.get_outputs(), expected, strict=True):
        np.testing.assert_array_equal(found[node.name].numpy(), array)
    np.testing.assert_array_equal(found.sentence_embedding.numpy(), found["sentence_embedding"])
    assert model.config.model_type == "bert"
    assert (str(model.device), model.dtype) == ("cpu", torch.float32)


@pytest.mark.parametrize("task", [task.name for task in TASKS if not task.has_cache])
def test_every_task_has_the_output_class_of_transformers(task: str) -> None:
    outputs = [spec.name for spec in next(t for t in TASKS if t.name == task).outputs]
    spec = load_treespec(output_spec(task, outputs))
    values = [torch.full((1,), float(number)) for number in range(len(outputs))]
    found = torch.utils._pytree.tree_unflatten(values, spec)
    assert type(found).__module__ == "transformers.modeling_outputs"
    assert [getattr(found, name).item() for name in outputs] == list(range(len(outputs)))


def test_registering_twice_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    register()
    assert not caplog.records


def test_what_is_damaged_is_not_loaded(artifact: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(artifact, tmp_path / "a"))
    graph = damaged / "cpu-fp32" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match=r"'cpu-fp32/model\.onnx' has SHA-256"):
        ExportedModel.from_pretrained(damaged / "cpu-fp32")


def test_what_no_manifest_vouches_for_is_not_loaded(artifact: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(artifact / "cpu-fp32", tmp_path / "moved")
    with pytest.raises(ArtifactError, match="no manifest vouches for it"):
        ExportedModel.from_pretrained(moved)


def test_a_device_that_is_not_here_is_an_error(artifact: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("it is here")
    with pytest.raises(EnvironmentMissing, match="cannot run on cuda"):
        ExportedModel.from_pretrained(artifact / "cpu-fp32", device="cuda")
    with pytest.raises(ValueError, match="not both"):
        ExportedModel.from_pretrained(
            artifact / "cpu-fp32", device="cpu", providers=["CPUExecutionProvider"]
        )


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize("own", ["CUDAExecutionProvider", ("CUDAExecutionProvider", {})])
def test_no_provider_takes_the_place_of_the_one_that_is_asked_for(
    artifact: Path, own: str | tuple[str, dict[str, str]]
) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("it is here")
    with pytest.raises(
        EnvironmentMissing, match=r"CUDAExecutionProvider did not start .* CPUExec"
    ):
        ExportedModel.from_pretrained(
            artifact / "cpu-fp32", providers=[own, "CPUExecutionProvider"]
        )


def _engines_only(folder: Path, _document: dict[str, Any]) -> None:
    target = folder / "cpu-fp32"
    engine = add_engine(target, "sm89", magic=b"vtrt")
    described = json.loads((target / "export.json").read_text())
    described["components"]["model"]["file"] = engine.name
    (target / "export.json").write_text(json.dumps(described))


def test_an_engine_that_cannot_run_here_says_why(artifact: Path, tmp_path: Path) -> None:
    if this_machine().driver:
        pytest.skip("engines of a real GPU are in the tests of the runner")
    served = remake(artifact, tmp_path / "a", _engines_only)
    with pytest.raises(EnvironmentMissing, match="this machine has no NVIDIA driver"):
        ExportedModel.from_pretrained(served / "cpu-fp32")
    with pytest.raises(EnvironmentMissing, match="engines run on a GPU, not on cpu"):
        ExportedModel.from_pretrained(served / "cpu-fp32", device="cpu")


@pytest.mark.parametrize("is_full", [False, True], ids=["tensorrt_rtx", "tensorrt"])
def test_an_engine_gives_what_its_graph_computes_on_a_device_that_is_played(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_full: bool
) -> None:
    graph = artifact / "cpu-fp32" / "model.onnx"

    def change(folder: Path, document: dict[str, Any]) -> None:
        _engines_only(folder, document)
        axes = {"batch": (1, 2, 4), "sequence": (2, 8, 64)}
        write_engine(tmp_path / "made", graph, [axes], magic=b"ftrt" if is_full else b"vtrt")
        target = folder / "cpu-fp32"
        shutil.move(tmp_path / "made" / "model.engine", target / "model.sm89.engine")
        shutil.move(tmp_path / "made" / "engine.json", target / "model.sm89.engine.json")

    served = remake(artifact, tmp_path / "a", change)
    install_device(monkeypatch, full=is_full)
    model = ExportedModel.from_pretrained(served / "cpu-fp32")
    tokens = AutoTokenizer.from_pretrained(served / "cpu-fp32")(
        TEXTS, padding=True, return_tensors="pt"
    )
    found = model(**tokens)
    session = onnxruntime.InferenceSession(graph)
    names = [node.name for node in session.get_inputs()]
    expected = session.run(None, {name: tokens[name].numpy() for name in names})
    for node, array in zip(session.get_outputs(), expected, strict=True):
        np.testing.assert_allclose(found[node.name].numpy(), array, rtol=1e-5, atol=1e-5)
    assert str(model.device) == "cuda:0"


def test_nothing_is_exported_or_saved_through_it(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match="from a recipe"):
        ConvertExporter().export(torch.nn.Linear(1, 1), {}, ConvertConfig())
    model = ExportedModel.from_pretrained(artifact / "cpu-fp32")
    with pytest.raises(NotImplementedError, match="not written again"):
        model.save_pretrained(tmp_path / "copy")
