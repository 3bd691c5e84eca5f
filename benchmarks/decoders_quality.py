"""Perplexity of a decoder in 4 bits, ours beside ONNX Runtime GenAI's own of the same checkpoint.

    .venv/bin/python benchmarks/decoders_quality.py --work /var/tmp/decoders --model FOLDER

FOLDER holds `checkpoint/` and `test.jsonl`, as `scripts/train_tiny_lm` writes them. The checkpoint is converted
by several of our formats and with `onnxruntime_genai.models.builder -p int4 -e cpu`, in the environment that
`decoders.py` makes; tables of tokens have 4 bits in all of them. What is there already is not made again.

It prints a row for each: bits a weight of a product with its scale and zero point, perplexity, and perplexity
over the float graph's and over GenAI's, paired by text, with the 95 % interval of 4000 resamplings. Exit
code 1 when the format of `ours` in `decoders.py` is not better than GenAI's for certain.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.decoders import OUR_FORMAT, PEER_FORMAT, convert, make_peer
from pipeline.stages.base import MODEL_FILE

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMATS: dict[str, dict[str, Any]] = {
    "ours, GenAI's format": PEER_FORMAT,
    "ours, by default": {"block_size": 32, "method": "clip"},
    "ours": OUR_FORMAT,
    "ours, blocks of 128": OUR_FORMAT | {"block_size": 128},
}
RESAMPLINGS = 4000


def parse_arguments() -> argparse.Namespace:
    """What to measure, from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made")
    parser.add_argument("--model", type=Path, required=True, help="with checkpoint and test.jsonl")
    return parser.parse_args()


@dataclass(frozen=True, slots=True)
class Losses:
    """Of each text the summed negative log-likelihood, nats, and the tokens it was summed over."""

    sums: NDArray[np.float64]
    tokens: NDArray[np.float64]

    @property
    def perplexity(self) -> float:
        """Of all tokens together."""
        return float(np.exp(self.sums.sum() / self.tokens.sum()))

    def over(self, other: Losses) -> tuple[float, float, float]:
        """Perplexity over another's of the same texts, with the ends of its interval."""
        apart = self.sums - other.sums
        drawn = np.random.default_rng(0).integers(0, apart.size, (RESAMPLINGS, apart.size))
        ratios = np.exp(apart[drawn].sum(axis=1) / self.tokens[drawn].sum(axis=1))
        low, high = np.quantile(ratios, (0.025, 0.975))
        return float(np.exp(apart.sum() / self.tokens.sum())), float(low), float(high)


def read_texts(model: Path, positions: int) -> list[list[int]]:
    """Tokens of the test texts, as many as the model has positions."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "checkpoint/tokenizer.json"))
    lines = (model / "test.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [tokenizer.encode(json.loads(line)["text"]).ids for line in lines]
    return [text[: positions - 1] for text in texts if len(text) > 1]


def losses(graph: Path, texts: list[list[int]], sizes: tuple[int, int]) -> Losses:
    """Each text alone and at once; the graphs of both sides have the same names.

    Args:
        graph: Of a decoder with a cache.
        texts: Token ids, two or more each.
        sizes: Heads of keys and values, and the width of one; GenAI's graph does not say.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    inputs = [each.name for each in session.get_inputs()]
    empty = np.zeros((1, sizes[0], 0, sizes[1]), np.float32)
    found = []
    for text in texts:
        tokens = np.array([text], np.int64)
        feeds = {name: empty for name in inputs if name.startswith("past_key_values.")}
        feeds |= {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
        if "position_ids" in inputs:  # GenAI's counts positions itself
            feeds["position_ids"] = np.arange(len(text))[None]
        logits = session.run(["logits"], feeds)[0][0, :-1].astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        found.append(-logits[np.arange(len(text) - 1), text[1:]].sum())
    return Losses(np.array(found), np.array([len(text) - 1.0 for text in texts]))


def main() -> int:
    """Convert, measure, print, and return the exit code."""
    arguments = parse_arguments()
    work = arguments.work / arguments.model.name
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = arguments.model / "checkpoint"
    graphs = {"genai": make_peer(checkpoint, work)[1] / MODEL_FILE}
    bits = {"float": 32.0, "genai": 5.0}
    for name, asked in FORMATS.items():
        graphs[name] = convert(checkpoint, work, asked | {"embeddings": "int4"}) / MODEL_FILE
        extra = 32 if asked.get("symmetric", True) else 36
        bits[name] = 4 + extra / asked["block_size"]
    graphs = {"float": work / "fuse" / MODEL_FILE, **graphs}
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    sizes = (config["num_key_value_heads"], config["head_dim"])
    texts = read_texts(arguments.model, config["max_position_embeddings"])
    found = {name: losses(path, texts, sizes) for name, path in graphs.items()}
    print(f"{len(texts)} texts, {int(found['float'].tokens.sum())} tokens")
    for name, each in found.items():
        row = f"{name}: {bits[name]:.2f} bits, perplexity {each.perplexity:.4f}"
        for other in ("float", "genai"):
            row += ", over {}'s {:.4f} ({:.4f} to {:.4f})".format(other, *each.over(found[other]))
        print(row)
    if found["ours"].over(found["genai"])[2] >= 1:
        print("FAILED: ours is not better than GenAI's for certain")
        return 1
    print("OK")
    return 0


if __name__ == "__main__":
    sys.exit(main())
