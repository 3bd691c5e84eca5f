"""A Llama of random weights, as large as asked for, as a checkpoint with tokenizer: for speed and memory.

    .venv/bin/python benchmarks/large_llama.py /var/tmp/llama [--size 0.5b] [--dtype float32]

Weights are drawn and written tensor by tensor, so that memory holds the largest one only. The same
arguments give the same bytes. What it says means nothing; what it costs is that of a real model.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

DType = Literal["float32", "bfloat16"]
NAMES = {"float32": "F32", "bfloat16": "BF16"}
"""As the header of safetensors has them."""

DEVIATION = 0.02
"""Of weights: Llama's `initializer_range`."""

ROWS = 1024
"""Of a weight, drawn at a time."""

BYTES_OF_A_SHARD = 5_000_000_000
"""As `save_pretrained` splits checkpoints; one file when it is enough."""


@dataclass(frozen=True, kw_only=True)
class LlamaSize:
    """What makes a Llama large. The head is not tied to the embedding."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int = 32000
    positions: int = 2048

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape, in the order of the file."""
        width = self.hidden // self.heads
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocabulary, self.hidden)
        }
        for number in range(self.layers):
            layer = f"model.layers.{number}"
            for name, rows in (("q", self.heads), ("k", self.kv_heads), ("v", self.kv_heads)):
                shapes[f"{layer}.self_attn.{name}_proj.weight"] = (rows * width, self.hidden)
            shapes[f"{layer}.self_attn.o_proj.weight"] = (self.hidden, self.hidden)
            shapes[f"{layer}.mlp.gate_proj.weight"] = (self.intermediate, self.hidden)
            shapes[f"{layer}.mlp.up_proj.weight"] = (self.intermediate, self.hidden)
            shapes[f"{layer}.mlp.down_proj.weight"] = (self.hidden, self.intermediate)
            shapes[f"{layer}.input_layernorm.weight"] = (self.hidden,)
            shapes[f"{layer}.post_attention_layernorm.weight"] = (self.hidden,)
        shapes["model.norm.weight"] = (self.hidden,)
        shapes["lm_head.weight"] = (self.vocabulary, self.hidden)
        return shapes

    @property
    def weights(self) -> int:
        """How many numbers it has."""
        return sum(math.prod(shape) for shape in self.tensors().values())


SIZES = {
    "tiny": LlamaSize(
        hidden=64, layers=2, heads=4, kv_heads=2, intermediate=96, vocabulary=320, positions=256
    ),
    "0.5b": LlamaSize(hidden=2048, layers=8, heads=32, kv_heads=4, intermediate=5632),
    "7b": LlamaSize(hidden=4096, layers=32, heads=32, kv_heads=8, intermediate=14336),
}
"""`tiny` is for tests; `0.5b` has 483 M weights, `7b` 7.2 G (Mistral's sizes), 14.5 GB as bfloat16."""


def write_large_llama(
    directory: Path, size: LlamaSize = SIZES["0.5b"], *, dtype: DType = "float32", seed: int = 0
) -> Path:
    """Write config, weights and tokenizer.

    Args:
        directory: Made when it is missing.
        size: How large.
        dtype: Of the weights in the file.
        seed: Of the weights. Every tensor has a generator of its own.

    Returns:
        The directory.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _write_config(directory, size, dtype)
    _write_tokenizer(directory, size)
    width = 4 if dtype == "float32" else 2
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    used = 0
    for name, shape in size.tensors().items():
        length = math.prod(shape) * width
        if used and used + length > BYTES_OF_A_SHARD:
            shards.append({})
            used = 0
        shards[-1][name] = shape
        used += length
    files = [
        "model.safetensors"
        if len(shards) == 1
        else f"model-{number:05}-of-{len(shards):05}.safetensors"
        for number in range(1, len(shards) + 1)
    ]
    order = {name: number for number, name in enumerate(size.tensors())}
    for file, shapes in zip(files, shards, strict=True):
        _write_weights(directory / file, shapes, dtype, {n: [seed, order[n]] for n in shapes})
    if len(shards) > 1:
        places = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        total = {"total_size": size.weights * width}
        index = {"metadata": total, "weight_map": places}
        _write_json(directory / "model.safetensors.index.json", index)
    return directory


def _write_weights(
    path: Path, shapes: dict[str, tuple[int, ...]], dtype: DType, seeds: dict[str, list[int]]
) -> None:
    """One file of safetensors: length of the header, header, tensors one behind the other."""
    width = 4 if dtype == "float32" else 2
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + math.prod(shape) * width
        header[name] = {
            "dtype": NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            generator = np.random.default_rng(seeds[name])
            for start in range(0, shape[0], ROWS):
                rows = (min(ROWS, shape[0] - start), *shape[1:])
                values = generator.standard_normal(rows, np.float32) * np.float32(DEVIATION)
                if len(shape) == 1:
                    values += np.float32(1.0)  # scales of a norm
                if dtype == "bfloat16":
                    values = values.astype(ml_dtypes.bfloat16)
                file.write(values.tobytes())


def _write_config(directory: Path, size: LlamaSize, dtype: DType) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "head_dim": size.hidden // size.heads,
        "intermediate_size": size.intermediate,
        "vocab_size": size.vocabulary,
        "max_position_embeddings": size.positions,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "dtype": dtype,
        "torch_dtype": dtype,  # as tools of last year call it
    }
    _write_json(directory / "config.json", config)
    generation = {"bos_token_id": 0, "eos_token_id": 1, "do_sample": False}
    _write_json(directory / "generation_config.json", generation)


def _write_tokenizer(directory: Path, size: LlamaSize) -> None:
    """Bytes are tokens; the rest of the vocabulary has names that no text holds."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words += [f"<unused_{number}>" for number in range(size.vocabulary - len(words))]
    tokenizer = Tokenizer(models.BPE({word: place for place, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_max_length": size.positions,
    }
    _write_json(directory / "tokenizer_config.json", settings)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write one and say where."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--size", choices=sorted(SIZES), default="0.5b")
    parser.add_argument("--dtype", choices=sorted(NAMES), default="float32")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    size = SIZES[chosen.size]
    path = write_large_llama(chosen.directory, size, dtype=chosen.dtype, seed=chosen.seed)
    print(f"{path}: {size.weights / 1e6:.1f} M weights, {chosen.dtype}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
