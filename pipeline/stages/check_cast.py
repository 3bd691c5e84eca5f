"""Compare a graph in float16 or bfloat16 with the float32 graph it was cast from, exactly.

Ports: `model` (16 bits) and `float` (what it was cast from). Facts only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pipeline.stages.base import MODEL_FILE, Footprint, Stage, StageConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext

MODEL_PORT = "model"
FLOAT_PORT = "float"

MOST_ROWS: Final = 50
"""Of each kind that are kept."""


class CheckCastConfig(StageConfig):
    """Nothing to choose: everything is compared."""


def run(
    config: CheckCastConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> dict[str, JSON]:
    """Facts: for each kind how many differences there are, and the first of them.

    Raises:
        ArtifactError: when an input is no model.
    """
    from pipeline.graph.files import load_ir_model
    from pipeline.graph.half_audit import audit_half

    del config, output, context
    original, cast = (load_ir_model(inputs[p] / MODEL_FILE) for p in (FLOAT_PORT, MODEL_PORT))
    found = audit_half(original, cast)
    measures: dict[str, JSON] = {}
    for kind in ("changed_nodes", "changed_constants"):
        rows = [row for row in found if row.kind == kind]
        measures[kind] = {
            "total": len(rows),
            "first": [{"layer": row.layer, "detail": row.detail} for row in rows[:MOST_ROWS]],
        }
    return {"measures": measures}


CHECK_CAST = Stage(
    name="check_cast",
    version=2,
    footprint=Footprint(base_mib=120, memory_per_weight=1.7),
    config_type=CheckCastConfig,
    run=run,
    packages=("ml-dtypes", "numpy", "onnx", "onnx-ir"),
    preload=("pipeline.graph.files", "pipeline.graph.half_audit"),
)
"""Ports `model` and `float` -> facts only."""
