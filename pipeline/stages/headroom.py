"""Measure how far the values of a float16 graph are below 65504, where float16 ends.

Port: `model`, a graph with float16 arithmetic; `export`, whose `scopes.json` says what layers are
called; `samples` and `probes`, all of which are run, each alone, by the same graph in float32
(`pipeline.graph.widened`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from pydantic import Field

from pipeline.stages.base import MODEL_FILE, Footprint, Stage, StageConfig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.data.sample_set import SampleSet
    from pipeline.graph.widened import Watched
    from pipeline.hashing import JSON
    from pipeline.runtimes.base import Runner
    from pipeline.stages.base import StageContext

MODEL_PORT = "model"
EXPORT_PORT = "export"
SAMPLES_PORT = "samples"
PROBES_PORT = "probes"

FLOAT16_MAX: Final = 65504.0
"""The largest finite number of IEEE 754 binary16."""


class HeadroomConfig(StageConfig):
    """What is reported.

    Attributes:
        values: How many values, those with the least headroom.
    """

    values: Annotated[int, Field(ge=1)] = 8


def run(
    config: HeadroomConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> dict[str, JSON]:
    """Facts: the values with the least headroom, `65504 / max |x|`, and where it was.

    A value that is infinite in float32, or NaN, has a headroom of 0. Weights that are infinite are
    named. A sample that cannot be run is a result, not a failure of this stage.

    Raises:
        ArtifactError: when the input is no model.
        StageError: when ONNX Runtime cannot load the graph in float32.
    """
    import gc

    import numpy as np

    from pipeline.data.sample_set import load_samples
    from pipeline.errors import StageError
    from pipeline.graph.decoder_manner import counts_its_mask
    from pipeline.graph.files import load_graph_only, load_ir_model, save_ir_model
    from pipeline.graph.widened import widen
    from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner

    del output
    counts = counts_its_mask(load_graph_only(inputs[MODEL_PORT] / MODEL_FILE))
    model = load_ir_model(inputs[MODEL_PORT] / MODEL_FILE)
    widening = widen(model)
    path = save_ir_model(model, context.scratch)
    del model
    gc.collect()  # a graph is full of cycles, and would keep its weights for long
    samples, probes = load_samples(inputs[SAMPLES_PORT]), load_samples(inputs[PROBES_PORT])
    largest, problem = np.zeros((1, len(widening.watched))), ""
    if widening.watched:
        # One thread a run and several runs at a time: most samples are small.
        runner = OnnxRuntimeRunner(path, optimizations="disabled", threads=1, is_frugal=True)
        try:
            with runner:
                largest, problem = _largest(
                    runner, widening.watched, [samples, probes], context, counts_mask=counts
                )
        except StageError as err:
            raise StageError(
                "the float16 graph cannot be run in float32, to see how large its values get: "
                + err.message,
                where=err.where,
                hint="leave this check out: `gates: {checks: {headroom: null}}`",
            ) from err
    return {
        "watched": len(widening.watched),
        "untyped": widening.untyped,
        "samples": len(samples),
        "probes": len(probes),
        "problems": [problem] if problem else [],
        "infinite_weights": list(widening.infinite_weights),
        "stand_ins": list(widening.stand_ins),
        "values": _worst(widening.watched, largest, _layers(inputs), len(samples), probes, config),
    }


def _largest(
    runner: Runner,
    watched: Sequence[Watched],
    sets: Sequence[SampleSet],
    context: StageContext,
    *,
    counts_mask: bool,
) -> tuple[NDArray[np.float64], str]:
    """(samples and probes, values): the largest magnitude of each value, infinity for NaN.

    Besides, why some cannot be run; empty when all can. What a graph that only counts its mask cannot
    be asked (`with_probes`) is left out.
    """
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    from pipeline.data.decoder_inputs import MASK, is_prefix
    from pipeline.errors import PipelineError

    names = [spec.name for spec in runner.inputs]
    places = [(held, entry) for held in sets for entry in held.entries]
    largest = np.zeros((len(places), len(watched)))
    unknown = [name for name in names if name not in sets[0].input_names]
    if unknown:
        return largest, f"input `{unknown[0]}` is unknown: no sample has it"

    def measure(row: int) -> str:
        held, entry = places[row]
        (sample,) = held.read([entry.index])
        if counts_mask and not is_prefix(sample[MASK]):
            return ""
        try:
            results = runner.run({name: sample[name][None] for name in names})
        except PipelineError as err:
            return f"{entry.kind or 'sample'} {entry.index} cannot be run: {err.message}"
        found = np.array([float(results[each.output]) for each in watched])
        if entry.compared == "finite":  # the checkpoint itself may make no number of it
            found[~np.isfinite(found)] = 0.0
        largest[row] = np.where(np.isnan(found), np.inf, found)
        return ""

    problem = ""
    with ThreadPoolExecutor(max_workers=context.threads) as pool:
        for done, fault in enumerate(pool.map(measure, range(len(places))), 1):
            problem = problem or fault
            context.progress(done, len(places), "samples")
    return largest, problem


def _layers(inputs: Mapping[str, Path]) -> dict[str, str]:
    """Value -> layer, as far as it is known."""
    from pipeline.graph.files import load_graph_only
    from pipeline.graph.inner_values import read_inner_values
    from pipeline.graph.scopes import load_scopes

    scopes = load_scopes(inputs[EXPORT_PORT]) if EXPORT_PORT in inputs else None
    graph = load_graph_only(inputs[MODEL_PORT] / MODEL_FILE).graph
    values = read_inner_values(graph, scopes.layers if scopes else {})
    return {value.name: value.layer for value in values}


def _worst(
    watched: Sequence[Watched],
    largest: NDArray[np.float64],
    layers: Mapping[str, str],
    samples: int,
    probes: SampleSet,
    config: HeadroomConfig,
) -> list[JSON]:
    """The values with the least headroom, from the least on."""
    import math

    peaks, rows = largest.max(axis=0), largest.argmax(axis=0)
    found: list[JSON] = []
    for place in sorted(range(len(watched)), key=lambda place: -peaks[place])[: config.values]:
        row, peak = int(rows[place]), float(peaks[place])
        probe = probes.entries[row - samples] if row >= samples else None
        found.append(
            {
                "value": watched[place].value,
                "node": watched[place].node,
                "op": watched[place].op_type,
                "layer": layers.get(watched[place].value, ""),
                "largest": peak if math.isfinite(peak) else None,
                "headroom": FLOAT16_MAX / peak if peak else None,
                "of": f"sample {row}"
                if probe is None
                else f"probe {probe.index} ({probe.kind.replace('_', ' ')})",
            }
        )
    return found


HEADROOM = Stage(
    name="headroom",
    version=2,
    footprint=Footprint(base_mib=160, memory_per_weight=4.7),
    config_type=HeadroomConfig,
    run=run,
    packages=("ml-dtypes", "numpy", "onnx", "onnx-ir", "onnxruntime"),
    extra="cpu",
    # The last bits of an activation depend on the instruction set.
    machine=("cpu_flags",),
    preload=("onnxruntime", "pipeline.graph.widened"),
)
"""Ports `model`, `export`, `samples` and `probes` -> facts only."""
