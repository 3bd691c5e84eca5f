"""Measure a target against the checkpoint in torch, honestly: see docs/decisions/0004."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from pipeline.runtimes.ort_providers import ProviderPlan
from pipeline.runtimes.torch_variants import TorchVariant
from pipeline.stages.base import Footprint, Stage, StageConfig
from pipeline.stages.provider_engine import LIBRARIES, MACHINE
from pipeline.tasks import BATCH_AXIS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext

BENCHMARK_FILE: Final = "benchmark.json"
LAUNCHES_FILE: Final = "launches.json"

Positive = Annotated[int, Field(ge=1)]


class BenchmarkConfig(StageConfig):
    """What is measured, and how carefully.

    Attributes:
        runtime: What runs the candidate; an engine of either TensorRT is `tensorrt`.
        axes: Names of the model's free axes, as the task has them: `batch` first.
        reference_device: Where torch computes.
        variant: How torch computes, where it is the candidate too.
        cuda_graphs: An engine's work is handed to the GPU as one captured graph.
        provider: Of ONNX Runtime, with its options; None: the CPU's.
        profile: Axis name -> (min, opt, max), for a provider.
        shapes: For each shape the size of every axis; one that is given twice counts once.
        launches: Processes for each comparison. Twice as many where these leave it open.
        margin: Share within which two speeds count as the same.
        seconds_per_shape: About how long a launch measures one shape.
    """

    task: str
    component: str
    runtime: Literal["onnxruntime", "tensorrt", "torch"]
    axes: Annotated[tuple[str, ...], Field(min_length=1, max_length=3)]
    shapes: Annotated[tuple[tuple[Positive, ...], ...], Field(min_length=1)]
    launches: Annotated[int, Field(ge=3, le=50)]
    threads: Positive
    margin: Annotated[float, Field(gt=0, lt=1)]
    reference_device: Literal["cpu", "cuda"] = Field(
        default="cpu", exclude_if=lambda name: name == "cpu"
    )
    variant: TorchVariant = Field(default="fp32", exclude_if=lambda name: name == "fp32")
    cuda_graphs: bool = Field(default=False, exclude_if=lambda given: not given)
    provider: ProviderPlan | None = Field(default=None, exclude_if=lambda plan: plan is None)
    profile: dict[str, tuple[int, int, int]] = Field(
        default_factory=dict, exclude_if=lambda ranges: not ranges
    )
    seed: int = 0
    seconds_per_shape: Annotated[float, Field(gt=0)] = 1.0

    @property
    def gpu_number(self) -> int:
        """That of the provider's options; engines run on the first GPU."""
        return self.provider.options.device_id if self.provider else 0

    @model_validator(mode="after")
    def _check_shapes(self) -> Self:
        if self.axes[0] != BATCH_AXIS or len(set(self.axes)) != len(self.axes):
            msg = f"axes {list(self.axes)} must begin with `{BATCH_AXIS}` and be all different"
            raise ValueError(msg)
        for shape in self.shapes:
            if len(shape) != len(self.axes):
                wanted = ", ".join(self.axes)
                msg = f"shape {list(shape)} must have one size for each of: {wanted}"
                raise ValueError(msg)
        return self


def run(
    config: BenchmarkConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> dict[str, JSON]:
    """Launch, judge, launch again where it is open, and write the result and every raw duration.

    Args:
        config: What to measure.
        inputs: `checkpoint` (for torch), `model` (holds `model.onnx`, or `model.engine`), `samples`
            (a sample set) and, for TensorRT's provider, `cache`.
        output: Gets `benchmark.json` and `launches.json`.
        context: Progress counts launches.

    Raises:
        StageError: when a launch fails, or the samples do not fit the model.
    """
    from pipeline.bench.session import measure

    result, log = measure(config, inputs, context)
    (output / BENCHMARK_FILE).write_text(result.model_dump_json(indent=1), encoding="utf-8")
    (output / LAUNCHES_FILE).write_text(log.model_dump_json(), encoding="utf-8")
    return {
        "axes": list(config.axes),
        "shapes": [list(shape) for shape in dict.fromkeys(config.shapes)],
        "threads": config.threads,
        "margin": config.margin,
    }


BENCHMARK: Final = Stage(
    name="benchmark",
    version=2,
    footprint=Footprint(base_mib=600, memory_per_weight=4.0),
    config_type=BenchmarkConfig,
    run=run,
    packages=("numpy", "onnxruntime", "safetensors", "scipy", "torch", "transformers"),
    machine=("cpu_model", "cpu_flags", "cores"),
    is_exclusive=True,
)

BENCHMARK_ENGINE: Final = Stage(
    name="benchmark_engine",
    version=1,
    footprint=Footprint(base_mib=900, memory_per_weight=4.0),
    config_type=BenchmarkConfig,
    run=run,
    packages=("cuda-bindings", "numpy", "safetensors", "scipy", "torch", "transformers"),
    extra="cuda",
    optional_packages=("ml-dtypes", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx"),
    machine=(*BENCHMARK.machine, *MACHINE),
    is_exclusive=True,
)
"""The same, of an engine on this machine's GPU."""

BENCHMARK_PROVIDER: Final = Stage(
    name="benchmark_provider",
    version=1,
    footprint=Footprint(base_mib=1500, memory_per_weight=6.0),
    config_type=BenchmarkConfig,
    run=run,
    packages=BENCHMARK.packages,
    extra="gpu",
    optional_packages=("tensorrt", *LIBRARIES),
    machine=(*BENCHMARK.machine, *MACHINE),
    is_exclusive=True,
)
"""The same, with one of ONNX Runtime's providers for GPUs."""

BENCHMARK_TORCH = Stage(
    name="benchmark_torch",
    version=1,
    footprint=Footprint(base_mib=900, memory_per_weight=5.0),
    config_type=BenchmarkConfig,
    run=run,
    packages=BENCHMARK.packages,
    optional_packages=("triton",),
    machine=(*BENCHMARK.machine, *MACHINE),
    is_exclusive=True,
)
"""The checkpoint in torch on this machine's GPU against float32 in eager mode there; nothing judges it."""
