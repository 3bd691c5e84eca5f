"""Give a decoder a cache of a fixed length that is written in place; values stay.

Port: `model` (a decoder whose cache grows).
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

MODEL_PORT: Final = "model"


class StaticCacheConfig(StageConfig):
    """How much room there is."""

    length: Annotated[int, Field(ge=2)] = Field(
        description="tokens of a text that the cache has room for: prompt, padding and new ones"
    )


def run(
    config: StaticCacheConfig,
    inputs: Mapping[str, Path],
    output: Path,
    context: StageContext,
) -> Mapping[str, JSON]:
    """Rewrites `model`; facts count the tensors that are written in place.

    Raises:
        ArtifactError: when the input is no model.
        StageError: when its cache does not grow by new tokens behind the past.
        StoreError: when the output cannot be written.
    """
    from pipeline.graph.files import load_ir_model, save_ir_model
    from pipeline.graph.static_cache import write_static_cache

    model = load_ir_model(inputs[MODEL_PORT] / MODEL_FILE)
    report = write_static_cache(model, config.length)
    context.log(f"{report.caches} tensors of {config.length} tokens are written in place")
    save_ir_model(model, output)
    return {
        "length": config.length,
        "caches": report.caches,
        "attentions": report.attentions,
    }


STATIC_CACHE = Stage(
    name="static_cache",
    version=1,
    footprint=Footprint(
        base_mib=110, memory_per_weight=1.5, memory_outside=0.02, disk_per_weight=1.0
    ),
    config_type=StaticCacheConfig,
    run=run,
    packages=("onnx", "onnx-ir", "numpy"),
    preload=("pipeline.graph.files", "pipeline.graph.static_cache"),
)
"""Port `model` -> `model.onnx` with `past_key_values.N.*` and `present.N.*` of one fixed shape."""
