"""The one screen of `convert check`: verdict, why, which samples are worst, what to do. Plain text."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from pipeline.report import figures
from pipeline.report.printable import printable
from pipeline.report.summary import broken_gates, delivered, failed_nodes, headline

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pipeline.parity.types import GateResult
    from pipeline.report.schema import Report

WIDTH = 100
MAX_BROKEN = 6
MAX_WORST = 3
MAX_TEXT = 60
QUESTIONS = {
    "companions": "tokenizer and configuration are the checkpoint's",
    "stages": "the same numbers, as exactly as its arithmetic allows",
    "parity": "close to the checkpoint on the samples",
    "quality": "as many right answers",
    "generation": "what it writes with its cache is what the checkpoint writes",
    "invariance": "the same sample comes out the same",
    "speed": "not slower than torch",
    "coverage": "as much quantised as asked for",
    "device_parity": "the same on the device",
}
"""Gate -> what it asks, in the order in which they are told: a wrong tokenizer or another model first."""


def render_check(
    report: Report, *, precision: str, assumed: Sequence[str], notes: Sequence[str]
) -> str:
    """The result of a check; ends with a newline.

    Args:
        report: Of the check: one target.
        precision: What the candidate computes with.
        assumed: What nobody said, a sentence each.
        notes: What was found of its inputs and outputs.
    """
    shown = printable(report)
    lines = [f"{shown.verdict.upper()}  {_sentence(shown)}", ""]
    lines += _facts(shown, precision)
    lines += ["", *_table(shown)]
    broken = broken_gates(shown)
    if broken:
        lines += ["", "why:", *_broken(broken)]
    for node in failed_nodes(shown):
        failure = node.failure
        lines += ["", f"{node.name} failed: {failure.message if failure else ''}"]
        if failure is not None and failure.hint:
            lines.append(f"  hint: {failure.hint}")
    asked = [gate for gate in shown.gates if gate.verdict == "not_run" and gate.is_allowed]
    if asked:
        lines += ["", "not run:"]
        lines += [line for gate in asked for line in _item(f"{gate.metric}: {gate.reason}")]
    worst = list(_worst(shown))
    if worst:
        lines += ["", "worst samples:", *worst]
    found = dict.fromkeys((*notes, *_notices(shown)))
    for title, sentences in (("found:", found), ("assumed:", assumed), ("do:", advice(shown))):
        if sentences:
            lines += ["", title, *(line for each in sentences for line in _item(each))]
    return "\n".join(lines) + "\n"


def _sentence(report: Report) -> str:
    if report.verdict == "passed":
        return f"the candidate computes what the checkpoint computes: {headline(report)}"
    if report.verdict == "failed":
        return f"the candidate is not what the checkpoint is: {headline(report)}"
    return f"the candidate could not be checked: {headline(report)}"


def _facts(report: Report, precision: str) -> list[str]:
    adopted = next((node.facts for node in report.nodes if node.stage == "adopt"), {})
    made = f"opset {adopted['opset']}" if adopted.get("opset") else ""
    by = str(adopted.get("producer", ""))
    size = figures.size(int(adopted["size_bytes"])) if adopted.get("size_bytes") else ""
    told = ", ".join(filter(None, (precision, size, made, f"made by {by}" if by else "")))
    target = report.recipe["targets"][0]
    name = target["model"] + (f" ({target['file']})" if target.get("file") else "")
    samples = next(
        (link.parity.samples_seen for t in report.targets for link in delivered(t) if link.parity),
        0,
    )
    return [
        f"  candidate  {name}: {told}",
        f"  reference  {report.source['source']}, {report.recipe['model']['task']}",
        f"  samples    {samples:,} of {report.recipe['data']['evaluation']['source']}",
    ]


def _table(report: Report) -> Iterator[str]:
    """A line for each kind of gate: how many hold, and the one that is nearest to its limit."""
    for kind in _ordered(gate.gate for gate in report.gates):
        gates = [gate for gate in report.gates if gate.gate == kind]
        held = sum(gate.verdict == "passed" for gate in gates)
        unrun = sum(gate.verdict == "not_run" for gate in gates)
        # What makes no sense for this graph is told below, and is nothing against it.
        holds = all(gate.is_allowed for gate in gates)
        state = "not run" if unrun == len(gates) else "ok" if holds else "FAILED"
        question = QUESTIONS.get(kind, kind.replace("_", " "))
        skipped = f", {unrun} not run" if unrun and unrun < len(gates) else ""
        yield f"  {state:8} {question} ({held} of {len(gates)}{skipped})"


def _ordered(kinds: Iterable[str]) -> list[str]:
    """Each kind of gate once, those that explain the others first."""
    known = [*QUESTIONS]
    found = [*dict.fromkeys(kinds)]
    return sorted(found, key=lambda kind: known.index(kind) if kind in known else len(known))


def _notices(report: Report) -> Iterator[str]:
    """What was noticed of the graph and of the files beside it, and fails nothing."""
    for node in report.nodes:
        if node.stage in {"adopt", "check_companions"}:
            yield from node.facts.get("warnings", ())


def _broken(gates: Sequence[GateResult]) -> Iterator[str]:
    order = _ordered(gate.gate for gate in gates)
    ranked = sorted(gates, key=lambda gate: order.index(gate.gate))
    for gate in ranked[:MAX_BROKEN]:
        if gate.verdict == "not_run":
            yield from _item(f"{gate.metric} was not run, because {gate.reason}")
            continue
        measured = figures.judged(gate.metric, gate.measured, holds=False)
        # Of parity the reason is the number and the limit once more.
        because = f": {gate.reason}" if gate.reason and gate.gate != "parity" else ""
        yield from _item(f"{gate.metric} is {measured}, the limit is {gate.limit}{because}")
    if len(gates) > MAX_BROKEN:
        yield f"  and {len(gates) - MAX_BROKEN:,} more, see the report"


def _worst(report: Report) -> Iterator[str]:
    ranked = sorted(report.worst_samples, key=lambda each: each.value, reverse=True)
    for sample in ranked[:MAX_WORST]:
        text = textwrap.shorten(sample.text, MAX_TEXT, placeholder=" ...")
        yield f"  {sample.index:>5}  {sample.output} {sample.metric} {sample.value:.3g}  {text}"


def advice(report: Report) -> tuple[str, ...]:
    """What to do about the gates that do not hold, the likeliest cause first."""
    broken = broken_gates(report)
    kinds = {gate.gate for gate in broken}
    arithmetic = next(
        (link.arithmetic for target in report.targets for link in delivered(target)), None
    )
    writes = any(gate.gate == "generation" for gate in report.gates)
    finer = (
        "in smaller blocks, with zero points, or by a method that looks at data"
        if writes
        else "with one scale a column (per_channel)"
    )
    bits = "few bits" if writes else "8 bits"
    found = []
    if "companions" in kinds:
        found.append(
            "ship the checkpoint's own tokenizer, processor and config.json with the model: what "
            "differs is named above"
        )
    problems = any(gate.metric.endswith(".problems") for gate in broken)
    if "stages" in kinds and arithmetic == "quantized":
        found.append(
            f"this is farther away than {bits} that are well chosen: check the float model it was "
            f"quantised from (convert check FLOAT.onnx ...); if that is right, quantise it {finer}"
        )
    elif problems:
        found.append("repair what is named above; the numbers after it say little until then")
    elif "stages" in kinds:
        found.append(
            "it computes something else than this checkpoint: other weights, another version, or a "
            "fault of the export; export it again from this checkpoint and check that"
        )
    if "parity" in kinds and "stages" not in kinds:
        found.append(
            f"the quantisation costs more than these limits allow: quantise {finer}, or give limits of "
            "your own with --recipe"
            if arithmetic == "quantized"
            else "give limits of your own with --recipe, if this is near enough for you"
        )
    if any(gate.metric.endswith((".itself", ".as_written")) for gate in broken):
        found.append(
            "read with its cache it writes something else than read whole: look at positions behind a "
            "past, at the mask, and at how keys and values are joined and handed on"
        )
    if "invariance" in kinds:
        found.append(
            "results depend on neighbours or padding: look for sizes that were built in when it was "
            "exported, and for masks that are not used"
        )
    if any(gate.verdict == "not_run" for gate in broken):
        found.append("run it where it can run, or accept that it stays unchecked: --allow-not-run")
    return tuple(found)


def _item(sentence: str) -> list[str]:
    return textwrap.wrap(
        sentence,
        WIDTH,
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
