"""Runs the command line as a user does: in a process of its own, from an empty directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).resolve().parents[2]
"""What is tried is the package beside these tests, whichever is installed."""


def run_convert(
    *arguments: str | Path, cwd: Path, timeout_s: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python -m pipeline ARGUMENTS`, with its store under `cwd` unless told otherwise."""
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": str(cwd),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(CHECKOUT),
        "CONVERT_STORE": str(cwd / "store"),
        **environment,
    }
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *map(str, arguments)],
        cwd=cwd,
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
