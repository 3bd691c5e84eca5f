"""`report.html`: one file for people, without the network; it reads well without scripts too.

The templates get the report after `printable`, frozen records with chart geometry, and filters for
figures. Jinja2 escapes everything (autoescape), an undefined name is an error, and the content
security policy of the page forbids any request and all scripts but those that draw the charts, by
their digests, should an escape ever be missed.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.report import figures
from pipeline.report.charts import clipped, error_charts, size_bars, speed_charts
from pipeline.report.checks import ELSEWHERE, case_table, shown_checks
from pipeline.report.dag import picture
from pipeline.report.devices import device_rows, torch_rows
from pipeline.report.distributions import spreads
from pipeline.report.engines import engines_of
from pipeline.report.facts import Facts
from pipeline.report.gate_groups import gate_groups
from pipeline.report.links import find_links
from pipeline.report.noise import probe_table, stage_noises
from pipeline.report.noise_specs import layer_spec, noise_specs
from pipeline.report.printable import printable
from pipeline.report.scripts import load_scripts, script_data
from pipeline.report.sizes import size_nodes, size_parts
from pipeline.report.spec_parts import CONFIG
from pipeline.report.specs import (
    error_specs,
    latency_specs,
    lengths_spec,
    size_spec,
    speedup_spec,
    spread_spec,
)
from pipeline.report.summary import (
    VERDICT_WORDS,
    blame,
    failed_nodes,
    headline,
    is_build_breaking,
    is_ranked,
    place,
    problems,
    qualities,
    shape_heading,
    stage_errors,
    summarise,
)
from pipeline.report.verdicts import causes, unexplained
from pipeline.report.writing import writing_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from jinja2 import Environment

    from pipeline.report.checks import ShownCheck
    from pipeline.report.distributions import Spread
    from pipeline.report.noise import StageNoise
    from pipeline.report.schema import NodeReport, Report
    from pipeline.report.spec_parts import Spec

MAX_ROWS = 1000
"""Of one table; the page says how many it leaves out."""

MAX_BROKEN_ROWS = 30
"""Gates that do not hold and are not folded."""

MAX_OPEN_GATES = 12
"""So few gates that all hold are not folded."""

SIGNS = {
    "passed": "✓",
    "partly": "◐",
    "failed": "✕",
    "error": "!",
    "not_run": "○",
    "hit": "=",
    "ran": "▸",
    "skipped": figures.NONE,
}
"""Shown beside every verdict and state, so that colour is never the only sign."""

FUSION_KEYS = ("fusions", "attention_layers", "coverage")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """One fusion pattern of one node."""

    name: str
    fired: float | None
    refused: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fusions:
    """What one node fused."""

    node: str
    attention: str
    coverage: tuple[tuple[str, float], ...]
    patterns: tuple[Pattern, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """Whatever else a node said."""

    node: str
    rows: tuple[tuple[str, str], ...]


def render_html(report: Report) -> str:
    """The report as one self-contained HTML page."""
    shown = printable(report)
    spread, noises = spreads(report), stage_noises(report)
    checks, faults = shown_checks(shown), causes(shown)
    charts = _charts(shown, spread, noises, checks)
    groups = gate_groups(shown)
    page = _environment().get_template("report.html")
    return page.render(
        report=shown,
        headline=headline(shown),
        causes=faults,
        unexplained=unexplained(shown),
        noises=tuple(zip(shown.targets, noises, strict=True)),
        has_loud=any(not row.holds for table in noises for row in table),
        probes=probe_table(report),
        checks=checks,
        accused={cause.node for cause in faults},
        cases=case_table(shown),
        links=find_links(shown, checks, faults),
        worst={sample.target: sample for sample in reversed(shown.worst_samples)},
        lasts={target.name: target.parity[-1].node for target in shown.targets if target.parity},
        targets=summarise(shown),
        qualities=qualities(shown),
        shape_heading=shape_heading(shown),
        failed=failed_nodes(shown),
        groups=groups,
        is_short=not groups.broken and len(shown.gates) <= MAX_OPEN_GATES,
        is_ranked=is_ranked(shown),
        error_charts=error_charts(shown),
        spreads=spread,
        speed_charts=speed_charts(shown),
        writing=writing_of(shown),
        elsewhere=ELSEWHERE,
        device_rows=tuple(device_rows(shown)),
        torch_rows=tuple(torch_rows(shown)),
        size_bars=size_bars(shown),
        size_parts=tuple((target.name, size_parts(target)) for target in shown.targets),
        sample_sizes=tuple(_lengths(shown)),
        picture=picture(shown.nodes),
        fusions=tuple(found for node in shown.nodes if (found := _fusions(node))),
        engines=engines_of(shown),
        facts=tuple(other for node in shown.nodes if (other := _other_facts(shown, node))),
        environment=Facts(shown.environment).rows(),
        source=Facts(shown.source).rows(),
        recipe=json.dumps(shown.recipe, indent=2, ensure_ascii=False, default=str),
        max_rows=MAX_ROWS,
        max_broken=MAX_BROKEN_ROWS,
        charts=charts,
        **_drawing(charts),
    )


def _charts(
    shown: Report,
    spread: Sequence[Spread],
    noises: Sequence[Sequence[StageNoise]],
    checks: Sequence[ShownCheck],
) -> dict[str, Spec]:
    """Name of its place in the page -> chart, of all that there are numbers for."""
    noise = noise_specs([target.name for target in shown.targets], noises)
    found: dict[str, Spec | None] = {f"noise:{name}": spec for name, spec in noise.items()}
    found |= {
        f"error:{name}": spec for name, spec in error_specs(shown).items() if name not in noise
    }
    found |= {f"layers:{c.place}": layer_spec(c.walk) for c in checks if c.walk is not None}
    found["spread"] = spread_spec(spread)
    found |= {f"latency:{at}": spec for at, spec in latency_specs(shown).items()}
    found["speedup"] = speedup_spec(shown)
    found["size"] = size_spec(size_nodes(shown))
    found |= {f"lengths:{sizes.axis}": lengths_spec(sizes) for sizes in shown.sample_sizes}
    return {name: spec for name, spec in found.items() if spec is not None}


def _drawing(charts: Mapping[str, Spec]) -> dict[str, object]:
    """What draws the charts. All of it is ours or escaped here, so Jinja2 must not escape it."""
    import markupsafe

    if not charts:
        return {"script_policy": "", "chart_data": "", "scripts": ()}
    scripts = load_scripts()
    data = script_data({"config": CONFIG, "charts": charts})
    return {
        "script_policy": markupsafe.Markup(f"script-src {scripts.policy}; "),  # noqa: S704 - ours
        "chart_data": markupsafe.Markup(data),  # noqa: S704 - escaped by `script_data`
        "scripts": tuple(markupsafe.Markup(text) for text in scripts.texts),  # noqa: S704 - ours
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """How large the evaluation samples are along one axis; the median is by nearest rank."""

    axis: str
    samples: int
    least: int
    median: int
    most: int


def _lengths(report: Report) -> Iterator[Lengths]:
    for sizes in report.sample_sizes:
        each = [size for size, count in sizes.counts for _ in range(count)]
        if each:
            yield Lengths(
                axis=sizes.axis,
                samples=len(each),
                least=each[0],
                median=each[round(0.5 * (len(each) - 1))],
                most=each[-1],
            )


@functools.cache
def _environment() -> Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for form in (
        *(figures.figure, figures.cosine, figures.metric, figures.judged, figures.decibels),
        *(figures.size, figures.mebibytes, figures.milliseconds, figures.seconds),
        *(figures.ratio, figures.percent, figures.per_second, figures.plural, figures.sentence),
        *(figures.signed, figures.times, figures.score, figures.drop, figures.limit, place),
        *(figures.share, figures.quality, figures.lost, figures.interval),
        clipped,
    ):
        environment.filters[form.__name__] = form
    environment.globals.update(signs=SIGNS, words=VERDICT_WORDS)
    environment.globals.update(stage_errors=stage_errors, problems=problems)
    environment.globals.update(is_build_breaking=is_build_breaking, blame=blame)
    return environment


def _fusions(node: NodeReport) -> Fusions | None:
    facts = Facts(node.facts)
    patterns = tuple(
        Pattern(
            name=name,
            fired=pattern.number("fired"),
            refused=tuple((r.text("node"), r.text("reason")) for r in pattern.records("refused")),
        )
        for name, pattern in facts.child("fusions").children()
    )
    if not patterns:
        return None
    layers = facts.child("attention_layers")
    found, fused = layers.number("found"), layers.number("fused")
    return Fusions(
        node=node.name,
        attention=(
            ""
            if found is None or fused is None
            else f"{figures.figure(fused)} of {figures.figure(found)} attention layers fused"
        ),
        coverage=facts.child("coverage").numbers(),
        patterns=patterns,
    )


def _other_facts(report: Report, node: NodeReport) -> NodeFacts | None:
    """The facts of a node that no other section shows."""
    told = {engine.node for target in report.targets for engine in target.engines}
    told |= {entry.node for target in report.targets for entry in target.checks}
    if node.name in told:
        return None
    known = ("weights", *(FUSION_KEYS if "fusions" in node.facts else ()))
    rows = Facts(node.facts).rows(known=known)
    return NodeFacts(node=node.name, rows=rows) if rows else None
