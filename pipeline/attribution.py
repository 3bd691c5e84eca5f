"""Which stage a failed target comes down to, and which layer: the first that a failed gate accuses.

Pure. A fault that is made early shows in every graph behind it, so the first one is the one to look
at. The layer is told by the check `layers`, which is no gate itself: the first layer whose own nodes
add more than their arithmetic allows, or those that add most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pipeline.report.schema import Finding
from pipeline.report.verdicts import OF_SPEED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.parity.types import GateResult
    from pipeline.report.schema import Report, StageParity, TargetReport

LAYERS_CHECK: Final = "layers"
"""Name of the check whose facts tell layers."""

END_TO_END: Final = frozenset({"parity", "quality"})
"""Gates that judge what is delivered, and accuse no stage."""

NOT_OF_NUMBERS: Final = frozenset({"companions", "assignment"})
"""Gates that accuse a graph of something that its layers say nothing about."""

_SHOWN_LAYERS: Final = 3


def findings(
    targets: Sequence[TargetReport],
    gates: Sequence[GateResult],
    facts: Mapping[str, Mapping[str, Any]],
) -> tuple[Finding, ...]:
    """One finding for each target of which a gate failed, or a graph could not be run at all.

    Gates on time and memory accuse nothing.

    Args:
        targets: The targets with their chains.
        gates: What all gates said.
        facts: Node -> what its stage says; of the nodes of checks at least.
    """
    return tuple(_findings(targets, gates, facts))


def _findings(
    targets: Sequence[TargetReport],
    gates: Sequence[GateResult],
    facts: Mapping[str, Mapping[str, Any]],
) -> Iterator[Finding]:
    for target in targets:
        failed = _broken(target.name, gates)
        accused = {gate.node for gate in failed if gate.node and gate.verdict != "not_run"}
        first = next(
            (link for link in target.parity if link.failure or link.node in accused), None
        )
        if first is not None and first.failure:
            yield _unusable(target, first)
        elif first is not None:
            mine = [gate for gate in failed if gate.node == first.node]
            yield _accusation(target, first, mine, _layers_of(target, first, facts))
        elif any(_is_of_the_end(gate) for gate in failed):
            largest = _largest_step(target)
            if largest is not None:
                yield _suspicion(target, largest, failed, _layers_of(target, largest, facts))


def worth_diagnosing(report: Report) -> frozenset[str]:
    """Names of the targets with a finding that their layers may explain."""
    return frozenset(
        finding.target
        for finding in report.findings
        if not finding.gates
        or any(
            gate.gate not in NOT_OF_NUMBERS
            for gate in _broken(finding.target, report.gates)
            if gate.metric in finding.gates
        )
    )


def _broken(target: str, gates: Sequence[GateResult]) -> list[GateResult]:
    """Its failed gates that could accuse a graph."""
    return [
        gate
        for gate in gates
        if gate.target == target and not gate.is_allowed and gate.gate not in OF_SPEED
    ]


def _is_of_the_end(gate: GateResult) -> bool:
    """A figure that the samples do not give is no fault of any graph."""
    return gate.gate in END_TO_END and not (gate.gate == "quality" and gate.measured is None)


def _accusation(
    target: TargetReport, link: StageParity, failed: Sequence[GateResult], layers: _Layers
) -> Finding:
    gate = failed[0]
    departing = layers.first
    told = next((each.layer for each in failed if each.layer), "")
    layer = layers.of_node(told) or _shown(departing) or told
    where = f", first in layer `{layer}`" if layer else ""
    if departing is not None and layer == _shown(departing):
        where += f" ({_departure(departing, layers.limit)})"
    elif not layer:
        where = layers.most("; no single layer stands out, most is added by ")
    return Finding(
        target=target.name,
        node=link.node,
        stage=link.stage,
        layer=layer,
        sentence=f"the fault is {_place(link)}{_or_before(target, link, gate, layer)}{where}; "
        f"found by the gate `{gate.gate}`: "
        f"{gate.metric} must be {gate.limit}" + (f"; {gate.reason}" if gate.reason else ""),
        gates=tuple(each.metric for each in failed),
    )


def _unusable(target: TargetReport, link: StageParity) -> Finding:
    """Whatever else is wrong with a graph, and with those made of it, begins with this."""
    return Finding(
        target=target.name,
        node=link.node,
        stage=link.stage,
        sentence=f"the fault is {_place(link)}: its graph cannot be run: {link.failure}",
        gates=(),
    )


def _place(link: StageParity) -> str:
    # What is only taken in was made before, by somebody else.
    return "in the candidate" if link.stage == "adopt" else f"made by `{link.node}`"


def _or_before(target: TargetReport, link: StageParity, gate: GateResult, layer: str) -> str:
    """The stages between the accused graph and the last good one that the gate looked at; often none.

    A check of few graphs of a chain, as that of generation is, does not tell which of them it was.
    """
    seen = {each.of for each in target.checks if each.check == gate.gate}
    chain = [each for each in target.parity if each.component == link.component]
    before = [each.node for each in chain[: chain.index(link)]]
    good = [place for place, node in enumerate(before) if node in seen]
    if layer or link.node not in seen or not good:
        return ""
    between = [f"`{node}`" for node in before[good[-1] + 1 :]]
    if not between:
        return ""
    names = " or ".join(filter(None, [", ".join(between[:-1]), between[-1]]))
    return f", or before it by {names}, whose graphs that gate does not look at"


def _suspicion(
    target: TargetReport, link: StageParity, failed: Sequence[GateResult], layers: _Layers
) -> Finding:
    departing = layers.first
    if departing is not None:
        where = f", and layer `{_shown(departing)}` is the first that departs "
        where += f"({_departure(departing, layers.limit)})"
    else:
        where = layers.most("; the layers that add most are ")
    ends = [gate for gate in failed if _is_of_the_end(gate)]
    names = {gate.gate: None for gate in ends}
    return Finding(
        target=target.name,
        node=link.node,
        stage=link.stage,
        layer=_shown(departing) or _shown(next(iter(layers.worst), None)),
        sentence=f"no stage does worse than its arithmetic allows; `{link.node}` adds most of the "
        f"difference{where}; found by the gate{'s' if len(names) > 1 else ''} "
        + " and ".join(f"`{name}`" for name in names),
        gates=tuple(gate.metric for gate in ends),
    )


class _Layers:
    """What is known of the layers of one graph, perhaps nothing.

    Args:
        facts: Of the check's node; empty when it was not made.
    """

    def __init__(self, facts: Mapping[str, Any]) -> None:
        rows = {row["name"]: row for row in facts.get("layers", ())}
        self._nodes = {row["node"]: row for row in rows.values()}
        self.limit = float(facts.get("limit", 0.0))
        self.first: Mapping[str, Any] | None = rows.get(facts.get("first"))
        worst: dict[str, Mapping[str, Any]] = {}
        for name in facts.get("worst", ()):
            if name in rows:
                worst.setdefault(_shown(rows[name]), rows[name])
        self.worst = tuple(worst.values())
        """The worst values, one for each layer."""

    def of_node(self, node: str) -> str:
        """What the layer of a node is called; empty when it is not known."""
        return _shown(self._nodes.get(node))

    def most(self, lead: str) -> str:
        """`lead` and the layers that add most; nothing when none is known."""
        shown = [f"`{_shown(row)}` ({_added(row)})" for row in self.worst[:_SHOWN_LAYERS]]
        return lead + ", ".join(shown) if shown else ""


def _layers_of(
    target: TargetReport, link: StageParity, facts: Mapping[str, Mapping[str, Any]]
) -> _Layers:
    for check in target.checks:
        if check.check == LAYERS_CHECK and check.of == link.node and facts.get(check.node):
            return _Layers(facts[check.node])
    return _Layers({})


def _shown(row: Mapping[str, Any] | None) -> str:
    """What a layer is called: as in the checkpoint, or by its node."""
    return "" if row is None else str(row["layer"] or row["node"])


def _added(row: Mapping[str, Any]) -> str:
    return "no finite numbers" if row["added"] is None else f"{row['added']:.3g}"


def _departure(row: Mapping[str, Any], limit: float) -> str:
    if row["added"] is None:
        return f"{row['operator']} gives no finite numbers, or another shape"
    return f"{row['operator']} adds {row['added']:.3g} of the size of its result, at most {limit:.2g} is right"


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
