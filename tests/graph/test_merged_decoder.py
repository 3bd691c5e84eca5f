"""What makes keys and values of the source goes from one graph to the other and computes the same there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest

from pipeline.errors import ArtifactError
from pipeline.graph.merged_decoder import write_merged_pair

if TYPE_CHECKING:
    from pathlib import Path

_ENCODER = """
<ir_version: 10, opset_import: ["" : 20]>
encoder (int64[batch, sequence] input_ids)
    => (float[batch, sequence, 4] last_hidden_state,
        float[batch, 2, sequence, 2] present.0.encoder.key,
        float[batch, 2, sequence, 2] present.0.encoder.value) {
    last_hidden_state = Gather(table, input_ids)
    length = Shape <start = 1, end = 2> (input_ids)
    sizes = Concat <axis = 0> (zero, length, two, two)
    k = MatMul(last_hidden_state, weight)
    k4 = Reshape(k, sizes)
    present.0.encoder.key = Transpose <perm = [0, 2, 1, 3]> (k4)
    v4 = Reshape(last_hidden_state, sizes)
    present.0.encoder.value = Transpose <perm = [0, 2, 1, 3]> (v4)
}
"""
_DECODER = """
<ir_version: 10, opset_import: ["" : 21]>
decoder (int64[batch, new] input_ids,
         float[batch, 2, encoder_sequence, 2] past_key_values.0.encoder.value,
         float[batch, 2, past, 2] past_key_values.0.decoder.key,
         float[batch, 2, past, 2] past_key_values.0.decoder.value,
         float[batch, 2, encoder_sequence, 2] past_key_values.0.encoder.key)
    => (float[batch, new, 4] logits,
        float[batch, 2, total, 2] present.0.decoder.key,
        float[batch, 2, total, 2] present.0.decoder.value) {
    sum = Add(past_key_values.0.encoder.key, past_key_values.0.encoder.value)
    flat = Reshape(sum, rows)
    mean = ReduceMean <keepdims = 1> (flat, one)
    tokens = Gather(table, input_ids)
    moved = Unsqueeze(mean, one)
    logits = Add(tokens, moved)
    t4 = Reshape(tokens, heads)
    new = Transpose <perm = [0, 2, 1, 3]> (t4)
    present.0.decoder.key = Concat <axis = 2> (past_key_values.0.decoder.key, new)
    present.0.decoder.value = Concat <axis = 2> (past_key_values.0.decoder.value, new)
}
"""
_NUMBERS = {"zero": [0], "two": [2], "one": [1], "rows": [0, -1], "heads": [0, -1, 2, 2]}
AXES = {"batch": "batch_size"}


def _graph(text: str, path: Path, seed: int) -> Path:
    model = onnx.parser.parse_model(re.sub(r"(?<=[a-z\d])\.(?=[a-z\d])", "__", text))
    for value in (*model.graph.input, *model.graph.output):
        value.name = value.name.replace("__", ".")
    for node in model.graph.node:
        node.input[:] = [name.replace("__", ".") for name in node.input]
        node.output[:] = [name.replace("__", ".") for name in node.output]
    generator = np.random.default_rng(seed)
    used = {name for node in model.graph.node for name in node.input}
    weights = {name: np.array(values, np.int64) for name, values in _NUMBERS.items()}
    for name, shape in (("table", (9, 4)), ("weight", (4, 4))):
        weights[name] = generator.standard_normal(shape).astype(np.float32)
    for name in sorted(used & set(weights)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(weights[name], name))
    path.parent.mkdir(parents=True)
    onnx.save(model, path)
    return path


def _merge(folder: Path, encoder: str = _ENCODER, **options: Any) -> tuple[Path, Path]:
    paths = [
        _graph(text, folder / name / "model.onnx", seed)
        for seed, (name, text) in enumerate((("encoder", encoder), ("decoder", _DECODER)))
    ]
    (folder / "scratch").mkdir()
    places = (folder / "made/encoder_model.onnx", folder / "made/merged.onnx")
    write_merged_pair(*paths, folder / "scratch", places, axes=AXES, **options)
    return places


def _run(path: Path, feeds: dict[str, Any]) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


@pytest.mark.parametrize("width", [2, 5])
def test_both_steps_compute_what_the_two_graphs_do(tmp_path: Path, width: int) -> None:
    encoder, merged = _merge(tmp_path, has_any_width=width != 2)
    source = {"input_ids": np.array([[1, 5, 7], [2, 2, 8]])}
    made = _run(tmp_path / "encoder/model.onnx", source)
    (states,) = _run(encoder, source).values()
    assert np.array_equal(states, made["last_hidden_state"])
    own = {
        f"past_key_values.0.decoder.{kind}": np.zeros((2, 2, 0, 2), np.float32)
        for kind in ("key", "value")
    }
    crossed = {
        name.replace("present", "past_key_values"): array
        for name, array in made.items()
        if name.startswith("present")
    }
    feeds = {"encoder_hidden_states": states, "use_cache_branch": np.array([False])}
    feeds |= {name: np.zeros((2, 2, 0, width), np.float32) for name in (*own, *crossed)}
    for tokens in (np.array([[3], [4]]), np.array([[1, 2], [3, 4]])):
        expected = _run(tmp_path / "decoder/model.onnx", {"input_ids": tokens, **own, **crossed})
        found = _run(merged, {"input_ids": tokens, **feeds})
        for name, array in expected.items():
            assert np.array_equal(found[name], array), name
        past = {n.replace("present", "past_key_values"): a for n, a in found.items() if "." in n}
        for name, array in crossed.items():
            assert np.array_equal(past[name], array), name
        feeds |= past | {"use_cache_branch": np.array([True])}
        own = {name: past[name] for name in own}


def test_names_order_and_weights_are_those_of_optimum(tmp_path: Path) -> None:
    encoder, merged = (onnx.load(path) for path in _merge(tmp_path))
    assert [value.name for value in encoder.graph.output] == ["last_hidden_state"]
    assert [tensor.name for tensor in encoder.graph.initializer] == ["table"]
    kinds = ("decoder.key", "decoder.value", "encoder.key", "encoder.value")
    past = [f"past_key_values.0.{kind}" for kind in kinds]
    inputs = ["input_ids", "encoder_hidden_states", *past, "use_cache_branch"]
    assert [value.name for value in merged.graph.input] == inputs
    present = [f"present.0.{kind}" for kind in kinds]
    assert [value.name for value in merged.graph.output] == ["logits", *present]
    floats = [t.name for t in merged.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert sorted(floats) == ["source.weight", "table"]
    axes = {d.dim_param for v in merged.graph.input for d in v.type.tensor_type.shape.dim}
    assert "batch_size" in axes
    assert "batch" not in axes
    onnx.checker.check_model(merged, full_check=True)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("k = MatMul(last_hidden_state", "c = Cast<to=1>(input_ids) u = Unsqueeze(c, two) k = MatMul(u", "come from the encoder's `input_ids`"),
        ("<start = 1, end = 2>", "<start = 0, end = 1>", ""),
        ("float[batch, sequence, 4] last", "float[batch, other, 4] last", "the size of the encoder's"),
        ("present.0.encoder.value", "present.1.encoder.value", "present.0.encoder.value"),
    ],
)  # fmt: skip
def test_what_is_not_made_of_the_states_is_refused(
    tmp_path: Path, old: str, new: str, told: str
) -> None:
    if not told:  # the batch is an axis of the states as well
        _merge(tmp_path, _ENCODER.replace(old, new))
        return
    with pytest.raises(ArtifactError, match=told):
        _merge(tmp_path, _ENCODER.replace(old, new))
