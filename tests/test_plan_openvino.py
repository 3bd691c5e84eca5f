"""`gates.checks.openvino_serving`: what is refused before anything runs."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import onnx
import pytest

from pipeline.build import BuildOptions, open_store, prepare_plan
from pipeline.bundle.consumer import has_package
from pipeline.errors import EnvironmentMissing, RecipeError
from pipeline.recipe import load_recipe_file
from tests.decoders import build_tiny_llama
from tests.recipes import FP32, write_recipe
from tests.trained.lm import byte_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.planning import Plan


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("decoder") / "checkpoint"
    byte_tokenizer().save_pretrained(path)
    return build_tiny_llama(path, vocab_size=258)


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """A graph with the inputs and outputs of a decoder, which nobody runs, and the tokenizer."""
    folder = tmp_path_factory.mktemp("draft")
    _write_graph(folder / "model.onnx", past="past_key_values.0.key")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(checkpoint / name, folder / name)
    return folder


def _write_graph(path: Path, *, past: str) -> None:
    helper, types = onnx.helper, onnx.TensorProto
    sizes = helper.make_tensor("sizes", types.INT64, [3], [1, 1, 258])
    graph = helper.make_graph(
        [helper.make_node("ConstantOfShape", ["sizes"], ["logits"])],
        "draft",
        [
            helper.make_tensor_value_info("input_ids", types.INT64, ["batch", "sequence"]),
            helper.make_tensor_value_info(past, types.FLOAT, ["batch", 2, "past", 8]),
        ],
        [helper.make_tensor_value_info("logits", types.FLOAT, ["batch", "sequence", 258])],
        [sizes],
    )
    opset = helper.make_opsetid("", 20)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), path)


def _plan(tmp_path: Path, source: Path, serving: dict[str, Any], **checks: Any) -> Plan:
    changes: dict[str, Any] = {
        "model": {"source": str(source), "task": "text-generation"},
        "gates": {
            "parity": {"cosine_similarity": {"min": 0.8}},
            "checks": {"openvino_serving": serving, **checks},
        },
    }
    path = write_recipe(tmp_path / "recipe.yaml", source, **changes)
    return prepare_plan(load_recipe_file(path), open_store(BuildOptions(store=tmp_path / "store")))


def _refused(tmp_path: Path, source: Path, serving: dict[str, Any]) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        _plan(tmp_path, source, serving)
    assert "recipe.yaml:" in caught.value.where
    return caught.value


def test_a_draft_of_the_same_vocabulary_is_planned(
    tmp_path: Path, checkpoint: Path, draft: Path
) -> None:
    asked = {"draft": str(draft), "tokens": 8}
    if not has_package("openvino"):
        with pytest.raises(EnvironmentMissing, match="openvino") as caught:
            _plan(tmp_path, checkpoint, asked)
        assert "convert-pipeline[openvino]" in str(caught.value)
        return
    plan = _plan(tmp_path, checkpoint, asked)
    (node,) = [node for node in plan.nodes if node.stage.name == "benchmark_openvino"]
    assert set(node.inputs) == {"model", "checkpoint", "samples", "draft"}


def test_a_draft_with_another_vocabulary_is_refused(
    tmp_path: Path, checkpoint: Path, draft: Path
) -> None:
    copy = tmp_path / "smaller"
    shutil.copytree(checkpoint, copy)
    document = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(document | {"vocab_size": 300}))
    error = _refused(tmp_path, copy, {"draft": str(draft)})
    assert "logits are of 258 tokens, and the model knows 300" in error.message


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("encoder_attention_mask", "stands behind an encoder: it has the input `encoder_att"),
        ("cache_position", "has a static cache"),
    ],
)
def test_a_draft_that_is_another_kind_of_decoder_is_refused(
    tmp_path: Path, checkpoint: Path, draft: Path, given: str, words: str
) -> None:
    copy = tmp_path / "other"
    shutil.copytree(draft, copy)
    model = onnx.load(copy / "model.onnx")
    model.graph.input.append(
        onnx.helper.make_tensor_value_info(given, onnx.TensorProto.INT64, ["batch", "length"])
    )
    onnx.save(model, copy / "model.onnx")
    error = _refused(tmp_path, checkpoint, {"draft": str(copy)})
    assert words in error.message
    assert "text-generation" in error.hint


def test_a_draft_whose_numbers_mean_other_tokens_is_refused(
    tmp_path: Path, checkpoint: Path, draft: Path
) -> None:
    copy = tmp_path / "renumbered"
    shutil.copytree(draft, copy)
    document = json.loads((copy / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    (copy / "tokenizer.json").write_text(json.dumps(document))
    error = _refused(tmp_path, checkpoint, {"draft": str(copy)})
    own = byte_tokenizer().convert_tokens_to_ids(["B", "A"])
    assert f"token 'A' is number {own[0]} there and number {own[1]} here" in error.message


def test_a_draft_without_a_cache_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    _write_graph(tmp_path / "model.onnx", past="pictures")
    error = _refused(tmp_path, checkpoint, {"draft": str(tmp_path / "model.onnx")})
    assert "no decoder with a cache" in error.message


def test_texts_beyond_the_positions_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    positions = json.loads((checkpoint / "config.json").read_text())["max_position_embeddings"]
    error = _refused(tmp_path, checkpoint, {"tokens": positions})
    assert f"are {positions + 8} tokens, and the checkpoint has {positions}" in error.message
    error = _refused(tmp_path, checkpoint, {"tokens": 2, "prefix": positions - 1})
    assert "`prefix`" in str(error.hint)


def test_a_draft_that_is_not_there_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    _refused(tmp_path, checkpoint, {"draft": str(tmp_path / "nothing")})


def test_a_draft_that_could_be_several_says_how_the_recipe_names_one(
    tmp_path: Path, checkpoint: Path
) -> None:
    for target in ("cpu-fp32", "cpu-int4"):
        (tmp_path / "artifact" / target).mkdir(parents=True)
        _write_graph(tmp_path / "artifact" / target / "model.onnx", past="past_key_values")
    error = _refused(tmp_path, checkpoint, {"draft": str(tmp_path / "artifact")})
    assert "its path in `draft`: cpu-fp32/model.onnx, cpu-int4/model.onnx" in str(error.hint)
    assert "--file" not in str(error.hint)


@pytest.mark.skipif(has_package("mlperf_loadgen"), reason="LoadGen is installed")
def test_loadgen_must_be_installed_where_it_is_asked_for(tmp_path: Path, checkpoint: Path) -> None:
    server = {"requests_per_s": 1, "ttft_ms": 1, "tpot_ms": 1, "generator": "loadgen"}
    with pytest.raises(EnvironmentMissing, match="mlcommons-loadgen") as caught:
        _plan(tmp_path, checkpoint, {}, generation_speed={"server": server})
    assert "recipe.yaml:" in caught.value.where
    assert "convert-pipeline[loadgen]" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"openvino_serving": {"prefix": 4000}}, "a prefix of 4000 tokens"),
        ({"openvino_serving": {"draft": "./other"}}, "one draft is for all targets"),
    ],
)
def test_limits_of_one_target_are_looked_at_too(
    tmp_path: Path, checkpoint: Path, own: dict[str, Any], words: str
) -> None:
    gates = {
        "parity": {"cosine_similarity": {"min": 0.8}},
        "targets": {FP32["name"]: {"checks": own}},
    }
    model = {"source": str(checkpoint), "task": "text-generation"}
    path = write_recipe(tmp_path / "recipe.yaml", checkpoint, model=model, gates=gates)
    with pytest.raises(RecipeError, match=words) as caught:
        prepare_plan(load_recipe_file(path), open_store(BuildOptions(store=tmp_path / "store")))
    assert f"gates.targets.{FP32['name']}.checks.openvino_serving" in caught.value.where
