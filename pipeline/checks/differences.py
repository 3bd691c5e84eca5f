"""Gates of checks that count differences: none may be there, and the first one is named."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.checks.base import Limits, Measured
    from pipeline.parity.types import GateResult


def judge_differences(
    gate: str, measured: Measured, limits: Limits, meanings: Mapping[str, str]
) -> tuple[GateResult, ...]:
    """One gate for each kind of difference.

    Args:
        gate: Name of the check.
        measured: Whose facts have `measures`: kind -> its `total` and the `first` of them, each with
            `layer` and `detail`.
        limits: Kind -> how many there may be; null only counts them.
        meanings: Kind -> what is wrong when there are more.
    """
    results = []
    for kind, meaning in meanings.items():
        found, limit = measured.facts["measures"][kind], getattr(limits, kind)
        is_good = limit is None or found["total"] <= limit
        first = found["first"][0] if found["first"] else {"layer": "", "detail": ""}
        results.append(
            measured.result(
                gate,
                kind,
                float(found["total"]),
                "only measured" if limit is None else f"<= {limit}",
                "" if is_good else f"{meaning}: {first['detail']}, in layer `{first['layer']}`",
                layer="" if is_good else first["layer"],
            )
        )
    return tuple(results)
