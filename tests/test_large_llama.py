"""The large Llama of benchmarks: a checkpoint that loads, the same bytes each time."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from benchmarks import large_llama
from benchmarks.large_llama import SIZES, write_large_llama
from pipeline.hashing import sha256_file

if TYPE_CHECKING:
    from pathlib import Path


def test_transformers_loads_it_with_its_tokenizer(tmp_path: Path) -> None:
    """Every weight is found in the files, and text comes back as it went in."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    size = SIZES["tiny"]
    path = write_large_llama(tmp_path / "model", size, dtype="bfloat16")
    model, notes = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not any(notes[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert sum(weight.numel() for weight in model.parameters()) == size.weights
    assert model.dtype == torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert tokenizer.decode(tokenizer("Grüße, world").input_ids) == "Grüße, world"
    assert len(tokenizer) == size.vocabulary


def test_the_same_seed_gives_the_same_weights_however_they_are_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards have an index, and hold what one file holds."""
    from safetensors.numpy import load_file

    one = write_large_llama(tmp_path / "one", SIZES["tiny"]) / "model.safetensors"
    again = write_large_llama(tmp_path / "again", SIZES["tiny"]) / "model.safetensors"
    assert sha256_file(one) == sha256_file(again)
    monkeypatch.setattr(large_llama, "BYTES_OF_A_SHARD", 100_000)
    split = write_large_llama(tmp_path / "split", SIZES["tiny"])
    places = json.loads((split / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(places.values())) > 1
    for name, values in load_file(one).items():
        assert (load_file(split / places[name])[name] == values).all()
