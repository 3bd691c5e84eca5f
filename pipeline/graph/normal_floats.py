"""Weights in NF4, 4-bit numbers that lie as normally distributed weights do, for ONNX Runtime's `MatMulBnb4`.

    x W                  ->  MatMulBnb4(x, W4, largest)
    Gemm(x, W, b)        ->  MatMulBnb4(x, W4, largest) + b

`value = NF4[code] * scale`, one scale for each block of inputs. The 16 numbers are those of Dettmers et al.,
"QLoRA: Efficient Finetuning of Quantized LLMs" (2023), appendix E: quantiles of the normal distribution
between -1 and 1, with a zero. Their scale is the largest weight of a block (`rtn` here, the same bytes as
bitsandbytes and ONNX Runtime's quantiser write); `clip` tries smaller ones.

In the file the weight is (outputs, inputs), flattened, two codes to a byte, the first in the upper half;
scales are flattened likewise. No operator of ONNX reads such codes, so there is no form with
DequantizeLinear. The kernel for CPUs writes the weight out as floats at every call.

Source: `MatMulBnb4` in ONNX Runtime 1.31.1: docs/ContribOperators.md, contrib_ops/cpu/quantization/matmul_bnb4.cc
and blockwise_quant_block_bnb4.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.errors import StageError
from pipeline.graph.block_views import as_blocks, for_parts
from pipeline.graph.fusions.matching import CONTRIB_DOMAIN, input_of, node_name, replace_value
from pipeline.graph.weight_methods.base import SHARES, SMALLEST_STEP, squares

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from pipeline.graph.block_views import Part
    from pipeline.graph.fusions.matching import GraphEditor
    from pipeline.graph.weight_methods.base import Blocks
    from pipeline.graph.weighted_layers import WeightedLayer

OPERATOR: Final = "MatMulBnb4"
QUANT_TYPE: Final = 1
"""NF4; 0 is FP4."""

NF4: Final = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
"""By code."""

_BETWEEN: Final = (NF4[1:] + NF4[:-1]) / np.float32(2)
"""Above each of them the next code is nearer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalFloats:
    """A weight in NF4.

    Attributes:
        codes: uint8 (outputs, inputs), 0 to 15.
        scale: float32 (outputs, blocks).
    """

    codes: NDArray[np.uint8]
    scale: NDArray[np.float32]

    def floats(self) -> NDArray[np.float32]:
        """What it stands for, float32 (outputs, inputs)."""
        size = self.codes.shape[1] // self.scale.shape[1]
        result: NDArray[np.float32] = NF4[self.codes] * np.repeat(self.scale, size, axis=1)
        return result


def codes_of(blocks: Blocks, scale: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The nearest codes, uint8, of blocks (outputs, blocks, size) with scales (outputs, blocks)."""
    # As the quantisers named in the module do: not divided, so that ties are the same.
    shares = blocks * np.reciprocal(scale)[..., None]
    return np.searchsorted(_BETWEEN, shares, side="left").astype(np.uint8)


def largest_of(blocks: Blocks) -> NDArray[np.float32]:
    """The largest weight of each block, (outputs, blocks); 1 where there is next to nothing."""
    largest = np.abs(blocks).max(axis=2)
    return np.where(largest < SMALLEST_STEP, np.float32(1), largest).astype(np.float32)


def loss_of(blocks: Blocks, scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sum of the squared errors of each block, (outputs, blocks)."""
    return squares(blocks - NF4[codes_of(blocks, scale)] * scale[..., None], blocks)


def _least_squares(blocks: Blocks) -> NDArray[np.float32]:
    largest = largest_of(blocks)
    best, least = largest, loss_of(blocks, largest)
    for share in SHARES[1:]:
        tried = largest * np.float32(share)
        errors = loss_of(blocks, tried)
        best = np.where(errors < least, tried, best)
        least = np.minimum(errors, least)
    return best


FINDERS: Final = {"rtn": largest_of, "clip": _least_squares}
"""Name of a method -> (blocks) -> scales."""


def quantize_normal_floats(
    weight: NDArray[np.float32], *, axis: int, block_size: int, method: str, threads: int = 1
) -> NormalFloats:
    """Quantise a matrix.

    Args:
        weight: Two axes.
        axis: The one along which the inputs of the layer lie.
        block_size: How many inputs share a scale, a divisor of their number.
        method: A key of `FINDERS`.
        threads: How many parts of it are worked on at a time; the result is the same.

    Raises:
        ValueError: when the block does not divide the inputs.
    """
    inputs, outputs = weight.shape[axis], weight.shape[1 - axis]
    if inputs % block_size:
        raise ValueError(f"{inputs} inputs are no whole number of blocks of {block_size}")
    codes = np.empty((outputs, inputs), np.uint8)
    scale = np.empty((outputs, inputs // block_size), np.float32)
    stored = as_blocks(codes, 1, block_size)

    def quantize(part: Part, blocks: NDArray[np.float32]) -> None:
        found = FINDERS[method](blocks)
        scale[part], stored[part] = found, codes_of(blocks, found)

    for_parts(quantize, weight, axis=axis, size=block_size, threads=threads)
    return NormalFloats(codes=codes, scale=scale)


def pack(made: NormalFloats) -> NDArray[np.uint8]:
    """Two codes to a byte, uint8 (outputs * inputs / 2,); the inputs are even in number."""
    flat = made.codes.reshape(-1)
    return np.left_shift(flat[0::2], 4, dtype=np.uint8) | flat[1::2]


def unpack(packed: NDArray[np.uint8], scale: NDArray[np.float32], outputs: int) -> NormalFloats:
    """A weight of so many outputs from the two constants of the operator.

    Raises:
        ValueError: when the bytes are of no such weight.
    """
    codes = np.stack([packed >> 4, packed & 15], axis=-1).reshape(outputs, -1)
    return NormalFloats(codes=codes, scale=scale.reshape(outputs, -1))


def require_equal(made: NormalFloats, packed: NDArray[np.uint8]) -> int:
    """Compare what was packed with what was to be packed; how many values.

    Raises:
        StageError: when one differs in one bit.
    """
    found = unpack(packed, made.scale.reshape(-1), len(made.codes)).floats()
    if not np.array_equal(found.view(np.uint32), made.floats().view(np.uint32)):
        raise StageError(f"a weight is not what it was after it was packed for {OPERATOR}")
    return int(found.size)


class NormalFloatWriter:
    """Writes products with weights in NF4; a weight that several share is stored once.

    Args:
        editor: Of the graph.
        block_size: Inputs that share a scale.
        method: A key of `FINDERS`.
        threads: How many parts of a weight are worked on at a time.
    """

    def __init__(
        self, editor: GraphEditor, *, block_size: int, method: str, threads: int = 1
    ) -> None:
        self._editor = editor
        self._size = block_size
        self._method = method
        self._threads = threads
        self._made: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}

    def write(self, layer: WeightedLayer) -> None:
        """Put the operator in the place of a product; its result keeps its name.

        Raises:
            StageError: when a packed weight is not, bit for bit, what it was.
        """
        node, weight = layer.node, layer.weight
        if weight is None or weight.const_value is None:
            raise ValueError(f"`{layer.name}` has no weight")
        outputs, inputs = np.moveaxis(
            np.empty(weight.const_value.shape.numpy()), layer.axis, 0
        ).shape
        if weight not in self._made:
            self._made[weight] = self._store(layer, weight, weight.const_value)
        codes, scale = self._made[weight]
        name = node_name(node)
        result = self._editor.insert(
            node,
            OPERATOR,
            [node.inputs[0], codes, scale],
            output=f"{name}_normal_floats",
            attributes={
                "K": inputs,
                "N": outputs,
                "block_size": self._size,
                "quant_type": QUANT_TYPE,
            },
            domain=CONTRIB_DOMAIN,
        )
        product = result.producer()
        assert product is not None
        bias = input_of(node, 2)
        if bias is not None:
            result = self._editor.insert(node, "Add", [result, bias], output=f"{name}_biased")
        old = node.outputs[0]
        result.shape, result.type = old.shape, old.type
        replace_value(old, result)
        graph = node.graph
        assert graph is not None
        graph.remove(node, safe=True)
        product.name = node.name

    def _store(
        self, layer: WeightedLayer, weight: ir.Value, tensor: ir.TensorProtocol
    ) -> tuple[ir.Value, ir.Value]:
        from pipeline.graph.large_weights import release_weight

        made = quantize_normal_floats(
            tensor.numpy(),
            axis=1 - layer.axis,
            block_size=self._size,
            method=self._method,
            threads=self._threads,
        )
        packed = pack(made)
        require_equal(made, packed)
        release_weight(tensor)
        return (
            self._editor.store(f"{weight.name}_quantized", packed),
            self._editor.store(f"{weight.name}_scale", made.scale.reshape(-1)),
        )


def read_normal_floats(node: ir.Node) -> NormalFloats | None:
    """The weight of an operator; None when it is no constant in NF4."""
    attributes = {name: node.attributes.get_int(name, 0) for name in ("N", "K", "block_size")}
    arrays: list[NDArray[Any]] = []
    for value in node.inputs[1:3]:
        if value is None or value.const_value is None or value.is_graph_input():
            return None
        arrays.append(value.const_value.numpy())
    outputs, inputs, size = attributes.values()
    is_whole = (
        node.attributes.get_int("quant_type", -1) == QUANT_TYPE
        and node.attributes.get_int("transB", 1) == 1
        and len(arrays) == 2
        and size > 0
        and inputs % size == 0
        and arrays[0].size * 2 == outputs * inputs
        and arrays[1].size * size == outputs * inputs
    )
    return unpack(arrays[0], arrays[1], outputs) if is_whole else None
