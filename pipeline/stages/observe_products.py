"""Sum up what goes into each product, on real samples: for methods that round weights by it.

Ports: `model` (`model.onnx` in float32, simplified but not yet fused or cast) and `samples`.
Output: `moments.json` and the files that it names, see `pipeline.calibration.moments`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.stages.base import MODEL_FILE, Footprint, Stage, StageConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext

MODEL_PORT = "model"
SAMPLES_PORT = "samples"


class ObserveProductsConfig(StageConfig):
    """What is summed up.

    Attributes:
        has_products: `X^T X` of what goes into each product; otherwise the mean of `|X|` alone.
    """

    has_products: bool = True


def run(
    config: ObserveProductsConfig,
    inputs: Mapping[str, Path],
    output: Path,
    context: StageContext,
) -> dict[str, JSON]:
    """Write the moments; facts say of how many tensors, samples and rows.

    Raises:
        ArtifactError: when the input is no model.
        QuantizationError: when there is nothing to look at, or a sample gives no numbers.
        StageError: when ONNX Runtime cannot run the graph.
    """
    from pipeline.calibration.moments import observe_moments
    from pipeline.data.sample_set import load_samples
    from pipeline.errors import QuantizationError
    from pipeline.graph.observed import write_observed_model
    from pipeline.graph.product_moments import product_inputs
    from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner

    samples = load_samples(inputs[SAMPLES_PORT])
    needed = product_inputs(inputs[MODEL_PORT] / MODEL_FILE)
    if not needed:
        raise QuantizationError("this model has no product with a constant weight")
    inner = [tensor.name for tensor in needed if tensor.is_inner]
    observed = write_observed_model(inputs[MODEL_PORT], inner, context.scratch)
    # One thread a run: the last bits would depend on the number of cores otherwise.
    with OnnxRuntimeRunner(observed, optimizations="disabled", threads=1) as runner:
        index = observe_moments(
            runner,
            samples,
            needed,
            output,
            has_products=config.has_products,
            threads=context.threads,
            progress=lambda done, total: context.progress(done, total, "samples"),
        )
    return {
        "samples": index.samples,
        "tensors": len(index.tensors),
        "rows": max(tensor.count for tensor in index.tensors),
        "widest": max(tensor.inputs for tensor in index.tensors),
        "has_products": index.has_products,
    }


OBSERVE_PRODUCTS = Stage(
    name="observe_products",
    version=2,
    footprint=Footprint(base_mib=1200, memory_per_weight=2.0, disk_per_weight=1.0),
    config_type=ObserveProductsConfig,
    run=run,
    packages=("ml-dtypes", "numpy", "onnx", "onnx-ir", "onnxruntime", "scipy"),
    extra="cpu",
    # The last bits of an activation depend on the instruction set.
    machine=("cpu_flags",),
    preload=("onnxruntime", "pipeline.graph.observed", "pipeline.calibration.moments"),
)
"""Ports `model` and `samples` -> `moments.json` and arrays beside it."""
