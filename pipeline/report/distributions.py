"""How the errors of single samples are spread, for what is delivered."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.report.printable import printable_text
from pipeline.report.summary import delivered

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.parity.types import SampleMetrics
    from pipeline.report.schema import Report

MAX_POINTS = 200
"""Of one output in the chart; of more samples, evenly many of each rank are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The errors of one output of one target, sample by sample.

    Quantiles are by nearest rank: each one is the relative L2 of a real sample.

    Attributes:
        component: Empty when the target has one.
        count: How many samples there are.
        unknown: Samples without a finite relative L2; they are in no quantile.
        points: (index, relative L2), by relative L2, at most `MAX_POINTS`.
        least_cosine: The smallest of all samples; None when none is known.
        top1_agreement: Mean over the samples; None for outputs without ranks.
    """

    target: str
    component: str
    output: str
    is_proxy: bool
    count: int
    unknown: int
    points: tuple[tuple[int, float], ...]
    least: float
    lower: float
    median: float
    upper: float
    p95: float
    most: float
    least_cosine: float | None
    top1_agreement: float | None

    @property
    def series(self) -> str:
        """The output's name, after its component where there are several."""
        return f"{self.component}: {self.output}" if self.component else self.output


def spreads(report: Report) -> tuple[Spread, ...]:
    """Of every output of every target that was compared; names are fit to be shown.

    Args:
        report: As it was recorded: `printable` leaves single samples out.
    """
    return tuple(_spreads(report))


def _spreads(report: Report) -> Iterator[Spread]:
    for target in report.targets:
        links = delivered(target)
        for link in links:
            for output in link.parity.outputs if link.parity else ():
                errors = sorted(_errors(output.samples))
                if not errors:
                    continue
                values = [value for value, _ in errors]
                cosines = _known([s.metrics.cosine_similarity for s in output.samples])
                agreements = _known([s.metrics.top1_agreement for s in output.samples])
                yield Spread(
                    target=printable_text(target.name),
                    component=printable_text(link.component) if len(links) > 1 else "",
                    output=printable_text(output.name),
                    is_proxy=bool(target.proxy),
                    count=len(output.samples),
                    unknown=len(output.samples) - len(errors),
                    points=tuple((index, value) for value, index in _thinned(errors)),
                    least=values[0],
                    lower=_rank(values, 0.25),
                    median=_rank(values, 0.5),
                    upper=_rank(values, 0.75),
                    p95=_rank(values, 0.95),
                    most=values[-1],
                    least_cosine=min(cosines, default=None),
                    top1_agreement=math.fsum(agreements) / len(agreements) if agreements else None,
                )


def _errors(samples: Sequence[SampleMetrics]) -> Iterator[tuple[float, int]]:
    for sample in samples:
        value = sample.metrics.relative_l2
        if value is not None and math.isfinite(value) and value >= 0:
            yield value, sample.index


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def _rank(ordered: Sequence[float], share: float) -> float:
    return ordered[round(share * (len(ordered) - 1))]


def _thinned(ordered: Sequence[tuple[float, int]]) -> Sequence[tuple[float, int]]:
    """At most `MAX_POINTS`, both ends among them."""
    if len(ordered) <= MAX_POINTS:
        return ordered
    last = len(ordered) - 1
    return [ordered[round(place * last / (MAX_POINTS - 1))] for place in range(MAX_POINTS)]
