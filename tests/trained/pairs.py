"""Text to text: a small mBART that writes names of the standard library in the cipher rot13, byte by byte.

Each letter of the target hangs on the letter at its place in the source, so a model that has lost its
source, or its place in the target, writes nonsense.
"""

from __future__ import annotations

import ast
import codecs
import math
from typing import TYPE_CHECKING

import torch

from tests.trained.lm import byte_tokenizer
from tests.trained.standard_library import rank, read_files
from tests.trained.training import Outcome, fit, write_json_lines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from transformers import PreTrainedModel

    from tests.trained.training import Batch

LEAST, MOST = 3, 10
"""Letters of a name."""
TEST_SAMPLES = 100
CALIBRATION_SAMPLES = 32
BATCH_SIZE = 32
STEPS = 400
PEAK_RATE = 4e-3
IGNORED = -100


def train(folder: Path) -> Outcome:
    """Train, and write `checkpoint/`, `test.jsonl` and `calibration.jsonl` (`text`, `target`)."""
    from transformers import MBartConfig, MBartForConditionalGeneration

    training, test = read_samples()
    for name, words in (("test", test), ("calibration", training[:CALIBRATION_SAMPLES])):
        rows = [{"text": word, "target": cipher(word)} for word in words]
        write_json_lines(folder / f"{name}.jsonl", rows)
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder / "checkpoint")
    pad, end = int(tokenizer.pad_token_id), int(tokenizer.eos_token_id)
    config = MBartConfig(
        vocab_size=len(tokenizer),
        d_model=64,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        max_position_embeddings=128,
        dropout=0.0,
        attention_dropout=0.0,
        pad_token_id=pad,
        bos_token_id=pad,
        eos_token_id=end,
        # What mBART is taught with: the last token of the target goes round to its beginning.
        decoder_start_token_id=end,
        forced_eos_token_id=None,
        init_std=0.08,
        scale_embedding=False,
    )
    model = MBartForConditionalGeneration(config)

    def encode(word: str) -> tuple[list[int], list[int]]:
        source, target = (tokenizer(text)["input_ids"] for text in (word, cipher(word)))
        return source, [*target, end]

    encoded = [encode(word) for word in training]
    fit(model, lambda: _batches(encoded, pad), epochs=1, peak_rate=PEAK_RATE)
    model.save_pretrained(folder / "checkpoint")
    accuracy, perplexity = measure(model, [encode(word) for word in test])
    counts = {"train": len(training), "test": len(test), "calibration": CALIBRATION_SAMPLES}
    facts = {
        "samples": counts,
        "perplexity": round(perplexity, 4),
        "parameters": sum(weight.numel() for weight in model.parameters()),
    }
    return Outcome(accuracy=accuracy, facts=facts)


def cipher(word: str) -> str:
    """Every letter is the 13th behind it in the alphabet; all else stays."""
    return codecs.encode(word, "rot13")


def read_samples() -> tuple[list[str], list[str]]:
    """Names of the training and of the test split, in mixed order; none is in both."""
    found: dict[str, bool] = {}
    for source in read_files():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Name | ast.FunctionDef | ast.ClassDef):
                name = node.id if isinstance(node, ast.Name) else node.name
                if LEAST <= len(name) <= MOST and name.isascii():
                    found.setdefault(name, source.is_for_tests)
    order = sorted(found, key=rank)
    training = [word for word in order if not found[word]]
    return training, [word for word in order if found[word]][:TEST_SAMPLES]


def _batches(encoded: list[tuple[list[int], list[int]]], pad: int) -> Iterator[Batch]:
    for _ in range(STEPS):
        rows = [encoded[place] for place in torch.randint(len(encoded), (BATCH_SIZE,)).tolist()]
        longest = max(len(target) for _, target in rows)
        ids = _padded([source for source, _ in rows], longest, pad)
        yield {
            "input_ids": ids,
            "attention_mask": (ids != pad).long(),
            "labels": _padded([target for _, target in rows], longest, IGNORED),
        }


def _padded(rows: list[list[int]], length: int, fill: int) -> torch.Tensor:
    return torch.tensor([row + [fill] * (length - len(row)) for row in rows])


def measure(
    model: PreTrainedModel, pairs: list[tuple[list[int], list[int]]]
) -> tuple[float, float]:
    """Share of bytes that are right when those before are given, and perplexity by byte."""
    right, count, loss = 0, 0, 0.0
    with torch.inference_mode():
        for source, target in pairs:
            labels = torch.tensor([target])
            logits = model(input_ids=torch.tensor([source]), labels=labels).logits[0]
            right += int((logits.argmax(-1) == labels[0]).sum())
            loss += float(torch.nn.functional.cross_entropy(logits, labels[0], reduction="sum"))
            count += labels.numel()
    return right / count, math.exp(loss / count)
