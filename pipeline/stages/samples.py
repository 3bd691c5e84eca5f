"""Prepare the samples that models are compared on: texts in, tokens out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from pipeline.stages.base import Stage, StageConfig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext

TOKENIZER_PORT = "tokenizer"


class SamplesConfig(StageConfig):
    """Which samples, and how long they may be.

    Attributes:
        max_length: Longest sample, tokens with the special ones; longer texts are cut.
        use: What the samples are for; the report says it.
    """

    source: Literal["builtin:stdlib-docstrings"]
    samples: Annotated[int, Field(ge=1)]
    seed: int
    max_length: Annotated[int, Field(ge=1)]
    use: Literal["evaluation"] = "evaluation"


def run(
    config: SamplesConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> dict[str, JSON]:
    """Write `samples.safetensors` and `samples.json`; facts say how long the samples are."""
    from pipeline.data.builtin import read_texts
    from pipeline.data.sample_set import SampleEntry, SampleIndex, save_samples
    from pipeline.data.tokenise import load_tokenizer

    tokenizer = load_tokenizer(inputs[TOKENIZER_PORT], config.max_length)
    if tokenizer.pad_token is None:
        context.log(
            f"the checkpoint names no padding token, id {tokenizer.padding['input_ids']} is used"
        )
    texts = read_texts(samples=config.samples, seed=config.seed, max_tokens=config.max_length)
    encoded = []
    for done, text in enumerate(texts, start=1):
        encoded.append(tokenizer.encode(text))
        context.progress(done, len(texts), "samples")
    lengths = [len(sample["input_ids"]) for sample in encoded]
    index = SampleIndex(
        source=config.source,
        use=config.use,
        seed=config.seed,
        max_length=config.max_length,
        padding=tokenizer.padding,
        samples=tuple(
            SampleEntry(index=number, text=text, tokens=length)
            for number, (text, length) in enumerate(zip(texts, lengths, strict=True))
        ),
    )
    fingerprint = save_samples(index, encoded, output)
    return {
        "samples": len(texts),
        "inputs": sorted(index.padding),
        "tokens": _describe_lengths(lengths),
        "cut_at_max_length": sum(length == config.max_length for length in lengths),
        "pad_token": tokenizer.pad_token,
        "fingerprint": fingerprint,
    }


def _describe_lengths(lengths: Sequence[int]) -> dict[str, JSON]:
    """Nearest-rank percentiles: each one is the length of a real sample."""
    ordered = sorted(lengths)
    last = len(ordered) - 1
    return {
        "min": ordered[0],
        "median": ordered[round(0.5 * last)],
        "p90": ordered[round(0.9 * last)],
        "max": ordered[-1],
    }


SAMPLES = Stage(
    name="samples",
    version=1,
    config_type=SamplesConfig,
    run=run,
    # transformers is imported for checkpoints without tokenizer.json only.
    packages=("tokenizers", "transformers"),
    # The built-in source reads the standard library's docstrings, which differ between patch releases.
    machine=("python_version",),
)
