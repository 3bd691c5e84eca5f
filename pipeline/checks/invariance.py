"""The same sample must come out the same, whatever else is in the batch and however it is padded.

A graph is held against itself (`pipeline.parity.arrangements`). How much it may differ follows from
what it computes with, which the graph itself says:

- Scales taken at run time are of the whole batch, so a sample differs by nature: only measured,
  unless the recipe sets a limit. (MiniLM with dynamic INT8: 0.36 of the output's size; the four
  small trained models 0.004 to 0.013.)
- Whatever else rounds the same numbers in another order. Twice the tolerance of the arithmetic is
  allowed, for both sides round. (Float32: 3.9e-7 was measured where 1.8e-5 is allowed; float16 6.8e-4
  where 0.02 is.)
- With scales taken beforehand, equal inputs give equal integers: most rows came out equal to 4e-7,
  for both placements. But where a last bit differs before a rounding at a half, an integer flips and
  takes others along. The worst rows as TensorRT gets them: 0.08 in 32 samples of MiniLM, 0.004 in 40
  of a trained model; none for ONNX Runtime. With weights changed by one unit in the last place: 0.24
  and 0.16. So where there are rows enough, most must be as equal as the arithmetic around the
  integers allows, and all must resemble themselves.
"""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import Field

from pipeline.checks.base import Check, Limits, Measured, PlannedCheck, Subject
from pipeline.parity.tolerances import TOLERANCES
from pipeline.stages.invariance import INVARIANCE as STAGE
from pipeline.stages.invariance import InvarianceConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.parity.tolerances import Arithmetic
    from pipeline.parity.types import GateResult

NAME = "invariance"

BOTH_ROUND: Final = 2.0
"""A sample alone and the same in company are both off by what the arithmetic allows."""

FLIPPED: Final = 0.5
"""Noise of a row in which integers flipped: twice the 0.24 that was measured."""

REPEATED: Final = "repeated"
ENOUGH_ROWS: Final = 4
"""Rows of which most must be equal; of fewer, all may hold a flipped integer."""

SENTENCES: Final[Mapping[str, str]] = {
    "batch": "in a batch with others",
    "padding": "with more padding",
    "smallest": "at the smallest shape",
    "longest": "at the largest length, or beside it",
    "largest_batch": "in the largest batch",
    "largest": "at the largest batch and length",
    "masked_neighbour": "beside a row that is masked altogether",
}


class InvarianceLimits(Limits):
    """How much a sample may change with its neighbours and its padding.

    Attributes:
        noise: For every row of every target in place of the derived limits.
    """

    noise: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="largest RMSE over the size of the output; default: what the arithmetic allows, "
        "and only measured where scales are taken at run time",
    )


def _plan(subject: Subject, limits: InvarianceLimits) -> Iterator[PlannedCheck]:
    """Of the first graph and of the delivered one: what lies between is compared with the checkpoint.

    Not of decoders: their inputs depend on one another (positions on the mask, the mask on the
    cache), which arrangements know nothing of. Generation has checks of its own for batches,
    padding and lengths.
    """
    del limits
    if subject.task.has_cache:
        return
    for link in {link.node: link for link in (subject.links[0], subject.links[-1])}.values():
        yield PlannedCheck(
            link=link,
            config=InvarianceConfig(
                optimizations=link.model.optimizations,
                extents=dict(subject.profile),
            ),
            inputs={
                "model": link.node,
                "samples": subject.samples,
                "probes": subject.probes,
                "reference": subject.reference,
            },
        )


def _judge(measured: Measured, limits: InvarianceLimits) -> tuple[GateResult, ...]:
    return tuple(_results(measured, limits))


def _results(measured: Measured, limits: InvarianceLimits) -> Iterator[GateResult]:
    facts = measured.facts
    for problem in facts["problems"][:1]:
        yield measured.result(NAME, "problems", float(len(facts["problems"])), "<= 0", problem)
    random = facts["random_nodes"]
    if random:
        reason = f"every run draws other numbers: {', '.join(random[:3])}"
        yield measured.result(NAME, "random_nodes", float(len(random)), "<= 0", reason)
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for fact in facts["cases"]:
        groups.setdefault((fact["output"], fact["case"]), []).append(fact)
    for (output, case), variants in groups.items():
        yield _judge_case(measured, limits, output, case, variants)


def _judge_case(
    measured: Measured,
    limits: InvarianceLimits,
    output: str,
    case: str,
    variants: Sequence[Mapping[str, Any]],
) -> GateResult:
    metric = f"{output}.{case}"
    broken = next((variant for variant in variants if variant["problem"]), None)
    if broken is not None:
        how = f"{SENTENCES[case]} ({broken['variant']}): " if case in SENTENCES else ""
        return measured.result(NAME, metric, None, "works", how + broken["problem"])
    rows = [
        (math.inf if noise is None else float(noise), sample, variant["variant"])
        for variant in variants
        for noise, sample in zip(variant["noises"], variant["samples"], strict=True)
    ]
    noise, sample, variant = max(rows, default=(0.0, -1, ""))
    most, half = _limits(measured, limits, output) if case != REPEATED else (0.0, None)
    value = noise if math.isfinite(noise) else None
    if most is None:
        return measured.result(NAME, metric, value, "only measured", "")
    where = f"sample {sample} comes out differently {SENTENCES.get(case, '')} ({variant})"
    middle = statistics.median_low([row[0] for row in rows]) if rows else 0.0
    if half is not None and len(rows) >= ENOUGH_ROWS and half < middle <= noise <= most:
        where += ", and half of all rows are off by more than last bits"
        return measured.result(NAME, metric, middle, f"<= {half:.3g}", where)
    return measured.result(NAME, metric, value, f"<= {most:.3g}", where if noise > most else "")


def _limits(
    measured: Measured, limits: InvarianceLimits, output: str
) -> tuple[float | None, float | None]:
    """Largest noise of any row, and of half of the rows; None for what is only measured."""
    if limits.noise is not None:
        return limits.noise, None
    if measured.arithmetic != "quantized":
        return _derived(measured, measured.arithmetic, output), None
    if measured.facts["scales_at_run_time"]:
        return None, None
    half = _derived(measured, measured.facts["least_float"], output)
    return max(FLIPPED, half), half


def _derived(measured: Measured, arithmetic: Arithmetic, output: str) -> float:
    floor = measured.floors.get(output)
    floor_value = max(floor.float64, floor.threads) if floor else 0.0
    return BOTH_ROUND * TOLERANCES[arithmetic].limit(floor_value)


INVARIANCE = Check(name=NAME, stage=STAGE, plan=_plan, judge=_judge, is_run=True)
