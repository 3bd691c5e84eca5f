"""What Optimum's own validator says of graphs that others made; runs in Optimum's environment.

    PEER/bin/python benchmarks/neighbours_optimum.py jobs.json results.json

`neighbours.py` writes the jobs and reads the results. `onnx_export_from_model` does the work, as in
`optimum-cli export onnx`: only where it would export, the graph of the job is put in place of it.
What it makes of the validator's exceptions (a warning, or an error) is thus Optimum's own.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx  # noqa: TID251 - there is no `pipeline` in this environment
import torch
from optimum.exporters.onnx import convert
from optimum.exporters.tasks import TasksManager

AXES = {"batch": "batch_size", "sequence": "sequence_length"}
"""Our names of dynamic axes, and Optimum's, which refuses others whatever the numbers are."""

PACKAGES = ("optimum-onnx", "transformers", "torch", "onnxruntime")


class _Heard(logging.Handler):
    """Keeps what the validator logs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage().strip())


def _place(graph: Path, path: Path) -> list[str]:
    """Writes a graph where Optimum expects its own; the names of its outputs."""
    for file in graph.iterdir():
        shutil.copyfile(file, path.parent / file.name)
    model = onnx.load(graph / "model.onnx", load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in AXES:
                axis.dim_param = AXES[axis.dim_param]
    path.write_bytes(model.SerializeToString())
    return [value.name for value in model.graph.output]


def ask(model: Any, task: str, graph: Path, seed: int) -> dict[str, Any]:
    """Verdict (`silent`, `warns`, `raises`), exit code and last line about one graph."""

    def export_models(*_: Any, output_dir: Path, output_names: list[str], **__: Any) -> Any:
        return None, [_place(graph, Path(output_dir) / output_names[0])]

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - Optimum draws from it
    torch.manual_seed(seed)
    heard = _Heard()
    logger = logging.getLogger(convert.__name__)
    logger.addHandler(heard)
    original, convert.export_models = convert.export_models, export_models
    try:
        with tempfile.TemporaryDirectory() as folder:
            convert.onnx_export_from_model(
                model=model, output=Path(folder), task=task, do_validation=True, device="cpu"
            )
    except Exception as error:  # noqa: BLE001 - whatever it says is the answer
        cause = error.__cause__ or error
        return {"verdict": "raises", "exit_code": 1, "says": f"{type(cause).__name__}: {cause}"}
    finally:
        convert.export_models = original
        logger.removeHandler(heard)
    # Older releases log an error where newer ones raise, and end with 0 all the same.
    verdict = "warns" if heard.lines else "silent"
    return {"verdict": verdict, "exit_code": 0, "says": " ".join(heard.lines[-1:])}


def main(jobs: Path, results: Path) -> None:
    """Answer every job; models are loaded once."""
    torch.set_num_threads(1)
    loaded: tuple[str, Any] = ("", None)
    answers: dict[str, Any] = {"versions": {name: version(name) for name in PACKAGES}}
    for job in json.loads(jobs.read_text(encoding="utf-8")):
        if loaded[0] != job["checkpoint"]:
            model = TasksManager.get_model_from_task(
                job["task"], job["checkpoint"], framework="pt", library_name="transformers"
            )
            loaded = (job["checkpoint"], model.eval())
        answers[job["name"]] = [
            ask(loaded[1], job["task"], Path(job["graph"]), seed) for seed in range(job["rounds"])
        ]
        print(f"optimum: {job['name']}: {answers[job['name']][0]['verdict']}", file=sys.stderr)
    results.write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
