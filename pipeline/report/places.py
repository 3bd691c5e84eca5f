"""Which key of the recipe a gate's result is about, and where that key is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from pipeline.parity.types import GateResult
    from pipeline.report.schema import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A place in a text file; line and column count from 1, columns in characters.

    Attributes:
        file: Relative to the root of the repository, with `/` between names.
    """

    file: str
    line: int
    column: int


Places: TypeAlias = Callable[[tuple[str, ...]], Place]
"""Key path of the recipe -> where it, or the nearest thing around it, is written."""


def gate_key_path(report: Report, gate: GateResult) -> tuple[str, ...]:
    """The recipe's key that makes a gate, such as `("gates", "parity", "cosine_similarity")`.

    The limits of a target's own section, where the recipe has one, stand in place of those for all.
    """
    section = {"device_parity": "allow_not_run"}.get(gate.gate, gate.gate)
    gates = report.recipe.get("gates")
    targets = gates.get("targets") if isinstance(gates, dict) else None
    own = targets.get(gate.target) if isinstance(targets, dict) else None
    prefix: tuple[str, ...] = ("gates",)
    if isinstance(own, dict) and own.get(section) is not None:
        prefix = ("gates", "targets", gate.target)
    if gate.verdict == "not_run":
        return ("gates", "allow_not_run")
    if section == "speed":
        return (*prefix, section, "min_speedup_over_reference")
    return (*prefix, section, gate.metric.rpartition(".")[2])
