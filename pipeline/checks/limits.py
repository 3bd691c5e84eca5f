"""What a recipe may say under `gates.checks`: for each check its limits, or null to leave it out."""

from __future__ import annotations

from pydantic import Field

from pipeline.checks.base import Limits
from pipeline.checks.invariance import InvarianceLimits


class CheckLimits(Limits):
    """Limits of every check; a check that is null is not run, and the report says so."""

    invariance: InvarianceLimits | None = Field(
        default=InvarianceLimits(),
        description="the same sample alone, in batches, with padding, and again",
    )
