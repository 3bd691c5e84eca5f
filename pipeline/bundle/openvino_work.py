"""Converts one graph with OpenVINO and generates text with OpenVINO GenAI; see `consumer.py`."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bundle.same_tokens import PROMPTS, TOKENS, first_difference, own_tokens, prompts_of
from pipeline.graph.block_weights import without_rounded_inputs
from pipeline.runtimes.openvino_conversion import (
    EXACT,
    convert_decoder,
    convert_tokenizer,
    first_line,
)


def run(question: dict[str, Any]) -> dict[str, Any]:
    """Convert and try.

    Returns:
        `told` and `notes`, or `problem`.
    """
    import openvino
    import openvino_genai

    graph, folder = Path(question["graph"]), Path(question["folder"])
    try:
        convert_decoder(graph, folder)
    except RuntimeError as err:
        return {"problem": f"it cannot convert the graph: {first_line(err)}"}
    try:
        convert_tokenizer(folder)
    except (RuntimeError, ValueError, TypeError, AttributeError) as err:
        return {"problem": f"it cannot convert the tokenizer: {first_line(err)}"}
    prompts = prompts_of(question["vocabulary"], question["positions"])
    length = min(TOKENS, question["positions"] - max(map(len, prompts)))
    try:
        pipeline = openvino_genai.LLMPipeline(folder, "CPU", **EXACT)
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.do_sample = length, False
        config.stop_token_ids = set(question["stops"])
        theirs = []
        for prompt in prompts:
            made = pipeline.generate(openvino.Tensor(np.array([prompt], np.int64)), config)
            theirs.append([int(token) for token in made.tokens[0]])
    except RuntimeError as err:
        return {"problem": f"it cannot generate: {first_line(err)}"}
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


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))  # noqa: T201 - the answer
