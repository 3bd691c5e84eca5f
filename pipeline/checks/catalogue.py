"""The explicit list of checks; a new check is a new file here, a line in `CHECKS`, and its limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.checks.assignment import ASSIGNMENT
from pipeline.checks.cast import CAST_CHECK
from pipeline.checks.companions import COMPANIONS_CHECK
from pipeline.checks.export import EXPORT_CHECK
from pipeline.checks.generation import GENERATION
from pipeline.checks.generation_speed import GENERATION_SPEED
from pipeline.checks.headroom import HEADROOM
from pipeline.checks.invariance import INVARIANCE
from pipeline.checks.layers import LAYERS
from pipeline.checks.openvino_serving import OPENVINO_SERVING
from pipeline.checks.packing import PACKING
from pipeline.checks.quantization import QUANTIZATION
from pipeline.checks.repair import REPAIR_CHECK
from pipeline.checks.sensitivity import SENSITIVITY_CHECK
from pipeline.checks.seq2seq import SEQ2SEQ

if TYPE_CHECKING:
    from pipeline.checks.base import Check

CHECKS: tuple[Check, ...] = (
    COMPANIONS_CHECK,
    EXPORT_CHECK,
    INVARIANCE,
    GENERATION,
    SEQ2SEQ,
    GENERATION_SPEED,
    OPENVINO_SERVING,
    HEADROOM,
    CAST_CHECK,
    QUANTIZATION,
    PACKING,
    REPAIR_CHECK,
    ASSIGNMENT,
    LAYERS,
    SENSITIVITY_CHECK,
)
"""Every check there is, in the order in which reports show them."""


def find_check(name: str) -> Check | None:
    """The check of this name; None when there is none."""
    return next((check for check in CHECKS if check.name == name), None)
