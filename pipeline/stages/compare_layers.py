"""Compare the inner values of a graph with those of what it was made from, layer by layer.

Ports: `model`; `before`, the graph it was made from, or `checkpoint` for an export; `samples`;
`export`, whose `scopes.json` says what layers are called; `probes` when they are to be run too. Facts
only: for each value how far it is away, and how much of that its own nodes add.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from pipeline.stages.base import MODEL_FILE, Footprint, Stage, StageConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from pipeline.graph.inner_values import InnerValue
    from pipeline.hashing import JSON
    from pipeline.parity.layer_comparison import LayerComparison, RightValues
    from pipeline.stages.base import StageContext

MODEL_PORT = "model"
BEFORE_PORT = "before"
CHECKPOINT_PORT = "checkpoint"
SAMPLES_PORT = "samples"
PROBES_PORT = "probes"
EXPORT_PORT = "export"


class CompareLayersConfig(StageConfig):
    """What is compared, and how long.

    Attributes:
        against: What the right values are of, for people: the name of a stage, or `torch`.
        arithmetic: What the graph computes with, which says how much its nodes may add.
        optimizations: Of ONNX Runtime for the graph, as in `validate`.
        before: The same for the graph it was made from.
        task, component, attention: Of the checkpoint, as they were exported; against torch only.
            What attention makes of positions that are masked altogether depends on how it is written.
        samples: How many samples are looked at, spread over their lengths.
        time_limit_s: No further sample is begun after this time; the facts say how many were.
    """

    against: str
    arithmetic: Literal["float32", "float16", "bfloat16", "quantized"]
    optimizations: Literal["disabled", "all"]
    before: Literal["disabled", "all"] = "disabled"
    task: str = ""
    component: str = ""
    attention: Literal["eager", "sdpa"] | None = None
    samples: Annotated[int, Field(ge=1)] = 8
    time_limit_s: Annotated[float, Field(gt=0)] = 60.0


def run(
    config: CompareLayersConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> dict[str, JSON]:
    """Facts: `against`, `samples`, `unmatched`, `layers`, `worst`, `first`, see `layer_facts`.

    Raises:
        ArtifactError: when a file is no model.
        StageError: when a graph, or torch, cannot run the samples.
    """
    from pipeline.graph.files import load_graph_only
    from pipeline.graph.inner_values import read_inner_values
    from pipeline.graph.scopes import load_scopes
    from pipeline.graph.stand_in import write_stand_in
    from pipeline.parity.layer_comparison import ComparisonOptions, compare_layers
    from pipeline.parity.layer_noise import layer_facts
    from pipeline.parity.tolerances import LAYER_LIMITS

    del output
    limit = LAYER_LIMITS[config.arithmetic]
    layers = dict(load_scopes(inputs[EXPORT_PORT]).layers)
    if BEFORE_PORT in inputs:  # its weights still have their names, which tell layers too
        before = load_graph_only(inputs[BEFORE_PORT] / MODEL_FILE).graph
        layers |= {value.name: value.layer for value in read_inner_values(before, layers)}
        del before
    values = read_inner_values(load_graph_only(inputs[MODEL_PORT] / MODEL_FILE).graph, layers)
    # Values have the same names in it; those that were not rounded yet are not looked at.
    stand_in = write_stand_in(inputs[MODEL_PORT], context.scratch, config.optimizations)
    feeds = _feeds(config, inputs)
    folders = [context.scratch / name for name in ("before", "graph")]
    for folder in folders:
        folder.mkdir()
    with _right_values(config, inputs, values, folders[0], context) as right:
        found = compare_layers(
            stand_in.model,
            values,
            right,
            feeds,
            ComparisonOptions(
                optimizations=config.optimizations,
                threads=context.threads,
                scratch=folders[1],
                time_limit_s=config.time_limit_s,
                limit=limit,
            ),
            lambda done, total: context.progress(done, total, "samples"),
        )
    return {
        "against": config.against,
        "samples": found.samples,
        "unmatched": found.unmatched,
        **layer_facts(found.rows, limit),
        **_warnings(config, found, len(feeds)),
    }


def _warnings(config: CompareLayersConfig, found: LayerComparison, wanted: int) -> dict[str, JSON]:
    """What keeps the numbers from being whole, told in the report."""
    warnings = [f"not all layers were compared: {problem}" for problem in found.problems[:3]]
    if found.samples < wanted:
        warnings.append(
            f"layers were compared with {found.samples} of {wanted} samples, the time of "
            f"{config.time_limit_s:g} s was over"
        )
    return {"warnings": list(warnings)} if warnings else {}


def _feeds(config: CompareLayersConfig, inputs: Mapping[str, Path]) -> list[Mapping[str, Any]]:
    """Some samples from the smallest to the largest, then one probe of each kind that counts."""
    import numpy as np

    from pipeline.data.sample_set import load_samples

    samples = load_samples(inputs[SAMPLES_PORT])
    order = sorted(
        range(len(samples)), key=lambda i: (tuple(samples.entries[i].extents.values()), i)
    )
    places = np.linspace(0, len(order) - 1, min(config.samples, len(order))).round().astype(int)
    feeds = samples.read([order[place] for place in sorted(set(places.tolist()))])
    if PROBES_PORT in inputs:
        probes = load_samples(inputs[PROBES_PORT])
        kinds = {entry.kind: entry.index for entry in probes.entries if entry.compared == "values"}
        feeds += probes.read(sorted(kinds.values()))
    return [{name: tensor[np.newaxis] for name, tensor in feed.items()} for feed in feeds]


def _right_values(
    config: CompareLayersConfig,
    inputs: Mapping[str, Path],
    values: Sequence[InnerValue],
    scratch: Path,
    context: StageContext,
) -> AbstractContextManager[RightValues]:
    from contextlib import contextmanager

    @contextmanager
    def of_graph() -> Iterator[RightValues]:
        from pipeline.graph.files import load_graph_only
        from pipeline.graph.inner_values import read_inner_values
        from pipeline.graph.observed import write_observed_model
        from pipeline.graph.stand_in import write_stand_in
        from pipeline.parity.layer_comparison import GraphValues
        from pipeline.runtimes.static_cache import CacheRunner

        before = write_stand_in(inputs[BEFORE_PORT], context.scratch, config.before).model
        graph = load_graph_only(before / MODEL_FILE).graph
        outputs = {value.name for value in graph.output}
        theirs = {value.name for value in read_inner_values(graph, {})} - outputs
        shared = [value.name for value in values if value.name in theirs]
        path = write_observed_model(before, shared, scratch, is_float32=False)
        with CacheRunner(path, optimizations=config.before, threads=context.threads) as runner:
            yield GraphValues(runner)

    @contextmanager
    def of_torch() -> Iterator[RightValues]:
        import torch

        from pipeline.graph.scopes import load_scopes
        from pipeline.runtimes.torch_hooks import ModuleResults
        from pipeline.runtimes.torch_model import load_torch_model

        torch.set_num_threads(context.threads)
        component = load_torch_model(
            inputs[CHECKPOINT_PORT], config.task, config.component, attention=config.attention
        )
        yield ModuleResults(component, load_scopes(inputs[EXPORT_PORT]))

    return of_graph() if BEFORE_PORT in inputs else of_torch()


COMPARE_LAYERS = Stage(
    name="compare_layers",
    version=1,
    footprint=Footprint(base_mib=700, memory_per_weight=4.0),
    config_type=CompareLayersConfig,
    run=run,
    packages=("ml-dtypes", "numpy", "onnx", "onnx-ir", "onnxruntime"),
    extra="cpu",
    optional_packages=("torch", "transformers"),
    machine=("cpu_flags", "cores"),
    preload=("pipeline.parity.layer_comparison",),
)
"""Ports `model`, `before` or `checkpoint`, `samples`, `export` -> facts only."""
