"""Compare an exported graph with the checkpoint and with what was asked, without running it.

Ports: `model` and `checkpoint`. Facts only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from pydantic import Field

from pipeline.stages.base import MODEL_FILE, Footprint, Stage, StageConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext

MODEL_PORT = "model"
CHECKPOINT_PORT = "checkpoint"

MOST_ROWS: Final = 50
"""Parameters that are named."""


class CheckExportConfig(StageConfig):
    """What was asked of the export.

    Attributes:
        opset: Version of the standard operators.
    """

    opset: Annotated[int, Field(ge=1)]


def run(
    config: CheckExportConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> dict[str, JSON]:
    """Facts: the opset that was asked for and the graph's, and parameters that are not right.

    Raises:
        ArtifactError: when the graph cannot be read.
    """
    from pipeline.graph.export_audit import audit_export

    del output, context
    found = audit_export(inputs[MODEL_PORT] / MODEL_FILE, inputs[CHECKPOINT_PORT])
    return {
        "opset": {"asked": config.opset, "found": found.opset},
        "parameters": {
            "compared": found.compared,
            "changed": len(found.changed),
            "first": [{"layer": n, "detail": detail} for n, detail in found.changed[:MOST_ROWS]],
            "without_counterpart": list(found.without_counterpart),
        },
    }


CHECK_EXPORT = Stage(
    name="check_export",
    version=2,
    footprint=Footprint(
        base_mib=80,
        memory_per_weight=2.1,
        memory_outside=0.0,
        memory_per_largest=4.0,
        runs_model=True,
    ),
    config_type=CheckExportConfig,
    run=run,
    packages=(
        "ml-dtypes",
        "numpy",
        "onnx",
        "onnx-ir",
    ),
    preload=("pipeline.graph.export_audit",),
)
"""Ports `model` and `checkpoint` -> facts only."""
