"""Converts one graph with OpenVINO and generates text with OpenVINO GenAI; see `consumer.py`.

Source of the conversion: `optimum.exporters.openvino.stateful`, optimum-intel, which does the same to
graphs from torch: `beam_idx` picks the rows of every cached tensor, and tensors become state.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.bundle.same_tokens import PROMPTS, TOKENS, first_difference, own_tokens, prompts_of
from pipeline.graph.block_weights import without_rounded_inputs
from pipeline.graph.spread_heads import spread_shared_heads

_FLOATS: Final = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}
"""Nothing is rounded on the way, so that tokens can be compared."""


def run(question: dict[str, Any]) -> dict[str, Any]:
    """Convert and try.

    Returns:
        `told` and `notes`, or `problem`.
    """
    import openvino
    import openvino_genai
    from openvino_tokenizers import convert_tokenizer
    from transformers import AutoTokenizer

    graph, folder = Path(question["graph"]), Path(question["folder"])
    try:
        with tempfile.TemporaryDirectory(prefix="convert-") as place:
            model = openvino.Core().read_model(spread_shared_heads(graph, Path(place)))
            _make_stateful(model)
            openvino.save_model(model, folder / "openvino_model.xml", compress_to_fp16=False)
            del model  # it maps the weights of the graph
    except RuntimeError as err:
        return {"problem": f"it cannot convert the graph: {_first_line(err)}"}
    try:
        tokenizer, detokenizer = convert_tokenizer(
            AutoTokenizer.from_pretrained(folder, local_files_only=True), with_detokenizer=True
        )
        openvino.save_model(tokenizer, folder / "openvino_tokenizer.xml")
        openvino.save_model(detokenizer, folder / "openvino_detokenizer.xml")
    except (RuntimeError, ValueError, TypeError, AttributeError) as err:
        return {"problem": f"it cannot convert the tokenizer: {_first_line(err)}"}
    prompts = prompts_of(question["vocabulary"], question["positions"])
    length = min(TOKENS, question["positions"] - max(map(len, prompts)))
    try:
        pipeline = openvino_genai.LLMPipeline(folder, "CPU", **_FLOATS)
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.do_sample = length, False
        config.stop_token_ids = set(question["stops"])
        theirs = []
        for prompt in prompts:
            made = pipeline.generate(openvino.Tensor(np.array([prompt], np.int64)), config)
            theirs.append([int(token) for token in made.tokens[0]])
    except RuntimeError as err:
        return {"problem": f"it cannot generate: {_first_line(err)}"}
    with tempfile.TemporaryDirectory(prefix="convert-") as place:
        exact = without_rounded_inputs(graph, Path(place))
        own = own_tokens(
            exact, prompts, length, question["stops"], question["pad"], optimizations="disabled"
        )
    problem = first_difference(own, theirs, question["stops"])
    if problem:
        return {"problem": problem}
    version = openvino_genai.__version__.split("-")[0]
    return {
        "told": f"openvino-genai {version}: the same {length} tokens after {PROMPTS} prompts",
        "notes": [],
    }


def _make_stateful(model: Any) -> None:
    """Let the model keep its cache itself."""
    import openvino
    from openvino import opset13
    from openvino._offline_transformations import apply_make_stateful_transformation

    past = [
        tensor.get_any_name()
        for tensor in model.inputs
        if tensor.get_any_name().startswith("past_key_values.")
    ]
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
    pairs = {name: f"present.{name.removeprefix('past_key_values.')}" for name in past}
    apply_make_stateful_transformation(model, pairs)
    # Before the first step the state is empty, with as many rows as there are texts.
    texts = opset13.gather(
        opset13.shape_of(model.input("input_ids"), output_type="i64"),
        opset13.constant([0]),
        opset13.constant(0),
    )
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            lengths = [size.min_length for size in node.get_output_partial_shape(0)][1:]
            sizes = opset13.constant(np.array(lengths, np.int64))
            zero = opset13.constant(0.0, dtype=node.get_output_element_type(0))
            node.set_arguments([opset13.broadcast(zero, opset13.concat([texts, sizes], axis=0))])
    model.validate_nodes_and_infer_types()


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).strip()


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))  # noqa: T201 - the answer
