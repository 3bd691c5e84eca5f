"""Run a graph with one of ONNX Runtime's providers for GPUs, and measure how far it is from the reference.

Port `cache`, for TensorRT: the output of `provider_engine`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from pipeline.runtimes.ort_providers import ProviderPlan
from pipeline.stages.base import MODEL_FILE, Footprint, Stage, StageConfig
from pipeline.stages.compared import (
    MODEL_PORT,
    PARITY_FILE,
    PROBES_PORT,
    REFERENCE_PORT,
    SAMPLES_PORT,
)
from pipeline.stages.provider_engine import LIBRARIES, MACHINE, PACKAGES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext

CACHE_PORT = "cache"


class ValidateProviderConfig(StageConfig):
    """How the graph is run.

    Attributes:
        task: Says which outputs are ranked, and what a label means.
        plan: The provider with its options.
        profile: Axis name -> (min, opt, max).
        batch_size: Samples a run, of mixed lengths, padded on the right.
        outputs: Outputs that the graph must have; None means all that the reference has.
    """

    task: str
    plan: ProviderPlan
    profile: dict[str, tuple[int, int, int]]
    batch_size: Annotated[int, Field(ge=1)]
    outputs: tuple[str, ...] | None = None

    @property
    def gpu_number(self) -> int:
        """That of the provider's options."""
        return self.plan.options.device_id


def run(
    config: ValidateProviderConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> dict[str, JSON]:
    """Write `parity.json`, as the stage `validate` does. A wrong model is a result, no failure.

    Raises:
        EnvironmentMissing: the provider does not start here.
        StageError: ONNX Runtime cannot load or run the graph.
    """
    from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner
    from pipeline.runtimes.ort_profile import profile_of_inputs
    from pipeline.runtimes.ort_providers import copy_cache
    from pipeline.stages.parity_work import compare, load_pair, parity_facts

    pair = load_pair(inputs[SAMPLES_PORT], inputs[REFERENCE_PORT])
    model = inputs[MODEL_PORT] / MODEL_FILE
    cache = context.scratch / "cache"
    if CACHE_PORT in inputs:  # the provider writes into it
        copy_cache(inputs[CACHE_PORT], cache)
    options = config.plan.session_options(profile_of_inputs(model, config.profile), cache)
    with OnnxRuntimeRunner(
        model,
        provider=config.plan.name,
        provider_options=options,
        threads=context.threads,
        spins=False,
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


VALIDATE_PROVIDER = Stage(
    name="validate_provider",
    version=1,
    footprint=Footprint(base_mib=1500, memory_per_weight=2.8),
    config_type=ValidateProviderConfig,
    run=run,
    packages=PACKAGES,
    extra="gpu",
    optional_packages=("tensorrt", *LIBRARIES),
    machine=MACHINE,
    preload=("numpy",),
)
