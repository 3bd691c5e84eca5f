"""What a decoder is fed beside its tokens."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.bench.feeds import SampleStream
from pipeline.data.decoder_inputs import completed, is_cache, positions_of
from pipeline.data.empty_caches import empty_caches
from pipeline.data.sample_set import load_samples
from pipeline.errors import StageError
from pipeline.parity.compare import cut_padding, vectors_last
from pipeline.runtimes.base import ModelTensor
from pipeline.stages.probes import PROBES, ProbesConfig
from pipeline.stages.samples import SAMPLES, SamplesConfig
from tests.stages.context import RecordingContext
from tests.trained.lm import byte_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

LLAMA = {
    "model_type": "llama",
    "vocab_size": 258,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}

FALCON = {
    "model_type": "falcon",
    "vocab_size": 258,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def _checkpoint(path: Path, config: dict[str, Any]) -> Path:
    byte_tokenizer().save_pretrained(path)
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def test_positions_begin_behind_padding_on_the_left() -> None:
    mask = np.array([[1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]])
    expected = [[0, 1, 2, 3], [0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 0]]
    assert positions_of(mask).tolist() == expected
    assert positions_of(mask).dtype == np.int64


@pytest.mark.parametrize(
    ("config", "layers", "shape"),
    [
        (LLAMA, 2, (2, 0, 8)),
        (LLAMA | {"head_dim": 16, "num_key_value_heads": 1}, 2, (1, 0, 16)),
        ({"model_type": "gpt2", "n_layer": 3, "n_head": 4, "n_embd": 64}, 3, (4, 0, 16)),
        (FALCON, 2, (1, 0, 8)),
        (FALCON | {"multi_query": False}, 2, (4, 0, 8)),
        (FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}, 2, (4, 0, 8)),
        ({"model_type": "gpt_bigcode", "n_layer": 1, "n_head": 4, "n_embd": 64}, 1, (1, 0, 16)),
    ],
)
def test_an_empty_cache_is_as_large_as_the_config_says(
    tmp_path: Path, config: dict[str, Any], layers: int, shape: tuple[int, ...]
) -> None:
    caches = empty_caches(_checkpoint(tmp_path, config))
    assert len(caches) == 2 * layers
    assert all(is_cache(name) and cache.shape == shape for name, cache in caches.items())


def test_layers_that_differ_or_share_have_caches_of_their_own(tmp_path: Path) -> None:
    layers = {
        "layer_types": [
            "sliding_attention",
            "full_attention",
            "sliding_attention",
            "full_attention",
        ],
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
    }
    gemma = {"model_type": "gemma4_text", "head_dim": 8, "global_head_dim": 16}
    caches = empty_caches(_checkpoint(tmp_path, LLAMA | gemma | layers))
    shapes = [cache.shape for name, cache in caches.items() if name.endswith(".key")]
    assert shapes == [(2, 0, 8), (2, 0, 16)]


def test_a_config_that_nobody_can_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="knows no model type `nobody_knows_this`") as caught:
        empty_caches(_checkpoint(tmp_path, {"model_type": "nobody_knows_this"}))
    assert "never run" in caught.value.hint
    with pytest.raises(StageError, match="transformers cannot read it: ") as caught:
        empty_caches(_checkpoint(tmp_path, LLAMA | {"hidden_size": "32"}))
    assert "\n" not in caught.value.message


def test_a_model_without_heads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="how many layers, heads"):
        empty_caches(_checkpoint(tmp_path, {"model_type": "mamba"}))


def test_a_token_that_the_model_does_not_know_is_told_with_its_text(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"makes token \d+ of a text, .* are 0 to 69") as caught:
        _samples(tmp_path, LLAMA | {"vocab_size": 70})
    assert "resize_token_embeddings" in caught.value.hint


def _samples(tmp_path: Path, config: dict[str, Any] = LLAMA) -> tuple[Path, Path]:
    checkpoint, samples = _checkpoint(tmp_path / "checkpoint", config), tmp_path / "samples"
    samples.mkdir()
    config = SamplesConfig(
        source="builtin:stdlib-docstrings",
        kind="builtin",
        task="text-generation",
        samples=3,
        seed=0,
        max_length=32,
    )
    SAMPLES.run(config, {"tokenizer": checkpoint}, samples, RecordingContext(tmp_path))
    return checkpoint, samples


def test_samples_are_texts_with_nothing_in_the_cache(tmp_path: Path) -> None:
    found = load_samples(_samples(tmp_path)[1])
    for sample, entry in zip(found.read(range(3)), found.entries, strict=True):
        length = entry.extents["sequence"]
        assert sample["position_ids"].tolist() == list(range(length))
        assert sample["attention_mask"].tolist() == [1] * length
        assert sample["past_key_values.1.value"].shape == (2, 0, 8)
        assert sample["past_key_values.1.value"].dtype == np.float32


def test_probes_count_positions_from_the_first_token(tmp_path: Path) -> None:
    checkpoint, samples = _samples(tmp_path)
    output = tmp_path / "probes"
    output.mkdir()
    PROBES.run(
        ProbesConfig(task="text-generation", lengths=(2, 48)),
        {"samples": samples, "tokenizer": checkpoint},
        output,
        RecordingContext(tmp_path),
    )
    probes = load_samples(output)
    kinds = set()
    for entry, sample in zip(probes.entries, probes.read(range(len(probes))), strict=True):
        kinds.add(entry.kind)
        tokens = {name: sample[name] for name in ("input_ids", "attention_mask")}
        assert sample["position_ids"].tolist() == completed(tokens, {})["position_ids"].tolist()
        assert sample["past_key_values.0.key"].shape == (2, 0, 8)
        if entry.kind == "left_padding":
            start = entry.starts["sequence"]
            assert sample["position_ids"][start] == 0
            assert sample["position_ids"][-1] == entry.extents["sequence"] - start - 1
    assert kinds >= {"rare_tokens", "left_padding", "mask_with_holes", "all_masked"}


def test_padding_is_cut_off_what_the_cache_will_be() -> None:
    declared = ModelTensor(
        name="present.0.key", dtype="float32", shape=("batch", 2, "total_sequence", 8)
    )
    sample = np.arange(2 * 5 * 8, dtype=np.float32).reshape(2, 5, 8)
    kept = cut_padding(declared, sample, {"sequence": 4}, {"sequence": 1})
    assert np.array_equal(kept, sample[:, 1:4])
    assert vectors_last(sample, declared).shape == (2, 5, 8)
    assert vectors_last(sample).shape == (5, 8, 2)


def test_inputs_of_any_shape_are_measured_with_an_empty_cache(tmp_path: Path) -> None:
    samples = load_samples(_samples(tmp_path)[1])
    stream = SampleStream(samples, ("batch", "sequence"))
    feeds = stream.cut(samples.input_names, (3, 40), 1)
    assert feeds["input_ids"].shape == feeds["attention_mask"].shape == (3, 40)
    assert feeds["position_ids"].tolist() == [list(range(40))] * 3
    assert feeds["past_key_values.0.key"].shape == (3, 2, 0, 8)
