from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from pipeline.errors import ExportError
from pipeline.hashing import sha256_file
from pipeline.runtimes import torch_capture, torch_decoder, torch_model
from pipeline.runtimes.torch_model import load_torch_model
from pipeline.stages.export import EXPORT, ExportConfig
from pipeline.tasks import TensorSpec, find_task
from tests import checkpoints
from tests.decoders import build_tiny_llama
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pipeline.hashing import JSON

SHAPES = ((1, 1, 1), (1, 2, 2), (3, 7, 2), (2, 40, 1))
"""(batch, sequence, choices): none is that of the example, and each axis is 1 at some time."""


def export(
    checkpoint: Path, output: Path, task: str = "feature-extraction", **options: object
) -> tuple[Path, Mapping[str, JSON]]:
    output.mkdir()
    config = ExportConfig.model_validate({"task": task, "component": "model"} | options)
    context = RecordingContext(scratch=output)
    facts = EXPORT.run(config, {"checkpoint": checkpoint}, output, context)
    assert context.steps[-1] == (4, 4, "steps")
    return output / "model.onnx", facts


def require_same_numbers(model: Path, checkpoint: Path, task: str, atol: float = 2e-5) -> None:
    component = load_torch_model(checkpoint, task, "model")
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    for batch, sequence, choices in SHAPES:
        tensors = component.example(batch=batch, sequence=sequence, num_choices=choices)
        with torch.no_grad():
            expected = component.module(*tensors)
        feeds = {
            name: tensor.numpy()
            for name, tensor in zip(component.input_names, tensors, strict=True)
        }
        for found, wanted in zip(session.run(None, feeds), expected, strict=True):
            message = f"batch {batch}, sequence {sequence}, choices {choices}"
            np.testing.assert_allclose(found, wanted.numpy(), atol=atol, err_msg=message)


@pytest.fixture(scope="module")
def exported(
    sentence_encoder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Mapping[str, JSON]]:
    return export(sentence_encoder, tmp_path_factory.mktemp("export") / "out")


def test_a_sentence_encoder_keeps_its_numbers_at_other_shapes(
    exported: tuple[Path, Mapping[str, JSON]], sentence_encoder: Path
) -> None:
    require_same_numbers(exported[0], sentence_encoder, "feature-extraction")


def test_names_and_axes_are_canonical(exported: tuple[Path, Mapping[str, JSON]]) -> None:
    graph = onnx.load_model(exported[0]).graph
    axes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert axes == {
        "input_ids": ["batch", "sequence"],
        "attention_mask": ["batch", "sequence"],
        "token_type_ids": ["batch", "sequence"],
        "last_hidden_state": ["batch", "sequence", checkpoints.HIDDEN_SIZE],
        "sentence_embedding": ["batch", checkpoints.HIDDEN_SIZE],
    }


def test_the_output_is_one_file_without_traces_of_this_machine(
    exported: tuple[Path, Mapping[str, JSON]],
) -> None:
    path, _ = exported
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.onnx", "scopes.json"]
    content = path.read_bytes()
    for trace in (b"site-packages", b"stack_trace", str(path.parent).encode()):
        assert trace not in content


def test_weights_that_no_output_needs_are_left_out(
    exported: tuple[Path, Mapping[str, JSON]],
) -> None:
    names = [tensor.name for tensor in onnx.load_model(exported[0]).graph.initializer]
    assert any("encoder" in name for name in names)
    assert not any("pooler" in name for name in names)


def test_the_operators_of_an_encoder_are_not_taken_apart(
    exported: tuple[Path, Mapping[str, JSON]],
) -> None:
    _, facts = exported
    ops = facts["ops"]
    assert isinstance(ops, dict)
    layers = checkpoints.LAYERS
    assert (ops["LayerNormalization"], ops["Gelu"], ops["Softmax"]) == (
        2 * layers + 1,
        layers,
        layers,
    )
    assert facts["translation"] == "direct"


def test_the_same_checkpoint_gives_the_same_bytes_in_another_process(
    exported: tuple[Path, Mapping[str, JSON]], sentence_encoder: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.stages.test_export import export;"
        "export(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    subprocess.run(  # another seed for hashes than here
        [sys.executable, "-c", code, sentence_encoder, tmp_path / "again"], check=True
    )
    assert sha256_file(tmp_path / "again/model.onnx") == sha256_file(exported[0])


def test_nothing_is_written_into_the_checkpoint(
    sentence_encoder: Path, exported: tuple[Path, Mapping[str, JSON]]
) -> None:
    assert exported
    assert not [file for file in sentence_encoder.rglob("*") if "onnx" in file.name]
    assert not list(sentence_encoder.rglob("__pycache__"))


@pytest.mark.parametrize(
    ("build", "task", "inputs", "outputs"),
    [
        (checkpoints.build_text_classifier, "text-classification", 3, ["logits"]),
        pytest.param(
            checkpoints.build_token_classifier,
            "token-classification",
            3,
            ["logits"],
            marks=pytest.mark.slow,
        ),
        (
            checkpoints.build_question_answerer,
            "question-answering",
            3,
            ["start_logits", "end_logits"],
        ),
        pytest.param(
            checkpoints.build_masked_language_model,
            "masked-lm",
            3,
            ["logits"],
            marks=pytest.mark.slow,
        ),
        (checkpoints.build_roberta_encoder, "default", 2, ["last_hidden_state"]),
        (checkpoints.build_multiple_choice, "multiple-choice", 3, ["logits"]),
        (checkpoints.build_image_classifier, "image-classification", 1, ["logits"]),
        pytest.param(
            checkpoints.build_image_encoder,
            "image-feature-extraction",
            1,
            ["last_hidden_state"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_every_task_keeps_its_numbers(
    build: Callable[[Path], Path], task: str, inputs: int, outputs: list[str], tmp_path: Path
) -> None:
    checkpoint = build(tmp_path / "checkpoint")
    path, facts = export(checkpoint, tmp_path / "out", task)
    assert (len(facts["inputs"]), facts["outputs"]) == (inputs, outputs)  # type: ignore[arg-type]
    assert facts["translation"] == "direct"
    require_same_numbers(path, checkpoint, task, atol=5e-5)


def test_three_kinds_of_pooling_survive_the_export(tmp_path: Path) -> None:
    checkpoint = checkpoints.build_sentence_encoder(
        tmp_path / "checkpoint", modes=("cls", "max", "mean"), is_normalized=False
    )
    path, _ = export(checkpoint, tmp_path / "out")
    require_same_numbers(path, checkpoint, "feature-extraction")


def test_attention_by_sdpa_and_another_opset_keep_the_numbers(
    sentence_encoder: Path, tmp_path: Path
) -> None:
    path, facts = export(sentence_encoder, tmp_path / "out", attention="sdpa", opset=18)
    assert (facts["attention"], facts["opset"]) == ("sdpa", 18)
    require_same_numbers(path, sentence_encoder, "feature-extraction")


def test_a_model_without_the_outputs_of_the_task_is_refused(tmp_path: Path) -> None:
    checkpoint = checkpoints.build_encoder(tmp_path / "checkpoint")
    with pytest.raises(ExportError, match="lacks weights that the outputs depend on"):
        export(checkpoint, tmp_path / "out", "question-answering")
    assert not list((tmp_path / "out").iterdir())


def test_a_decoder_that_cannot_be_right_is_refused_whatever_its_trace_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is run while it is traced; what the run finds comes first."""
    checkpoint = build_tiny_llama(tmp_path / "checkpoint")
    monkeypatch.setattr(torch_decoder, "AGREEMENT", -1.0)  # no two outputs are that close
    with pytest.raises(ExportError, match="other logits"):
        export(checkpoint, tmp_path / "out", "text-generation")

    def untraceable(_: object) -> None:
        raise ExportError("no trace")

    monkeypatch.setattr(torch_capture, "capture_program", untraceable)
    with pytest.raises(ExportError, match="other logits"):
        export(checkpoint, tmp_path / "untraced", "text-generation")
    monkeypatch.setattr(torch_decoder, "AGREEMENT", 1.0)
    with pytest.raises(ExportError, match="no trace"):
        export(checkpoint, tmp_path / "sound", "text-generation")
    assert not list((tmp_path / "out").iterdir())


def test_a_model_that_lacks_outputs_and_weights_says_which_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has no weights is run before it is asked what they have influence on."""
    checkpoint = checkpoints.build_encoder(tmp_path / "checkpoint")
    task = dataclasses.replace(
        find_task("question-answering"),
        outputs=(TensorSpec(name="start_logit", axes=("batch", "sequence")),),
    )
    monkeypatch.setattr(torch_model, "find_task", lambda _: task)
    with pytest.raises(ExportError, match="does not have the outputs start_logit"):
        export(checkpoint, tmp_path / "out", "question-answering")
