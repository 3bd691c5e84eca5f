"""Names of the files that describe a checkpoint beside its weights; transformers chose them."""

from __future__ import annotations

CONFIG_FILES = ("config.json", "generation_config.json")
GENAI_CONFIG = "genai_config.json"
"""What ONNX Runtime GenAI reads beside a model."""
# At least one of these makes a tokenizer.
TOKENIZER_VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
TOKENIZER_FILES = (
    *TOKENIZER_VOCABULARIES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
)
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
