"""Rewrite products with weights in few bits as ONNX Runtime's own operator for them; values stay.

Port: `model` (with weights in 4 or 8 bits and DequantizeLinear behind them).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from pydantic import Field

from pipeline.stages.base import MODEL_FILE, Footprint, Stage, StageConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext

MODEL_PORT: Final = "model"

AccuracyLevel = Literal[0, 4]


class PackWeightsConfig(StageConfig):
    """How the operator computes."""

    accuracy_level: AccuracyLevel = Field(
        default=4,
        description="what ONNX Runtime's MatMulNBits does to activations: 0 leaves them in float32, "
        "4 rounds them to 8 bits, block by block, which is faster",
    )


def run(
    config: PackWeightsConfig,
    inputs: Mapping[str, Path],
    output: Path,
    context: StageContext,
) -> Mapping[str, JSON]:
    """Packs `model`; facts count products and values that were compared, and name what was left.

    A tied table is stored once where its lookup can read the packed weight; `tables` says where, or why not.
    Products of one input become one where no bit of a result changes; `joined` says which do not, and why.

    Raises:
        ArtifactError: when the input is no model.
        StageError: when a packed value is not, bit for bit, what it was.
        StoreError: when the output cannot be written.
    """
    from pipeline.graph.files import save_ir_model
    from pipeline.graph.joined_products import join_products
    from pipeline.graph.mapped_model import load_mapped_model
    from pipeline.graph.matmul_nbits import pack_products
    from pipeline.graph.shared_table import share_tables

    model = load_mapped_model(inputs[MODEL_PORT] / MODEL_FILE)
    report = pack_products(model, accuracy_level=config.accuracy_level, threads=context.threads)
    for refusal in report.outcome.refused:
        context.log(f"{refusal.node} is not packed: {refusal.reason}")
    tables = share_tables(model)
    for table in tables:
        if table.reason:
            context.log(f"{table.lookup} keeps its own table: {table.reason}")
    joined = join_products(model)
    save_ir_model(model, output)
    found = report.outcome.found
    return {
        "accuracy_level": config.accuracy_level,
        "packed": report.outcome.as_json(),
        "packed_weights": report.weights,
        "values_compared": report.compared,
        "joined": joined.as_json(),
        "tables": [table.as_json() for table in tables],
        "coverage": {"packed_products": report.outcome.fired / found if found else 0.0},
    }


PACK_WEIGHTS = Stage(
    name="pack_weights",
    version=3,
    footprint=Footprint(
        base_mib=700,
        memory_per_weight=1.5,
        memory_outside=0.1,
        disk_per_weight=0.3,
        memory_to_run=0.16,
    ),
    config_type=PackWeightsConfig,
    coverage=("packed_products",),
    run=run,
    packages=("onnx", "onnx-ir", "numpy", "ml-dtypes"),
    preload=(
        "pipeline.graph.files",
        "pipeline.graph.joined_products",
        "pipeline.graph.mapped_model",
        "pipeline.graph.matmul_nbits",
        "pipeline.graph.shared_table",
    ),
)
"""Port `model` -> `model.onnx` with `com.microsoft.MatMulNBits`."""
