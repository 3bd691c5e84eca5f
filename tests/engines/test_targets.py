from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.engines import targets
from pipeline.engines.module import EngineModule, require_module
from pipeline.errors import EnvironmentMissing, RecipeError


@pytest.mark.parametrize("capability", ["sm80", "sm86", "sm89", "sm120", "sm121"])
def test_every_capability_from_sm80_on_allows_fp32_and_fp16(capability: str) -> None:
    targets.check_target(capability, "fp32")
    targets.check_target(capability, "fp16")


@pytest.mark.parametrize("capability", ["sm90", "sm87", "sm100", "89", "SM89"])
def test_a_capability_that_is_not_targeted_is_refused_with_the_valid_ones(capability: str) -> None:
    with pytest.raises(
        RecipeError, match=f"does not target {capability}; it targets sm75, sm80, .*, sm121"
    ):
        targets.check_target(capability, "fp16")


@pytest.mark.parametrize(
    ("capability", "precision", "reason"),
    [
        ("sm75", "fp32", "no FP32 matrix product"),
        ("sm75", "bf16", "no BF16"),
        ("sm75", "int4", "no INT4"),
        ("sm75", "fp8", "no FP8"),
        ("sm80", "fp8", "no FP8"),
        ("sm86", "fp8", "no FP8"),
    ],
)
def test_an_impossible_pair_is_refused_with_its_reason_and_what_is_possible(
    capability: str, precision: str, reason: str
) -> None:
    with pytest.raises(RecipeError, match=reason) as caught:
        targets.check_target(capability, precision)
    assert f"{capability} allows" in caught.value.message
    assert precision not in targets.allowed_precisions(capability)
    assert "sm89" in caught.value.hint


def test_an_unknown_precision_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(RecipeError, match="fp17 is not one of fp32, fp16, bf16"):
        targets.check_target("sm89", "fp17")


def test_the_installed_builder_is_found_with_its_four_part_version() -> None:
    assert targets.require_builder().count(".") == 3


def test_a_missing_package_names_the_extra_that_installs_it() -> None:
    missing = EngineModule(import_name="no_such_trt", distribution="no-such-trt", extra="rtx")
    with pytest.raises(EnvironmentMissing, match="no-such-trt is not installed") as caught:
        require_module(missing)
    assert caught.value.hint == "pip install 'convert-pipeline[rtx]'"


def test_asking_for_targets_and_builder_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pipeline.engines import targets; targets.check_target('sm89', 'fp16');"
        "targets.require_builder(); from pipeline.stages.engine import ENGINE;"
        "print(sorted({'tensorrt_rtx', 'onnx', 'numpy', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
