"""Folders that `optimum.onnxruntime` loads: graphs, configuration and tokenizer, and `ort_config.json`.

Source: `optimum.onnxruntime.modeling`, `.modeling_decoder`, `.modeling_seq2seq` and `.configuration` of
optimum-onnx 0.1.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pipeline.bundle.generation_settings import read_generation_settings
from pipeline.bundle.graphs import (
    GRAPH_FILE,
    copy_companions,
    copy_graph,
    read_graphs,
)
from pipeline.bundle.pairs import DECODER_NAME, ENCODER_NAME, copy_pair
from pipeline.bundle.placing import placed_whole
from pipeline.bundle.written import Export
from pipeline.data.decoder_inputs import is_cache
from pipeline.source.json_files import read_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.bundle.graphs import GraphTarget
    from pipeline.tasks import Task

CONFIG_FILE: Final = "ort_config.json"
_CLASSES: Final = {"AutoModel": "ORTModelForFeatureExtraction"}
_NEWER_TOKENIZER: Final = "TokenizersBackend"
_OLDER_TOKENIZER: Final = "PreTrainedTokenizerFast"
"""The same class; optimum-onnx needs transformers 4, which knows it by this name, as 5 does too."""
_AXES: Final = {"batch": "batch_size"}
_QUANTIZED: Final = "model_quantized.onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimumModel:
    """One folder that was written.

    Attributes:
        loader: The class of `optimum.onnxruntime` that loads it.
    """

    target: str
    path: str
    loader: str


def export_optimum(
    artifact: Path, directory: Path, *, targets: Sequence[str] = (), replace: bool = False
) -> Export[OptimumModel]:
    """Write a folder for each target that is a graph for ONNX Runtime.

    Args:
        artifact: Its directory; it is verified first.
        directory: Where to; nothing may be there yet.
        targets: Which; empty for all.
        replace: What was written there earlier gives way.

    Raises:
        RecipeError: the artifact failed, there is no such target, or settings of generation contradict.
        ArtifactError: the artifact is damaged.
    """
    with placed_whole(
        directory,
        replace=replace,
        is_ours=lambda child: (child / CONFIG_FILE).is_file(),
        what="model of Optimum",
    ) as draft:
        source = read_graphs(artifact, targets, no_pairs="")
        models = [_write(target, source.task, draft) for target in source.targets]
    return Export(
        directory=directory,
        artifact=source.title,
        models=tuple(models),
        notes=source.left_out,
    )


def loader_of(task: Task) -> str:
    """The class of `optimum.onnxruntime` for a task: `ORTModelForCausalLM` for `AutoModelForCausalLM`."""
    return _CLASSES.get(task.auto_class, task.auto_class.replace("AutoModel", "ORTModel"))


def _write(target: GraphTarget, task: Task, draft: Path) -> OptimumModel:
    if task.has_cache:
        read_generation_settings(target)
    folder = draft / target.name
    copy_companions(target, folder)
    _name_tokenizer(folder)
    is_quantized = target.declaration.quantization is not None
    if target.parts:
        suffix = "_quantized" if is_quantized else ""
        copy_pair(
            target,
            folder,
            suffix=suffix,
            axes=_AXES,
            has_any_width=_has_other_width(target),
        )
        names = [f"{part}{suffix}.onnx" for part in (ENCODER_NAME, DECODER_NAME)]
    else:
        names = [_QUANTIZED if is_quantized else GRAPH_FILE]
        shapes = [tensor.shape for tensor in (*target.graph.inputs, *target.graph.outputs)]
        axes = {old: new for old, new in _AXES.items() if any(old in shape for shape in shapes)}
        copy_graph(target, folder / names[0], axes=axes)
    text = json.dumps(ort_config(target), indent=2) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    paths = ", ".join(f"{target.name}/{name}" for name in names)
    return OptimumModel(target=target.name, path=paths, loader=loader_of(task))


def _has_other_width(target: GraphTarget) -> bool:
    """Whether heads are not as wide as Optimum takes for granted, where it makes an empty cache."""
    config = target.config
    model = next((config[key] for key in ("d_model", "hidden_size") if key in config), None)
    heads = next(
        (config[key] for key in ("decoder_attention_heads", "num_heads") if key in config), None
    )
    widths = {tensor.shape[3] for tensor in target.graph.inputs if is_cache(tensor.name)}
    return not (isinstance(model, int) and isinstance(heads, int) and widths == {model // heads})


def ort_config(target: GraphTarget) -> dict[str, Any]:
    """The content of `ort_config.json`, as far as Optimum has words for it.

    Its `quantization` describes activations and weights of 8 bits; weights in blocks of 4 bits have no
    place there, and the graph itself says all that is needed to run them.
    """
    external = target.graph.external_files
    config: dict[str, Any] = {
        "opset": target.graph.opset,
        "use_external_data_format": bool(external),
        "one_external_file": len(external) <= 1,
        "optimization": {},
        "quantization": {},
    }
    quantization = target.declaration.quantization
    if quantization is not None and quantization.mode in {"dynamic", "static"}:
        is_static = quantization.mode == "static"
        config["quantization"] = {
            "is_static": is_static,
            "format": "QDQ" if is_static else "QOperator",
            "mode": "QLinearOps" if is_static else "IntegerOps",
            "activations_dtype": "QInt8" if is_static else "QUInt8",
            "weights_dtype": "QInt8",
            "per_channel": quantization.per_channel,
        }
    return config


def _name_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return
    said = read_json(path, path.name)
    if said.get("tokenizer_class") == _NEWER_TOKENIZER:
        said["tokenizer_class"] = _OLDER_TOKENIZER
        path.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
