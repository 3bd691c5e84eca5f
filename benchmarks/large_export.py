r"""Memory and time of export and INT4 on a large decoder, stage by stage, against ONNX Runtime GenAI's builder.

    .venv/bin/python -m benchmarks.large_llama /var/tmp/llama
    .venv/bin/python -m benchmarks.large_export /var/tmp/llama --rounds 3 \
        --peer /var/tmp/genai/bin/python

`--peer` is a Python with onnxruntime-genai 0.18.0, torch and transformers; without it only our own figures
are printed. A round of ours is a fresh process that runs the stages as a build does: each in a worker
of its own, forked by nurseries whose start and imports are counted in (docs/decisions/0010). Memory is
the largest resident set of any of its processes, pages of mapped files included; of the peer likewise.
Rounds are interleaved, the ratio of a round is ours over theirs, and the median counts. The stages are those of a
recipe that leaves out all comparisons on the way, as the peer has none. Weights are
rounded by `rtn` in blocks of 32, as the peer does. Exit code 1 when a figure is over its limit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline.stages.base import model_size_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.run.process import WorkerProcess
    from pipeline.stages.base import Stage

WALL_LIMIT: Final = 1.0
MEMORY_LIMIT: Final = 0.5
"""Of the peer's."""
EXPORT_SHARE: Final = 0.6
EXPORT_BASE_BYTES: Final = 600_000_000
"""The fp32 export may take this, and `EXPORT_SHARE` of the float32 weights."""

CHAIN: Final[tuple[tuple[str, str, dict[str, Any]], ...]] = (
    ("export", "checkpoint", {"task": "text-generation", "component": "model"}),
    ("fuse_and_quantize", "model", {"bits": 4, "block_size": 32, "method": "rtn"}),
    ("pack_weights", "model", {}),
)
"""Stage, the port through which it takes the output of the one before, and its config."""

_PEER = ("-m", "onnxruntime_genai.models.builder", "-p", "int4", "-e", "cpu")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a process took: seconds of wall clock, seconds of processor, bytes of resident memory."""

    wall_s: float
    cpu_s: float
    peak_bytes: int

    def __str__(self) -> str:
        return f"{self.wall_s:7.1f} s wall {self.cpu_s:7.1f} s CPU {self.peak_bytes / 1e6:8.0f} MB"


def measure(command: Sequence[str], log: Path) -> Cost:
    """Run a command and its children; a failure ends the benchmark with the end of its output."""
    start = time.monotonic()
    with log.open("wb") as file:
        child = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | OFFLINE)
        _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{' '.join(command[:4])} failed:\n{log.read_text(errors='replace')[-2000:]}")
    return Cost(
        wall_s=time.monotonic() - start,
        cpu_s=used.ru_utime + used.ru_stime,
        peak_bytes=used.ru_maxrss * 1024,
    )


OFFLINE: Final = {"HF_HUB_OFFLINE": "1"}


def run_stages(checkpoint: Path, root: Path, threads: int) -> None:
    """The chain, as the local executor runs it; outputs are deleted when used.

    Leaves `costs.json`: name of a stage -> seconds and peak bytes; and the last output.
    """
    costs, source = {}, checkpoint
    worker = new_worker(CHAIN[0][0], threads)
    for number, (name, port, options) in enumerate(CHAIN):
        output, scratch = root / name, root / f"{name}-scratch"
        for directory in (output, scratch):
            directory.mkdir()
        job = {
            "stage": name,
            "config": stage_named(name).config_type.model_validate(options).model_dump_json(),
            "inputs": {port: str(source)},
            "output": str(output),
            "scratch": str(scratch),
            "threads": threads,
        }
        # A build has the next worker import what it needs while it waits.
        following = new_worker(CHAIN[number + 1][0], threads) if CHAIN[number + 1 :] else None
        start = time.monotonic()
        ending = worker.run(job, time_s=3600, memory_limit_mib=None, on_progress=lambda *_: None)
        if ending.facts is None:
            sys.exit("\n".join((*ending.last_lines, ending.message)))
        costs[name] = (time.monotonic() - start, round(ending.peak_rss_mib * 2**20))
        if source != checkpoint:
            shutil.rmtree(source)
        source = output
        if following is not None:
            worker = following
    (root / "costs.json").write_text(json.dumps(costs), encoding="utf-8")


def stage_named(name: str) -> Stage[Any]:
    """One of the stages."""
    from pipeline.stages.catalogue import STAGES

    return next(stage for stage in STAGES if stage.name == name)


def new_worker(name: str, threads: int) -> WorkerProcess:
    """A worker for a stage, from the nursery of its group."""
    from pipeline.run.process import WorkerProcess

    stage = stage_named(name)
    group = "torch" if "torch" in stage.packages else "graphs"
    return WorkerProcess(stage.preload, threads, group)


def run_chain(checkpoint: Path, root: Path, threads: int) -> tuple[Cost, dict[str, Any], int]:
    """What all took, each stage's seconds and peak bytes, and the bytes of the artifact."""
    with tempfile.TemporaryDirectory(dir=root) as directory:
        given = (str(checkpoint), "--stages", directory, "--threads", str(threads))
        cost = measure((sys.executable, "-m", __spec__.name, *given), root / "ours.log")
        stages = json.loads((Path(directory) / "costs.json").read_text(encoding="utf-8"))
        size = model_size_bytes(Path(directory) / CHAIN[-1][0])
    peak = max(cost.peak_bytes, *(peak for _, peak in stages.values()))
    return replace(cost, peak_bytes=peak), stages, size


def run_peer(python: str, checkpoint: Path, root: Path) -> Cost:
    """The builder, once."""
    for name in ("peer", "cache"):
        shutil.rmtree(root / name, ignore_errors=True)
    places = ("-m", str(checkpoint), "-o", str(root / "peer"), "-c", str(root / "cache"))
    cost = measure((python, *_PEER, *places), root / "peer.log")
    shutil.rmtree(root / "peer")
    return cost


def weight_bytes(checkpoint: Path) -> int:
    """Of the checkpoint as float32."""
    from pipeline.data.stored_tensors import stored_tensors

    files = checkpoint.glob("*.safetensors")
    return sum(4 * tensor.size for file in files for tensor in stored_tensors(file).values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--peer", help="a Python with onnxruntime-genai, torch and transformers")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--scratch", type=Path, help="where to write; needs twice the weights")
    parser.add_argument("--stages", type=Path, help=argparse.SUPPRESS)  # a round, in its process
    chosen = parser.parse_args(arguments)
    checkpoint = chosen.checkpoint.resolve()
    if chosen.stages:
        run_stages(checkpoint, chosen.stages, chosen.threads)
        return 0
    weights = weight_bytes(checkpoint)
    print(f"{checkpoint.name}: {weights / 1e6:.0f} MB of weights as float32")
    walls, peaks, exports = [], [], []
    if chosen.scratch is not None:
        chosen.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=chosen.scratch) as directory:
        root = Path(directory)
        for number in range(chosen.rounds):
            total, stages, size = run_chain(checkpoint, root, chosen.threads)
            exports.append(stages["export"][1])
            print(f"round {number + 1}: the artifact has {size / 1e6:.0f} MB")
            for name, (wall_s, peak_bytes) in stages.items():
                print(f"  {name:17} {wall_s:7.1f} s wall {'':15} {peak_bytes / 1e6:8.0f} MB")
            print(f"  {'together':17} {total}")
            if chosen.peer:
                peer = run_peer(chosen.peer, checkpoint, root)
                print(f"  {'peer':17} {peer}")
                walls.append(total.wall_s / peer.wall_s)
                peaks.append(total.peak_bytes / peer.peak_bytes)
    limit = EXPORT_SHARE * weights + EXPORT_BASE_BYTES
    is_over = max(exports) > limit
    print(f"export: {max(exports) / 1e6:.0f} MB, limit {limit / 1e6:.0f} MB")
    if walls:
        wall, peak = statistics.median(walls), statistics.median(peaks)
        print(f"against the peer: wall {wall:.2f} (limit {WALL_LIMIT}), ", end="")
        print(f"memory {peak:.2f} (limit {MEMORY_LIMIT})")
        is_over |= wall > WALL_LIMIT or peak > MEMORY_LIMIT
    return int(is_over)


if __name__ == "__main__":
    sys.exit(main())
