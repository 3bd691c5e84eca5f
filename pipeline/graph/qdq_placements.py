"""Where quantise/dequantise pairs go, by runtime: rules as data.

| rule                  | onnxruntime-cpu                       | tensorrt                          |
|-----------------------|---------------------------------------|-----------------------------------|
| activation of a layer | uint8 with a zero point, or int8      | int8, zero point 0; or float8     |
| weight                | int8 or uint8                         | int8, zero point 0; or float8     |
| result of a layer     | of Conv only                          | never                             |
| bias                  | int32, of Gemm and Conv               | never                             |
| everything else       | float; token tables int8 when asked   | float                             |

ONNX Runtime 1.31.1 has kernels from 8 bits to float for MatMul and Gemm (`MatMulIntegerToFloat`,
`QGemm`, whose bias must be int32), and from 8 bits to 8 bits alone for Conv (`QLinearConv`). TensorRT fuses pairs before a product into it, and a
pair behind it costs accuracy and breaks fusions; attention stays one kernel only when its products
of two activations stay float. Source: NVIDIA, "Working with Quantized Types", explicit
quantization; builds with TensorRT-RTX 1.7.1. float8 is for both, or neither; there too one scale for
each output of a weight is taken (24 of 24 products of MiniLM are `FP8 x FP8`).
"""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - of a dataclass field
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

PlacementName: TypeAlias = Literal["onnxruntime-cpu", "tensorrt"]
EightBits: TypeAlias = Literal["int8", "uint8", "float8"]
"""`float8` is float8_e4m3fn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorRule:
    """What is quantised around one operator, besides its activation and its weight.

    Attributes:
        quantizes_result: Whether a pair follows its result too.
        quantizes_bias: Whether its bias becomes int32, with the scale of the product.
    """

    quantizes_result: bool = False
    quantizes_bias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The rules of one runtime.

    Attributes:
        operators: By operator; others stay float.
        activation_dtypes: That may be asked for. int8 is symmetric around the zero point 0, but for
            results behind a Relu, whose zero point is -128.
        weight_dtypes: Likewise.
        allows_embeddings: Whether token tables may be stored in 8 bits, one scale a row.
    """

    operators: Mapping[str, OperatorRule]
    activation_dtypes: tuple[EightBits, ...]
    weight_dtypes: tuple[EightBits, ...]
    allows_embeddings: bool


PLACEMENTS: Final[Mapping[PlacementName, Placement]] = MappingProxyType(
    {
        "onnxruntime-cpu": Placement(
            operators={
                "MatMul": OperatorRule(),
                "Gemm": OperatorRule(quantizes_bias=True),
                "Conv": OperatorRule(quantizes_result=True, quantizes_bias=True),
            },
            activation_dtypes=("uint8", "int8"),
            weight_dtypes=("int8", "uint8"),
            allows_embeddings=True,
        ),
        "tensorrt": Placement(
            operators={"MatMul": OperatorRule(), "Gemm": OperatorRule(), "Conv": OperatorRule()},
            activation_dtypes=("int8", "float8"),
            weight_dtypes=("int8", "float8"),
            allows_embeddings=False,
        ),
    }
)
