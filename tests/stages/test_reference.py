from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipeline.data.reference_set import load_reference
from pipeline.data.sample_set import load_samples
from pipeline.errors import StageError
from pipeline.runtimes.torch_reference import TorchReferenceRunner
from pipeline.stages.reference import REFERENCE, ReferenceConfig
from pipeline.stages.samples import SAMPLES, SamplesConfig
from tests.runtimes.tiny_checkpoint import write_checkpoint
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = ReferenceConfig(task="feature-extraction", component="model")


def _prepare(tmp_path: Path) -> dict[str, Path]:
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    samples = tmp_path / "samples"
    samples.mkdir()
    config = SamplesConfig(
        source="builtin:stdlib-docstrings",
        kind="builtin",
        task="feature-extraction",
        samples=6,
        seed=0,
        max_length=32,
    )
    SAMPLES.run(config, {"tokenizer": checkpoint}, samples, RecordingContext(tmp_path))
    return {"checkpoint": checkpoint, "samples": samples}


def _run(inputs: dict[str, Path], output: Path) -> dict[str, object]:
    output.mkdir()
    return dict(REFERENCE.run(CONFIG, inputs, output, RecordingContext(output.parent)))


def test_every_sample_is_run_alone_without_padding(tmp_path: Path) -> None:
    inputs = _prepare(tmp_path)
    facts = _run(inputs, tmp_path / "out")
    samples, reference = load_samples(inputs["samples"]), load_reference(tmp_path / "out")
    assert facts["outputs"] == list(reference.index.outputs) == ["last_hidden_state"]
    assert facts["samples"] == 6
    arrays = reference.read(range(6), ["last_hidden_state"])["last_hidden_state"]
    assert [array.shape for array in arrays] == [
        (entry.extents["sequence"], 16) for entry in samples.entries
    ]
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}
    (sample,) = samples.read([4])
    with TorchReferenceRunner(
        inputs["checkpoint"], task="feature-extraction", component="model", threads=1
    ) as runner:
        alone = runner.run({name: sample[name][np.newaxis] for name in sample})
    np.testing.assert_array_equal(alone["last_hidden_state"][0], arrays[4])


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    inputs = _prepare(tmp_path)
    assert _run(inputs, tmp_path / "a") == _run(inputs, tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_a_checkpoint_that_gives_nan_is_no_reference(tmp_path: Path) -> None:
    inputs = _prepare(tmp_path)
    path = inputs["checkpoint"] / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("embeddings.LayerNorm.weight"))
    weights[name][0] = np.nan
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(
        StageError, match=r"the checkpoint itself gives \d+ NaN .* for sample 0: '"
    ):
        _run(inputs, tmp_path / "out")


def test_samples_without_an_input_of_the_checkpoint_are_refused(tmp_path: Path) -> None:
    inputs = _prepare(tmp_path)
    path = inputs["samples"] / "samples.json"
    index = json.loads(path.read_text())
    del index["inputs"]["token_type_ids"]
    path.write_text(json.dumps(index))
    with pytest.raises(StageError, match="takes `token_type_ids`, the samples have only"):
        _run(inputs, tmp_path / "out")


def test_a_reference_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    _run(_prepare(tmp_path), tmp_path / "out")
    path = tmp_path / "out" / "reference.safetensors"
    tensors = load_file(path)
    del tensors["last_hidden_state/000003"]
    save_file(tensors, path)
    with pytest.raises(StageError, match="last_hidden_state/000003"):
        load_reference(tmp_path / "out")
