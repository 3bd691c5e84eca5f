"""`convert export-openvino`: says what it needs; OpenVINO itself in the slow test."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from pipeline.bundle.consumer import has_package
from pipeline.bundle.openvino_ir import PACKAGES, export_openvino
from pipeline.errors import EnvironmentMissing
from tests.openvino_environment import PINS, convert, make_environment

if TYPE_CHECKING:
    from pathlib import Path


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
    python = make_environment(tmp_path, *PINS)
    done = convert(python, "export-openvino", decoder_artifact, tmp_path / "made", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    made = json.loads(done.stdout)
    assert [model["target"] for model in made["models"]] == ["cpu-fp32", "cpu-int4"]
    assert all("the same 24 tokens after 3 prompts" in model["trial"] for model in made["models"])
