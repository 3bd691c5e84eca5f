"""`convert export-transformersjs`: names, axes and external weights; Node itself in the slow tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from pipeline.bundle.graphs import read_graphs
from pipeline.bundle.javascript import find_transformers_js, try_in_node
from pipeline.bundle.transformers_js import export_transformers_js
from pipeline.errors import ArtifactError, RecipeError
from tests.bundle.conftest import TRANSFORMERS_JS as VERSION
from tests.bundle.conftest import remake


def _external(folder: Path, _: dict[str, Any]) -> None:
    path = folder / "cpu-int4" / "model.onnx"
    model = onnx.load(path)
    path.unlink()
    onnx.save(
        model, path, save_as_external_data=True, location="model.onnx.data", size_threshold=64
    )


def _axes(model: onnx.ModelProto) -> set[str]:
    values = [*model.graph.input, *model.graph.output]
    return {dim.dim_param for value in values for dim in value.type.tensor_type.shape.dim}


def test_every_dtype_has_its_name_and_the_axis_that_the_cache_is_made_by(
    decoder_artifact: Path, tmp_path: Path
) -> None:
    changed = remake(decoder_artifact, tmp_path / "changed", _external)
    made = export_transformers_js(changed, tmp_path / "made")
    assert [(model.target, model.dtype, model.path) for model in made.models] == [
        ("cpu-fp32", "fp32", "onnx/model.onnx"),
        ("cpu-int4", "q4", "onnx/model_q4.onnx"),
    ]
    (note,) = made.notes
    assert "not tried" in note
    folder = made.directory
    assert sorted(path.name for path in (folder / "onnx").iterdir()) == [
        "model.onnx",
        "model_q4.onnx",
        "model_q4.onnx_data",
    ]
    config = json.loads((folder / "config.json").read_text())
    external = config.pop("transformers.js_config")["use_external_data_format"]
    assert external == {"model_q4.onnx": 1}
    assert config == json.loads((decoder_artifact / "cpu-int4" / "config.json").read_text())
    for name, target in (("model.onnx", "cpu-fp32"), ("model_q4.onnx", "cpu-int4")):
        model = onnx.load(folder / "onnx" / name)
        assert {"batch_size", "sequence", "past_sequence"} <= _axes(model)
        assert "batch" not in _axes(model)
        own = onnx.load(changed / target / "model.onnx")
        for theirs, tensor in zip(model.graph.initializer, own.graph.initializer, strict=True):
            assert theirs.name == tensor.name
            assert theirs.raw_data == tensor.raw_data


def _set(**values: Any) -> Any:
    def change(_: Path, document: dict[str, Any]) -> None:
        for target in document["recipe"]["targets"]:
            target.update(values)

    return change


def _without_tokenizer(folder: Path, _: dict[str, Any]) -> None:
    (folder / "cpu-fp32" / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_set(precision="bf16"), "no `dtype` for bf16"),
        (_set(precision="fp32"), "`cpu-fp32` and `cpu-int4` are both `dtype: fp32`"),
        (_set(provider="cuda"), "provider `cuda`"),
        (_set(runtime="tensorrt-rtx"), "it is for tensorrt-rtx"),
        (_without_tokenizer, "has no tokenizer.json"),
    ],
)
def test_what_transformers_js_has_no_name_for_is_refused(
    decoder_artifact: Path, tmp_path: Path, change: Any, told: str
) -> None:
    changed = remake(decoder_artifact, tmp_path / "changed", change)
    with pytest.raises(RecipeError, match=told):
        export_transformers_js(changed, tmp_path / "made")
    assert not (tmp_path / "made").exists()


@pytest.mark.slow
def test_node_generates_the_tokens_of_our_own_loop(
    node_packages: Path, decoder_artifact: Path, tmp_path: Path
) -> None:
    changed = remake(decoder_artifact, tmp_path / "changed", _external)
    made = export_transformers_js(changed, tmp_path / "made", packages=node_packages)
    assert made.notes == ()
    for model in made.models:
        assert model.trial == f"transformers.js {VERSION}: the same 24 tokens after 3 prompts"


@pytest.mark.slow
def test_node_embeds_as_our_graph_does_and_another_graph_is_told(
    node_packages: Path, artifact: Path, tmp_path: Path
) -> None:
    made = export_transformers_js(artifact, tmp_path / "made", packages=node_packages)
    assert [model.dtype for model in made.models] == ["fp32", "q8"]
    assert all("outputs differ by" in model.trial for model in made.models)
    path = tmp_path / "made" / "onnx" / "model.onnx"
    model = onnx.load(path)
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weight.raw_data = weight.raw_data[4:] + weight.raw_data[:4]
    onnx.save(model, path)
    source = read_graphs(artifact, ["cpu-fp32"])
    library = find_transformers_js(node_packages)
    assert library is not None
    with pytest.raises(ArtifactError, match="of their size away from ours"):
        try_in_node(library, source.task, {"fp32": source.targets[0]}, tmp_path / "made")
