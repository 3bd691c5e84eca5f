"""Which stage a failed target comes down to: the first of its chain that a failed gate accuses.

Pure. A fault that is made early shows in every graph behind it, so the first one is the one to look at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.report.schema import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.parity.types import GateResult
    from pipeline.report.schema import StageParity, TargetReport


def findings(targets: Sequence[TargetReport], gates: Sequence[GateResult]) -> tuple[Finding, ...]:
    """One finding for each target of which a gate failed for what its graphs compute.

    Args:
        targets: The targets with their chains.
        gates: What all gates said.
    """
    return tuple(_findings(targets, gates))


def _findings(targets: Sequence[TargetReport], gates: Sequence[GateResult]) -> Iterator[Finding]:
    for target in targets:
        failed = [gate for gate in gates if gate.target == target.name and not gate.is_allowed]
        if not failed:
            continue
        accused = {gate.node for gate in failed if gate.node}
        first = next((link for link in target.parity if link.node in accused), None)
        if first is not None:
            mine = [gate for gate in failed if gate.node == first.node]
            layer = next((gate.layer for gate in mine if gate.layer), "")
            yield Finding(
                target=target.name,
                node=first.node,
                stage=first.stage,
                layer=layer,
                sentence=f"the fault is made by `{first.node}`"
                + (f", first in layer `{layer}`" if layer else "")
                + f": {mine[0].metric} must be {mine[0].limit}"
                + (f"; {mine[0].reason}" if mine[0].reason else ""),
                gates=tuple(gate.metric for gate in mine),
            )
        elif any(gate.gate in {"parity", "quality"} for gate in failed):
            largest = _largest_step(target)
            if largest is not None:
                yield Finding(
                    target=target.name,
                    node=largest.node,
                    stage=largest.stage,
                    sentence=f"no stage does worse than its arithmetic allows; `{largest.node}` adds "
                    "most of the difference",
                    gates=tuple(g.metric for g in failed if g.gate in {"parity", "quality"}),
                )


def _largest_step(target: TargetReport) -> StageParity | None:
    """The graph whose distance to the checkpoint is farthest above that of the graph before it."""
    best: tuple[float, StageParity] | None = None
    before: dict[tuple[str, str], float] = {}
    for link in target.parity:
        for output in link.parity.outputs if link.parity else ():
            distance = output.metrics.relative_l2
            if distance is None:
                continue
            step = distance - before.get((link.component, output.name), 0.0)
            before[link.component, output.name] = distance
            if best is None or step > best[0]:
                best = (step, link)
    return None if best is None else best[1]
