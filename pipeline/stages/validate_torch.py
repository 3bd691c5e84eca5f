"""How far the checkpoint in torch in another precision, compiled or on a GPU is from the reference.

A comparison that nothing judges; `benchmark_torch` is its other half.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from pipeline.runtimes.torch_variants import TorchDevice, TorchVariant
from pipeline.stages.base import Footprint, Stage, StageConfig
from pipeline.stages.compared import PARITY_FILE, PROBES_PORT, REFERENCE_PORT, SAMPLES_PORT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext

CHECKPOINT_PORT = "checkpoint"


class ValidateTorchConfig(StageConfig):
    """How torch runs the checkpoint.

    Attributes:
        task: Says which outputs are ranked, and what a label means.
        component: The model component.
        variant: Precision, and whether it is compiled.
        device: Where it runs.
        batch_size: Samples a run, of mixed lengths, padded on the right.
        outputs: Outputs that it must have; None means all that the reference has.
    """

    task: str
    component: str
    variant: TorchVariant
    device: TorchDevice
    batch_size: Annotated[int, Field(ge=1)]
    outputs: tuple[str, ...] | None = None


def validate(
    config: ValidateTorchConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> dict[str, JSON]:
    """Write `parity.json`, as the stage `validate` does.

    Raises:
        StageError: torch cannot use the GPU, or cannot run the model in this way.
    """
    import os

    from pipeline.runtimes.torch_reference import TorchVariantRunner
    from pipeline.stages.parity_work import compare, load_pair, parity_facts

    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(context.scratch / "inductor")
    pair = load_pair(inputs[SAMPLES_PORT], inputs[REFERENCE_PORT])
    with TorchVariantRunner(
        inputs[CHECKPOINT_PORT],
        task=config.task,
        component=config.component,
        threads=context.threads,
        variant=config.variant,
        device=config.device,
    ) as runner:
        parity = compare(
            runner,
            pair,
            config,
            probes=inputs.get(PROBES_PORT),
            session=runner.session,
            context=context,
        )
    (output / PARITY_FILE).write_text(f"{parity.model_dump_json(indent=1)}\n", encoding="utf-8")
    return parity_facts(parity)


VALIDATE_TORCH = Stage(
    name="validate_torch",
    version=1,
    footprint=Footprint(base_mib=900, memory_per_weight=2.5),
    config_type=ValidateTorchConfig,
    run=validate,
    packages=("numpy", "safetensors", "torch", "transformers"),
    optional_packages=("triton",),
    machine=("cpu_flags", "gpu_name", "gpu_target", "nvidia_driver"),
)
"""Ports `checkpoint`, `samples`, `probes` and `reference` -> `parity.json`."""
