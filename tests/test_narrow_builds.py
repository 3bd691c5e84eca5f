"""Whole builds in bfloat16 and float8 of a tiny checkpoint, compared on the CPU in the device's place."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.build import BuildOptions, build
from pipeline.recipe import load_recipe_file
from tests.recipes import RTX, write_recipe

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

BF16 = RTX | {"name": "rtx-bf16", "precision": "bf16"}
FP8 = RTX | {"name": "rtx-fp8", "precision": "fp8", "quantization": {"mode": "static"}}
SAMPLES = {"source": "builtin:stdlib-docstrings", "samples": 12}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, sentence_encoder: Path) -> dict[str, Any]:
    """The report of a build of both."""
    pytest.importorskip("tensorrt_rtx")
    root = tmp_path_factory.mktemp("narrow")
    recipe = write_recipe(
        root / "recipe.yaml",
        sentence_encoder,
        targets=[BF16, FP8],
        data={"calibration": SAMPLES | {"seed": 1}, "evaluation": SAMPLES | {"seed": 0}},
        gates={
            "parity": {"cosine_similarity": {"min": 0.7}},
            "allow_not_run": ["device_parity", "speed"],
        },
    )
    options = BuildOptions(output=root / "artifacts", store=root / "store", threads=2)
    result = build(load_recipe_file(recipe), options)
    assert result.verdict == "passed", result.reasons
    loaded: dict[str, Any] = json.loads((result.directory / "report.json").read_text())
    return loaded


def test_every_check_has_judged_its_own_form(report: dict[str, Any]) -> None:
    judged = {(gate["target"], gate["gate"]) for gate in report["gates"]}
    for target in ("rtx-bf16", "rtx-fp8"):
        assert {"stages", "parity", "invariance", "cast"} <= {
            gate for each, gate in judged if each == target
        }
    assert ("rtx-fp8", "quantization") in judged
    # bfloat16 ends where float32 does.
    assert ("rtx-fp8", "headroom") in judged
    assert ("rtx-bf16", "headroom") not in judged
    failed = [gate for gate in report["gates"] if not gate["is_allowed"]]
    assert failed == []


def test_the_session_says_that_bfloat16_was_rounded(report: dict[str, Any]) -> None:
    facts = {node["name"]: node["facts"] for node in report["nodes"]}
    sessions = {
        name: each["session"] for name, each in facts.items() if name.startswith("validate@")
    }
    rounded = {name for name, session in sessions.items() if "bfloat16 computed in" in session}
    assert rounded == {"validate@rtx-bf16-cast"}


def test_engines_compute_in_what_was_asked_for(report: dict[str, Any]) -> None:
    facts = {node["name"]: node["facts"] for node in report["nodes"]}
    for precision in ("bf16", "fp8"):
        (engine,) = (
            each for name, each in facts.items() if name.startswith(f"engine@rtx-{precision}")
        )
        assert engine["coverage"][f"{precision}_gemms"] == 1.0
