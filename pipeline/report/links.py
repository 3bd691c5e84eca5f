"""Where things stand in `report.html`: from a gate to its stage, from there to the layer and the samples.

Places are counted, never made of names, so that no text of a report can be one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.report.checks import LAYERS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.report.checks import ShownCheck
    from pipeline.report.schema import Report
    from pipeline.report.verdicts import Cause


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """The identifiers of a page; an empty text where there is nothing to lead to.

    Attributes:
        stages: (target, node) -> its first row under "Parity".
        walks: Node whose graph was compared layer by layer -> that chart.
        layers: (node, layer) -> the layer's row.
        samples: Target -> its first worst sample.
        single: (target, sample index) -> that sample, when it is one of the worst.
        findings: Target -> the finding about it.
        checks: (check, node) -> the check's row.
    """

    stages: Mapping[tuple[str, str], str]
    walks: Mapping[str, str]
    layers: Mapping[tuple[str, str], str]
    samples: Mapping[str, str]
    single: Mapping[tuple[str, int], str]
    findings: Mapping[str, str]
    checks: Mapping[tuple[str, str], str]

    def stage(self, target: str, node: str) -> str:
        """The graph that a node made, in a target's chain."""
        return self.stages.get((target, node), "")

    def layer(self, node: str, layer: str) -> str:
        """A layer of a node's graph, else all of its layers."""
        return self.layers.get((node, layer), "") or self.walks.get(node, "")

    def sample(self, target: str, index: int | None) -> str:
        """One sample, when it is shown."""
        return "" if index is None else self.single.get((target, index), "")

    def check(self, name: str, node: str) -> str:
        """What a check measured of a node's graph."""
        return self.checks.get((name, node), "")


def stage_id(target: int, link: int) -> str:
    """Of the graph at a place of a target's chain; both count from 0."""
    return f"stage-{target + 1}-{link + 1}"


def find_links(report: Report, checks: Sequence[ShownCheck], causes: Sequence[Cause]) -> Links:
    """All places of the page.

    Args:
        report: As `printable` gives it.
        checks: Its checks.
        causes: Its findings.
    """
    samples: dict[str, str] = {}
    single: dict[tuple[str, int], str] = {}
    for place, sample in enumerate(report.worst_samples, start=1):
        samples.setdefault(sample.target, f"sample-{place}")
        single.setdefault((sample.target, sample.index), f"sample-{place}")
    walks = [check for check in checks if check.walk is not None]
    return Links(
        stages={
            (target.name, link.node): stage_id(place, step)
            for place, target in enumerate(report.targets)
            for step, link in enumerate(target.parity)
            if link.parity is None or link.parity.outputs
        },
        walks={check.of: f"layers-{check.place}" for check in walks},
        layers={
            (check.of, layer.title): f"layer-{check.place}-{layer.place}"
            for check in walks
            for layer in reversed(check.walk.layers if check.walk else ())
        },
        samples=samples,
        single=single,
        findings={
            target: f"finding-{place}"
            for place, cause in reversed(list(enumerate(causes, start=1)))
            for target in cause.targets
        },
        checks={
            (check.name, check.of): f"check-{check.place}"
            for check in checks
            if check.name != LAYERS or check.walk is None
        },
    )
