from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from pipeline.graph.fusions.dims import ONE, Dim, broadcast, product
from pipeline.graph.fusions.shapes import SymbolicShapes
from pipeline.graph.fusions.views import regroup, root_view
from tests.graph.fusions.graphs import (
    SPELLINGS,
    GraphBuilder,
    attention_model,
    feeds_for,
    run_all,
)

if TYPE_CHECKING:
    import onnx

NAMES = ("a", "b", "c")
dims = st.builds(
    lambda factor, names: Dim(factor, tuple(sorted(names))),
    st.integers(1, 6),
    st.lists(st.sampled_from(NAMES), max_size=2),
)
assignments = st.fixed_dictionaries({name: st.integers(1, 5) for name in NAMES})


def value_of(dim: Dim, sizes: dict[str, int]) -> int:
    return dim.factor * math.prod(sizes[name] for name in dim.symbols)


@given(dims, dims, assignments)
def test_a_quotient_times_its_divisor_is_the_dividend(
    left: Dim, right: Dim, sizes: dict[str, int]
) -> None:
    quotient = left.divided_by(right)
    assert (left * right).divided_by(right) == left
    if quotient is not None:
        assert value_of(quotient, sizes) * value_of(right, sizes) == value_of(left, sizes)


@given(st.lists(dims, max_size=3), st.lists(dims, max_size=3), assignments)
def test_a_known_broadcast_is_what_numpy_gives_wherever_numpy_gives_anything(
    left: list[Dim], right: list[Dim], sizes: dict[str, int]
) -> None:
    result = broadcast(tuple(left), tuple(right))
    shapes = [tuple(value_of(dim, sizes) for dim in side) for side in (left, right)]
    try:
        expected = np.broadcast_shapes(*shapes)
    except ValueError:
        return
    for dim, size in zip(result, expected, strict=True):
        assert dim is None or value_of(dim, sizes) == size


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_regrouping_keeps_every_element_and_its_order(shape: list[int]) -> None:
    view = root_view(tuple(Dim(size) for size in shape))
    flat = regroup(view, (Dim(math.prod(shape)),))
    assert flat is not None
    keys = [atom.key for axis in flat for atom in axis]
    assert keys == sorted(keys)
    assert product(atom.size for axis in flat for atom in axis) == Dim(math.prod(shape))
    assert regroup(flat, tuple(Dim(size) for size in shape)) == view


def test_lengths_that_do_not_divide_cannot_be_regrouped() -> None:
    view = root_view((Dim(1, ("a",)), Dim(6)))
    assert regroup(view, (Dim(1, ("b",)), Dim(6))) is None
    assert regroup(view, (Dim(1, ("a",)), Dim(4))) is None
    assert regroup(view, (Dim(1, ("a",)), Dim(6), Dim(2))) is None


def test_a_slice_by_the_sequence_broadcasts_to_the_sequence_and_not_to_anything_else() -> None:
    sequence, sliced = Dim(1, ("s",)), Dim(1, ("min(s|512)",))
    assert broadcast((sliced,), (sequence,)) == (sequence,)
    assert broadcast((sliced,), (Dim(1, ("t",)),)) == (None,)
    assert broadcast((sliced,), (ONE,)) == (sliced,)


def image_model() -> onnx.ModelProto:
    """Convolution, pooling, windows and parts, as image models have them."""
    g = GraphBuilder()
    x = g.input("pixels", ["batch", 3, 33, 48])
    conv = {"strides": [2, 3], "pads": [1, 0, 2, 1], "dilations": [1, 2]}
    x = g.node("Conv", x, g.weight(8, 3, 3, 5), **conv)
    x = g.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    g.node("GlobalAveragePool", x)
    every_other = g.node("Slice", x, g.ints(1), g.ints(2**40), g.ints(2), g.ints(2))
    g.node("Sin", g.node("Slice", every_other, g.ints(-3), g.ints(-1), g.ints(3)))
    x = g.node("Transpose", g.node("Reshape", x, g.ints(0, 0, -1)), perm=[0, 2, 1])
    windows = g.node("Tile", x, g.ints(3, 1, 2))
    parts = [f"part_{index}" for index in range(5)]
    split = {"axis": -1, "num_outputs": 2}
    g.nodes.append(helper.make_node("Split", [windows], parts[:2], **split))
    g.nodes.append(helper.make_node("Split", [x, g.ints(1, 5, 2)], parts[2:], axis=2))
    indices = g.node("Cast", g.node("Abs", parts[3]), to=TensorProto.INT64)
    zeros = g.node("Mul", indices, g.ints(0))
    g.output(g.node("GatherElements", x, zeros, axis=1))
    return g.model()


def test_every_length_of_an_image_model_is_derived_from_the_batch_alone() -> None:
    proto = image_model()
    model = ir.from_proto(proto)
    shapes = SymbolicShapes(model.graph)
    by_name = {value.name: value for node in model.graph for value in node.outputs}
    for name, array in run_all(proto, feeds_for(proto, {"batch": 3})).items():
        shape = shapes.of(by_name[name])
        assert shape is not None
        assert [value_of(dim, {"batch": 3}) for dim in shape] == list(array.shape), name


@pytest.mark.parametrize("change", [{"auto_pad": "SAME_UPPER"}, {"ceil_mode": 1}])
def test_windows_whose_count_is_not_worked_out_are_unknown(change: dict[str, Any]) -> None:
    g = GraphBuilder()
    x = g.input("pixels", ["batch", 3, 9, 9])
    y = g.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], **change)
    g.output(y, rank=4)
    model = ir.from_proto(g.model())
    shape = SymbolicShapes(model.graph).of(model.graph.node(0).outputs[0])
    assert shape is not None
    assert [dim.is_constant for dim in shape] == [False, True, False, False]


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_derived_length_is_the_one_that_the_run_has(name: str) -> None:
    proto = attention_model(SPELLINGS[name])
    model = ir.from_proto(proto)
    shapes = SymbolicShapes(model.graph)
    sizes = {"batch": 3, "sequence": 7, "memory": 5}
    followed = 0
    for value, array in run_all(proto, feeds_for(proto, sizes)).items():
        shape = shapes.of(next(v for n in model.graph for v in n.outputs if v.name == value))
        assert shape is not None
        for dim, size in zip(shape, array.shape, strict=True):
            if all(symbol in sizes for symbol in dim.symbols):
                assert value_of(dim, sizes) == size
                followed += 1
    assert followed > 20
