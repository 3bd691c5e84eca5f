"""Memory and time of calibration: does it grow with the samples, and what does it cost?

    .venv/bin/python benchmarks/calibration_memory.py [--layers 12] [--samples 512 2048] [--rounds 5]

The model is a BERT encoder with random weights (12 layers of 768 are BERT-base), exported and
simplified by the product's own stages; the samples are random tokens of one length.

Memory: one process for each number of samples, which does nothing but run the calibrate stage with
method entropy; the figure is the kernel's (`VmHWM`). Time: in one process, blocks of samples
go through the model alone, with lowest and highest kept, and with histograms, in an order drawn by
chance; the figure is the median ratio of the blocks of one round, and the ratio of a block to a
second one of the same kind is the noise floor. Exit code 1 when a figure is over its limit.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.environment import describe_environment

if TYPE_CHECKING:
    from pipeline.data.sample_set import SampleSet

MEMORY_LIMIT_MIB = 2048
GROWTH_LIMIT_MIB = 64
MINMAX_TIME_LIMIT = 1.2
VOCABULARY = 30_522


class _Context:
    """What the stages are told; they write to no other place."""

    def __init__(self, scratch: Path, threads: int) -> None:
        self.scratch = scratch
        self.threads = threads

    def progress(self, done: int, total: int, unit: str) -> None:
        """Nobody watches."""

    def log(self, message: str) -> None:
        """Nobody reads."""


def build_model(root: Path, layers: int, hidden: int) -> None:
    """Write `checkpoint`, `export` and `simplify` below `root`."""
    import torch
    from transformers import BertConfig, BertModel

    from pipeline.stages.export import EXPORT, ExportConfig
    from pipeline.stages.simplify import SIMPLIFY, SimplifyConfig

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(root / "checkpoint")
    for name in ("export", "simplify", "scratch"):
        (root / name).mkdir()
    context = _Context(root / "scratch", 1)
    EXPORT.run(
        ExportConfig(task="feature-extraction", component="model"),
        {"checkpoint": root / "checkpoint"},
        root / "export",
        context,
    )
    SIMPLIFY.run(SimplifyConfig(), {"model": root / "export"}, root / "simplify", context)


def write_samples(directory: Path, count: int, tokens: int) -> None:
    """Write a sample set of random tokens, all of one length."""
    import numpy as np

    from pipeline.data.sample_set import InputSpec, SampleEntry, SampleIndex, save_samples

    directory.mkdir()
    generator = np.random.default_rng(0)
    names = ("input_ids", "attention_mask", "token_type_ids")
    index = SampleIndex(
        source="random",
        use="calibration",
        seed=0,
        max_length=tokens,
        inputs={name: InputSpec(dtype="int64", axes=("sequence",)) for name in names},
        samples=tuple(
            SampleEntry(index=number, text=f"random {number}", extents={"sequence": tokens})
            for number in range(count)
        ),
    )
    inputs = [
        {
            "input_ids": generator.integers(0, VOCABULARY, tokens),
            "attention_mask": np.ones(tokens, dtype=np.int64),
            "token_type_ids": np.zeros(tokens, dtype=np.int64),
        }
        for _ in range(count)
    ]
    save_samples(index, inputs, directory)


def calibrate(root: Path, samples: Path, method: str, threads: int) -> None:
    """Run the stage and print its peak memory; this is a process of its own."""
    from pipeline.stages.calibrate import CALIBRATE, CalibrateConfig

    with tempfile.TemporaryDirectory(dir=root) as work:
        output, scratch = Path(work) / "output", Path(work) / "scratch"
        output.mkdir()
        scratch.mkdir()
        inputs = {"model": root / "simplify", "samples": samples}
        started = time.perf_counter()
        CALIBRATE.run(CalibrateConfig(method=method), inputs, output, _Context(scratch, threads))
        seconds = time.perf_counter() - started
    print(json.dumps({"peak_rss_mib": peak_rss_mib(), "seconds": round(seconds, 1)}))


def peak_rss_mib() -> int:
    """Of this process alone; `ru_maxrss` would count the process that started it as well."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return round(int(value.split()[0]) / 1024)
    raise RuntimeError("/proc/self/status has no VmHWM")


def measure_memory(root: Path, counts: list[int], tokens: int, threads: int) -> dict[int, float]:
    """Peak memory of the calibrate stage by number of samples, MiB."""
    peaks = {}
    for count in counts:
        samples = root / f"samples-{count}"
        write_samples(samples, count, tokens)
        command = [sys.executable, __file__, "--child", str(root), str(samples), str(threads)]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(result.stdout)
        print(f"entropy, {count} samples of {tokens} tokens: {found}", flush=True)
        peaks[count] = found["peak_rss_mib"]
    return peaks


def measure_time(
    root: Path, tokens: int, threads: int, rounds: int, block: int
) -> dict[str, float]:
    """Median time of each way of observing, over that of plain inference."""
    from pipeline.calibration.observe import observe_samples
    from pipeline.data.sample_set import load_samples
    from pipeline.graph.observed import read_needed_tensors, write_observed_model
    from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner

    write_samples(root / "block", block, tokens)
    samples: SampleSet = load_samples(root / "block")
    names = [tensor.name for tensor in read_needed_tensors(root / "simplify" / "model.onnx")]
    (root / "observed").mkdir()
    observed = write_observed_model(root / "simplify", names, root / "observed")
    with (
        OnnxRuntimeRunner(
            root / "simplify" / "model.onnx", optimizations="disabled", threads=1
        ) as plain,
        OnnxRuntimeRunner(observed, optimizations="disabled", threads=1) as watched,
    ):
        ways = {
            "plain": (plain, [], False),
            "plain again": (plain, [], False),
            "minmax": (watched, names, False),
            "histograms": (watched, names, True),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(rounds + 1):
            for way in random.sample(sorted(ways), len(ways)):
                runner, tensors, has_histogram = ways[way]
                started = time.perf_counter()
                observe_samples(
                    runner,
                    samples,
                    tensors,
                    has_histogram=has_histogram,
                    threads=threads,
                    progress=lambda *_: None,
                )
                if number:  # the first round warms up
                    seconds[way].append(time.perf_counter() - started)
    return {
        way: statistics.median(
            time / base for time, base in zip(times, seconds["plain"], strict=True)
        )
        for way, times in seconds.items()
    }


def main() -> int:
    """Measure, print, and judge."""
    if sys.argv[1:2] == ["--child"]:
        calibrate(Path(sys.argv[2]), Path(sys.argv[3]), "entropy", int(sys.argv[4]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--samples", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--block", type=int, default=8, help="samples of one block")
    options = parser.parse_args()
    print(json.dumps(describe_environment(("numpy", "onnxruntime")), indent=1))
    with tempfile.TemporaryDirectory() as work:
        root = Path(work)
        build_model(root, options.layers, options.hidden)
        ratios = measure_time(root, options.tokens, options.threads, options.rounds, options.block)
        for way, ratio in ratios.items():
            print(f"{way}: {ratio:.3f} x plain inference")
        peaks = measure_memory(root, options.samples, options.tokens, options.threads)
    growth = max(peaks.values()) - peaks[min(peaks)]
    print(f"growth from {min(peaks)} to {max(peaks)} samples: {growth} MiB")
    is_within = (
        max(peaks.values()) <= MEMORY_LIMIT_MIB
        and growth <= GROWTH_LIMIT_MIB
        and ratios["minmax"] <= MINMAX_TIME_LIMIT
    )
    print("OK" if is_within else "FAILED: a figure is over its limit")
    return 0 if is_within else 1


if __name__ == "__main__":
    raise SystemExit(main())
