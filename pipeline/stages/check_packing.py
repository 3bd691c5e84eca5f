"""Compare a graph whose products were packed with what packing makes of its input, bit for bit.

`pack_weights` compares what it packs while it runs; this looks at what it stored. It is packed once more
from the same input, by the same functions, which compare every value with what it was; each node and
each stored tensor must then be the same. Ports: `model` (packed) and `plain` (what it was made of). Facts only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pipeline.stages.base import MODEL_FILE, Footprint, Stage, StageConfig
from pipeline.stages.pack_weights import AccuracyLevel

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.graph.packing_audit import GraphRecord
    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext

MODEL_PORT: Final = "model"
PLAIN_PORT: Final = "plain"

MOST_ROWS: Final = 50
"""Of each kind that are kept."""


class CheckPackingConfig(StageConfig):
    """What was asked of `pack_weights`.

    Attributes:
        accuracy_level: As there.
    """

    accuracy_level: AccuracyLevel


def run(
    config: CheckPackingConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> dict[str, JSON]:
    """Facts: how much was `compared`, and of each kind how many differences and the first of them.

    Raises:
        ArtifactError: when an input is no model.
        StageError: when packing once more changes a value.
    """
    import gc

    from pipeline.graph.mapped_model import load_mapped_model
    from pipeline.graph.packing_audit import packing_differences, record_graph

    del output
    wanted = _packed_again(config, inputs[PLAIN_PORT], context.threads)
    gc.collect()  # a graph is full of cycles, and would keep its weights for long
    found = record_graph(load_mapped_model(inputs[MODEL_PORT] / MODEL_FILE))
    differences = packing_differences(wanted, found)
    measures: dict[str, JSON] = {}
    for kind in ("changed_nodes", "changed_constants"):
        rows = [row for row in differences if row.kind == kind]
        measures[kind] = {
            "total": len(rows),
            "first": [{"layer": row.layer, "detail": row.detail} for row in rows[:MOST_ROWS]],
        }
    compared = {"nodes": len(wanted.nodes), "tensors": len(wanted.tensors)}
    return {"compared": compared, "measures": measures}


def _packed_again(config: CheckPackingConfig, directory: Path, threads: int) -> GraphRecord:
    """What `pack_weights` must have stored."""
    from pipeline.graph.joined_products import join_products
    from pipeline.graph.mapped_model import load_mapped_model
    from pipeline.graph.matmul_nbits import pack_products
    from pipeline.graph.packing_audit import record_graph
    from pipeline.graph.shared_table import share_tables

    model = load_mapped_model(directory / MODEL_FILE)
    pack_products(model, accuracy_level=config.accuracy_level, threads=threads)
    share_tables(model)
    join_products(model)
    return record_graph(model)


CHECK_PACKING = Stage(
    name="check_packing",
    version=2,
    # As of `pack_weights`: the two graphs are read one after the other.
    footprint=Footprint(base_mib=700, memory_per_weight=1.5, memory_outside=0.25),
    config_type=CheckPackingConfig,
    run=run,
    packages=("ml-dtypes", "numpy", "onnx", "onnx-ir"),
    preload=(
        "pipeline.graph.files",
        "pipeline.graph.joined_products",
        "pipeline.graph.matmul_nbits",
        "pipeline.graph.packing_audit",
        "pipeline.graph.shared_table",
    ),
)
"""Ports `model` and `plain` -> facts only."""
