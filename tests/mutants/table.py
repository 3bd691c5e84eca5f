"""The outcomes as a table for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.mutants.trial import Outcome

HEADER = ("fault", "model", "target", "caught by", "accused", "layer", "measured", "limit")


def render(outcomes: Sequence[Outcome]) -> str:
    """One line a mutant, in columns."""
    rows = [HEADER, *(_row(outcome) for outcome in outcomes)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def summary(outcomes: Sequence[Outcome]) -> str:
    """How many of how many, in a few lines."""
    caught = sum(outcome.is_caught for outcome in outcomes)
    attributed = sum(outcome.is_caught and outcome.is_attributed for outcome in outcomes)
    faults = {outcome.fault for outcome in outcomes}
    models = {outcome.model for outcome in outcomes}
    seconds = sum(outcome.seconds for outcome in outcomes)
    what = f"{len(outcomes)} mutants ({len(faults)} faults, {len(models)} models), {seconds:.0f} s"
    lines = [f"{what}: {caught} caught, {attributed} with the right stage accused"]
    lines += [
        f"missed: {outcome.fault} in {outcome.model} ({outcome.target})"
        for outcome in outcomes
        if not outcome.is_caught
    ]
    return "\n".join(lines)


def _row(outcome: Outcome) -> tuple[str, ...]:
    accused = outcome.accused or "-"
    if outcome.is_caught and not outcome.is_attributed:
        accused += " (wrong)"
    return (
        outcome.fault,
        outcome.model,
        outcome.target,
        ", ".join(outcome.caught_by) if outcome.is_caught else "MISSED",
        accused,
        outcome.layer or "-",
        "-" if outcome.measured is None else f"{outcome.measured:.3g}",
        outcome.limit or "-",
    )
