"""`convert export-openvino`: says what it needs; OpenVINO itself in the slow test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from pipeline.bundle.consumer import has_package
from pipeline.bundle.openvino_ir import PACKAGES, export_openvino
from pipeline.errors import EnvironmentMissing

PINS = ("openvino==2026.4.1", "openvino-genai==2026.4.1.0", "openvino-tokenizers==2026.4.1.0")


@pytest.mark.skipif(all(map(has_package, PACKAGES)), reason="OpenVINO is installed")
def test_without_openvino_nothing_is_written(decoder_artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentMissing, match="`openvino`") as caught:
        export_openvino(decoder_artifact, tmp_path / "made")
    assert "convert-pipeline[openvino]" in str(caught.value)
    assert not (tmp_path / "made").exists()


@pytest.mark.slow
def test_openvino_generates_the_tokens_of_our_own_loop(
    decoder_artifact: Path, tmp_path: Path
) -> None:
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "--no-deps", *PINS]
    if subprocess.run(install, check=False, capture_output=True).returncode != 0:
        pytest.skip("pip cannot install OpenVINO")
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    words = ["export-openvino", str(decoder_artifact), str(tmp_path / "made"), "--json"]
    done = subprocess.run(
        [python, "-m", "pipeline", *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    made = json.loads(done.stdout)
    assert [model["target"] for model in made["models"]] == ["cpu-fp32", "cpu-int4"]
    assert all("the same 24 tokens after 3 prompts" in model["trial"] for model in made["models"])
