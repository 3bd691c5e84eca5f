"""`convert export-vllm`: transformers computes with the checkpoint what the graph computes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file, save_file

from pipeline.bundle.vllm import export_vllm, pack
from pipeline.bundle.vllm_trial import run
from pipeline.errors import RecipeError
from pipeline.graph.block_weights import read_block_weights
from pipeline.graph.matmul_nbits import pack_products
from pipeline.graph.shared_table import share_tables
from tests.bundle.conftest import artifact_of_decoder, remake
from tests.decoders import build_tiny_llama
from tests.trained.lm import byte_tokenizer

pytest.importorskip("compressed_tensors")


@pytest.fixture(scope="module")
def written(decoder_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The int4 target, compared with its graph while it was written."""
    folder = tmp_path_factory.mktemp("vllm") / "made"
    made = export_vllm(decoder_artifact, folder)
    assert made.model.target == "cpu-int4"
    assert made.model.weights == 15  # seven in each of two layers, and the head
    assert "logits differ by" in made.model.trial
    assert "`lm_head` has few bits too" in made.notes[-1]
    return folder


def _question(folder: Path, artifact: Path) -> dict[str, Any]:
    graph = artifact / "cpu-int4" / "model.onnx"
    return {"folder": str(folder), "graph": str(graph), "vocabulary": 258, "positions": 64}


def test_a_tied_head_is_written_beside_the_float_embeddings(written: Path) -> None:
    config = json.loads((written / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    (group,) = config["quantization_config"]["config_groups"].values()
    assert (group["targets"], group["weights"]["group_size"]) == (["Linear"], 32)
    tensors = load_file(written / "model.safetensors")
    assert tensors["model.embed_tokens.weight"].dtype == np.float32
    assert tensors["lm_head.weight_packed"].shape == (258, 32 // 8)
    assert "lm_head.weight" not in tensors


def test_one_scale_that_is_off_is_told(
    written: Path, decoder_artifact: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(written, tmp_path / "copy")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight_scale"] *= 1.1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    answer = run(_question(folder, decoder_artifact))
    assert "of their size away from the graph's" in answer["problem"]


@pytest.fixture(scope="module")
def wide_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tied, with a table that is large enough to be worth few bits."""
    tokenizer = byte_tokenizer()
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    path = tmp_path_factory.mktemp("wide") / "checkpoint"
    made = build_tiny_llama(
        path, vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=1, **ends
    )
    tokenizer.save_pretrained(made)
    return made


def _share(folder: Path, _: dict[str, Any]) -> None:
    path = folder / "cpu-int4" / "model.onnx"
    model = ir.load(path)
    pack_products(model, accuracy_level=4)
    assert any(each.reason == "" for each in share_tables(model))
    ir.save(model, path)


@pytest.mark.parametrize(
    ("embeddings", "head", "is_shared"),
    [
        ("int8", "float", False),
        pytest.param("int8", "int4", False, marks=pytest.mark.slow),
        pytest.param("int4", "int4", True, marks=pytest.mark.slow),
    ],
)
def test_a_table_in_few_bits_is_written_as_what_it_stands_for(
    tmp_path: Path, wide_checkpoint: Path, embeddings: str, head: str, is_shared: bool
) -> None:
    artifact = artifact_of_decoder(tmp_path, wide_checkpoint, embeddings=embeddings, lm_head=head)
    if is_shared:
        artifact = remake(artifact, tmp_path / "shared", _share)
    made = export_vllm(artifact, tmp_path / "made")
    assert "logits differ by" in made.model.trial
    assert any("the table of tokens has few bits" in note for note in made.notes)
    tensors = load_file(tmp_path / "made" / "model.safetensors")
    own = load_file(wide_checkpoint / "model.safetensors")
    table = tensors["model.embed_tokens.weight"]
    assert not np.array_equal(table, own["model.embed_tokens.weight"])
    # A head that stays float is not that of the rounded table.
    assert ("lm_head.weight" in tensors) is (head == "float")
    if head == "float":
        assert np.array_equal(tensors["lm_head.weight"], own["model.embed_tokens.weight"])
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False


def test_what_is_no_integer_times_a_scale_is_a_mistake_of_the_request(
    tmp_path: Path, wide_checkpoint: Path
) -> None:
    artifact = artifact_of_decoder(tmp_path, wide_checkpoint, symmetric=False)
    with pytest.raises(RecipeError, match="has a zero point for each block") as caught:
        export_vllm(artifact, tmp_path / "made")
    assert "symmetric: true" in str(caught.value.hint)
    assert not (tmp_path / "made").exists()


def test_weights_packed_for_onnx_runtime_are_the_same_integers(decoder_artifact: Path) -> None:
    graph = decoder_artifact / "cpu-int4" / "model.onnx"
    plain = list(read_block_weights(graph))
    model = ir.load(graph)
    pack_products(model, accuracy_level=4)
    packed_graph = decoder_artifact.parent / "packed.onnx"
    ir.save(model, packed_graph)
    packed = list(read_block_weights(packed_graph))
    assert len(plain) == len(packed) == 15
    for one, other in zip(plain, packed, strict=True):
        assert np.array_equal(one.integers, other.integers)
        assert np.array_equal(one.scale, other.scale)


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_integers_are_what_the_format_unpacks(bits: int) -> None:
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    half = 1 << (bits - 1)
    integers = np.random.default_rng(0).integers(-half, half, (5, 36)).astype(np.int8)
    words = torch.from_numpy(pack(integers, bits))
    found = unpack_from_int32(words, bits, torch.Size(integers.shape))
    assert np.array_equal(found.numpy(), integers)


def _other_checkpoint(_: Path, document: dict[str, Any]) -> None:
    document["source"]["files"]["model.safetensors"] = "00" * 32


def _no_checkpoint(_: Path, document: dict[str, Any]) -> None:
    document["source"]["source"] = "/nowhere"


def _no_few_bits(_: Path, document: dict[str, Any]) -> None:
    del document["recipe"]["targets"][1]["quantization"]


def _only_static(_: Path, document: dict[str, Any]) -> None:
    document["recipe"]["targets"][1]["static_cache"] = {"length": 32}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_only_static, r"no target has .* \(left out is .*only convert itself feeds its static"),
        (_other_checkpoint, "is not the one that the artifact was made from"),
        (_no_checkpoint, "there is no checkpoint at `/nowhere`"),
        (_no_few_bits, "no target has weights in few bits"),
    ],
)
def test_without_its_checkpoint_or_few_bits_nothing_is_written(
    decoder_artifact: Path, tmp_path: Path, change: Any, told: str
) -> None:
    changed = remake(decoder_artifact, tmp_path / "changed", change)
    with pytest.raises(RecipeError, match=told):
        export_vllm(changed, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_checkpoint_with_other_weights_is_not_matched(
    decoder_artifact: Path, tmp_path: Path
) -> None:
    """Digests aside, values decide: random weights are those of no module."""
    source = Path(json.loads((decoder_artifact / "manifest.json").read_text())["source"]["source"])
    other = shutil.copytree(source, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    generator = np.random.default_rng(1)
    changed = {
        name: generator.normal(size=array.shape).astype(array.dtype) if array.ndim == 2 else array
        for name, array in tensors.items()
    }
    save_file(changed, other / "model.safetensors", metadata={"format": "pt"})

    def forget(_: Path, document: dict[str, Any]) -> None:
        document["source"]["files"] = {}

    def forget_awq(folder: Path, document: dict[str, Any]) -> None:
        forget(folder, document)
        document["recipe"]["targets"][1]["quantization"]["method"] = "awq"

    for change, hint in ((forget, "merged or transposed"), (forget_awq, "has scaled channels")):
        artifact = remake(decoder_artifact, tmp_path / change.__name__, change)
        with pytest.raises(RecipeError, match="of no linear module of the checkpoint") as caught:
            export_vllm(artifact, tmp_path / "made", checkpoint=other)
        assert hint in str(caught.value.hint)
