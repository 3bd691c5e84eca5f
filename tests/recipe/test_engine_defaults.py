"""What a recipe means where it leaves something out depends on the precision."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.targets.tensorrt_rtx import TensorRTRTXTarget


def _target(precision: str, **quantization: Any) -> TensorRTRTXTarget:
    """As it is read from a recipe."""
    document = {
        "name": "rtx",
        "runtime": "tensorrt-rtx",
        "precision": precision,
        "compute_capability": ["sm89"],
        "quantization": {"mode": "static", **quantization},
    }
    return TensorRTRTXTarget.model_validate_json(json.dumps(document))


@pytest.mark.parametrize(
    ("precision", "said", "method"),
    [
        ("int8", {}, "mse"),
        ("fp8", {}, "minmax"),
        ("fp8", {"method": "mse"}, "mse"),
        ("fp8", {"method": "percentile", "percentile": 99.9}, "percentile"),
        ("int8", {"method": "minmax"}, "minmax"),
    ],
)
def test_ranges_of_fp8_hold_everything_unless_it_is_said_otherwise(
    precision: str, said: dict[str, Any], method: str
) -> None:
    target = _target(precision, **said)
    options = target.quantization
    assert options is not None
    assert options.mode == "static"
    assert options.method == method
    # What is written down means the same when it is read again.
    again = TensorRTRTXTarget.model_validate_json(target.model_dump_json(exclude_none=True))
    assert again == target


def test_a_percentile_needs_its_method_for_fp8_too() -> None:
    with pytest.raises(ValidationError, match="method mse takes no `percentile`"):
        _target("fp8", percentile=99.9)
