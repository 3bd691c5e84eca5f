"""A tiny decoder with grouped-query attention: checkpoint, samples, reference and export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.reference_set import ReferenceIndex, save_reference
from pipeline.data.sample_set import (
    InputSpec,
    SampleEntry,
    SampleIndex,
    load_samples,
    save_samples,
    tensor_name,
)
from pipeline.runtimes.checkpoint_decoder import CheckpointDecoder
from pipeline.runtimes.generation import prefill
from pipeline.runtimes.torch_model import load_torch_model
from pipeline.stages.export import EXPORT, ExportConfig
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from pathlib import Path

TASK = "text-generation"
VOCABULARY = 97
POSITIONS = 64


def build_tiny_llama(path: Path, seed: int = 0, **changes: Any) -> Path:
    """Random weights: two layers, four heads with two for keys and values, a tied head."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    values: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": POSITIONS,
        "initializer_range": 0.3,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(**(values | changes))).save_pretrained(path)
    return path


def random_texts(
    directory: Path, seed: int = 0, count: int = 8, lengths_of: tuple[int, int] = (2, 40)
) -> Path:
    """Random tokens of several lengths, from the first on and below the second, as a sample set."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(*lengths_of, count).tolist()
    samples = [
        {"input_ids": generator.integers(0, VOCABULARY, length).astype(np.int64)}
        for length in lengths
    ]
    index = SampleIndex(
        source="random",
        use="evaluation",
        seed=seed,
        max_length=POSITIONS,
        inputs={"input_ids": InputSpec(dtype="int64", axes=("sequence",))},
        samples=tuple(
            SampleEntry(index=number, text=f"text {number}", extents={"sequence": length})
            for number, length in enumerate(lengths)
        ),
    )
    directory.mkdir()
    save_samples(index, samples, directory)
    return directory


def write_reference(directory: Path, checkpoint: Path, samples: Path) -> Path:
    """Logits and cache of every sample by torch, alone, as the stage `reference` files them."""
    loaded = load_torch_model(checkpoint, TASK, "model")
    decoder = CheckpointDecoder(loaded)
    held, tensors = load_samples(samples), {}
    for number, sample in enumerate(held.read(range(len(held)))):
        tokens = sample["input_ids"][None]
        logits, cache = prefill(decoder, tokens, np.ones_like(tokens), keeps_all=True)
        tensors[tensor_name("logits", number)] = logits[0]
        for name, array in decoder.read(cache).items():
            present = name.replace("past_key_values", "present")
            tensors[tensor_name(present, number)] = np.ascontiguousarray(array[0])
    index = ReferenceIndex(
        task=TASK,
        component="model",
        inputs=loaded.input_names,
        outputs=loaded.output_names,
        samples=len(held),
        session="torch",
    )
    directory.mkdir()
    save_reference(index, tensors, directory)
    return directory


@dataclass(frozen=True)
class TinyDecoder:
    """Directories `checkpoint`, `samples`, `reference` and `export` below a root."""

    root: Path

    def ports(self, model: Path | None = None) -> dict[str, Path]:
        """What the check of generation reads; of another graph when one is given."""
        ports = {name: self.root / name for name in ("checkpoint", "samples", "reference")}
        return {"model": model or self.root / "export", **ports}


def make_decoder(root: Path, seed: int = 0) -> TinyDecoder:
    """Make all of it; some seconds."""
    checkpoint = build_tiny_llama(root / "checkpoint", seed)
    samples = random_texts(root / "samples", seed)
    write_reference(root / "reference", checkpoint, samples)
    (root / "export").mkdir()
    config = ExportConfig(task=TASK, component="model")
    ports = {"checkpoint": checkpoint}
    EXPORT.run(config, ports, root / "export", RecordingContext(root, threads=2))
    return TinyDecoder(root)
