"""Which key of the recipe a gate's result is about, and where that key is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from pipeline.parity.types import GateResult
    from pipeline.report.schema import Report


RECIPE_SECTIONS = frozenset({"parity", "quality", "speed", "coverage", "stages", "allow_not_run"})
"""Sections of `gates` that are named as their gates; every other kind of gate is of a check."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A place in a text file; line and column count from 1, columns in characters.

    Attributes:
        file: Relative to the root of the repository, with `/` between names.
    """

    file: str
    line: int
    column: int


Places: TypeAlias = Callable[[tuple[str | int, ...]], Place]
"""Key path of the recipe -> where it, or the nearest thing around it, is written."""


def gate_key_path(report: Report, gate: GateResult) -> tuple[str | int, ...]:
    """The recipe's key that makes a gate, such as `("gates", "parity", "cosine_similarity")`.

    The limits of a target's own section, where the recipe has one, stand in place of those for all.
    A gate of a check, and of a stage, has a key only where the recipe sets a limit of its own; the
    path is the one that such a limit would have.
    """
    section = {"device_parity": "allow_not_run"}.get(gate.gate, gate.gate)
    gates = report.recipe.get("gates")
    targets = gates.get("targets") if isinstance(gates, dict) else None
    own = targets.get(gate.target) if isinstance(targets, dict) else None
    prefix: tuple[str, ...] = ("gates",)
    if isinstance(own, dict) and own.get(section) is not None:
        prefix = ("gates", "targets", gate.target)
    if gate.verdict == "not_run" and section == "stages":
        return (*prefix, section, gate.node.partition("@")[0])
    if gate.verdict == "not_run" and section in RECIPE_SECTIONS:
        return ("gates", "allow_not_run")
    if section == "speed":
        return (*prefix, section, "min_speedup_over_reference")
    if section == "stages":
        return (*prefix, section, gate.node.partition("@")[0], "noise")
    if section not in RECIPE_SECTIONS:
        own_checks = own.get("checks") if isinstance(own, dict) else None
        has_own = isinstance(own_checks, dict) and own_checks.get(section) is not None
        home = ("gates", "targets", gate.target) if has_own else ("gates",)
        return (*home, "checks", section)
    return (*prefix, section, gate.metric.rpartition(".")[2])


def target_key_path(report: Report, target: str) -> tuple[str | int, ...]:
    """The recipe's key that asks for a target, such as `("targets", 1, "name")`.

    A target that the recipe does not name, as of a matrix, leads to all of them.
    """
    targets = report.recipe.get("targets")
    for index, asked in enumerate(targets if isinstance(targets, list | tuple) else ()):
        if isinstance(asked, dict) and asked.get("name") == target:
            return ("targets", index, "name")
    return ("targets",)
