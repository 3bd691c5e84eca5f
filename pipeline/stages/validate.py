"""Run a graph on the samples and measure how far it is from the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from pipeline.stages.base import EXTERNAL_DATA_FILE, MODEL_FILE, Footprint, Stage, StageConfig
from pipeline.stages.compared import (
    MODEL_PORT,
    PARITY_FILE,
    PROBES_PORT,
    REFERENCE_PORT,
    SAMPLES_PORT,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext


class ValidateConfig(StageConfig):
    """How the graph is run.

    Attributes:
        task: Says which outputs are ranked, and what a label means.
        optimizations: ONNX Runtime's graph optimisations: `disabled` runs the graph as it is
            written, `all` as a user of ONNX Runtime would.
        batch_size: Samples a run, of mixed lengths, padded on the right.
        threads: Threads inside an operator; None means all that the stage may use.
        outputs: Outputs that the graph must have; None means all that the reference has.
    """

    task: str
    optimizations: Literal["disabled", "all"]
    batch_size: Annotated[int, Field(ge=1)]
    threads: Annotated[int, Field(ge=1)] | None = None
    outputs: tuple[str, ...] | None = None


def run(
    config: ValidateConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> dict[str, JSON]:
    """Write `parity.json`. A candidate that is wrong is a result, not a failure of this stage.

    With the port `probes`, every probe is run alone and compared too.

    The facts say in `weights` what the graph's stored numbers are for, in bytes.

    Raises:
        StageError: when ONNX Runtime cannot load or run the graph, or samples and reference do
            not belong together.
    """
    from pipeline.graph.decoder_manner import counts_its_mask
    from pipeline.graph.files import load_graph_only
    from pipeline.graph.stand_in import write_stand_in
    from pipeline.runtimes.mapped_pages import few_pages
    from pipeline.runtimes.static_cache import CacheRunner
    from pipeline.stages.parity_work import compare, load_pair, parity_facts

    pair = load_pair(inputs[SAMPLES_PORT], inputs[REFERENCE_PORT])
    stand_in = write_stand_in(inputs[MODEL_PORT], context.scratch, config.optimizations)
    with (
        few_pages([stand_in.model / EXTERNAL_DATA_FILE]),
        CacheRunner(
            stand_in.model / MODEL_FILE,
            optimizations=config.optimizations,
            threads=config.threads or context.threads,
            spins=False,
        ).leaving_weights(is_wanted=stand_in.leaves_weights) as runner,
    ):
        parity = compare(
            runner,
            pair,
            config,
            probes=inputs.get(PROBES_PORT),
            session=", ".join(filter(None, (runner.session, stand_in.note))),
            context=context,
            counts_mask=counts_its_mask(load_graph_only(inputs[MODEL_PORT] / MODEL_FILE)),
        )
    (output / PARITY_FILE).write_text(f"{parity.model_dump_json(indent=1)}\n", encoding="utf-8")
    return parity_facts(parity) | {"weights": _weights(inputs[MODEL_PORT] / MODEL_FILE)}


def _weights(model: Path) -> list[JSON]:
    """Read after the runner is closed, so that the model is not in memory twice."""
    from pipeline.graph.files import load_graph_only
    from pipeline.graph.weights import weights_by_operator

    return list(weights_by_operator(load_graph_only(model)))


VALIDATE = Stage(
    name="validate",
    version=7,
    footprint=Footprint(
        base_mib=150,
        memory_per_weight=2.8,
        memory_outside=0.0,
        memory_per_largest=2.0,
        runs_model=True,
    ),
    config_type=ValidateConfig,
    run=run,
    packages=("ml-dtypes", "numpy", "onnx", "onnx-ir", "onnxruntime"),
    extra="cpu",
    # The last bits depend on the instruction set and on how a sum is cut into threads.
    machine=("cpu_flags", "cores"),
    preload=("numpy", "onnxruntime", "onnx"),
)
