from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors.torch
import torch

from pipeline.errors import ExportError
from pipeline.runtimes.torch_model import TorchComponent, load_torch_model
from tests.checkpoints import (
    build_image_classifier,
    build_masked_language_model,
    build_multiple_choice,
    build_roberta_encoder,
    build_sentence_encoder,
    build_text_classifier,
    write_image_processor,
)

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def load(checkpoint: Path, task: str = "feature-extraction") -> TorchComponent:
    return load_torch_model(checkpoint, task, "model")


def run(component: TorchComponent, *arrays: NDArray[np.int64]) -> list[NDArray[np.float32]]:
    with torch.no_grad():
        outputs = component.module(*map(torch.from_numpy, arrays))
    return [output.numpy() for output in outputs]


def edit_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def damaged(sentence_encoder: Path, tmp_path: Path) -> Path:
    """A copy of the encoder, to be damaged."""
    return shutil.copytree(sentence_encoder, tmp_path / "damaged")


def feeds() -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    ids = np.random.default_rng(0).integers(5, 90, (3, 6))
    mask = np.ones((3, 6), dtype=np.int64)
    mask[1, 4:] = 0  # padded on the right
    mask[2, :2] = 0  # and on the left
    return ids, mask, np.zeros_like(ids)


def test_names_and_axes_are_those_of_optimum(sentence_encoder: Path) -> None:
    component = load(sentence_encoder)
    assert component.input_names == ("input_ids", "attention_mask", "token_type_ids")
    assert component.output_names == ("last_hidden_state", "sentence_embedding")
    assert component.axes["attention_mask"] == ("batch", "sequence")
    assert component.axes["sentence_embedding"] == ("batch",)
    assert component.max_sequence == 128


def test_a_model_of_one_token_type_has_no_input_for_it(tmp_path: Path) -> None:
    component = load(build_roberta_encoder(tmp_path / "roberta"))
    assert component.input_names == ("input_ids", "attention_mask")
    assert component.max_sequence == 126  # 128 positions, two of them taken by padding


def test_choices_are_an_axis_of_their_own(tmp_path: Path) -> None:
    component = load(build_multiple_choice(tmp_path / "choices"), "multiple-choice")
    assert component.axes["input_ids"] == ("batch", "num_choices", "sequence")
    ids, mask, _ = component.example(batch=2, num_choices=4, sequence=6)
    assert ids.shape == (2, 4, 6)
    assert mask[0].all()
    assert not mask[-1].all()


def test_images_are_as_large_as_the_processor_makes_them(tmp_path: Path) -> None:
    component = load(build_image_classifier(tmp_path / "images"), "image-classification")
    assert component.takes[0].shape == ("batch", 3, 32, 48)
    assert component.max_sequence is None
    assert component.id_limits == {}
    (pixels,) = component.example(batch=3)
    assert (pixels.dtype, tuple(pixels.shape)) == (torch.float32, (3, 3, 32, 48))
    assert pixels.abs().max() <= 1


def test_a_processor_that_makes_images_the_model_does_not_take_is_refused(tmp_path: Path) -> None:
    checkpoint = build_image_classifier(tmp_path / "images")
    write_image_processor(checkpoint, (32, 32))
    with pytest.raises(ExportError, match=r"cannot be run on `pixel_values` \['batch', 3, 32, 32"):
        load(checkpoint, "image-classification")


def test_example_inputs_are_distinct_padded_and_fresh(sentence_encoder: Path) -> None:
    component = load(sentence_encoder)
    first, second = component.example(), component.example()
    assert len({tensor.data_ptr() for tensor in (*first, *second)}) == 6
    for index, tensor in enumerate(first):
        assert not any(torch.equal(tensor, other) for other in first[index + 1 :])
    mask = first[component.input_names.index("attention_mask")]
    assert mask[0].all()
    assert not mask[-1].all()


@pytest.mark.parametrize("is_normalized", [True, False])
def test_pooling_is_what_sentence_transformers_does(tmp_path: Path, is_normalized: bool) -> None:
    modes = ("cls", "max", "mean")
    checkpoint = build_sentence_encoder(
        tmp_path / "encoder", modes=modes, is_normalized=is_normalized
    )
    ids, mask, types = feeds()
    hidden, pooled = run(load(checkpoint), ids, mask, types)
    rows = []
    for vectors, kept in zip(hidden.astype(np.float64), mask.astype(bool), strict=True):
        real = vectors[kept]
        row = np.concatenate([real[0], real.max(axis=0), real.mean(axis=0)])
        rows.append(row / np.linalg.norm(row) if is_normalized else row)
    np.testing.assert_allclose(pooled, np.stack(rows), atol=1e-5)


def test_flags_of_older_sentence_transformers_are_understood(damaged: Path) -> None:
    expected = run(load(damaged), *feeds())[1]
    flags = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (damaged / "1_Pooling/config.json").write_text(json.dumps(flags), encoding="utf-8")
    np.testing.assert_array_equal(run(load(damaged), *feeds())[1], expected)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"pooling_mode": "lasttoken"}, "pooling mode `lasttoken` is not supported"),
        ({"include_prompt": False}, "cannot know where the prompt ends"),
    ],
)
def test_pooling_that_cannot_be_reproduced_is_refused(
    damaged: Path, change: dict[str, Any], problem: str
) -> None:
    edit_json(damaged / "1_Pooling/config.json", **change)
    with pytest.raises(ExportError, match=problem):
        load(damaged)


def test_modules_that_are_not_supported_are_named(damaged: Path) -> None:
    modules = json.loads((damaged / "modules.json").read_text(encoding="utf-8"))
    modules[2]["type"] = "sentence_transformers.models.Dense"
    (damaged / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    with pytest.raises(ExportError, match="Transformer -> Pooling -> Dense"):
        load(damaged)


def test_a_pooling_folder_outside_of_the_checkpoint_is_refused(damaged: Path) -> None:
    modules = json.loads((damaged / "modules.json").read_text(encoding="utf-8"))
    modules[1]["path"] = "../elsewhere"
    (damaged / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    with pytest.raises(ExportError, match="leads out of the checkpoint"):
        load(damaged)


def test_a_checkpoint_without_safetensors_is_refused(damaged: Path) -> None:
    (damaged / "model.safetensors").rename(damaged / "pytorch_model.bin")
    with pytest.raises(ExportError, match="no weights in safetensors format"):
        load(damaged)


def test_truncated_weights_are_refused(damaged: Path) -> None:
    weights = damaged / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    with pytest.raises(ExportError, match="truncated or damaged"):
        load(damaged)


@pytest.mark.parametrize("content", ["{}", "[]", "{", ""])
def test_a_config_that_does_not_say_the_model_is_refused(damaged: Path, content: str) -> None:
    (damaged / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ExportError, match=r"config\.json"):
        load(damaged)


def test_an_architecture_that_does_not_exist_is_refused(damaged: Path) -> None:
    edit_json(damaged / "config.json", model_type="no-such-model")
    with pytest.raises(ExportError, match="cannot load the checkpoint"):
        load(damaged)


def drop_weight(checkpoint: Path, *names: str) -> None:
    path = checkpoint / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    for name in names:
        del weights[name]
    safetensors.torch.save_file(weights, path, metadata={"format": "pt"})


def test_a_missing_weight_that_outputs_depend_on_is_refused(damaged: Path) -> None:
    drop_weight(damaged, "encoder.layer.1.output.dense.weight")
    with pytest.raises(ExportError, match=r"encoder\.layer\.1\.output\.dense\.weight") as caught:
        load(damaged)
    assert "random" in caught.value.message


def test_integers_in_place_of_weights_are_refused(damaged: Path) -> None:
    """As of a quantised checkpoint whose config.json does not say so; torch would take the integers."""
    path = damaged / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    name = next(name for name in weights if name.endswith("layer.1.output.dense.weight"))
    weights[name] = (weights[name] * 100).to(torch.int8)
    safetensors.torch.save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(
        ExportError, match=r"integers: `.*layer.1.output.dense.weight` is I8"
    ) as err:
        load(damaged)
    assert "in floats" in err.value.hint


def test_weights_with_names_of_a_wrapper_say_so(damaged: Path) -> None:
    path = damaged / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    wrapped = {f"module.{name}": weight for name, weight in weights.items()}
    safetensors.torch.save_file(wrapped, path, metadata={"format": "pt"})
    with pytest.raises(ExportError, match="lacks weights") as err:
        load(damaged)
    assert "the model has none such as `module." in err.value.hint


def test_weights_of_another_shape_are_named(damaged: Path) -> None:
    edit_json(damaged / "config.json", intermediate_size=48)
    with pytest.raises(
        ExportError,
        match=r"layer.0.intermediate.dense.bias` is \(64,\), the model's is \(48,\), and 5",
    ):
        load(damaged)


def test_a_missing_weight_that_no_output_depends_on_is_harmless(damaged: Path) -> None:
    expected = run(load(damaged), *feeds())
    drop_weight(damaged, "pooler.dense.weight", "pooler.dense.bias")
    component = load(damaged)
    assert component.unused_parameters == ("pooler.dense.bias", "pooler.dense.weight")
    for one, other in zip(run(component, *feeds()), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_head_that_was_never_trained_is_refused(sentence_encoder: Path) -> None:
    with pytest.raises(ExportError, match=r"classifier\.(bias|weight)"):
        load(sentence_encoder, "text-classification")


def test_tied_weights_are_not_missing(tmp_path: Path) -> None:
    component = load(build_masked_language_model(tmp_path / "mlm"), "fill-mask")
    assert component.unused_parameters == ()


def test_the_features_of_a_classifier_can_be_extracted(tmp_path: Path) -> None:
    component = load(build_text_classifier(tmp_path / "classifier"))
    assert component.output_names == ("last_hidden_state",)


def test_attention_that_config_json_insists_on_is_an_error_and_not_followed(
    damaged: Path,
) -> None:
    edit_json(damaged / "config.json", _attn_implementation="sdpa")
    with pytest.raises(ExportError, match=r"asks for attention `sdpa`, which overrides `eager`"):
        load_torch_model(damaged, "feature-extraction", "model", attention="eager")


def test_a_component_that_the_task_does_not_have_is_refused(sentence_encoder: Path) -> None:
    with pytest.raises(ExportError, match="no component `decoder`"):
        load_torch_model(sentence_encoder, "feature-extraction", "decoder")


def test_weights_that_the_model_has_no_place_for_are_named(damaged: Path) -> None:
    edit_json(damaged / "config.json", num_hidden_layers=1)
    ignored = load(damaged).ignored_weights
    assert ignored
    assert all(".layer.1." in name for name in ignored)
