"""What a graph computes with, from its operators and the types of its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.graph.model_facts import ModelFacts
    from pipeline.parity.tolerances import Arithmetic

_DYNAMIC: Final = frozenset(
    {
        "ConvInteger",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "com.microsoft::DynamicQuantizeLSTM",
        "com.microsoft::DynamicQuantizeMatMul",
        "com.microsoft::MatMulIntegerToFloat",
        "com.microsoft::QAttention",
    }
)
_STATIC: Final = frozenset(
    {"QLinearConv", "QLinearMatMul", "QuantizeLinear", "com.microsoft::QGemm"}
)
_WEIGHTS_ONLY: Final = frozenset(
    {
        "DequantizeLinear",
        "com.microsoft::DequantizeLinear",
        "com.microsoft::GatherBlockQuantized",
        "com.microsoft::MatMulBnb4",
        "com.microsoft::MatMulNBits",
    }
)
_CACHE: Final = "past_key_values."
_QLINEAR: Final = ("QLinear", "com.microsoft::QLinear")
_INTEGERS: Final = frozenset({"int8", "uint8", "int4", "uint4", "int2", "uint2"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """What a graph computes with.

    Attributes:
        arithmetic: The least exact numbers it computes with on purpose.
        quantization: Where the ranges of activations come from; `weights` when only weights are
            stored in few bits; empty when nothing is.
        words: All of it for people, such as `int8, ranges taken at run time`.
        quantized_weights: Share of the layers' weights that are stored as integers of 8 bits or
            less, in [0, 1].
        fp16_weights: The same of float16.
    """

    arithmetic: Arithmetic
    quantization: Literal["dynamic", "static", "weights", ""]
    words: str
    quantized_weights: float
    fp16_weights: float


def precision_of(facts: ModelFacts) -> Precision:
    """What a model computes with.

    Weights of layers decide, not single constants: one float16 scalar must not buy a graph the
    tolerance of float16.
    """
    total = sum(layer.parameters for layer in facts.layers)
    shares = {
        dtype: sum(layer.parameters for layer in facts.layers if layer.dtype == dtype) / total
        for dtype in {layer.dtype for layer in facts.layers}
        if total
    }
    quantized = sum(share for dtype, share in shares.items() if dtype in _INTEGERS)
    integers = sorted(dtype for dtype in shares if dtype in _INTEGERS)
    kind = _quantization(facts, has_integers=bool(integers))
    if kind:
        bits = "/".join(integers) or "8 bits"
        if "com.microsoft::MatMulNBits" in facts.op_counts:
            bits = "few bits a weight"
        how = {
            "dynamic": "ranges taken at run time",
            "static": "ranges taken beforehand",
            "weights": "weights only",
        }[kind]
        arithmetic: Arithmetic = "quantized"
        words = f"{bits}, {how}"
    else:
        arithmetic = _float_arithmetic(shares)
        words = arithmetic
        if "double" in shares:
            words = f"{words}, some weights in float64"
        if arithmetic != "float32" and shares[arithmetic] < 1:
            words = f"{words}, {1 - shares[arithmetic]:.0%} of the weights in other types"
        if arithmetic == "float32" and _keeps_halves(facts):
            arithmetic, words = "float16", f"{words}, keys and values in float16"
    return Precision(
        arithmetic=arithmetic,
        quantization=kind,
        words=words,
        quantized_weights=quantized,
        fp16_weights=shares.get("float16", 0.0),
    )


def _keeps_halves(facts: ModelFacts) -> bool:
    """Whether a decoder hands on float16: what it reads behind a past is rounded then."""
    return any(
        tensor.dtype == "float16" and tensor.name.startswith(_CACHE) for tensor in facts.inputs
    )


def _float_arithmetic(shares: Mapping[str, float]) -> Literal["float32", "float16", "bfloat16"]:
    if shares.get("bfloat16"):
        return "bfloat16"
    return "float16" if shares.get("float16") else "float32"


def _quantization(
    facts: ModelFacts, *, has_integers: bool
) -> Literal["dynamic", "static", "weights", ""]:
    ops = set(facts.op_counts)
    if ops & _DYNAMIC:
        return "dynamic"
    if ops & _STATIC or any(op.startswith(_QLINEAR) for op in ops):
        return "static"
    return "weights" if ops & _WEIGHTS_ONLY or has_integers else ""
