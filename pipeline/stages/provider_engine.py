"""Let ONNX Runtime's TensorRT provider build its engines once, for everything that runs the graph here.

Input `model`: a directory with `model.onnx`. Output: the provider's own cache, kept by the store under
this stage's key: graph, options, shapes, GPU, driver and packages. Elsewhere it is copied before use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.runtimes.ort_providers import ProviderPlan
from pipeline.stages.base import MODEL_FILE, Footprint, Stage, StageConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext

MACHINE = ("gpu_name", "gpu_target", "nvidia_driver")
PACKAGES = ("numpy", "onnxruntime")
LIBRARIES = ("nvidia-cublas", "nvidia-cuda-runtime", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13")
"""What the providers load from pip's packages, where it is there; the rest is the system's."""


class ProviderEngineConfig(StageConfig):
    """What to build.

    Attributes:
        plan: The provider with its options.
        profile: Axis name -> (min, opt, max).
    """

    plan: ProviderPlan
    profile: dict[str, tuple[int, int, int]]

    @property
    def gpu_number(self) -> int:
        """That of the provider's options."""
        return self.plan.options.device_id


def run(
    config: ProviderEngineConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> dict[str, JSON]:
    """Load the graph, and run it once at its usual shapes, so that all engines are there.

    Raises:
        EnvironmentMissing: the provider does not start here.
        StageError: the graph cannot be loaded or run, or TensorRT took no part of it.
    """
    import numpy as np

    from pipeline.errors import StageError
    from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner
    from pipeline.runtimes.ort_profile import profile_of_inputs
    from pipeline.runtimes.ort_providers import ENGINE_CACHE

    model = inputs["model"] / MODEL_FILE
    shapes = profile_of_inputs(model, config.profile)
    options = config.plan.session_options(shapes, output)
    with OnnxRuntimeRunner(
        model, provider=config.plan.name, provider_options=options, threads=context.threads
    ) as runner:
        runner.run({i.name: np.ones(shapes[i.name][1], i.dtype) for i in runner.inputs})
        session = runner.session
    engines = sorted(path for path in output.rglob("*") if path.is_file())
    if not any(path.parent.name == ENGINE_CACHE for path in engines):
        raise StageError(
            "TensorRT took no part of the graph: all of it would run elsewhere",
            hint="take `provider: cuda`",
        )
    return {
        "session": session,
        "engines": [path.relative_to(output).as_posix() for path in engines],
        "size_bytes": sum(path.stat().st_size for path in engines),
    }


PROVIDER_ENGINE = Stage(
    name="provider_engine",
    version=1,
    footprint=Footprint(base_mib=1500, memory_per_weight=3.0, disk_per_weight=1.0),
    config_type=ProviderEngineConfig,
    run=run,
    packages=PACKAGES,
    extra="gpu",
    optional_packages=("tensorrt", *LIBRARIES),
    machine=MACHINE,
    is_exclusive=True,  # kernels are chosen by how long they take
)
