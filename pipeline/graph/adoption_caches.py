"""Keys and values of a foreign decoder: our names and float32 outside, whatever it keeps inside.

What a float16 graph gives comes back to it through float32 unchanged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from onnx import TensorProto, helper

from pipeline.graph.adoption_shims import inner_name
from pipeline.tasks import BATCH_AXIS, PAST_AXIS, SEQUENCE_AXIS, TOTAL_AXIS

if TYPE_CHECKING:
    import onnx

    from pipeline.candidates.records import AdoptedCache

PAST_AXES: Final = (BATCH_AXIS, "", PAST_AXIS)
"""Of an input; heads have a size of their own."""
PRESENT_AXES: Final = (BATCH_AXIS, "", TOTAL_AXIS)
"""Of an output."""


def past_input(cache: AdoptedCache) -> onnx.ValueInfoProto:
    """The input outside: float32 (batch, heads, past_sequence, width)."""
    shape: list[str | int | None] = [BATCH_AXIS, cache.heads, PAST_AXIS, cache.width]
    return helper.make_tensor_value_info(cache.name, TensorProto.FLOAT, shape)


def present_output(cache: AdoptedCache) -> onnx.ValueInfoProto:
    """The output outside: float32 (batch, heads, total_sequence, width)."""
    shape: list[str | int | None] = [BATCH_AXIS, cache.heads, TOTAL_AXIS, cache.width]
    return helper.make_tensor_value_info(cache.present, TensorProto.FLOAT, shape)


def unused_input(name: str) -> onnx.ValueInfoProto:
    """An input, int64 (batch, sequence), that nothing inside reads: it is fed to all decoders."""
    return helper.make_tensor_value_info(name, TensorProto.INT64, [BATCH_AXIS, SEQUENCE_AXIS])


def past_node(cache: AdoptedCache) -> onnx.NodeProto:
    """From our input to the candidate's."""
    return _between(cache.name, inner_name(cache.name), cache.dtype)


def present_node(cache: AdoptedCache) -> onnx.NodeProto:
    """From the candidate's output to ours."""
    return _between(inner_name(cache.present), cache.present, cache.dtype, is_out=True)


def _between(given: str, made: str, dtype: str, *, is_out: bool = False) -> onnx.NodeProto:
    if dtype == "float":
        return helper.make_node("Identity", [given], [made])
    wanted = TensorProto.FLOAT if is_out else TensorProto.DataType.Value(dtype.upper())
    return helper.make_node("Cast", [given], [made], to=wanted)
