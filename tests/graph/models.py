"""Small graphs in ONNX's text syntax, with the weights each test needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

HEADER = '<ir_version: 10, opset_import: ["" : 20]>\n'


def parse(text: str, weights: Mapping[str, np.ndarray] | None = None) -> onnx.ModelProto:
    """A model from ONNX text syntax; `weights` become initializers."""
    model = onnx.parser.parse_model(HEADER + text)
    for name, array in (weights or {}).items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def write(directory: Path, model: onnx.ModelProto) -> Path:
    """Write a model as a stage's output is: `model.onnx` in a directory of its own."""
    directory.mkdir(parents=True)
    path = directory / "model.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def run(path: Path, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of a model in ONNX Runtime, exactly as it is written."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))


def random(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


EMBEDDING = """
encoder (int64[batch, sequence] input_ids, int64[batch, sequence] attention_mask)
    => (float[batch, sequence, 4] last_hidden_state)
{
    hidden = Gather(table, input_ids)
    mask = Cast<to = 1>(attention_mask)
    two = Constant<value = int64[1] {2}>()
    column = Unsqueeze(mask, two)
    last_hidden_state = Mul(hidden, column)
}
"""


def embedding_model(rows: int = 8) -> onnx.ModelProto:
    """Looks tokens up, and zeroes those that are masked."""
    return parse(EMBEDDING, {"table": random(rows, 4)})
