"""A seeded two-layer BERT with a tokenizer, as a checkpoint on disk."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path

from tests.data.tiny_tokenizer import WORDS, write_tokenizer


@functools.cache
def _master() -> tempfile.TemporaryDirectory[str]:
    import torch
    from transformers import BertConfig, BertModel

    # Goes away with the process.
    owner = tempfile.TemporaryDirectory(prefix="tiny-checkpoint-")
    directory = Path(owner.name)
    write_tokenizer(directory)
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(directory)
    return owner


def write_checkpoint(directory: Path) -> Path:
    """Copy the checkpoint to a directory that is the caller's to damage; returns it."""
    shutil.copytree(_master().name, directory)
    return directory
