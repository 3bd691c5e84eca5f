"""A tiny sentence encoder as an ONNX graph, ways to break it, and its reference in plain numpy.

Each way to break it is one that real conversions have met; each graph still loads in ONNX Runtime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from pipeline.data.reference_set import ReferenceIndex, save_reference
from pipeline.data.sample_set import InputSpec, SampleEntry, SampleIndex, save_samples, tensor_name

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

VOCABULARY, WIDTH = 32, 8
POISON = 31
"""A token that only one sample has; the graph `nan_in_one_sample` answers it with NaN."""

LENGTHS = (3, 9, 5, 17, 4, 2, 11)
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUTS = ("last_hidden_state", "sentence_embedding")

_rng = np.random.default_rng(7)
WORDS = _rng.standard_normal((VOCABULARY, WIDTH)).astype(np.float32)
TYPES = _rng.standard_normal((2, WIDTH)).astype(np.float32)

GRAPH = """
<ir_version: 10, opset_import: ["" : 20]>
encoder (int64[batch, sequence] input_ids, int64[batch, sequence] attention_mask,
         int64[batch, sequence] token_type_ids)
    => (float[batch, sequence, 8] last_hidden_state, float[batch, 8] sentence_embedding)
{
    mask = Cast <to = 1> (attention_mask)
    column = Unsqueeze (mask, minus_one)
    word = Gather (words, input_ids)
    kind = Gather (types, token_type_ids)
    token = Add (word, kind)
    kept = Mul (token, column)
    total = ReduceSum <keepdims = 1> (kept, one)
    count = ReduceSum <keepdims = 1> (column, one)
    context = Div (total, count)
    last_hidden_state = Add (token, context)
    seen = Mul (last_hidden_state, column)
    pooled = ReduceSum <keepdims = 0> (seen, one)
    length = ReduceSum <keepdims = 0> (column, one)
    sentence_embedding = Div (pooled, length)
}
"""

BROKEN = {
    "mask_ignored": (
        "column = Unsqueeze (mask, minus_one)",
        "raw = Unsqueeze (mask, minus_one) nothing = Mul (raw, zero_f) column = Add (nothing, one_f)",
    ),
    "two_inputs_swapped": (
        "kind = Gather (types, token_type_ids)",
        "kind = Gather (types, attention_mask)",
    ),
    "wrong_pooling": (
        "sentence_embedding = Div (pooled, length)",
        "sentence_embedding = Gather <axis = 1> (last_hidden_state, zero)",
    ),
    "nan_in_one_sample": (
        "word = Gather (words, input_ids)",
        (
            "good = Gather (words, input_ids) bad = Equal (input_ids, poison) "
            "bad3 = Unsqueeze (bad, minus_one) word = Where (bad3, nan, good)"
        ),
    ),
    "scaled_by_two": (
        "sentence_embedding = Div (pooled, length)",
        "half = Div (pooled, length) sentence_embedding = Add (half, half)",
    ),
    "other_sample_of_the_batch": (
        "sentence_embedding = Div (pooled, length)",
        (
            "mean = Div (pooled, length) all = ReduceMean <keepdims = 1> (mean, zero_axis) "
            "apart = Sub (all, mean) small = Mul (apart, tenth) "
            "sentence_embedding = Add (mean, small)"
        ),
    ),
    "sequence_of_one_size": (
        "int64[batch, sequence] token_type_ids",
        "int64[batch, 17] token_type_ids",
    ),
    "batch_of_one": ("int64[batch, sequence] input_ids", "int64[1, sequence] input_ids"),
    "batch_of_one_inside": (
        "sentence_embedding = Div (pooled, length)",
        "mean = Div (pooled, length) sentence_embedding = Reshape (mean, one_by_width)",
    ),
    "batch_flattened": (
        "float[batch, sequence, 8] last_hidden_state",
        "float[one, tokens, 8] last_hidden_state",
        "last_hidden_state = Add (token, context)",
        "hidden = Add (token, context) last_hidden_state = Reshape (hidden, one_any_width)",
        "Mul (last_hidden_state, column)",
        "Mul (hidden, column)",
    ),
    "output_renamed": ("sentence_embedding", "embedding"),
    "integers": (
        "float[batch, 8] sentence_embedding",
        "int32[batch, 8] sentence_embedding",
        "sentence_embedding = Div (pooled, length)",
        "mean = Div (pooled, length) sentence_embedding = Cast <to = 6> (mean)",
    ),
    "token_axis_without_a_name": (
        "float[batch, sequence, 8] last_hidden_state",
        "float[batch, s43, 8] last_hidden_state",
    ),
    "input_dropped": (
        "int64[batch, sequence] attention_mask,",
        "",
        "mask = Cast <to = 1> (attention_mask)",
        "same = Equal (input_ids, input_ids) mask = Cast <to = 1> (same)",
    ),
    "input_unknown": ("token_type_ids", "position_ids"),
    "input_of_32_bits": (
        "int64[batch, sequence] token_type_ids",
        "int32[batch, sequence] token_type_ids",
    ),
}
"""Name of the fault -> what to replace in the text of the graph, in pairs."""


def write_graph(directory: Path, fault: str = "", *, edits: tuple[str, ...] = ()) -> Path:
    """Write `model.onnx` with a fault (or none) into a directory, and return the directory."""
    text = GRAPH
    pairs = (*BROKEN.get(fault, ()), *edits)
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        assert old in text
        text = text.replace(old, new)
    model = onnx.parser.parse_model(text)
    weights: dict[str, NDArray[np.generic]] = {
        "words": WORDS,
        "types": TYPES,
        "minus_one": np.array([-1], np.int64),
        "one": np.array([1], np.int64),
        "zero": np.array(0, np.int64),
        "zero_axis": np.array([0], np.int64),
        "poison": np.array(POISON, np.int64),
        "nan": np.array(np.nan, np.float32),
        "zero_f": np.array(0, np.float32),
        "one_f": np.array(1, np.float32),
        "tenth": np.array(0.1, np.float32),
        "one_by_width": np.array([1, WIDTH], np.int64),
        "one_any_width": np.array([1, -1, WIDTH], np.int64),
    }
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in weights.items() if name in used
    )
    directory.mkdir(parents=True, exist_ok=True)
    onnx.save(model, directory / "model.onnx")
    return directory


def encode(sample: dict[str, NDArray[np.int64]]) -> dict[str, NDArray[np.float32]]:
    """The encoder in plain numpy, one sample without padding."""
    token = WORDS[sample["input_ids"]] + TYPES[sample["token_type_ids"]]
    hidden = token + token.mean(axis=0, keepdims=True)
    return {"last_hidden_state": hidden, "sentence_embedding": hidden.mean(axis=0)}


def write_samples(directory: Path) -> Path:
    """A sample set of mixed lengths; `POISON` is in the last sample only."""
    rng = np.random.default_rng(11)
    inputs = []
    for length in LENGTHS:
        ids = rng.integers(1, POISON, length)
        inputs.append(
            {
                "input_ids": ids,
                "attention_mask": np.ones(length, np.int64),
                "token_type_ids": (np.arange(length) > length // 2).astype(np.int64),
            }
        )
    inputs[-1]["input_ids"][1] = POISON
    index = SampleIndex(
        source="test",
        use="evaluation",
        seed=11,
        max_length=max(LENGTHS),
        inputs={name: InputSpec(dtype="int64", axes=("sequence",)) for name in INPUTS},
        samples=tuple(
            SampleEntry(index=i, text=f"sample {i}", extents={"sequence": length})
            for i, length in enumerate(LENGTHS)
        ),
    )
    directory.mkdir(parents=True, exist_ok=True)
    save_samples(index, inputs, directory)
    tensors = {
        tensor_name(name, i): array
        for i, sample in enumerate(inputs)
        for name, array in encode(sample).items()
    }
    save_reference(
        ReferenceIndex(
            task="feature-extraction",
            component="model",
            inputs=INPUTS,
            outputs=OUTPUTS,
            samples=len(LENGTHS),
            session="numpy",
        ),
        tensors,
        directory,
    )
    return directory
