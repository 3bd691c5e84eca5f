"""A decoder writes what the checkpoint would write: with its cache, in batches, behind any past.

Two things are asked. A text that is read whole must give the checkpoint's logits, as exactly as the
arithmetic allows (`pipeline.parity.tolerances`). And however else it is read - token by token, in
chunks, beside others with padding in front, with the rows of the cache exchanged, at the end of the
longest text - it must give the graph's *own* logits, and leave its own cache: what the cache does is
no matter of how coarse the weights are.

How far a graph may be from itself: twice the tolerance of its arithmetic, for both sides round.
Where activations are quantised, a last bit flips integers, and scales taken at run time are of all that
is fed. So each way is as far from the checkpoint as quantisation makes it, and the two are at most twice
that apart. ONNX Runtime 1.31 computes weights in few bits with 8-bit activations too (a text token by
token was 0.01 from itself, in chunks 0). Such graphs are also read as they are written, where only sums
round, and there the arithmetic of the sums is the measure (4e-7).

What follows of the noise that is allowed (`pipeline.parity.generation_limits` has the formulas): how far one
logit may be off, which divergence and which change of perplexity that makes, and which two tokens may
trade places, a near tie. Of quantised graphs these are only measured, unless the recipe limits them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import Field

from pipeline.checks.base import Check, Limits, Measured, PlannedCheck, Subject
from pipeline.errors import RecipeError
from pipeline.parity.generation_limits import (
    kl_limit,
    largest_error,
    near_tie,
    perplexity_limit,
)
from pipeline.parity.tolerances import SMALLEST_FLOOR, TOLERANCES, floor_value
from pipeline.parity.types import SENSELESS
from pipeline.stages.check_generation import (
    CHECK_GENERATION,
    CHECKPOINT_PORT,
    MODEL_PORT,
    REFERENCE_PORT,
    SAMPLES_PORT,
    CheckGenerationConfig,
)
from pipeline.targets.base import SourceRef

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pipeline.parity.types import GateResult

NAME = "generation"
TASK: Final = "text-generation"
MEASURED: Final = "only measured"
BOTH_ROUND: Final = 2.0
"""Two ways to read one text are both off by what the arithmetic allows."""

SENTENCES: Final[Mapping[str, str]] = {
    "whole": "read whole",
    "prefill": "read whole",
    "token_by_token": "read token by token",
    "chunked": "read in chunks",
    "left_padded": "read beside others with padding in front",
    "batched": "read beside others of one length",
    "padded_sources": "read beside others with longer sources",
    "reordered": "read behind a cache whose rows were exchanged",
    "longest": "at the end of the longest text",
}


class GenerationLimits(Limits):
    """How far a decoder may be from the checkpoint and from itself.

    Attributes:
        noise: In place of the derived limit against the checkpoint.
        kl, top1, top5, perplexity: In place of what follows of the noise.
        tokens: By how many tokens texts are continued.
    """

    noise: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="largest RMSE of logits over their size, against the checkpoint; default: what "
        "the arithmetic allows",
    )
    kl: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="largest mean divergence from the checkpoint over all positions, nats; default: "
        "what follows of the noise, and only measured for quantised graphs",
    )
    top1: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="smallest share of positions with the same likeliest token; default: only near "
        "ties may differ, and only measured for quantised graphs",
    )
    top5: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="smallest share of the checkpoint's five likeliest tokens that are kept; "
        "default: only measured",
    )
    perplexity: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="largest ratio of perplexities, by the upper end of its 95 % interval; default: "
        "what follows of the noise, and only measured for quantised graphs",
    )
    tokens: Annotated[int, Field(ge=1)] = Field(
        default=16, description="by how many tokens texts are continued"
    )


def _plan(subject: Subject, limits: GenerationLimits) -> Iterator[PlannedCheck]:
    """Of the first graph and of the delivered one, of decoders."""
    if subject.task.name != TASK:
        return
    longest = subject.profile["sequence"][2]
    if "tokens" in limits.model_fields_set and limits.tokens >= longest:
        raise RecipeError(
            f"`generation.tokens` continues texts by {limits.tokens} tokens, and `shapes.sequence` "
            f"goes to {longest} with the prompt",
            where="gates.checks",
            hint="take fewer tokens, or a larger `shapes.sequence.max`",
        )
    for link in {link.node: link for link in (subject.links[0], subject.links[-1])}.values():
        yield PlannedCheck(
            link=link,
            config=CheckGenerationConfig(
                task=subject.task.name,
                component=subject.component,
                optimizations=link.model.optimizations,
                longest=max(2, longest),
                tokens=limits.tokens,
                outputs=link.model.outputs,
            ),
            inputs={
                MODEL_PORT: link.node,
                CHECKPOINT_PORT: SourceRef("checkpoint"),
                SAMPLES_PORT: subject.samples,
                REFERENCE_PORT: subject.reference,
            },
        )


def _judge(measured: Measured, limits: GenerationLimits) -> tuple[GateResult, ...]:
    return tuple(_results(measured, limits))


def _results(measured: Measured, limits: GenerationLimits) -> Iterator[GateResult]:
    facts = measured.facts
    for problem in facts["problems"]:
        yield measured.result(NAME, "problems", float(len(facts["problems"])), "<= 0", problem)
    for fact in facts["cases"]:
        yield _judge_case(measured, limits, fact)
    for absent in facts.get("not_run", ()):
        yield _not_asked(measured, absent)
    if facts["divergence"] is not None:
        yield from _judge_divergence(measured, limits, facts["divergence"])
    if facts["perplexity"] is not None:
        yield _judge_perplexity(measured, limits, facts["perplexity"])
    elif limits.perplexity is not None and facts["divergence"] is not None:
        yield measured.result(
            NAME,
            "perplexity",
            None,
            f"<= {limits.perplexity:.6g}",
            "it was not measured: no evaluation text has a second token to be predicted; give longer ones",
        )
    for against in ("torch", "itself"):
        rows = [row for row in facts["greedy"] if row["against"] == against]
        if rows:
            yield _judge_greedy(measured, limits, against, rows)


def _not_asked(measured: Measured, absent: Mapping[str, str]) -> GateResult:
    """What makes no sense for this graph: no pass, and nothing to hold against it."""
    metric = f"logits.{absent['case']}.itself"
    result = measured.result(NAME, metric, None, SENSELESS, "")
    return result.model_copy(update={"verdict": "not_run", "reason": absent["reason"]})


def _judge_case(
    measured: Measured, limits: GenerationLimits, fact: Mapping[str, Any]
) -> GateResult:
    """One way to read, of logits or of the cache."""
    case, output, is_torch = fact["case"], fact["output"], fact["against"] == "torch"
    metric = f"{output}.{case}"
    if case != "prefill":
        metric += ".checkpoint" if is_torch else f".{fact['against']}"
    if fact["problem"]:
        return measured.result(
            NAME, metric, None, "works", f"{SENTENCES[case]}: {fact['problem']}"
        )
    noises = [math.inf if noise is None else float(noise) for noise in fact["noises"]]
    if not noises:
        return measured.result(NAME, metric, None, "works", f"nothing was {SENTENCES[case]}")
    worst = max(noises)
    sample = fact["samples"][noises.index(worst)]
    limit = (
        _against_checkpoint(measured, limits, output, fact["tensor"])
        if is_torch
        else _against_itself(measured, output, fact["tensor"], is_exact=fact["is_exact"])
    )
    what = f"`{fact['tensor']}`" if output == "cache" else "logits"
    who = f"of sample {sample}, " if sample >= 0 else ""
    than = "the checkpoint's" if is_torch else "those of the text read whole"
    reason = f"{what} {who}{SENTENCES[case]}, are not {than}" if not worst <= limit else ""
    value = worst if math.isfinite(worst) else None
    return measured.result(NAME, metric, value, f"<= {limit:.3g}", reason)


def _judge_divergence(
    measured: Measured, limits: GenerationLimits, found: Mapping[str, Any]
) -> Iterator[GateResult]:
    error = _error(measured, limits)
    derived = None if error is None else kl_limit(error)
    kl = limits.kl if limits.kl is not None else derived
    is_good = kl is None or found["kl_mean"] <= kl
    yield measured.result(
        NAME,
        "kl",
        found["kl_mean"],
        MEASURED if kl is None else f"<= {kl:.3g}",
        "" if is_good else f"shares of tokens differ, most {_place(found['kl_at'])}",
    )
    if limits.top1 is not None or error is None:
        least = limits.top1
        is_good = least is None or found["top1"] >= least
        reason = "" if is_good else f"other tokens are likeliest, as {_place(found['margin_at'])}"
        limit = MEASURED if least is None else f">= {least:g}"
        yield measured.result(NAME, "top1", found["top1"], limit, reason)
    else:
        tie = near_tie(error)
        is_good = found["margin_max"] <= tie
        reason = f"another token is likeliest {_place(found['margin_at'])}, and it is no near tie"
        yield measured.result(
            NAME, "top1_margin", found["margin_max"], f"<= {tie:.3g}", "" if is_good else reason
        )
    is_good = limits.top5 is None or found["top5"] >= limits.top5
    yield measured.result(
        NAME,
        "top5",
        found["top5"],
        MEASURED if limits.top5 is None else f">= {limits.top5:g}",
        "" if is_good else "too few of the checkpoint's likeliest tokens are kept",
    )


def _judge_perplexity(
    measured: Measured, limits: GenerationLimits, found: Mapping[str, Any]
) -> GateResult:
    error = _error(measured, limits)
    derived = None if error is None else perplexity_limit(error)
    limit = limits.perplexity if limits.perplexity is not None else derived
    high = found["interval"][1]
    is_good = limit is None or high <= limit
    reason = (
        f"perplexity goes from {found['reference']:.4g} to {found['candidate']:.4g} "
        f"(times {found['ratio']:.4g}, 95 % interval {found['interval'][0]:.4g} to {high:.4g})"
    )
    return measured.result(
        NAME,
        "perplexity",
        high,
        MEASURED if limit is None else f"<= {limit:.6g}",
        "" if is_good else reason,
    )


def _judge_greedy(
    measured: Measured, limits: GenerationLimits, against: str, rows: list[Mapping[str, Any]]
) -> GateResult:
    """The largest margin of two tokens where two continuations part; 0 when none do."""
    parted = [row for row in rows if row["margin"] is not None]
    worst = max(parted, key=lambda row: row["margin"], default=None)
    if against == "torch":
        error = _error(measured, limits)
    else:
        noise = _against_itself(measured, "logits", "")
        error = largest_error(noise, measured.facts["unit"], measured.facts["vocabulary"])
    metric = "greedy.checkpoint" if against == "torch" else "greedy.itself"
    value = 0.0 if worst is None else float(worst["margin"])
    if error is None:
        return measured.result(NAME, metric, value, MEASURED, "")
    tie = near_tie(error)
    who = "the checkpoint" if against == "torch" else "the graph without a cache"
    reason = ""
    if worst is not None and value > tie:
        reason = (
            f"sample {worst['sample']} is continued by token {worst['token']} behind "
            f"{worst['agreed']} equal ones, {who} writes {worst['expected']}, and it is no near tie"
        )
    return measured.result(NAME, metric, value, f"<= {tie:.3g}", reason)


def _place(at: Mapping[str, int]) -> str:
    return f"at position {at['position']} of sample {at['sample']}"


def _error(measured: Measured, limits: GenerationLimits) -> float | None:
    """How far one logit may be from the checkpoint's; None where only quality says it."""
    if measured.arithmetic == "quantized":
        return None
    noise = _against_checkpoint(measured, limits, "logits", "")
    return largest_error(noise, measured.facts["unit"], measured.facts["vocabulary"])


def _against_checkpoint(
    measured: Measured, limits: GenerationLimits, output: str, tensor: str
) -> float:
    if limits.noise is not None and output == "logits":
        return limits.noise
    return TOLERANCES[measured.arithmetic].limit(_floor(measured, output, tensor))


def _against_itself(
    measured: Measured, output: str, tensor: str, *, is_exact: bool = False
) -> float:
    is_quantized = measured.arithmetic == "quantized"
    sums = measured.facts["least_float"] if is_quantized else measured.arithmetic
    exact = BOTH_ROUND * TOLERANCES[sums].limit(_floor(measured, output, tensor))
    if is_exact or not is_quantized:
        return exact
    away = [
        float(noise)
        for fact in measured.facts["cases"]
        if fact["case"] == "prefill" and fact["output"] in {output, "logits"}
        for noise in fact["noises"]
        if noise is not None
    ]
    most = TOLERANCES["quantized"].ceiling
    return max(exact, min(most, BOTH_ROUND * max(away, default=0.0)))


def _floor(measured: Measured, output: str, tensor: str) -> float:
    """Of the cached tensor itself where it was measured, otherwise of the logits."""
    name = tensor.replace("past_key_values", "present") if output == "cache" else "logits"
    floor = measured.floors.get(name) or measured.floors.get("logits")
    return max(SMALLEST_FLOOR, floor_value(floor))


GENERATION = Check(name=NAME, stage=CHECK_GENERATION, plan=_plan, judge=_judge, is_run=True)
