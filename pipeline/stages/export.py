"""Export one component of a checkpoint to an ONNX graph.

Ports: `checkpoint`, a directory with `config.json`, `*.safetensors` and, for sentence-transformers,
`modules.json` and its folders. The output is `model.onnx`, and
`scopes.json`: which module computed each value. Why it is done this way, with numbers:
`docs/decisions/0001-export-route.md`.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from pipeline.errors import ExportError
from pipeline.forked import Forked
from pipeline.stages.base import INLINE_LIMIT_BYTES, MODEL_FILE, Footprint, Stage, StageConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.graph.early_weights import EarlyWeights
    from pipeline.graph.torch_translate import Translation
    from pipeline.hashing import JSON
    from pipeline.runtimes.torch_model import TorchComponent
    from pipeline.stages.base import StageContext


class ExportOptions(StageConfig):
    """What a recipe may say about the export."""

    opset: Annotated[int, Field(ge=18, le=23)] = Field(
        default=20, description="version of the standard ONNX operators; 20 is the first with Gelu"
    )
    attention: Literal["eager", "sdpa"] = Field(
        default="eager",
        description="how attention is written: `eager` as plain matrix products and a softmax, "
        "which fuses best; `sdpa` adds guards for rows that are masked altogether",
    )


class ExportConfig(ExportOptions):
    """What the export stage is told."""

    task: str
    component: str


def _run(
    config: ExportConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> Mapping[str, JSON]:
    import gc

    import torch

    torch.set_num_threads(context.threads)
    # Tracing makes millions of small objects that all live to the end: looking for garbage among
    # them is a tenth of the time and finds nothing.
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        return _export(config, inputs["checkpoint"], output, context)
    finally:
        gc.enable()
        gc.unfreeze()


def _export(
    config: ExportConfig, checkpoint: Path, output: Path, context: StageContext
) -> Mapping[str, JSON]:
    import tempfile

    from pipeline.graph.early_weights import EarlyWeights

    with tempfile.TemporaryDirectory(dir=context.scratch) as scratch:
        component = _load(config, checkpoint, Path(scratch), context)
        is_stand_in = component.mapped is not None and component.mapped.is_stand_in
        find = component.mapped.find if component.mapped else lambda _: None
        with (
            contextlib.closing(_Trial(component)) as trial,
            contextlib.closing(EarlyWeights(component.module, find, output)) as early,
        ):
            try:
                translation = _translate(config, component, context)
            except Exception:
                trial.require_success()  # why a model cannot be run says more than its trace
                raise
            needs_weights = translation.is_folded and is_stand_in
            try:
                trial.require_success()
            except ExportError:
                if not is_stand_in:
                    raise
                needs_weights = True  # it may be for a weight that is not where it is used
            if needs_weights:
                context.log("some weights are needed outside of their modules: all are loaded")
                early.close()
                component = _load(config, checkpoint, None, context)
                _require_runnable(component)
                translation = _translate(config, component, context)
            return _save(config, component, translation, early, output, context)


class _Trial:
    """A component that is run while it is traced, in a process and on a processor of its own."""

    def __init__(self, component: TorchComponent) -> None:
        self._component = component
        # Behind the weights, which take longer.
        self._process = Forked(self._run, niceness=15)

    def _run(self) -> None:
        import torch

        torch.set_num_threads(1)  # its pool of threads does not survive a fork
        _require_runnable(self._component)

    def require_success(self) -> None:
        """Wait for it. When it failed, or was killed, it is run again here.

        Raises:
            ExportError: why the component cannot be run.
        """
        if not self._process.succeeded():
            _require_runnable(self._component)

    def close(self) -> None:
        """End it in any case."""
        self._process.end()


def _require_runnable(component: TorchComponent) -> None:
    from pipeline.runtimes.torch_model import require_runnable

    require_runnable(component)


def _load(
    config: ExportConfig, checkpoint: Path, scratch: Path | None, context: StageContext
) -> TorchComponent:
    from pipeline.runtimes.torch_model import load_torch_model

    component = load_torch_model(
        checkpoint, config.task, config.component, attention=config.attention, scratch=scratch,
        is_run=False,
    )  # fmt: skip
    if scratch is not None and component.mapped is None:
        context.log("all weights are in memory: not each one is in one place of the files")
    context.progress(1, 4, "steps")
    return component


def _translate(
    config: ExportConfig, component: TorchComponent, context: StageContext
) -> Translation:
    from pipeline.graph.torch_translate import translate_program
    from pipeline.runtimes.torch_capture import capture_program

    program = capture_program(component)
    context.progress(2, 4, "steps")
    return translate_program(
        program,
        input_names=component.input_names,
        output_names=component.output_names,
        opset=config.opset,
    )


def _save(
    config: ExportConfig,
    component: TorchComponent,
    translation: Translation,
    early: EarlyWeights,
    output: Path,
    context: StageContext,
) -> Mapping[str, JSON]:
    from pipeline.graph.files import save_ir_model, weight_bytes
    from pipeline.graph.large_weights import turn_weights
    from pipeline.graph.scopes import find_scopes, save_scopes
    from pipeline.graph.stored_weights import use_stored_weights
    from pipeline.graph.tidy import tidy_model

    if component.mapped is not None:
        use_stored_weights(translation.model, component.mapped.find)
    scopes = find_scopes(translation.model)
    tidy_model(translation.model, inputs=component.inputs, outputs=component.outputs)
    if weight_bytes(translation.model) > INLINE_LIMIT_BYTES:
        turn_weights(translation.model)
    context.progress(3, 4, "steps")
    if not early.save(translation.model):
        early.close()
        save_ir_model(translation.model, output)
    path = output / MODEL_FILE
    save_scopes(scopes, output)
    facts = _check(path, component)
    context.progress(4, 4, "steps")
    return {
        "attention": config.attention,
        "translation": translation.route,
        "unused_parameters": list(component.unused_parameters),
        "ignored_weights": list(component.ignored_weights),
        "max_sequence": component.max_sequence,
        **facts,
    }


def _check(path: Path, component: TorchComponent) -> dict[str, JSON]:
    """Look at the file as it was written: its outside, and that every input matters."""
    from pipeline.graph.dataflow import require_live_inputs
    from pipeline.graph.files import load_graph_only
    from pipeline.graph.inspect import count_ops, count_parameters
    from pipeline.graph.interface import require_interface

    model = load_graph_only(path)
    require_interface(model, inputs=component.inputs, outputs=component.outputs)
    require_live_inputs(model)
    ops = count_ops(model)
    return {
        "opset": next(entry.version for entry in model.opset_import if not entry.domain),
        "inputs": list(component.input_names),
        "outputs": list(component.output_names),
        "parameters": count_parameters(model),
        "nodes": sum(ops.values()),
        "ops": ops,
    }


EXPORT = Stage(
    name="export",
    version=4,
    footprint=Footprint(
        base_mib=600,
        memory_per_weight=4.1,
        memory_outside=0.1,
        disk_per_weight=1.0,
        keeps_weights=True,
    ),
    config_type=ExportConfig,
    run=_run,
    packages=("torch", "transformers", "safetensors", "numpy", "onnx", "onnx-ir", "onnxscript"),
    preload=(
        "torch",
        "transformers.modeling_utils",
        "pipeline.runtimes.torch_model",
        "pipeline.runtimes.torch_capture",
        "pipeline.graph.torch_translate",
    ),
)
