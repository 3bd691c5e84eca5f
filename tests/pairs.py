"""Tiny encoders with decoders, with random weights: checkpoints that a recipe can name."""

from __future__ import annotations

import json
import math
import wave
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.trained.lm import byte_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = "text2text-generation"
SPEECH = "automatic-speech-recognition"
VOCABULARY = 258
PAD, END = 256, 257
POSITIONS = 64
RATE = 8000
BINS, FRAMES = 8, 100

_T5 = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
}
_BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "init_std": 0.3,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": (
        "T5ForConditionalGeneration",
        {**_T5, "num_layers": 3, "num_decoder_layers": 2},
    ),
    "t5-gated": (
        "T5ForConditionalGeneration",
        {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "mt5": ("MT5ForConditionalGeneration", _T5),
    "bart": ("BartForConditionalGeneration", {**_BART, "max_position_embeddings": POSITIONS}),
    "mbart": ("MBartForConditionalGeneration", {**_BART, "max_position_embeddings": POSITIONS}),
    "marian": ("MarianMTModel", {**_BART, "max_position_embeddings": POSITIONS}),
    "pegasus": (
        "PegasusForConditionalGeneration",
        {**_BART, "max_position_embeddings": POSITIONS},
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        {
            **_BART,
            "num_mel_bins": BINS,
            "max_source_positions": FRAMES // 2,
            "max_target_positions": POSITIONS,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
    ),
}
"""Name -> class of transformers and its configuration."""


def build_pair(path: Path, family: str = "t5", seed: int = 0, **changes: Any) -> Path:
    """A checkpoint with a tokenizer of bytes, and for sounds with a feature extractor."""
    import torch
    import transformers

    name, values = FAMILIES[family]
    model_class = getattr(transformers, name)
    given = {
        "vocab_size": VOCABULARY,
        "pad_token_id": PAD,
        "eos_token_id": END,
        "decoder_start_token_id": PAD,
        "bos_token_id": None,
        "forced_eos_token_id": None,
    }
    torch.manual_seed(seed)
    model_class(model_class.config_class(**(given | values | changes))).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    if family == "whisper":
        extractor = transformers.WhisperFeatureExtractor(
            feature_size=BINS,
            sampling_rate=RATE,
            hop_length=RATE // FRAMES,
            chunk_length=1,
            n_fft=200,
        )
        extractor.save_pretrained(path)
    return path


def write_pairs(path: Path, count: int = 6) -> Path:
    """Texts of several lengths and what is to be made of them, as JSON lines."""
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "a",
        "lazy",
        "dog",
        "while",
        "it",
        "rains",
    ]
    rows = []
    for number in range(count):
        text = " ".join(words[number : number + 1 + number % 4])
        rows.append({"text": text, "target": " ".join(reversed(text.split()))[: 5 + 3 * number]})
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def write_tone(path: Path, *, pitch: float, seconds: float, rate: int = RATE) -> Path:
    """A WAV file, 16 bits, one channel: a sine that fades."""
    time = np.arange(int(rate * seconds)) / rate
    tone = np.sin(2 * math.pi * pitch * time) * np.exp(-2 * time)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((tone * 2**14).astype("<i2").tobytes())
    return path


def write_sounds(folder: Path, count: int = 4) -> Path:
    """`test.jsonl` beside the WAV files that it names."""
    folder.mkdir(exist_ok=True)
    rows = []
    for number in range(count):
        name = f"tone{number}.wav"
        write_tone(folder / name, pitch=220.0 * (1 + number), seconds=0.3 + 0.2 * number)
        rows.append({"audio": name, "text": f"a tone of {220 * (1 + number)}"[: 8 + 2 * number]})
    (folder / "test.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder / "test.jsonl"
