"""An environment with OpenVINO beside what is installed: it is large, and only slow tests need it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

PINS = ("openvino==2026.4.1", "openvino-genai==2026.4.1.0", "openvino-tokenizers==2026.4.1.0")
_REPOSITORY = Path(__file__).resolve().parents[1]


def make_environment(folder: Path, *pins: str) -> Path:
    """Its Python; the test is skipped where pip cannot install it."""
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "--no-deps", *pins]
    if subprocess.run(install, check=False, capture_output=True).returncode != 0:
        pytest.skip(f"pip cannot install {pins[0]}")
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    return python


def convert(python: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run the program with this Python."""
    return subprocess.run(
        [python, "-m", "pipeline", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(_REPOSITORY)},
    )
