"""The parts of a draft, from what was found out: shapes, data, targets, limits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.drafting.measure import SEED
from pipeline.drafting.targets import parity_limits
from pipeline.drafting.write import LINE_WIDTH, commented, line, remark, written
from pipeline.tasks import CHOICES_AXIS, SEQUENCE_AXIS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.drafting.measure import Examined
    from pipeline.drafting.targets import Candidate
    from pipeline.hashing import JSON
    from pipeline.tasks import Task

Range = dict[str, int]

BATCH: Range = {"min": 1, "opt": 8, "max": 32}
PAIR_BATCH: Range = {"min": 1, "opt": 4, "max": 8}
PAIR_SAMPLES = 32
"""A decoder's samples hold keys and values of every source."""
USUAL_TOKENS = 128
MOST_TOKENS = 512
LENGTH_STEP = 8
"""Lengths are rounded up to it: kernels of GPUs work on eight rows at a time, or multiples of it."""
FEWEST_TOKENS = 2
BUILTIN_CHOICES = 4

LABELLED_SAMPLES = 500
"""One answer is then 0.2 points, fine enough for a limit of half a point."""
UNLABELLED_SAMPLES = 64
CALIBRATION_SAMPLES = 128
DROP = 0.005
SPEED = {"min_speedup_over_reference": 1.0, "margin": 0.2}
LEAST_QUANTIZED = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Everything that a draft is made from.

    Attributes:
        source: The checkpoint as the recipe says it.
        revision: Commit of a checkpoint on a hub.
        positions: The longest sequence the checkpoint can take; None when it does not say.
        is_scalar: The checkpoint's head gives one number, not classes.
        evaluation: The user's evaluation data; None for made-up samples.
        calibration: The user's own calibration data; None when it gives none.
        evaluation_source: The evaluation data as the recipe says it.
        calibration_source: The calibration data as the recipe says it.
        targets: All that the draft may have.
    """

    name: str
    source: str
    revision: str | None
    task: Task
    other_tasks: tuple[Task, ...]
    positions: int | None
    is_scalar: bool
    evaluation: Examined | None
    calibration: Examined | None
    evaluation_source: str
    calibration_source: str
    targets: tuple[Candidate, ...]

    @property
    def calibration_data(self) -> Examined | None:
        """Where calibration samples come from, when that is the user's data."""
        return self.calibration or self.evaluation

    @property
    def builtin(self) -> str:
        """The source of made-up samples for the task."""
        images = self.task.modality == "image"
        return "builtin:synthetic-images" if images else "builtin:stdlib-docstrings"

    @property
    def is_labelled(self) -> bool:
        """Right answers can be counted."""
        return self.evaluation is not None and self.evaluation.is_labelled

    def counts(self, *, has_calibration: bool) -> tuple[int, int]:
        """How many samples are for evaluation and for calibration.

        From one file both are taken, apart from each other while the rows suffice.
        """
        wanted = LABELLED_SAMPLES if self.is_labelled else UNLABELLED_SAMPLES
        wanted = PAIR_SAMPLES if self.task.parts else wanted
        if self.calibration is not None:
            calibration = min(CALIBRATION_SAMPLES, self.calibration.measured.rows)
        elif self.evaluation is None:
            calibration = CALIBRATION_SAMPLES
        else:
            calibration = max(1, min(CALIBRATION_SAMPLES, self.evaluation.measured.rows // 3))
        if self.evaluation is None:
            return wanted, calibration
        rows = self.evaluation.measured.rows
        is_shared = has_calibration and self.calibration is None
        return max(1, min(wanted, rows - (calibration if is_shared else 0))), calibration

    def shapes(self) -> dict[str, Range]:
        """Axis -> its range."""
        found = {"batch": dict(PAIR_BATCH if self.task.parts else BATCH)}
        if SEQUENCE_AXIS in self.task.axes:
            found[SEQUENCE_AXIS] = self._sequence()
        if CHOICES_AXIS in self.task.axes:
            found[CHOICES_AXIS] = self._choices()
        return found

    def _sequence(self) -> Range:
        limit = self.positions
        usual, most = USUAL_TOKENS, MOST_TOKENS
        if self.evaluation is not None:
            usual = _rounded_up(self.evaluation.measured.length(50))
            most = _rounded_up(self.evaluation.measured.lengths[-1])
        most = most if limit is None else min(most, limit)
        usual = min(usual, most)
        return {"min": min(FEWEST_TOKENS, usual), "opt": usual, "max": most}

    def _choices(self) -> Range:
        if self.evaluation is None:
            return dict.fromkeys(("min", "opt", "max"), BUILTIN_CHOICES)
        choices = self.evaluation.measured.choices
        return {"min": choices[0], "opt": choices[len(choices) // 2], "max": choices[-1]}

    def evaluation_document(self, *, has_calibration: bool) -> dict[str, JSON]:
        """`data.evaluation`."""
        count, _ = self.counts(has_calibration=has_calibration)
        if self.evaluation is None:
            return {"source": self.builtin, "samples": count, "seed": SEED}
        return {
            "source": self.evaluation_source,
            "samples": count,
            "seed": SEED,
            **_columns(self.evaluation),
        }

    def calibration_document(self) -> dict[str, JSON]:
        """`data.calibration`."""
        _, count = self.counts(has_calibration=True)
        if self.calibration_data is None:
            return {"source": self.builtin, "samples": count, "seed": SEED}
        columns = _columns(self.calibration_data)
        columns.pop("label", None)
        source = self.calibration_source or self.evaluation_source
        return {"source": source, "samples": count, "seed": SEED, **columns}

    def probe(self, candidate: Candidate) -> str:
        """A whole recipe with one target, as JSON."""
        data: dict[str, JSON] = {"evaluation": self.evaluation_document(has_calibration=True)}
        if candidate.needs_calibration:
            data["calibration"] = self.calibration_document()
        parity: JSON = {"cosine_similarity": {"min": 0.9}}
        document: dict[str, JSON] = {
            "recipe": 1,
            "name": self.name,
            "model": {"source": self.source, "task": self.task.name},
            "shapes": {axis: dict(extent) for axis, extent in self.shapes().items()},
            "data": data,
            "targets": [dict(candidate.document)],
            "gates": {"parity": parity},
        }
        return json.dumps(document)


def lay_out(layout: Layout, missing: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """The recipe's text, and what its reader should know.

    Args:
        layout: What was found out.
        missing: Target -> what it needs that is not here.
    """
    used = [
        target
        for target in layout.targets
        if target.name not in missing and not target.is_alternative
    ]
    has_calibration = layout.calibration is not None or any(
        target.needs_calibration for target in used
    )
    lines = [
        *_head(layout),
        *_shapes(layout),
        *_data(layout, has_calibration=has_calibration),
        *_targets(layout, missing),
        *_benchmark(layout),
        *_gates(layout, used, layout.counts(has_calibration=has_calibration)[0]),
    ]
    return "\n".join([*lines, ""]), tuple(_notes(layout))


def _notes(layout: Layout) -> Iterator[str]:
    for option, examined in (("--data", layout.evaluation), ("--calibration", layout.calibration)):
        if examined is None:
            continue
        if examined.note:
            yield f"{option}: labels are not used: {examined.note}"
        if examined.measured.cut:
            yield (
                f"{option}: {examined.measured.cut} of {examined.measured.taken} samples are longer "
                f"than the checkpoint's {layout.positions} positions and will be cut"
            )


def _head(layout: Layout) -> Iterator[str]:
    yield from remark("Drafted by `convert init`; every number is a proposal.")
    yield "recipe: 1"
    yield line(f"name: {written(layout.name)}", f"artifacts/{layout.name}/<version>/")
    yield "model:"
    yield f"  source: {written(layout.source)}"
    if layout.revision:
        yield line(f"  revision: {layout.revision}", "the commit that it was drafted for")
    others = ", ".join(task.name for task in layout.other_tasks)
    yield line(f"  task: {layout.task.name}", f"other tasks that fit: {others}" if others else "")


def _shapes(layout: Layout) -> Iterator[str]:
    yield line("shapes:", "smallest, usual and largest inputs")
    if layout.task.modality != "image":
        yield from remark(_about_lengths(layout), 2)
    for axis, extent in layout.shapes().items():
        yield f"  {axis}: {written(dict(extent))}"


def _about_lengths(layout: Layout) -> str:
    limit = layout.positions
    most = f"the checkpoint has {limit} positions" if limit else "the checkpoint names no limit"
    if layout.evaluation is None:
        return f"Set opt and max to the lengths of your texts, in tokens; {most}."
    measured = layout.evaluation.measured
    rows = f"{measured.rows:,} row{'s' * (measured.rows != 1)}"
    rows = rows if measured.taken == measured.rows else f"{measured.taken:,} of {rows}"
    cut = f", where {measured.cut} were cut" if measured.cut else ""
    return (
        f"Tokens in {rows}: median {measured.length(50)}, 90 % have at most "
        f"{measured.length(90)}, 99 % {measured.length(99)}, all {measured.lengths[-1]}{cut}; {most}."
    )


def _data(layout: Layout, *, has_calibration: bool) -> Iterator[str]:
    yield "data:"
    if layout.evaluation is None:
        yield from remark(
            "Made-up samples. Replace them by your own (a .jsonl, .csv, .tsv or .parquet file"
            + (
                ", or a folder of images): with labels, right answers are counted too."
                if layout.task.modality == "image"
                else "): what holds for these may not hold for them."
            ),
            2,
        )
    elif layout.evaluation.note:
        yield from remark(f"Labels are not used: {layout.evaluation.note}", 2)
    yield f"  evaluation: {written(layout.evaluation_document(has_calibration=has_calibration))}"
    is_possible = any(target.needs_calibration for target in layout.targets)
    calibration = f"  calibration: {written(layout.calibration_document())}"
    if has_calibration:
        if layout.evaluation is not None and layout.calibration is None:
            yield "  # Of the same file, and none of the evaluation samples while rows suffice."
        yield calibration
    elif is_possible:
        yield from commented([calibration], 2)


def _targets(layout: Layout, missing: Mapping[str, str]) -> Iterator[str]:
    yield "targets:"
    for target in layout.targets:
        text = f"  - {written(dict(target.document))}"
        if (reason := missing.get(target.name)) is not None:
            yield from remark(f"Not here: {reason}", 2)
            yield from commented([text], 2)
        elif target.is_alternative:
            yield from remark("Ranges taken beforehand, with data.calibration above:", 2)
            yield from commented([text], 2)
        else:
            is_short = len(text) + len(target.purpose) < LINE_WIDTH
            yield line(text, target.purpose if is_short else "")


def _benchmark(layout: Layout) -> Iterator[str]:
    if layout.task.parts:
        yield line("benchmark: null", "nothing times a decoder behind an encoder against torch")
        return
    shapes = layout.shapes()
    usual = [shapes[axis]["opt"] for axis in layout.task.axes]
    sizes: list[JSON] = [[1, *usual[1:]], [*usual]]
    yield "benchmark:"
    yield line(
        f"  shapes: {written(sizes)}", f"[{', '.join(layout.task.axes)}], timed against torch"
    )


def _gates(layout: Layout, used: Sequence[Candidate], samples: int) -> Iterator[str]:
    yield line("gates:", "a build that does not hold these fails")
    yield f"  parity: {_bounds(parity_limits(layout.task, 'fp32', is_scalar=layout.is_scalar))}"
    if layout.is_labelled:
        yield line(
            f"  quality: {_drop(layout, DROP, samples)}",
            "right answers that are lost, as a share of all",
        )
    if layout.task.parts:
        yield line(
            "  checks: {generation_speed: {tokens: 16}}", "measured: tokens a second, memory"
        )
    else:
        yield line(f"  speed: {written(dict(SPEED))}", "not slower than torch, give or take")
    # Of an encoder and a decoder apart, the table of tokens is most of what stays float in 4 bits.
    is_covered = any(target.document["precision"] == "int8" for target in used)
    if is_covered and not layout.task.parts:
        yield f"  coverage: {{quantized_weights: {{min: {LEAST_QUANTIZED}}}}}"
    if any(target.needs_device for target in used):
        yield line("  allow_not_run: [device_parity, speed]", "where there is no GPU for it")
    own = [target for target in layout.targets if target.parity is not None]
    if not any(target in used for target in own):
        yield "  # targets:"
    else:
        yield line("  targets:", "limits of their own")
    for target in own:
        lines = [f"    {target.name}:", f"      parity: {_bounds(target.parity or {})}"]
        if layout.is_labelled and target.drop is not None:
            lines.append(f"      quality: {_drop(layout, target.drop, samples)}")
        yield from lines if target in used else commented(lines, 4)


def _drop(layout: Layout, share: float, samples: int) -> str:
    """A limit on the loss of right answers that allows a single one: one says nothing yet."""
    assert layout.evaluation is not None
    labelled = samples * layout.evaluation.measured.labelled // layout.evaluation.measured.taken
    least = 1 / max(1, labelled)
    return written({"drop": {"max": max(share, -(-least * 10_000 // 1) / 10_000)}})


def _bounds(limits: Mapping[str, Mapping[str, float]]) -> str:
    return written({name: dict(bound) for name, bound in limits.items()})


def _columns(examined: Examined) -> dict[str, JSON]:
    columns = examined.columns
    choices: JSON = (
        list(columns.choices) if isinstance(columns.choices, tuple) else columns.choices
    )
    named: dict[str, JSON] = {
        "text": columns.text,
        "text_pair": columns.text_pair,
        "choices": choices,
        "image": columns.image,
        "audio": columns.audio,
        "target": columns.target,
        "label": columns.label,
    }
    return {name: column for name, column in named.items() if column is not None}


def _rounded_up(length: int) -> int:
    return -(-length // LENGTH_STEP) * LENGTH_STEP
