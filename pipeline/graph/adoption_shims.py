"""Nodes around a foreign graph: casts, padding to its one size, inputs that follow from others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from onnx import NodeProto, TensorProto, helper

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pipeline.candidates.records import (
        AdoptedInput,
        AdoptedOutput,
        Interface,
        SuppliedInput,
    )

FED_TYPES: Final = {"int64": TensorProto.INT64, "float32": TensorProto.FLOAT}
"""numpy's name of what samples are -> ONNX's type."""
_IDS: Final = "input_ids"


def inner_name(name: str) -> str:
    """What a tensor that has one of our names outside is called inside."""
    return f"convert_adopted.{name}"


def feed_nodes(adopted: AdoptedInput, fixed: Mapping[str, int], rank: int) -> Iterator[NodeProto]:
    """From our input to the candidate's: padded with zeros where it takes one size, then cast.

    Args:
        adopted: The input.
        fixed: Axis -> the one size.
        rank: How many axes the input has.
    """
    current, target = adopted.name, inner_name(adopted.name)
    for place, axis in enumerate(adopted.axes):
        if axis not in fixed:
            continue
        base = f"{target}.{axis}"
        yield _constant(f"{base}.full", [fixed[axis]])
        yield _constant(f"{base}.none", [0] * rank)
        yield _constant(f"{base}.here", [int(each == place) for each in range(rank)])
        yield from _size_nodes(current, place, base)
        yield helper.make_node("Sub", [f"{base}.full", f"{base}.size"], [f"{base}.lack"])
        yield helper.make_node("Mul", [f"{base}.here", f"{base}.lack"], [f"{base}.behind"])
        ends = [f"{base}.none", f"{base}.behind"]
        yield helper.make_node("Concat", ends, [f"{base}.pads"], axis=0)
        yield helper.make_node("Pad", [current, f"{base}.pads"], [f"{base}.padded"])
        current = f"{base}.padded"
    wanted = TensorProto.DataType.Value(adopted.dtype.upper())
    if wanted == FED_TYPES[adopted.fed]:
        yield helper.make_node("Identity", [current], [target])
    else:
        yield helper.make_node("Cast", [current], [target], to=wanted)


def supply_nodes(supplied: SuppliedInput) -> Iterator[NodeProto]:
    """An input that no sample has: of the shape of `input_ids`, (batch, sequence), or a single zero."""
    target = inner_name(supplied.given)
    base = f"{target}.supplied"
    dtype = TensorProto.DataType.Value(supplied.dtype.upper())
    if supplied.rule == "zero":
        value = helper.make_tensor("zero", dtype, [1] * supplied.rank, [0])
        yield helper.make_node("Constant", [], [target], value=value)
        return
    yield helper.make_node("Shape", [inner_name(_IDS)], [f"{base}.shape"])
    if supplied.rule == "zeros":
        zero = helper.make_tensor("zero", dtype, [1], [0])
        yield helper.make_node("ConstantOfShape", [f"{base}.shape"], [target], value=zero)
        return
    for name, number in (("first", 0), ("step", 1), ("at", 1)):
        yield _constant(f"{base}.{name}", number)
    yield helper.make_node("Gather", [f"{base}.shape", f"{base}.at"], [f"{base}.size"], axis=0)
    ends = [f"{base}.first", f"{base}.size", f"{base}.step"]
    yield helper.make_node("Range", ends, [f"{base}.row"])
    yield helper.make_node("Expand", [f"{base}.row", f"{base}.shape"], [f"{base}.rows"])
    yield helper.make_node("Cast", [f"{base}.rows"], [target], to=dtype)


def read_nodes(output: AdoptedOutput, interface: Interface) -> Iterator[NodeProto]:
    """From the candidate's output to ours: padding cut off, and in a type that is compared."""
    current = inner_name(output.name)
    for place, axis in enumerate(output.axes):
        if axis not in interface.fixed:
            continue
        source = next(each for each in interface.inputs if axis in each.axes)
        base = f"{inner_name(output.name)}.{axis}"
        yield _constant(f"{base}.start", [0])
        yield _constant(f"{base}.axes", [place])
        yield from _size_nodes(source.name, source.axes.index(axis), base)
        ends = [current, f"{base}.start", f"{base}.size", f"{base}.axes"]
        yield helper.make_node("Slice", ends, [f"{base}.cut"])
        current = f"{base}.cut"
    if output.is_comparable:
        yield helper.make_node("Identity", [current], [output.name])
    else:
        yield helper.make_node("Cast", [current], [output.name], to=TensorProto.FLOAT)


def _size_nodes(source: str, place: int, base: str) -> Iterator[NodeProto]:
    """`{base}.size`: int64 (1,), the size of one axis of a value."""
    yield _constant(f"{base}.at", [place])
    yield helper.make_node("Shape", [source], [f"{base}.shape"])
    yield helper.make_node("Gather", [f"{base}.shape", f"{base}.at"], [f"{base}.size"], axis=0)


def _constant(name: str, values: list[int] | int) -> NodeProto:
    """An int64 constant: a list has one axis, a number none."""
    numbers = [values] if isinstance(values, int) else values
    shape = [] if isinstance(values, int) else [len(values)]
    tensor = helper.make_tensor("value", TensorProto.INT64, shape, numbers)
    return helper.make_node("Constant", [], [name], value=tensor)
