"""The base of records that are written to JSON and read back: measurements, verdicts, reports."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Frozen, unknown keys refused, JSON round trip exact."""

    model_config = ConfigDict(extra="forbid", frozen=True)
