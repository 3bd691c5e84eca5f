"""Converts one entry of the zoo to every target by a recipe, and says what came of each."""

from __future__ import annotations

import copy
import json
import string
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.build import BuildOptions, build
from pipeline.errors import PipelineError
from pipeline.recipe import load_recipe_file
from pipeline.tasks import CHOICES_AXIS, SEQUENCE_AXIS, find_task
from tests.architectures.zoo import Entry, build_checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pipeline.parity.types import GateResult
    from pipeline.report.schema import Report

TARGETS: dict[str, dict[str, Any]] = {
    "cpu-fp32": {"runtime": "onnxruntime", "precision": "fp32"},
    "cpu-int8": {
        "runtime": "onnxruntime",
        "precision": "int8",
        "quantization": {"mode": "dynamic", "per_channel": True},
    },
    "rtx-fp16": {
        "runtime": "tensorrt-rtx",
        "precision": "fp16",
        "compute_capability": ["sm89"],
    },
}

PARITY: dict[str, dict[str, dict[str, float]]] = {
    "cpu-fp32": {"cosine_similarity": {"min": 0.9999}, "relative_l2": {"max": 1e-4}},
    # Random weights have no redundancy, so they suffer more than trained ones.
    "cpu-int8": {"cosine_similarity_mean": {"min": 0.99}},
    "rtx-fp16": {"cosine_similarity": {"min": 0.999}, "relative_l2": {"max": 0.02}},
}
CONVOLUTIONAL = {"ResNet"}
"""Have next to no matrix products, and convolutions are quantised statically only."""

QUESTIONS_FILE = "questions.jsonl"
SHAPES = {
    "batch": {"min": 1, "opt": 2, "max": 4},
    SEQUENCE_AXIS: {"min": 4, "opt": 24, "max": 64},
    CHOICES_AXIS: {"min": 2, "opt": 2, "max": 4},
}


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one target of one entry.

    Attributes:
        target: Its name.
        reason: Why it failed; empty when it holds all its gates.
        measured: Worst cosine similarity and the coverage, for people.
    """

    target: str
    reason: str
    measured: str


def recipe_for(entry: Entry, checkpoint: Path) -> dict[str, Any]:
    """The recipe of an entry: the same for all but for the axes and the data."""
    task = find_task(entry.task)
    source = _source(entry)
    data = {"evaluation": {"source": source, "samples": 12, "seed": 0}}
    targets = copy.deepcopy(TARGETS)
    if entry.architecture in CONVOLUTIONAL:
        targets["cpu-int8"]["quantization"] = {"mode": "static"}
        data["calibration"] = {"source": source, "samples": 64, "seed": 1}
    return {
        "recipe": 1,
        "name": str(entry).lower().replace(".", "-"),
        "model": {"source": str(checkpoint), "task": entry.task},
        "shapes": {axis: SHAPES[axis] for axis in task.axes},
        "data": data,
        "targets": [{"name": name, **target} for name, target in targets.items()],
        "gates": {
            "parity": PARITY["cpu-fp32"],
            # The patches of a tiny image model are half of its weights, and stay float.
            "coverage": {"quantized_weights": {"min": 0.5}},
            "targets": {name: {"parity": limits} for name, limits in PARITY.items()},
            "allow_not_run": ["device_parity"],
        },
        "benchmark": None,
    }


def _source(entry: Entry) -> str:
    if find_task(entry.task).modality == "image":
        return "builtin:synthetic-images"
    # A character is a token here, and questions are never cut: those of the texts are too long.
    return QUESTIONS_FILE if entry.task == "question-answering" else "builtin:stdlib-docstrings"


def write_questions(path: Path) -> None:
    """Short questions with their contexts, one a line."""
    with path.open("w", encoding="utf-8") as file:
        for index in range(12):
            row = {
                "question": f"name {index * 7} of?"[: 6 + index],
                "context": f"the file {index} is {string.ascii_lowercase[: 2 * index + 1]} of a name",
            }
            file.write(f"{json.dumps(row)}\n")


def convert_entry(entry: Entry, folder: Path) -> tuple[Row, ...]:
    """Convert an entry to every target.

    Args:
        entry: What to convert.
        folder: Takes the checkpoint, the recipe, the store and the artifact.
    """
    checkpoint = build_checkpoint(entry, folder / "checkpoint")
    write_questions(folder / QUESTIONS_FILE)
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps(recipe_for(entry, checkpoint), indent=1), encoding="utf-8")
    options = BuildOptions(
        output=folder / "artifacts", store=folder / "store", threads=1, jobs=1, has_forecast=False
    )
    try:
        result = build(load_recipe_file(recipe), options)
    except PipelineError as err:
        return tuple(Row(name, str(err), "") for name in TARGETS)
    return _rows(result.report(), result.reasons)


def _rows(report: Report, reasons: tuple[str, ...]) -> tuple[Row, ...]:
    nodes = {node.name: node for node in report.nodes}
    rows = []
    for name in TARGETS:
        target = next((target for target in report.targets if target.name == name), None)
        chain = [nodes[node] for node in target.nodes] if target else []
        faults = [f"{node.name}: {node.failure.message}" for node in chain if node.failure]
        gates = [gate for gate in report.gates if gate.target == name]
        faults += [
            f"{gate.gate} {gate.metric} {gate.measured} {gate.limit} {gate.reason}".strip()
            for gate in gates
            if not (gate.verdict == "passed" or gate.is_allowed)
        ]
        if not faults and not (target and target.files and any(gate.measured for gate in gates)):
            faults = list(reasons) or ["nothing was measured"]
        rows.append(Row(name, "; ".join(faults), _measured(gates, [node.facts for node in chain])))
    return tuple(rows)


def _measured(gates: Sequence[GateResult], facts: Sequence[Mapping[str, Any]]) -> str:
    cosines = [
        gate.measured
        for gate in gates
        if "cosine" in gate.metric and isinstance(gate.measured, float)
    ]
    coverage: dict[str, float] = {}
    for fact in facts:
        coverage |= fact.get("coverage", {})
    shown = [f"cosine {min(cosines):.5f}"] if cosines else []
    shown += [
        f"{name} {share:.2f}"
        for name, share in sorted(coverage.items())
        if name in {"fused_attention", "quantized_weights", "fp16_weights", "fp16_gemms"}
    ]
    return ", ".join(shown)
