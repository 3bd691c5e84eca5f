"""What a failed report comes down to: findings first, and of the gates only those that say more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.report.summary import broken_gates

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.parity.types import GateResult
    from pipeline.report.schema import Finding, Report

EXPLAINED = frozenset({"parity", "quality"})
"""Gates on what a target computes that accuse no node: a finding of the target explains them."""

OF_SPEED = frozenset({"speed", "generation_speed", "openvino_serving"})
"""Gates on time and memory: they accuse no graph, and no layer explains them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One fault, and the targets that have it.

    Attributes:
        node: The node that made it; empty when no gate accuses one.
        stage: Its stage.
        layer: The layer in it; empty when it is not known.
        sentence: All of it in words, of the first target.
        targets: Names, in the order of the report.
        gates: The broken gates of these targets that accuse the node.
        behind: The other broken gates that it explains: of what was made from the node's output.
    """

    node: str
    stage: str
    layer: str
    sentence: str
    targets: tuple[str, ...]
    gates: tuple[GateResult, ...]
    behind: tuple[GateResult, ...]


def causes(report: Report) -> tuple[Cause, ...]:
    """The findings, those of several targets on one fault taken together."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in report.findings:
        groups.setdefault((finding.node, finding.layer), []).append(finding)
    return tuple(_cause(report, found) for found in groups.values())


def _cause(report: Report, found: Sequence[Finding]) -> Cause:
    first, targets = found[0], dict.fromkeys(finding.target for finding in found)
    explained = [
        gate for gate in broken_gates(report) if gate.target in targets and _is_explained(gate)
    ]
    return Cause(
        node=first.node,
        stage=first.stage,
        layer=first.layer,
        sentence=first.sentence,
        targets=tuple(targets),
        gates=tuple(gate for gate in explained if gate.node == first.node),
        behind=tuple(gate for gate in explained if gate.node != first.node),
    )


def unexplained(report: Report) -> tuple[GateResult, ...]:
    """The broken gates that no finding is about, such as those on speed or coverage."""
    known = {finding.target for finding in report.findings}
    return tuple(
        gate
        for gate in broken_gates(report)
        if gate.target not in known or not _is_explained(gate)
    )


def _is_explained(gate: GateResult) -> bool:
    return gate.gate not in OF_SPEED and (bool(gate.node) or gate.gate in EXPLAINED)


def accused(cause: Cause) -> str:
    """`fuse@cpu-fp32, layer encoder.layer.3`: node and layer in few words."""
    return cause.node + (f", layer {cause.layer}" if cause.layer else "")
