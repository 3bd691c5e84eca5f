"""What a plan knows will fail in the end, told before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.planning.types import Plan


def foreseen(plan: Plan) -> Iterator[str]:
    """A sentence for each target with gates that cannot be run here, where the recipe allows no such.

    The build is worth doing all the same: what was made can be looked at, and is in the store.
    """
    for target in plan.targets:
        reason, gates = target.chain.not_run_reason, plan.recipe.gates.of(target.name)
        if not reason:
            continue
        needed = ["device_parity", *(["speed"] if gates.speed is not None else [])]
        missing = [name for name in needed if name not in gates.allow_not_run]
        if missing:
            yield (
                f"`{target.name}` will fail in the end: {' and '.join(missing)} cannot be judged here, as "
                f"{reason}, and the recipe does not accept that; `gates.allow_not_run: "
                f"[{', '.join(needed)}]` does"
            )
