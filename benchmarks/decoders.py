"""Tokens a second of a 4-bit decoder, ours beside ONNX Runtime GenAI's own of the same checkpoint.

    .venv/bin/python benchmarks/decoders.py --work /var/tmp/decoders [--size 0.5b] [--launches 4]

Makes a Llama of random weights (`large_llama.py`), converts it with our stages (export, simplify, fuse,
4-bit weights, packed) and with `onnxruntime_genai.models.builder -p int4 -e cpu` in an environment of its own,
which is made on the first call (1.3 GB). What is there already is not made again. Ours is made twice:

- `ours`: `method: clip` with zero points in blocks of 64, 4.56 bits a weight. `decoders_quality.py` shows
  that a trained model loses less so than in GenAI's 5 bits.
- `ours in its format`: GenAI's own, `rtn` without zero points in blocks of 32. Both run the same kernel over as
  many bytes then, so this ratio is what graph and loop make of it.

Then all write, in turns: batch 1, the same random prompt, greedily, a process each that stays loaded. Where a
process happens to lie in memory makes up to a tenth for as long as it lives, so this is done with
`--launches` sets of processes. It prints the median over launches of the time to the first token and of the
time of a later one (of a launch: the median over rounds), the ratios GenAI / ours of the same launch (more
than 1: ours is faster), and ours again / ours as the noise floor.
With `--threads 1` times are those of the processor and not of the clock, so that other work on the machine
hardly counts. Exit code 1 when the ratio of later tokens of `ours` is under `--limit` (1.1).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.large_llama import SIZES, write_large_llama
from pipeline.environment import describe_environment
from pipeline.stages.base import MODEL_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.stages.base import AnyStage, StageConfig

PEER = Path(__file__).with_name("decoders_genai.py")
PEER_REQUIREMENTS = (
    "onnxruntime-genai==0.18.0",
    "onnxruntime==1.31.1",
    "onnx-ir==1.1.0",
    "onnx==1.23.2",
    "transformers==5.23.0",
    "torch==2.13.0",
)

PEER_FORMAT: dict[str, Any] = {"block_size": 32, "method": "rtn"}
"""How GenAI's builder rounds by default, as our stage is asked for it."""

OUR_FORMAT: dict[str, Any] = {"block_size": 64, "method": "clip", "symmetric": False}
"""Fewer bytes a weight, and a smaller loss."""


def parse_arguments() -> argparse.Namespace:
    """What to measure, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Formatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made")
    parser.add_argument("--size", choices=sorted(SIZES), default="0.5b")
    parser.add_argument(
        "--block-size", type=int, default=OUR_FORMAT["block_size"], help="of `ours`"
    )
    parser.add_argument("--prompt", type=int, default=32, help="tokens")
    parser.add_argument("--new", type=int, default=64, help="tokens")
    parser.add_argument(
        "--rounds", type=int, default=3, help="of a launch, after one that does not count"
    )
    parser.add_argument("--launches", type=int, default=4, help="of all processes")
    parser.add_argument("--threads", type=int, default=0, help="of both; 0 leaves it to them")
    parser.add_argument("--limit", type=float, default=1.1)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and leaves the description as it is written."""


# --- converting -----------------------------------------------------------------------------


class _Context:
    """What stages ask of their surroundings."""

    threads = os.cpu_count() or 1

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch

    def log(self, message: str) -> None:
        del message

    def progress(self, done: int, total: int, unit: str) -> None:
        del done, total, unit


def convert(checkpoint: Path, work: Path, weights: Mapping[str, Any]) -> Path:
    """Our packed 4-bit graph of a checkpoint; a stage in a process of its own each.

    Args:
        checkpoint: Of a decoder.
        work: Folder of what is made.
        weights: What the stage `quantize_weights` is asked for.
    """
    from pipeline.stages.export import EXPORT, ExportConfig
    from pipeline.stages.fuse import FUSE, FuseConfig
    from pipeline.stages.pack_weights import PACK_WEIGHTS, PackWeightsConfig
    from pipeline.stages.quantize_weights import QUANTIZE_WEIGHTS, QuantizeWeightsConfig
    from pipeline.stages.simplify import SIMPLIFY, SimplifyConfig

    # Signs as a recipe has them, where products are written as ONNX Runtime's own operator.
    config = QuantizeWeightsConfig.model_validate({"signed_scales": True, **weights})
    # The version: what another one made is not taken for ours.
    name = f"{config.method}_{config.block_size}{'' if config.symmetric else '_zero_points'}"
    name += f"_{config.embeddings}" if config.embeddings != "float" else ""
    packed = f"packed_{QUANTIZE_WEIGHTS.version}_{PACK_WEIGHTS.version}_{name}"
    steps: tuple[tuple[AnyStage, StageConfig, str], ...] = (
        (EXPORT, ExportConfig(task="text-generation", component="model"), "export"),
        (SIMPLIFY, SimplifyConfig(), "simplify"),
        (FUSE, FuseConfig(), "fuse"),
        (QUANTIZE_WEIGHTS, config, f"int4_{QUANTIZE_WEIGHTS.version}_{name}"),
        (PACK_WEIGHTS, PackWeightsConfig(), packed),
    )
    last, port = checkpoint, "checkpoint"
    for stage, asked, folder in steps:
        output = work / folder
        if not (output / MODEL_FILE).exists():
            shutil.rmtree(output, ignore_errors=True)
            output.mkdir(parents=True)
            _in_a_child(stage, asked, {port: last}, output)
        last, port = output, "model"
    return last


def _in_a_child(
    stage: AnyStage, config: StageConfig, inputs: dict[str, Path], output: Path
) -> None:
    """Run a stage and let its memory go."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            stage.run(config, inputs, output, _Context(output))  # type: ignore[arg-type]
            code = 0
        finally:
            if code:
                traceback.print_exc()
            os._exit(code)
    if os.waitpid(child, 0)[1] != 0:
        sys.exit(f"stage `{stage.name}` failed")


def make_peer(checkpoint: Path, work: Path) -> tuple[Path, Path]:
    """Python of GenAI's environment, and the folder of its own 4-bit model."""
    python, model = work / "genai/bin/python", work / "genai_int4"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(work / "genai")], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, *PEER_REQUIREMENTS], check=True)
    if not (model / "genai_config.json").exists():
        builder = [str(python), "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint)]
        builder += ["-o", str(model), "-p", "int4", "-e", "cpu", "-c", str(work / "genai_cache")]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        subprocess.run(builder, check=True, env=environment, capture_output=True)
    return python, model


# --- measuring ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Times:
    """Of one generation, seconds."""

    first: float
    later: float


class Worker:
    """A process that stays loaded and generates when it is told to."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._answer()

    def generate(self, seed: int) -> Times:
        """One generation from a random prompt."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seed}\n")
        self._process.stdin.flush()
        seconds = self._answer()["seconds"]
        return Times(seconds[0], statistics.median(seconds[1:]))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"a worker ended with exit code {self._process.wait()}")
        return json.loads(line)


def serve(arguments: argparse.Namespace) -> int:
    """Our loop as a worker, as `decoders_genai.py` is GenAI's."""
    from pipeline.runtimes.generation import GenerationOptions, generate
    from pipeline.runtimes.ort_decoder import OrtDecoder

    threads = arguments.threads or None
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    vocabulary = SIZES[arguments.size].vocabulary
    with OrtDecoder(arguments.serve / MODEL_FILE, threads=threads) as decoder:
        print(json.dumps({}), flush=True)
        for line in sys.stdin:
            generator = random.Random(int(line))  # noqa: S311 - no secret
            prompt = [generator.randrange(2, vocabulary) for _ in range(arguments.prompt)]
            times = [clock()]
            options = GenerationOptions(tokens=arguments.new)
            generate(decoder, [prompt], options, on_step=lambda _, at=times: at.append(clock()))
            seconds = [end - start for start, end in itertools.pairwise(times)]
            print(json.dumps({"seconds": seconds}), flush=True)
    return 0


def _own(graph: Path, arguments: argparse.Namespace) -> list[str]:
    """The command of a worker of ours."""
    command = [sys.executable, __file__, "--serve", str(graph), "--size", arguments.size]
    command += ["--work", str(arguments.work)]
    for name in ("prompt", "new", "threads"):
        command += [f"--{name}", str(getattr(arguments, name))]
    return command


def launched(commands: Mapping[str, Sequence[str]], rounds: int, launch: int) -> dict[str, Times]:
    """What each process of one set takes, the median of its rounds; sets start in different orders."""
    names = list(commands)
    names = names[launch % len(names) :] + names[: launch % len(names)]
    workers = {name: Worker(commands[name]) for name in names}
    found: dict[str, list[Times]] = {name: [] for name in names}
    for seed in range(rounds + 1):
        for name, worker in workers.items():
            taken = worker.generate(seed)
            if seed:
                found[name].append(taken)
    for worker in workers.values():
        worker.close()
    return {
        name: Times(
            statistics.median(each.first for each in taken),
            statistics.median(each.later for each in taken),
        )
        for name, taken in found.items()
    }


def measure(arguments: argparse.Namespace) -> float:
    """Make all, let them write in turns, print; the ratio of later tokens."""
    work = arguments.work / arguments.size
    checkpoint = work / "checkpoint"
    if not (checkpoint / "tokenizer_config.json").exists():
        write_large_llama(checkpoint, SIZES[arguments.size])
    ours = convert(checkpoint, work, OUR_FORMAT | {"block_size": arguments.block_size})
    alike = convert(checkpoint, work, PEER_FORMAT)
    python, peer = make_peer(checkpoint, work)
    sizes = [arguments.prompt, arguments.new, SIZES[arguments.size].vocabulary, arguments.threads]
    commands = {
        "genai": [str(python), str(PEER), str(peer), *map(str, sizes)],
        "ours": _own(ours, arguments),
        "ours in its format": _own(alike, arguments),
        "ours again": _own(ours, arguments),
    }
    times: dict[str, list[Times]] = {name: [] for name in commands}
    for launch in range(arguments.launches):
        for name, each in launched(commands, arguments.rounds, launch).items():
            times[name].append(each)
    for name, each in times.items():
        first = statistics.median(item.first for item in each)
        later = statistics.median(item.later for item in each)
        print(f"{name}: first token {first * 1e3:.1f} ms, later {later * 1e3:.2f} ms a token, "
              f"{1 / later:.1f} tokens/s")  # fmt: skip
    pairs = (("genai", "ours"), ("genai", "ours in its format"), ("ours again", "ours"))
    for one, other in pairs:
        for what in ("first", "later"):
            ratios = [
                getattr(a, what) / getattr(b, what)
                for a, b in zip(times[one], times[other], strict=True)
            ]
            print(
                f"{one} / {other}, {what}: {statistics.median(ratios):.3f} "
                f"({min(ratios):.3f} to {max(ratios):.3f})"
            )
    return statistics.median(
        a.later / b.later for a, b in zip(times["genai"], times["ours"], strict=True)
    )


def main() -> int:
    """Measure, print, and return the exit code."""
    arguments = parse_arguments()
    if arguments.serve:
        return serve(arguments)
    environment = describe_environment(("convert-pipeline", "onnxruntime", "onnx"))
    print(json.dumps({**environment, "load_average": os.getloadavg()}))
    ratio = measure(arguments)
    if ratio < arguments.limit:
        print(f"FAILED: {ratio:.3f} times as fast as GenAI, {arguments.limit} is wanted")
        return 1
    print("OK")
    return 0


if __name__ == "__main__":
    sys.exit(main())
