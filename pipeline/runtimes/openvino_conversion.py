"""One decoder graph as OpenVINO keeps it: with its cache as state, its attention as one operator.

Source of the conversion: `optimum.exporters.openvino.stateful`, optimum-intel, which does the same to
graphs from torch: `beam_idx` picks the rows of every cached tensor, and tensors become state. Paged
attention (`SDPAToPagedAttention` of OpenVINO) then takes the state away again and puts its own cache of
blocks in place; it knows past lengths only where they are read by `Gather`, and no batch but that of
`input_ids`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.graph.spread_heads import spread_shared_heads

MODEL_FILE: Final = "openvino_model.xml"
EXACT: Final = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}
"""Options with which nothing is rounded on the way, so that tokens can be compared."""

_PAST: Final = "past_key_values."


def convert_decoder(graph: Path, folder: Path) -> None:
    """Write `openvino_model.xml` and its weights.

    Args:
        graph: A decoder with a cache, ONNX.
        folder: Where to; it exists.

    Raises:
        RuntimeError: OpenVINO cannot read the graph; `first_line` says why in a line.
    """
    import openvino

    with tempfile.TemporaryDirectory(prefix="convert-") as place:
        model = openvino.Core().read_model(spread_shared_heads(graph, Path(place)))
        read_sizes_by_gather(model)
        make_stateful(model, past_names(model))
        openvino.save_model(model, folder / MODEL_FILE, compress_to_fp16=False)
        del model  # it maps the weights of the graph


def convert_tokenizer(folder: Path) -> None:
    """Write tokenizer and detokenizer of the files in a folder beside them.

    Raises:
        RuntimeError, ValueError, TypeError, AttributeError: OpenVINO's converter does not know it.
    """
    import openvino
    from openvino_tokenizers import convert_tokenizer as convert
    from transformers import AutoTokenizer

    tokenizer, detokenizer = convert(
        AutoTokenizer.from_pretrained(folder, local_files_only=True), with_detokenizer=True
    )
    openvino.save_model(tokenizer, folder / "openvino_tokenizer.xml")
    openvino.save_model(detokenizer, folder / "openvino_detokenizer.xml")


def first_line(error: Exception) -> str:
    """What an error of OpenVINO says, without the places in its code."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).strip()


def past_names(model: Any) -> list[str]:
    """Inputs of a decoder that are its cache."""
    names = [tensor.get_any_name() for tensor in model.inputs]
    return [name for name in names if name.startswith(_PAST)]


def read_sizes_by_gather(model: Any) -> None:
    """Sizes of the cache that the graph reads: the batch is that of `input_ids`, others by `Gather`."""
    from openvino import opset13

    zero = opset13.constant(0)
    shape = opset13.shape_of(model.input("input_ids"), output_type="i64")
    for name in past_names(model):
        for reader in _readers(model.input(name).get_node(), "ShapeOf"):
            for part in _readers(reader, "Slice"):
                place = _only_place(part)
                if place is None:
                    continue
                source = shape if place == 0 else reader
                size = opset13.gather(source, opset13.constant([place]), zero)
                if part.get_output_element_type(0) != size.get_output_element_type(0):
                    size = opset13.convert(size, part.get_output_element_type(0))
                for target in part.output(0).get_target_inputs():
                    target.replace_source_output(size.output(0))
    model.validate_nodes_and_infer_types()


def _readers(node: Any, kind: str) -> list[Any]:
    found = [target.get_node() for target in node.output(0).get_target_inputs()]
    return [reader for reader in found if reader.get_type_name() == kind]


def _only_place(part: Any) -> int | None:
    """Which element of a shape a `Slice` takes, when it takes one."""
    begin, end = (_constant(part.input_value(place)) for place in (1, 2))
    if begin is None or end is None or len(begin) != 1 or end != [begin[0] + 1]:
        return None
    return begin[0]


def _constant(value: Any) -> list[int] | None:
    node = value.get_node()
    if node.get_type_name() != "Constant":
        return None
    return [int(number) for number in node.get_data().reshape(-1)]


def make_stateful(model: Any, past: list[str]) -> None:
    """Let the model keep its cache itself, and take `beam_idx`, int32 (texts,), by which rows are picked.

    Args:
        model: An `openvino.Model` with `input_ids`.
        past: Names of the cache's inputs; each comes out as `present.` and the rest of its name.
    """
    import openvino
    from openvino import opset13
    from openvino._offline_transformations import apply_make_stateful_transformation

    rows = opset13.parameter(openvino.PartialShape([-1]), np.int32, name="beam_idx")
    rows.output(0).get_tensor().set_names({"beam_idx"})
    model.add_parameters([rows])
    for name in past:
        node = model.input(name).get_node()
        readers = node.output(0).get_target_inputs()
        picked = opset13.gather(node, rows, opset13.constant(0, dtype=np.int64))
        for reader in readers:
            reader.replace_source_output(picked.output(0))
    model.validate_nodes_and_infer_types()
    others = {node.get_name() for node in _read_values(model)}
    pairs = {name: f"present.{name.removeprefix(_PAST)}" for name in past}
    apply_make_stateful_transformation(model, pairs)
    # Before the first step the state is empty, with as many rows as there are texts.
    texts = opset13.gather(
        opset13.shape_of(model.input("input_ids"), output_type="i64"),
        opset13.constant([0]),
        opset13.constant(0),
    )
    for node in _read_values(model):
        if node.get_name() not in others:
            lengths = [size.min_length for size in node.get_output_partial_shape(0)][1:]
            sizes = opset13.constant(np.array(lengths, np.int64))
            zero = opset13.constant(0.0, dtype=node.get_output_element_type(0))
            node.set_arguments([opset13.broadcast(zero, opset13.concat([texts, sizes], axis=0))])
    model.validate_nodes_and_infer_types()


def _read_values(model: Any) -> list[Any]:
    return [node for node in model.get_ops() if node.get_type_name() == "ReadValue"]
