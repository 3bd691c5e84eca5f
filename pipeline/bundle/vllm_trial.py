"""Loads a compressed checkpoint with transformers, and compares it with its graph; see `consumer.py`."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.bundle.genai_trial import TEXT
from pipeline.bundle.same_tokens import prompts_of
from pipeline.graph.block_weights import without_rounded_inputs

_LOGITS: Final = 1e-3
"""RMS of the difference over RMS of the logits: float32 sums in another order."""


def run(question: dict[str, Any]) -> dict[str, Any]:
    """Compare logits and perplexity.

    Returns:
        `told` and `notes`, or `problem`.
    """
    import compressed_tensors
    import torch
    from transformers import AutoModelForCausalLM

    folder = Path(question["folder"])
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        ).eval()
    except (ValueError, RuntimeError, ImportError, OSError, AttributeError, KeyError) as err:
        return {"problem": f"it cannot load the checkpoint: {err}"}
    texts = _texts(folder, question)
    theirs = []
    with torch.no_grad():
        theirs = [model(torch.tensor([text])).logits[0].float().numpy() for text in texts]
    with tempfile.TemporaryDirectory(prefix="convert-") as place:
        graph = Path(question["graph"])
        own = _logits(without_rounded_inputs(graph, Path(place)), texts)
    far = max(
        float(np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2)))
        for a, b in zip(theirs, own, strict=True)
    )
    if not far <= _LOGITS:
        return {"problem": f"its logits are {far:.2g} of their size away from the graph's"}
    mine, other = _perplexity(own[0], texts[0]), _perplexity(theirs[0], texts[0])
    version = compressed_tensors.__version__
    return {
        "told": f"transformers with compressed-tensors {version}: logits differ by {far:.1g} of their "
        f"size, perplexity {other:.6g} against the graph's {mine:.6g}",
        "notes": [],
    }


def _texts(folder: Path, question: dict[str, Any]) -> list[list[int]]:
    texts = prompts_of(question["vocabulary"], question["positions"])
    if (folder / "tokenizer.json").is_file():
        import tokenizers

        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        ids = tokenizer.encode(TEXT).ids[: question["positions"]]
        texts = [ids, *texts] if len(ids) > 1 else texts
    return sorted(texts, key=len, reverse=True)


def _logits(graph: Path, texts: list[list[int]]) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    from pipeline.runtimes.generation import prefill
    from pipeline.runtimes.ort_decoder import OrtDecoder

    # Optimised, ONNX Runtime makes products of 4 bits of them that round their inputs to 8 bits.
    with OrtDecoder(graph, threads=1, optimizations="disabled") as decoder:
        found = []
        for text in texts:
            tokens = np.array([text], np.int64)
            logits, _ = prefill(decoder, tokens, np.ones_like(tokens), keeps_all=True)
            found.append(logits[0])
    return found


def _perplexity(logits: np.ndarray[Any, np.dtype[np.float32]], text: list[int]) -> float:
    """Exp of the mean of -log p(token | those before), over all tokens but the first."""
    rows = logits[:-1].astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    logs = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return float(np.exp(-logs[np.arange(len(text) - 1), text[1:]].mean()))


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))  # noqa: T201 - the answer
