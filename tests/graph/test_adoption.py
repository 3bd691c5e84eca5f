"""A foreign graph taken in computes what it computed, under our names; its external data is hostile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.candidates import match_interface
from pipeline.errors import ArtifactError, StoreError
from pipeline.graph.adoption import adopt_model
from pipeline.graph.adoption_weights import move_weights, take_weights_in
from pipeline.graph.files import load_model
from pipeline.graph.read_foreign import read_facts
from pipeline.tasks import find_task
from tests.graph.models import parse, random, run, write

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TABLE = {"table": random(20, 4)}
FOREIGN = """
g (int32[n, t] ids, int32[n, t] mask) => (float[n, t, 4] token_embeddings, float[n, t] extra)
{
    input_ids = Gather(table, ids)
    f = Cast<to = 1>(mask)
    two = Constant<value = int64[1] {2}>()
    column = Unsqueeze(f, two)
    token_embeddings = Mul(input_ids, column)
    extra = Identity(f)
}
"""
IDS = np.array([[1, 2, 3], [4, 5, 0]], dtype=np.int64)
MASK = np.array([[1, 1, 1], [1, 1, 0]], dtype=np.int64)
FEEDS = {"input_ids": IDS, "attention_mask": MASK}
EXPECTED = TABLE["table"][IDS] * MASK[..., None]


def adopt(
    model: onnx.ModelProto, folder: Path, task: str = "feature-extraction", **options: Any
) -> Path:
    path = write(folder / "in", model)
    given: dict[str, Any] = {"fed": tuple(FEEDS), "has_sentence": False, "renames": {}} | options
    interface = match_interface(read_facts(path), find_task(task), **given)
    adopt_model(model, interface)
    onnx.checker.check_model(model, full_check=True)
    return write(folder / "out", model)


def axes(path: Path) -> dict[str, list[str | int]]:
    graph = onnx.load(path).graph
    return {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }


def test_names_types_and_axes_are_ours_and_the_numbers_are_its_own(tmp_path: Path) -> None:
    """Inside, a value has the name of our input: it makes room."""
    path = adopt(parse(FOREIGN, TABLE), tmp_path)
    assert axes(path) == {
        "input_ids": ["batch", "sequence"],
        "attention_mask": ["batch", "sequence"],
        "last_hidden_state": ["batch", "sequence", 4],
    }
    np.testing.assert_array_equal(run(path, FEEDS)[0], EXPECTED.astype(np.float32))


@pytest.mark.parametrize("shape", ["2, 6", "2, t", "n, 6", "5, 6"])
def test_a_graph_of_one_size_is_fed_padded_and_read_without_the_padding(
    tmp_path: Path, shape: str
) -> None:
    text = FOREIGN.replace("n, t", shape)
    path = adopt(parse(text, TABLE), tmp_path)
    assert axes(path)["input_ids"] == ["batch", "sequence"]
    np.testing.assert_array_equal(run(path, FEEDS)[0], EXPECTED.astype(np.float32))


POSITIONS = """
g (int64[n, t] input_ids, int64[n, t] attention_mask, int32[n, t] position_ids, int64[n, t] token_type_ids)
    => (float[n, t, 4] last_hidden_state)
{
    hidden = Gather(table, position_ids)
    types = Cast<to = 1>(token_type_ids)
    two = Constant<value = int64[1] {2}>()
    column = Unsqueeze(types, two)
    last_hidden_state = Add(hidden, column)
}
"""


def test_positions_and_types_are_computed(tmp_path: Path) -> None:
    path = adopt(parse(POSITIONS, TABLE), tmp_path)
    assert set(axes(path)) == {"input_ids", "attention_mask", "last_hidden_state"}
    (found,) = run(path, FEEDS)
    np.testing.assert_array_equal(found, np.stack([TABLE["table"][:3]] * 2))


def test_an_input_that_is_given_out_as_it_is_keeps_both_names(tmp_path: Path) -> None:
    model = parse("g (float[n, 3] logits) => (float[n, 3] logits) { }")
    path = adopt(model, tmp_path, "image-classification", fed=("pixel_values",), renames={})
    pixels = random(2, 3)
    np.testing.assert_array_equal(run(path, {"pixel_values": pixels})[0], pixels)


def test_doubles_come_out_as_floats(tmp_path: Path) -> None:
    text = "g (float[n, 3] x) => (double[n, 3] logits) { logits = Cast<to = 11>(x) }"
    path = adopt(parse(text), tmp_path, "image-classification", fed=("pixel_values",))
    assert run(path, {"pixel_values": random(2, 3)})[0].dtype == np.float32


def test_values_in_subgraphs_are_renamed_too(tmp_path: Path) -> None:
    text = """
g (int64[n, t] ids, int64[n, t] mask) => (float[n, t, 4] last_hidden_state)
{
    yes = Constant<value = bool {1}>()
    hidden = Gather(table, ids)
    last_hidden_state = If (yes) <
        then_branch = a () => (float[n, t, 4] one) {
            f = Cast<to = 1>(mask)
            two = Constant<value = int64[1] {2}>()
            column = Unsqueeze(f, two)
            one = Mul(hidden, column)
        },
        else_branch = b () => (float[n, t, 4] other) { other = Identity(hidden) }
    >
}
"""
    path = adopt(parse(text, TABLE), tmp_path)
    np.testing.assert_array_equal(run(path, FEEDS)[0], EXPECTED.astype(np.float32))


def test_an_opset_that_lacks_what_is_needed_around_it_is_refused(tmp_path: Path) -> None:
    model = parse(FOREIGN.replace("n, t", "2, 6"), TABLE)
    path = write(tmp_path / "in", model)
    interface = match_interface(
        read_facts(path),
        find_task("feature-extraction"),
        fed=tuple(FEEDS),
        has_sentence=False,
        renames={},
    )
    model.opset_import[0].version = 10
    with pytest.raises(ArtifactError, match="opset 11"):
        adopt_model(model, interface)


# --- external data --------------------------------------------------------------------------


def external(tensor: TensorProto, **entries: str) -> TensorProto:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def holding(kind: str, tensor: TensorProto) -> onnx.ModelProto:
    """A model with a tensor in one of the four places where tensors are."""
    indices = numpy_helper.from_array(np.arange(4, dtype=np.int64), "i")
    sparse = helper.make_sparse_tensor(tensor, indices, [4])
    output = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])]
    if kind == "initializer":
        graph = helper.make_graph([], "g", [], output, [tensor])
    elif kind == "sparse_initializer":
        graph = helper.make_graph([], "g", [], output, sparse_initializer=[sparse])
    else:
        attribute = {"value": tensor} if kind == "constant" else {"sparse_value": sparse}
        graph = helper.make_graph(
            [helper.make_node("Constant", [], ["y"], **attribute)], "g", [], output
        )
    return helper.make_model(graph)


def weight() -> TensorProto:
    return numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")


KINDS = ("initializer", "sparse_initializer", "constant", "sparse_constant")


@pytest.mark.parametrize("kind", KINDS)
def test_external_data_is_read_wherever_it_stands(tmp_path: Path, kind: str) -> None:
    (tmp_path / "w").write_bytes(b"1234" + np.arange(4, dtype=np.float32).tobytes())
    model = holding(kind, external(weight(), location="w", offset="4", length="16"))
    take_weights_in(model, tmp_path)
    assert b"1234" not in model.SerializeToString()
    assert np.arange(4, dtype=np.float32).tobytes() in model.SerializeToString()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "entries",
    [
        {"location": "../secret"},
        {"location": "a/../../secret"},
        {"location": "/etc/passwd"},
        {"location": "..\\secret"},
        {"location": ""},
        {"location": "."},
        {"location": ".."},
        {"location": "*/_ORT_MEM_ADDR_/*", "offset": "4096"},
        {"location": "missing"},
        {"location": "w", "offset": "1"},
        {"location": "w", "offset": "-16"},
        {"location": "w", "offset": "99999999999999"},
        {"location": "w", "length": "68719476736"},
        {"location": "w", "length": "8"},
        {"location": "w", "length": "-1"},
        {"location": "w", "offset": "x"},
        {"location": "w", "prepacked": "1"},
        {"location": "w", "__class__": "x"},
        {"location": "folder"},
    ],
)
def test_external_data_that_lies_is_refused(
    tmp_path: Path, kind: str, entries: Mapping[str, str]
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "secret").write_bytes(b"canary" * 10)
    (home / "w").write_bytes(bytes(16))
    (home / "folder").mkdir()
    model = holding(kind, external(weight(), **entries))
    with pytest.raises(ArtifactError):
        take_weights_in(model, home)
    assert b"canary" not in model.SerializeToString()


def test_large_weights_go_from_file_to_file_and_shared_ones_once(tmp_path: Path) -> None:
    """Above the limit nothing but small tensors is read; what is computed stays the same."""
    home, made = tmp_path / "home", tmp_path / "made"
    home.mkdir()
    made.mkdir()
    table, small = random(40, 16), random(4)
    (home / "w").write_bytes(b"12345678" + table.tobytes() + small.tobytes())
    tensors = [
        external(numpy_helper.from_array(array, name), location="w", offset=str(offset))
        for name, array, offset in (
            *(("a", table, 8), ("b", table, 8)),
            ("c", small, 8 + table.nbytes),
        )
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [40, 16])]
    nodes = [helper.make_node("Add", ["a", "b"], ["y"])]
    model = helper.make_model(helper.make_graph(nodes, "g", [], outputs, tensors))
    moved = move_weights(model, home, inline_limit_bytes=1000)
    (made / "model.onnx").write_bytes(model.SerializeToString())
    moved.write(made)
    assert (made / "model.onnx_data").stat().st_size == table.nbytes
    loaded = {
        t.name: numpy_helper.to_array(t) for t in load_model(made / "model.onnx").graph.initializer
    }
    np.testing.assert_array_equal(loaded["a"], table)
    np.testing.assert_array_equal(loaded["b"], table)
    np.testing.assert_array_equal(loaded["c"], small)
    with pytest.raises(StoreError):
        moved.write(made)


@pytest.mark.parametrize("entries", [{"location": "../w"}, {"location": "w", "length": "8"}])
def test_large_weights_are_looked_at_before_they_are_moved(
    tmp_path: Path, entries: Mapping[str, str]
) -> None:
    (tmp_path / "w").write_bytes(bytes(16))
    with pytest.raises(ArtifactError):
        move_weights(
            holding("initializer", external(weight(), **entries)), tmp_path, inline_limit_bytes=1
        )
