"""`export.json` in each target's folder, by which `transformers` knows an export.

With it, `transformers.exporters.ExportedModel.from_pretrained("artifacts/minilm/latest/cpu-int8")`
loads the target, once `pipeline.bundle.transformers_backend.register()` was called. Light: this
module writes JSON and imports neither torch nor transformers.
Source of the format: `transformers.exporters.base`, `.metadata`, transformers 5.23.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from pipeline.tasks import SENTENCE_EMBEDDING, find_task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pipeline.report.schema import Report, TargetReport
    from pipeline.tasks import Task

EXPORT_FORMAT: Final = "convert"
EXPORT_FILE: Final = "export.json"
ENGINE_RUNTIMES: Final = ("tensorrt-rtx", "tensorrt")
_SCHEMA_VERSION: Final = 1
_MODULE: Final = "transformers.modeling_outputs"
_OUTPUT_CLASSES: Final = {
    "feature-extraction": "BaseModelOutput",
    "text-classification": "SequenceClassifierOutput",
    "token-classification": "TokenClassifierOutput",
    "question-answering": "QuestionAnsweringModelOutput",
    "fill-mask": "MaskedLMOutput",
    "multiple-choice": "MultipleChoiceModelOutput",
    "image-classification": "ImageClassifierOutput",
    "image-feature-extraction": "BaseModelOutput",
}
_DTYPES: Final = {"fp16": "float16", "bf16": "bfloat16"}


def write_export_files(draft: Path, report: Report) -> None:
    """Write `export.json` into the folder of each target that has one graph, and all that is needed.

    Args:
        draft: The artifact that is being made.
        report: Of it: which targets there are, and what the export found.
    """
    model = report.recipe["model"]
    assert isinstance(model, dict)
    task = find_task(str(model["task"]))
    # `ExportedModel` calls a graph once and knows no cache, so that it could not generate.
    if len(task.components) != 1 or task.has_cache:
        return
    exported = next(
        (node.facts for node in report.nodes if node.stage == "export" and node.facts), None
    )
    if exported is None:
        return
    for target in report.targets:
        folder = draft / target.name
        file = _program_file(target, folder)
        if file:
            document = _document(task, exported, target, file, report.environment, folder)
            text = json.dumps(document, indent=2) + "\n"
            (folder / EXPORT_FILE).write_text(text, encoding="utf-8")


def _program_file(target: TargetReport, folder: Path) -> str:
    """What `export.json` names: the graph, or for engines the first of them; empty without either."""
    if target.runtime in ENGINE_RUNTIMES:
        engines = sorted(path.name for path in folder.glob("*.engine"))
        return engines[0] if engines else ""
    return "model.onnx" if (folder / "model.onnx").is_file() else ""


def _document(
    task: Task,
    exported: Mapping[str, Any],
    target: TargetReport,
    file: str,
    environment: Mapping[str, Any],
    folder: Path,
) -> dict[str, Any]:
    by_name = {spec.name: spec for spec in task.inputs}
    inputs = [by_name[name] for name in exported["inputs"] if name in by_name]
    metadata: dict[str, Any] = {
        "architecture": _architecture(folder),
        "packages": dict(environment.get("packages", {})),
        "export_config": {"export_format": EXPORT_FORMAT, "runtime": target.runtime},
        "export_dtype": _DTYPES.get(target.precision, "float32"),
        "export_device": "cuda" if target.runtime in ENGINE_RUNTIMES else "cpu",
        # Axes have no size here: every one of them is free, within the recipe's shapes.
        "kwargs": {
            spec.name: {"rank": len(spec.axes) or 1, "shape": [], "dtype": spec.dtype}
            for spec in inputs
        },
        "in_spec": None,
        "out_spec": output_spec(task.name, exported["outputs"]),
        "in_constants": {},
        "out_constants": [],
    }
    return {
        "schema_version": _SCHEMA_VERSION,
        "export_format": EXPORT_FORMAT,
        "components": {"model": {"file": file, "metadata": metadata}},
    }


def output_spec(task: str, outputs: Sequence[str]) -> str:
    """What `torch.utils._pytree.treespec_dumps` says of the model's output.

    It is of the task's own class; with a sentence embedding, which no class has, of their base,
    whose fields are read in the same ways.

    Args:
        task: Name of the task.
        outputs: Of the graph, in its order.
    """
    kind = f"{_MODULE}.{_OUTPUT_CLASSES[task]}"
    if SENTENCE_EMBEDDING in outputs:
        kind = "transformers.utils.generic.ModelOutput"
    leaf: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
    spec = {
        "type": kind,
        "context": json.dumps(list(outputs)),
        "children_spec": [leaf] * len(outputs),
    }
    return json.dumps([1, spec])


def _architecture(folder: Path) -> str | None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return str(config["architectures"][0])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None
