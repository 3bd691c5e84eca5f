"""A folder that transformers.js loads: `onnx/model_q4.onnx` and its like beside tokenizer and config.

Source: `src/utils/dtypes.js`, `src/utils/model-loader.js`, `src/configs.js`, `src/models/session_config.js`
and `src/models/modeling_utils.js` of @huggingface/transformers 4.3.
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
from pipeline.bundle.pairs import DECODER_NAME, ENCODER_NAME, copy_pair
from pipeline.bundle.placing import placed_whole
from pipeline.bundle.written import Export
from pipeline.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.bundle.graphs import GraphSource, GraphTarget
    from pipeline.bundle.pairs import PairTrial
    from pipeline.tasks import Task

MARKER: Final = "convert.json"
"""Says which artifact a folder was written from, and that it may be replaced."""
FOLDER: Final = "onnx"
AXES: Final = {"batch": "batch_size"}
"""transformers.js makes the first, empty cache from the names of its axes, and knows this one only; it
takes every other name for a length of 0."""
_DTYPES: Final = {"fp32": "fp32", "fp16": "fp16", "int8": "q8", "int4": "q4"}
"""Precision of a target -> what its users write as `dtype`."""
SUFFIXES: Final = {"fp32": "", "fp16": "_fp16", "q8": "_quantized", "q4": "_q4"}
_PAIRS: Final = (
    "t5",
    "mt5",
    "longt5",
    "bart",
    "mbart",
    "marian",
    "whisper",
    "m2m_100",
    "blenderbot",
)
"""`model_type` of encoders with decoders whose cache it can make; of others it does not know the names."""


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


def export_transformers_js(
    artifact: Path,
    directory: Path,
    *,
    targets: Sequence[str] = (),
    replace: bool = False,
    packages: Path | None = None,
) -> Export[JavaScriptModel]:
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
        source = read_graphs(artifact, targets, no_pairs="")
        chosen, notes = _name_targets(source, is_named=bool(targets))
        pairs = _write(source, chosen, draft)
        library = find_transformers_js(packages)
        trials: dict[str, str] = {}
        if library:
            trials = try_in_node(library, source.task, chosen, draft, pairs)
        else:
            notes.append(
                "it was written and not tried: npm install @huggingface/transformers in this directory, "
                "then export again"
            )
    models = tuple(
        JavaScriptModel(
            target=target.name,
            dtype=dtype,
            path=", ".join(f"{FOLDER}/{name}" for name in file_names(dtype, source.task)),
            trial=trials.get(dtype, ""),
        )
        for dtype, target in chosen.items()
    )
    return Export(directory=directory, artifact=source.title, models=models, notes=tuple(notes))


def file_names(dtype: str, task: Task) -> tuple[str, ...]:
    """Of the graphs that transformers.js loads for a `dtype`."""
    names = (ENCODER_NAME, DECODER_NAME) if task.parts else ("model",)
    return tuple(f"{name}{SUFFIXES[dtype]}.onnx" for name in names)


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


def _write(
    source: GraphSource, chosen: dict[str, GraphTarget], folder: Path
) -> dict[str, PairTrial]:
    """Write all; of encoders with decoders what must come of them, for each `dtype`.

    Raises:
        RecipeError: there is no tokenizer, settings contradict, or it knows no such model.
        ArtifactError: graphs cannot be written so.
    """
    first = next(iter(chosen.values()))
    if source.task.modality in {"text", "audio"}:
        require_tokenizer(first, "transformers.js")
    if source.task.has_cache:
        read_generation_settings(first)
    kind = first.config.get("model_type")
    if source.task.parts and kind not in _PAIRS:
        raise RecipeError(
            f"transformers.js makes no cache for a decoder of `model_type: {kind}`",
            hint=f"of encoders with decoders it knows {', '.join(_PAIRS)}",
        )
    copy_companions(first, folder)
    pairs = {}
    for dtype, target in chosen.items():
        names = file_names(dtype, source.task)
        if target.parts:
            (folder / FOLDER).mkdir(exist_ok=True)
            pairs[dtype] = copy_pair(target, folder / FOLDER, suffix=SUFFIXES[dtype], axes=AXES)
        else:
            axes = {old: new for old, new in AXES.items() if _has_axis(target, old)}
            copy_graph(target, folder / FOLDER / names[0], axes=axes)
            if source.task.has_cache:
                from pipeline.graph.kept_logits import ask_how_many

                ask_how_many(folder / FOLDER / names[0])
    _say_what_is_outside(first, folder)
    marker = {
        "artifact": source.title,
        "models": {dtype: target.name for dtype, target in chosen.items()},
    }
    (folder / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
    return pairs


def _say_what_is_outside(first: GraphTarget, folder: Path) -> None:
    """Name the graphs in `config.json` whose weights lie in files of their own, and in how many."""
    external = {
        path.name: count
        for path in sorted((folder / FOLDER).glob("*.onnx"))
        if (count := len(list(path.parent.glob(f"{path.name}_data*"))))
    }
    if external:
        config = first.config | {"transformers.js_config": {"use_external_data_format": external}}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _has_axis(target: GraphTarget, name: str) -> bool:
    return any(name in tensor.shape for tensor in (*target.graph.inputs, *target.graph.outputs))
