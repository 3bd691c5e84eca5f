"""Tiny seeded checkpoints, complete with tokenizer, as they lie on disk.

Random weights, but wide enough (`initializer_range`) that outputs depend visibly on every input.
"""

from __future__ import annotations

import json
import string
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from transformers import PretrainedConfig, PreTrainedModel

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
HIDDEN_SIZE = 32
LAYERS = 2
POSITIONS = 128
IMAGE_SIZE = (32, 48)
"""Height and width; unlike each other, so that none is taken for the other."""


def vocabulary() -> list[str]:
    """Special tokens, then every printable character, at the start of a word and inside."""
    characters = sorted(set(string.ascii_lowercase + string.digits + string.punctuation))
    words = ["the", "a", "file", "is", "of", "return", "name", "##s", "##ing"]
    return [*SPECIAL_TOKENS, *characters, *(f"##{character}" for character in characters), *words]


def bert_config(**changes: Any) -> PretrainedConfig:
    """The config all models here share."""
    from transformers import BertConfig

    values: dict[str, Any] = {
        "vocab_size": len(vocabulary()),
        "hidden_size": HIDDEN_SIZE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": POSITIONS,
        "initializer_range": 0.3,
        "pad_token_id": 0,
    }
    return BertConfig(**(values | changes))


def build_encoder(path: Path, seed: int = 0) -> Path:
    """A BERT encoder with its pooler, without sentence-transformers' modules."""
    from transformers import BertModel

    return save_model(BertModel, bert_config(), path, seed)


def build_sentence_encoder(
    path: Path,
    seed: int = 0,
    *,
    modes: Sequence[str] = ("mean",),
    is_normalized: bool = True,
) -> Path:
    """A BERT encoder with sentence-transformers' `modules.json` and pooling.

    Args:
        path: The directory to make.
        seed: Of the weights.
        modes: Pooling modes as sentence-transformers 6 names them.
        is_normalized: Whether `Normalize` follows.
    """
    build_encoder(path, seed)
    kinds = ["Transformer", "Pooling", *(["Normalize"] if is_normalized else [])]
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": "" if index == 0 else f"{index}_{kind}",
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, kind in enumerate(kinds)
    ]
    (path / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (path / "1_Pooling").mkdir()
    pooling = {"embedding_dimension": HIDDEN_SIZE, "pooling_mode": list(modes)}
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    return path


def build_text_classifier(path: Path, seed: int = 0, *, labels: int = 3) -> Path:
    """A BERT sequence classifier."""
    from transformers import BertForSequenceClassification

    return save_model(BertForSequenceClassification, bert_config(num_labels=labels), path, seed)


def build_token_classifier(path: Path, seed: int = 0, *, labels: int = 5) -> Path:
    """A BERT token classifier, which has no pooler."""
    from transformers import BertForTokenClassification

    return save_model(BertForTokenClassification, bert_config(num_labels=labels), path, seed)


def build_question_answerer(path: Path, seed: int = 0) -> Path:
    """A BERT extractive question answerer."""
    from transformers import BertForQuestionAnswering

    return save_model(BertForQuestionAnswering, bert_config(), path, seed)


def build_causal_language_model(path: Path, seed: int = 0) -> Path:
    """A Llama whose heads share keys and values by two."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=HIDDEN_SIZE,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
        initializer_range=0.3,
        pad_token_id=0,
    )
    return save_model(LlamaForCausalLM, config, path, seed)


def build_masked_language_model(path: Path, seed: int = 0) -> Path:
    """A BERT masked language model, whose output weights are tied to its embeddings."""
    from transformers import BertForMaskedLM

    return save_model(BertForMaskedLM, bert_config(), path, seed)


def build_multiple_choice(path: Path, seed: int = 0) -> Path:
    """A BERT that gives each choice a score."""
    from transformers import BertForMultipleChoice

    return save_model(BertForMultipleChoice, bert_config(), path, seed)


def build_image_classifier(path: Path, seed: int = 0, *, labels: int = 3) -> Path:
    """A ViT classifier of 32 x 48 pixels, with its image processor."""
    from transformers import ViTForImageClassification

    return save_model(ViTForImageClassification, vit_config(num_labels=labels), path, seed)


def build_image_encoder(path: Path, seed: int = 0) -> Path:
    """A ViT encoder of 32 x 48 pixels, with its image processor."""
    from transformers import ViTModel

    return save_model(ViTModel, vit_config(), path, seed)


def vit_config(**changes: Any) -> PretrainedConfig:
    """The config of the image models here: six patches and a class token."""
    from transformers import ViTConfig

    values: dict[str, Any] = {
        "hidden_size": HIDDEN_SIZE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "image_size": list(IMAGE_SIZE),
        "patch_size": 16,
        "initializer_range": 0.3,
    }
    return ViTConfig(**(values | changes))


def build_roberta_encoder(path: Path, seed: int = 0) -> Path:
    """A RoBERTa encoder: one token type only, and positions that start at the padding index + 1."""
    from transformers import RobertaConfig, RobertaModel

    values = bert_config(type_vocab_size=1, pad_token_id=1).to_dict()
    values.pop("model_type")
    return save_model(RobertaModel, RobertaConfig(**values), path, seed)


def write_tokenizer(path: Path) -> None:
    """Write `tokenizer.json` and its companions: lower-case word pieces of single characters."""
    tokens = {token: index for index, token in enumerate(vocabulary())}
    tokenizer = Tokenizer(WordPiece(tokens, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = BertProcessing(
        ("[SEP]", tokens["[SEP]"]), ("[CLS]", tokens["[CLS]"])
    )
    tokenizer.save(str(path / "tokenizer.json"))
    special = {
        f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")
    }
    (path / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")
    (path / "tokenizer_config.json").write_text(
        json.dumps(special | {"tokenizer_class": "BertTokenizer", "model_max_length": POSITIONS}),
        encoding="utf-8",
    )
    (path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")


def write_image_processor(path: Path, size: tuple[int, int] = IMAGE_SIZE) -> None:
    """Write `preprocessor_config.json`: resize to `size`, rescale, normalise."""
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": size[0], "width": size[1]},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (path / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")


def save_model(
    model_class: type[PreTrainedModel], config: PretrainedConfig, path: Path, seed: int
) -> Path:
    """Save a model of random weights with the tokenizer or image processor that feeds it."""
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    path.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config)
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases and norms are 0 and 1: make them matter
                parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(path)
    if model.main_input_name == "pixel_values":
        write_image_processor(path)
    else:
        write_tokenizer(path)
    return path
