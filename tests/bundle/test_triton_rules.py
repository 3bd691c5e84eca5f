"""Every rule of Triton's server lets a good repository pass and has a broken twin that does not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.bundle.triton.repository import export_triton
from pipeline.bundle.triton.rules import repository_problems
from pipeline.errors import ArtifactError
from tests.bundle.conftest import with_engines

MODEL, TOKENIZER, ENSEMBLE, ENGINE = (
    "tiny-cpu-int8",
    "tiny-tokenizer",
    "tiny-cpu-int8-text",
    "tiny-cpu-fp32",
)


@pytest.fixture(scope="module")
def good(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with each kind of model."""
    folder = tmp_path_factory.mktemp("good")
    served = with_engines(artifact, folder / "artifact", "sm89", "sm120", batches=(4, 8))
    return export_triton(served, folder / "models").directory


@pytest.fixture
def root(good: Path, tmp_path: Path) -> Path:
    """A copy of it, to break."""
    return Path(shutil.copytree(good, tmp_path / "models"))


def test_the_repository_that_is_written_breaks_no_rule(good: Path) -> None:
    assert repository_problems(good) == ()
    assert {path.name for path in good.iterdir()} >= {MODEL, TOKENIZER, ENSEMBLE, ENGINE}


# (model, what its configuration says, what it says instead, words of the problem)
BROKEN = {
    "another name": (MODEL, f'name: "{MODEL}"', 'name: "other"', "`name` is other, and its folder"),
    "no name": (MODEL, f'name: "{MODEL}"\n', "", "`name` is missing"),
    "no backend": (MODEL, 'backend: "onnxruntime"\n', "", "`backend` is missing"),
    "an ensemble with a backend": (ENSEMBLE, "platform", 'backend: "python"\nplatform', "has no backend"),
    "negative batches": (MODEL, "max_batch_size: 4", "max_batch_size: -4", "must be 0 or more"),
    "batches not said": (MODEL, "max_batch_size: 4\n", "", "is not written"),
    "an unknown size": (MODEL, "dims: [ -1, 32 ]", "dims: [ -2, 32 ]", "a dimension of -2"),
    "no size": (MODEL, "dims: [ 32 ]", "dims: [ ]", "has no `dims`"),
    "no type": (MODEL, "  data_type: TYPE_FP32\n  dims: [ 32 ]", "  dims: [ 32 ]", "no `data_type`"),
    "a name twice": (MODEL, 'name: "sentence_embedding"', 'name: "last_hidden_state"', "is there twice"),
    "no tensor name": (MODEL, 'name: "sentence_embedding"\n', "", "an output has no `name`"),
    "preferred above the limit": (MODEL, "preferred_batch_size: [ 2 ]", "preferred_batch_size: [ 5 ]", "5 is not within 1 to max_batch_size 4"),
    "preferred of nothing": (MODEL, "preferred_batch_size: [ 2 ]", "preferred_batch_size: [ 0 ]", "0 is not within"),
    "a CPU with GPUs": (MODEL, "kind: KIND_CPU", "kind: KIND_CPU\n  gpus: [ 0 ]", "KIND_CPU names GPUs"),
    "profiles for another backend": (MODEL, "kind: KIND_CPU", 'kind: KIND_CPU\n  profile: "0"', "profiles are for backend tensorrt"),
    "no number of a profile": (ENGINE, 'profile: [ "0", "1" ]', 'profile: [ "first" ]', "`first` is not the number"),
    "engines on a CPU": (ENGINE, "kind: KIND_GPU", "kind: KIND_CPU", "TensorRT runs on a GPU"),
    "no capability": (ENGINE, 'key: "8.9"', 'key: "sm89"', "`sm89` is no compute capability"),
    "another engine's name": (ENGINE, 'value: "model_sm89.plan"', 'value: "m.plan"', "`1/m.plan` is missing"),
    "warm-up of too many": (MODEL, 'name: "max"\n  batch_size: 4', 'name: "max"\n  batch_size: 9', "batch 9 is not within"),
    "warm-up of any size": (MODEL, "dims: [ 16 ]", "dims: [ -1 ]", "a dimension that is not fixed"),
    "warm-up of another type": (MODEL, "data_type: TYPE_INT64\n      dims: [ 2 ]", "data_type: TYPE_INT32\n      dims: [ 2 ]", "is TYPE_INT32, not TYPE_INT64"),
    "warm-up without data": (MODEL, "      zero_data: true\n", "", "has no data"),
    "warm-up from nowhere": (MODEL, 'input_data_file: "attention_mask-16"', 'input_data_file: "gone"', "`warmup/gone` is missing"),
    "warm-up too short": (MODEL, 'input_data_file: "attention_mask-16"', 'input_data_file: "attention_mask-2"', "16 bytes, and 128 are needed"),
    "warm-up of another input": (MODEL, 'key: "token_type_ids"', 'key: "types"', "has inputs"),
    "an ensemble with instances": (ENSEMBLE, "ensemble_scheduling", "instance_group { count: 1 }\nensemble_scheduling", "has no `instance_group`"),
    "an ensemble with optimization": (ENSEMBLE, "ensemble_scheduling", "optimization { }\nensemble_scheduling", "has no `optimization`"),
    "a step of nobody": (ENSEMBLE, f'model_name: "{MODEL}"', 'model_name: "nobody"', "`nobody`, which is not in the repository"),
    "a step without a model": (ENSEMBLE, f'    model_name: "{MODEL}"\n', "", "step 1 has no `model_name`"),
    "an input not mapped": (ENSEMBLE, 'input_map {\n      key: "attention_mask"\n      value: "_attention_mask"\n    }', "", f"input `attention_mask` of `{MODEL}` is not mapped"),
    "an input that is not there": (ENSEMBLE, 'input_map {\n      key: "input_ids"', 'input_map {\n      key: "ids"', f"model `{MODEL}` has no input `ids`"),
    "an output that is not there": (ENSEMBLE, 'key: "sentence_embedding"', 'key: "embedding"', f"model `{MODEL}` has no output `embedding`"),
    "an output never written": (ENSEMBLE, 'value: "sentence_embedding"', 'value: "elsewhere"', "output `sentence_embedding` is not written"),
    "a tensor nobody reads": (ENSEMBLE, 'value: "sentence_embedding"', 'value: "elsewhere"', "`elsewhere` is written, and nothing reads it"),
    "a tensor written twice": (ENSEMBLE, 'value: "sentence_embedding"', 'value: "last_hidden_state"', "written more than once"),
    "an input not used": (ENSEMBLE, 'key: "text"\n      value: "text"', 'key: "text"\n      value: "words"', "input `text` is not used"),
    "a tensor from nowhere": (ENSEMBLE, 'key: "text"\n      value: "text"', 'key: "text"\n      value: "words"', "`words` is read, and no step"),
    "a circle": (ENSEMBLE, 'key: "text"\n      value: "text"', 'key: "text"\n      value: "sentence_embedding"', "output `sentence_embedding` is not written"),
    "larger batches than a step's": (ENSEMBLE, "max_batch_size: 4", "max_batch_size: 64", "only to 4"),
    "another type in the middle": (TOKENIZER, "data_type: TYPE_INT64", "data_type: TYPE_INT32", "TYPE_INT64 for `tiny-cpu-int8` and TYPE_INT32"),
    "another shape in the middle": (TOKENIZER, "dims: [ -1 ]", "dims: [ -1, 1 ]", "[-1, -1, 1] for"),
    "another shape in the end": (ENSEMBLE, "dims: [ 32 ]", "dims: [ 31 ]", "[-1, 31] for its own output"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_configuration_is_told(root: Path, case: str) -> None:
    model, before, after, words = BROKEN[case]
    path = root / model / "config.pbtxt"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    problems = repository_problems(root)
    assert any(words in problem for problem in problems), problems
    assert all("/config.pbtxt: " in problem for problem in problems)


def _no_version(root: Path) -> None:
    (root / MODEL / "1").rename(root / MODEL / "first")


def _rtx_engine(root: Path) -> None:
    engine = root / ENGINE / "1" / "model_sm89.plan"
    engine.write_bytes(b"vtrt" + engine.read_bytes()[4:])


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no version": (_no_version, "no folder of a version"),
    "a version with another name": (_no_version, "`first` is not the number of a version"),
    "no graph": (lambda root: (root / MODEL / "1/model.onnx").unlink(), "`1/model.onnx` is missing"),
    "no script": (lambda root: (root / TOKENIZER / "1/model.py").unlink(), "`1/model.py` is missing"),
    "no engine": (lambda root: (root / ENGINE / "1/model_sm89.plan").unlink(), "`1/model_sm89.plan` is"),
    "an engine of TensorRT-RTX": (_rtx_engine, "is no engine of full TensorRT"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_files_that_are_not_there_are_told(root: Path, case: str) -> None:
    damage, words = FILES[case]
    damage(root)
    assert any(words in problem for problem in repository_problems(root))


def test_a_model_without_a_configuration_is_told(root: Path) -> None:
    (root / MODEL / "config.pbtxt").unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        repository_problems(root)
