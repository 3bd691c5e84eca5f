"""A folder that transformers.js loads: `onnx/model_q4.onnx` and its like beside tokenizer and config.

Source: `src/utils/dtypes.js`, `src/utils/model-loader.js` and `src/models/modeling_utils.js` of
@huggingface/transformers 4.3.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pipeline.bundle.generation_settings import read_generation_settings
from pipeline.bundle.graphs import (
    COMPANIONS,
    copy_companions,
    copy_graph,
    read_graphs,
    require_tokenizer,
)
from pipeline.bundle.javascript import find_transformers_js, try_in_node
from pipeline.bundle.placing import placed_whole
from pipeline.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.bundle.graphs import GraphSource, GraphTarget

MARKER: Final = "convert.json"
"""Says which artifact a folder was written from, and that it may be replaced."""
FOLDER: Final = "onnx"
AXES: Final = {"batch": "batch_size"}
"""transformers.js makes the first, empty cache from the names of its axes, and knows this one only; it
takes every other name for a length of 0."""
_DTYPES: Final = {"fp32": "fp32", "fp16": "fp16", "int8": "q8", "int4": "q4"}
"""Precision of a target -> what its users write as `dtype`."""
SUFFIXES: Final = {"fp32": "", "fp16": "_fp16", "q8": "_quantized", "q4": "_q4"}


@dataclass(frozen=True, slots=True, kw_only=True)
class JavaScriptModel:
    """One graph that was written.

    Attributes:
        dtype: What transformers.js calls it.
        path: Relative to the directory.
        trial: What came of loading it, a sentence; empty when it was not tried.
    """

    target: str
    dtype: str
    path: str
    trial: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JavaScriptExport:
    """What was written."""

    directory: Path
    artifact: str
    models: tuple[JavaScriptModel, ...]
    notes: tuple[str, ...]


def export_transformers_js(
    artifact: Path,
    directory: Path,
    *,
    targets: Sequence[str] = (),
    replace: bool = False,
    packages: Path | None = None,
) -> JavaScriptExport:
    """Write one folder with the graphs of an artifact, one for each `dtype`.

    Args:
        artifact: Its directory; it is verified first.
        directory: Where to; nothing may be there yet.
        targets: Which; empty for all that transformers.js has a name for.
        replace: What was written there earlier gives way.
        packages: A directory from which `@huggingface/transformers` can be imported; what was written
            is tried when it can.

    Raises:
        RecipeError: the artifact failed, there is no such target, transformers.js has no name for it,
            two have the same name, there is no tokenizer, or settings of generation contradict.
        ArtifactError: the artifact is damaged, or transformers.js computes something else.
    """
    with placed_whole(
        directory, replace=replace, is_ours=_is_ours, what="folder for transformers.js"
    ) as draft:
        source = read_graphs(artifact, targets)
        chosen, notes = _name_targets(source, is_named=bool(targets))
        _write(source, chosen, draft)
        library = find_transformers_js(packages)
        trials: dict[str, str] = {}
        if library:
            trials = try_in_node(library, source.task, chosen, draft)
        else:
            notes.append(
                "it was written and not tried: npm install @huggingface/transformers in this directory, "
                "then export again"
            )
    models = tuple(
        JavaScriptModel(
            target=target.name,
            dtype=dtype,
            path=f"{FOLDER}/{file_name(dtype)}",
            trial=trials.get(dtype, ""),
        )
        for dtype, target in chosen.items()
    )
    return JavaScriptExport(
        directory=directory, artifact=source.title, models=models, notes=tuple(notes)
    )


def file_name(dtype: str) -> str:
    """Of the graph that transformers.js loads for a `dtype`."""
    return f"model{SUFFIXES[dtype]}.onnx"


def _is_ours(child: Path) -> bool:
    known = {*COMPANIONS, MARKER, FOLDER}
    return (child.parent / MARKER).is_file() and child.name in known


def _name_targets(
    source: GraphSource, *, is_named: bool
) -> tuple[dict[str, GraphTarget], list[str]]:
    """Targets by `dtype`, and a sentence for each that is left out."""
    chosen: dict[str, GraphTarget] = {}
    notes = list(source.left_out)
    for target in source.targets:
        declaration = target.declaration
        dtype = _DTYPES.get(declaration.precision, "")
        reason = ""
        if not dtype:
            reason = f"transformers.js has no `dtype` for {declaration.precision}"
        elif declaration.provider != "cpu":
            reason = f"it is for ONNX Runtime's provider `{declaration.provider}`"
        if reason and is_named:
            raise RecipeError(f"target `{target.name}` cannot be written: {reason}")
        if reason:
            notes.append(f"{target.name}: {reason}")
            continue
        if dtype in chosen:
            raise RecipeError(
                f"targets `{chosen[dtype].name}` and `{target.name}` are both `dtype: {dtype}`",
                hint="name one of them with --target",
            )
        chosen[dtype] = target
    if not chosen:
        raise RecipeError(f"nothing can be written: {'; '.join(notes)}")
    return chosen, notes


def _write(source: GraphSource, chosen: dict[str, GraphTarget], folder: Path) -> None:
    first = next(iter(chosen.values()))
    if source.task.modality == "text":
        require_tokenizer(first, "transformers.js")
    if source.task.has_cache:
        read_generation_settings(first)
    copy_companions(first, folder)
    external = {}
    for dtype, target in chosen.items():
        name = file_name(dtype)
        axes = {old: new for old, new in AXES.items() if _has_axis(target, old)}
        copy_graph(target, folder / FOLDER / name, axes=axes)
        if target.graph.external_files:
            external[name] = len(target.graph.external_files)
    if external:
        config = first.config | {"transformers.js_config": {"use_external_data_format": external}}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    marker = {
        "artifact": source.title,
        "models": {dtype: target.name for dtype, target in chosen.items()},
    }
    (folder / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")


def _has_axis(target: GraphTarget, name: str) -> bool:
    return any(name in tensor.shape for tensor in (*target.graph.inputs, *target.graph.outputs))
