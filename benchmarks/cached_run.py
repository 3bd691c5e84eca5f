"""How long `convert` takes when nothing has changed, and what it imports on the way.

    .venv/bin/python benchmarks/cached_run.py [--runs 15] [--limit-s 0.5]

Builds once (minutes when the store is cold), then measures the same command again and again in
fresh processes, in turn with a Python that does nothing. Exit code 1 when the median is over the
limit, when a stage ran although nothing had changed, or when a heavy library was imported.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline.environment import describe_environment

REPOSITORY = Path(__file__).resolve().parents[1]
FORBIDDEN = ("torch", "transformers", "onnxruntime")
WATCHED = (*FORBIDDEN, "onnx", "onnxscript", "onnx_ir", "scipy", "numpy", "tensorrt_rtx")
"""Libraries whose absence is reported; only the first three are a failure."""


def parse_arguments() -> argparse.Namespace:
    """What to measure, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Formatter)
    parser.add_argument("--recipe", type=Path, default=REPOSITORY / "recipes" / "quickstart.yaml")
    parser.add_argument(
        "--convert",
        type=Path,
        default=Path(sys.executable).with_name("convert"),
        help="the program to measure",
    )
    parser.add_argument("--store", type=Path, help="root of the store; default as for `convert`")
    parser.add_argument("--output", type=Path, help="where artifacts go; default a temporary one")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--limit-s", type=float, default=0.5)
    return parser.parse_args()


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and leaves the description as it is written."""


def run_once(command: list[str], environment: dict[str, str] | None = None) -> float:
    """Wall time of one successful run, seconds; ends the program when the run fails."""
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        sys.exit(f"`{' '.join(command)}` ended with exit code {done.returncode}:\n{done.stderr}")
    return seconds


def nodes_that_ran(command: list[str]) -> list[str]:
    """Names of the nodes that were not answered from the store."""
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    nodes = json.loads(done.stdout)["report"]["nodes"]
    return [node["name"] for node in nodes if node["state"] != "hit"]


def imported_libraries(command: list[str]) -> set[str]:
    """Which of `WATCHED` the command imports, in its own process or in one it starts.

    The interpreter itself reports every import on stderr, children inherit the setting.
    """
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run(
        [*command, "--quiet"], capture_output=True, text=True, check=True, env=environment
    )
    names = {
        line.rpartition("|")[2].strip().partition(".")[0]
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }
    if "pipeline" not in names:
        sys.exit("the import report does not even show `pipeline`: it cannot be trusted")
    return names & set(WATCHED)


def measure(arguments: argparse.Namespace, output: Path) -> list[str]:
    """Measure and print; returns what is wrong."""
    command = [str(arguments.convert), "run", str(arguments.recipe), "--output", str(output)]
    command += ["--store", str(arguments.store)] if arguments.store else []
    nothing = [sys.executable, "-c", "pass"]
    print(f"first run: {run_once(command):.1f} s (builds what the store does not hold)")
    cached, bare = [], []
    for _ in range(arguments.runs):
        cached.append(run_once(command))
        bare.append(run_once(nothing))
    ran = nodes_that_ran(command)
    imported = imported_libraries(command)
    p50 = statistics.median(cached)
    print(
        f"up to date: p50 {p50:.3f} s, {min(cached):.3f} to {max(cached):.3f} s, {len(cached)} runs"
    )
    print(f"bare python: p50 {statistics.median(bare):.3f} s, in turn with the above")
    print(f"nodes that ran although nothing had changed: {', '.join(ran) or 'none'}")
    print(f"imported: {', '.join(sorted(imported)) or 'none'} of {', '.join(WATCHED)}")
    wrong = []
    if p50 > arguments.limit_s:
        wrong.append(f"p50 {p50:.3f} s is over {arguments.limit_s} s")
    if ran:
        wrong.append(f"{len(ran)} nodes ran")
    heavy = sorted(imported.intersection(FORBIDDEN))
    if heavy:
        wrong.append(f"imported {', '.join(heavy)}")
    return wrong


def main() -> int:
    """Measure, print, and return the exit code."""
    arguments = parse_arguments()
    environment = describe_environment(("convert-pipeline", "pydantic", "click"))
    print(json.dumps({**environment, "load_average": os.getloadavg()}))
    with tempfile.TemporaryDirectory() as temporary:
        wrong = measure(arguments, arguments.output or Path(temporary))
    print(f"FAILED: {'; '.join(wrong)}" if wrong else "OK")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
