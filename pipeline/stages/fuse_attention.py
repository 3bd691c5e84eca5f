"""Write attention as the operator `Attention` of ONNX itself (opset 23), and say where it was not.

Port: `model` (simplified). Engines know this operator, which ONNX Runtime's own are not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.stages.base import Footprint, Stage, StageConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext


class FuseAttentionConfig(StageConfig):
    """There is nothing to choose."""


def run(
    config: FuseAttentionConfig,
    inputs: Mapping[str, Path],
    output: Path,
    context: StageContext,
) -> Mapping[str, JSON]:
    """Fuses the attention of `model`."""
    from pipeline.errors import StageError

    raise StageError("the attention stage is being written")


FUSE_ATTENTION = Stage(
    name="fuse_attention",
    version=1,
    footprint=Footprint(base_mib=110, memory_per_weight=4.1, disk_per_weight=1.0),
    config_type=FuseAttentionConfig,
    coverage=("standard_attention",),
    run=run,
    packages=("onnx", "onnx-ir", "numpy"),
)
"""Port `model` -> `model.onnx` with `ai.onnx::Attention` in place of its parts."""
