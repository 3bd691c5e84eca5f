"""How a process that measures is started, and what is said of one that failed."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Final

INHERITED: Final = (
    "PATH",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "LANG",
    "LC_ALL",
    "CUDA_VISIBLE_DEVICES",
)
"""Environment variables that a launch takes over: what finds programs, libraries and the GPU."""

LAST_LINES: Final = 20


def launch_command(module: str) -> list[str]:
    """What starts a module of ours in a process of its own."""
    return [sys.executable, "-P", "-m", module]


def launch_environment(folder: Path, threads: int) -> dict[str, str]:
    """The whole environment of a launch.

    Thread counts and library settings of the caller's shell would change what is measured without
    being part of the key; the cache and configuration of the caller's home likewise.
    """
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return {
        **inherited,
        # Where this process finds its modules, also when the paths were given relative to its cwd.
        "PYTHONPATH": os.pathsep.join(str(Path(path).resolve()) for path in sys.path if path),
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }


def describe_failure(returncode: int, log_path: Path) -> str:
    """How a launch ended, and its last lines."""
    if returncode < 0:
        how = f"was killed by {signal.Signals(-returncode).name}"
    else:
        how = f"ended with exit code {returncode}"
    text = log_path.read_text(encoding="utf-8", errors="replace")
    # What it failed with is told, and not where in our own code.
    lines = [line for line in text.splitlines() if not line.startswith(("  ", "Traceback ("))]
    lines = lines[-LAST_LINES:]
    return "\n".join([f"a benchmark launch {how}; its last lines:", *lines])
