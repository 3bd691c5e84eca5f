"""Tiny checkpoints of many architectures: random weights, each with its tokenizer or processor.

Sizes are small, but no two axes that could be confused are equal, and every option that changes
how a model computes (relative positions, shared layers, windows, pooling) is on as it is in the
checkpoints that people use.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pipeline.tasks import find_task
from tests.architectures.tokenizers import (
    BERT_TOKENS,
    ROBERTA_TOKENS,
    write_bytes,
    write_unigrams,
    write_word_pieces,
)
from tests.checkpoints import POSITIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from transformers import PreTrainedModel

HEIGHT, WIDTH = 64, 96

_TOKENIZERS: Mapping[str, tuple[Callable[[Path, dict[str, str]], dict[str, int]], dict[str, str]]]
_TOKENIZERS = {
    "word-pieces": (write_word_pieces, BERT_TOKENS),
    "word-pieces-mpnet": (write_word_pieces, ROBERTA_TOKENS),
    "bytes": (write_bytes, ROBERTA_TOKENS),
    "bytes-bert": (write_bytes, BERT_TOKENS),
    "unigrams": (write_unigrams, ROBERTA_TOKENS),
    "unigrams-bert": (write_unigrams, BERT_TOKENS),
}

_ENCODER = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.15,
}
_VISION = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "image_size": [HEIGHT, WIDTH],
    "patch_size": 16,
    "initializer_range": 0.15,
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """How to make a checkpoint of one kind.

    Attributes:
        config: Name of the class of `transformers`.
        values: What the config is told.
        feeder: The kind of its tokenizer; the class of its image processor for images.
    """

    config: str
    values: Mapping[str, Any]
    feeder: str
    modality: Literal["text", "image"] = "text"
    size: tuple[int, int] = field(default=(HEIGHT, WIDTH))


def _text(config: str, feeder: str, **values: Any) -> Architecture:
    return Architecture(config, {**_ENCODER, **values}, feeder)


def _image(
    config: str, feeder: str = "ViTImageProcessor", size: tuple[int, int] = (HEIGHT, WIDTH),
    **values: Any,
) -> Architecture:  # fmt: skip
    return Architecture(config, {**_VISION, **values}, feeder, "image", size)


_DEBERTA = {
    "relative_attention": True,
    "position_biased_input": False,
    "max_relative_positions": -1,
    "layer_norm_eps": 1e-7,
    "type_vocab_size": 0,
    "pooler_hidden_size": 64,
}

ARCHITECTURES: Mapping[str, Architecture] = {
    "BERT": _text("BertConfig", "word-pieces"),
    "RoBERTa": _text(
        "RobertaConfig", "bytes", type_vocab_size=1, max_position_embeddings=POSITIONS + 2
    ),
    "DistilBERT": Architecture(
        "DistilBertConfig",
        {
            "dim": 64,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 96,
            "max_position_embeddings": POSITIONS,
            "initializer_range": 0.15,
        },
        "word-pieces",
    ),
    "ALBERT": _text("AlbertConfig", "unigrams-bert", embedding_size=48, num_hidden_layers=3),
    "ELECTRA": _text("ElectraConfig", "word-pieces", embedding_size=48),
    "MPNet": _text("MPNetConfig", "word-pieces-mpnet", max_position_embeddings=POSITIONS + 2),
    "DeBERTa": _text("DebertaConfig", "bytes-bert", **_DEBERTA, pos_att_type=["c2p", "p2c"]),
    "DeBERTa-v2": _text(
        "DebertaV2Config",
        "unigrams-bert",
        **_DEBERTA,
        pos_att_type=["p2c", "c2p"],
        position_buckets=-1,
        share_att_key=False,
        conv_kernel_size=3,
        conv_act="gelu",
    ),
    "DeBERTa-v3": _text(
        "DebertaV2Config",
        "unigrams-bert",
        **_DEBERTA,
        pos_att_type=["p2c", "c2p"],
        position_buckets=16,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
    ),
    "ModernBERT": _text(
        "ModernBertConfig",
        "bytes-bert",
        num_hidden_layers=4,
        local_attention=16,
        global_attn_every_n_layers=3,
        initializer_cutoff_factor=2.0,
    ),
    "XLM-R": _text(
        "XLMRobertaConfig", "unigrams", type_vocab_size=1, max_position_embeddings=POSITIONS + 2
    ),
    "ViT": _image("ViTConfig"),
    "DeiT": _image("DeiTConfig"),
    "BEiT": _image(
        "BeitConfig",
        use_relative_position_bias=True,
        use_shared_relative_position_bias=False,
        use_mean_pooling=True,
        layer_scale_init_value=0.5,
    ),
    "Swin": Architecture(
        "SwinConfig",
        {
            "embed_dim": 32,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
            "patch_size": 4,
            "image_size": [HEIGHT, WIDTH],
            "initializer_range": 0.15,
        },
        "ViTImageProcessor",
        "image",
    ),
    "DINOv2": _image(
        "Dinov2Config",
        "BitImageProcessor",
        size=(70, 70),
        image_size=98,  # trained on larger images than it is fed: its positions are interpolated
        patch_size=14,
        mlp_ratio=2,
    ),
    "ConvNeXt": Architecture(
        "ConvNextConfig",
        {
            "hidden_sizes": [16, 24, 32, 48],
            "depths": [1, 1, 2, 1],
            "layer_scale_init_value": 0.5,
            "image_size": 64,
            "initializer_range": 0.15,
        },
        "ConvNextImageProcessor",
        "image",
        (64, 64),
    ),
    "ResNet": Architecture(
        "ResNetConfig",
        {"embedding_size": 16, "hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1]},
        "ConvNextImageProcessor",
        "image",
        (64, 64),
    ),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One architecture for one task."""

    architecture: str
    task: str

    def __str__(self) -> str:
        return f"{self.architecture}-{self.task}"


ENTRIES = tuple(
    Entry(architecture, task)
    for architecture, tasks in {
        "BERT": ("feature-extraction", "multiple-choice"),
        "RoBERTa": ("text-classification", "multiple-choice"),
        "DistilBERT": ("question-answering", "text-classification"),
        "ALBERT": ("fill-mask", "multiple-choice"),
        "ELECTRA": ("token-classification", "fill-mask"),
        "MPNet": ("feature-extraction",),
        "DeBERTa": ("text-classification",),
        "DeBERTa-v2": ("token-classification", "question-answering"),
        "DeBERTa-v3": ("text-classification", "multiple-choice"),
        "ModernBERT": ("fill-mask", "text-classification"),
        "XLM-R": ("token-classification", "question-answering"),
        "ViT": ("image-classification", "image-feature-extraction"),
        "DeiT": ("image-classification",),
        "BEiT": ("image-classification",),
        "Swin": ("image-classification", "image-feature-extraction"),
        "DINOv2": ("image-feature-extraction", "image-classification"),
        "ConvNeXt": ("image-classification", "image-feature-extraction"),
        "ResNet": ("image-classification", "image-feature-extraction"),
    }.items()
    for task in tasks
)


def build_checkpoint(entry: Entry, path: Path, seed: int = 0) -> Path:
    """Write the checkpoint of an entry: config, weights, tokenizer or image processor."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    kind = ARCHITECTURES[entry.architecture]
    path.mkdir(parents=True)
    values = dict(kind.values) | {"num_labels": 2 if entry.task == "question-answering" else 5}
    if kind.modality == "text":
        values |= _write_tokenizer(kind, path)
    else:
        _write_image_processor(kind, path)
    config = getattr(transformers, kind.config)(**values)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        auto_class = getattr(transformers, find_task(entry.task).auto_class)
        config.architectures = []  # DeiT's class is looked up there
        model = auto_class.from_config(config)
        _stir(model)
    model.save_pretrained(path)
    return path


def _stir(model: PreTrainedModel) -> None:
    """Make biases, norms and running statistics matter, which start as zeros and ones."""
    import torch

    for parameter in model.parameters():
        if parameter.ndim == 1 or not parameter.any():
            parameter.data += 0.1 * torch.randn_like(parameter)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(0.2 * torch.randn_like(buffer))
        elif name.endswith("running_var"):
            buffer.mul_(0.5 + torch.rand_like(buffer))


def _write_tokenizer(kind: Architecture, path: Path) -> dict[str, int]:
    write, special = _TOKENIZERS[kind.feeder]
    ids = write(path, special)
    return {
        "vocab_size": ids["size"],
        "pad_token_id": ids["pad"],
        "bos_token_id": ids["cls"],
        "cls_token_id": ids["cls"],
        "eos_token_id": ids["sep"],
        "sep_token_id": ids["sep"],
    }


def _write_image_processor(kind: Architecture, path: Path) -> None:
    height, width = kind.size
    settings: dict[str, Any] = {
        "image_processor_type": kind.feeder,
        "do_resize": True,
        "size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    if kind.feeder == "BitImageProcessor":  # resizes, then cuts the middle out
        settings |= {
            "size": {"shortest_edge": 112},
            "do_center_crop": True,
            "crop_size": {"height": height, "width": width},
        }
    if kind.feeder == "ConvNextImageProcessor":
        settings |= {"size": {"shortest_edge": height}, "crop_pct": 0.875}
    (path / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
