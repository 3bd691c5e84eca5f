"""Scales channels so that those which matter most lose least when weights are rounded (AWQ).

    x W  ->  (x / s) (s W)

Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration" (2023):
`s = mean(|x|)^a`, and of several `a` the one is taken that loses least on the calibration data. The
division goes into what writes x: the weight of a normalisation, or the product whose result is one
factor of x (the `up` of a gated feed-forward). So the graph has no node more.

Here every s is a power of two, and multiplying by one is exact: the graph computes what it did before,
bit by bit, as long as no number leaves the range of floats. The loss is that of method `clip`, from the
moments of x, for at most `_OUTPUTS` outputs of each product.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass
from threadpoolctl import threadpool_limits

from pipeline.graph.blockwise import quantize_blocks
from pipeline.graph.fusions.matching import (
    consumers,
    input_of,
    is_standard,
    node_name,
    only_consumer,
)
from pipeline.graph.weighted_layers import WeightedLayer, find_weighted_layers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from pipeline.calibration.moments import Moments
    from pipeline.graph.weight_methods.base import Bits

_POWERS: Final = tuple(number / 20 for number in range(20))
"""Of the mean magnitude, that are tried."""

_OUTPUTS: Final = 256
"""Of a product, spread over all of them, that the search looks at."""

_PANEL: Final = 256
"""Columns of the moments that are multiplied at a time."""

_LARGEST: Final = 2.0**10
"""Of s and 1/s: far from the ends of float16 with what weights and activations are."""

_NORMS: Final = ("LayerNormalization", "RMSNormalization")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledChannels:
    """One activation whose channels were scaled.

    Attributes:
        source: Name of the node that writes it, smaller.
        products: Names of the products that read it, whose weights grew.
        power: Of the mean magnitudes.
        largest: Factor over the smallest one.
        loss_ratio: Mean square of what these products lose by method `clip`, over that before.
    """

    source: str
    products: tuple[str, ...]
    power: float
    largest: float
    loss_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingRequest:
    """How weights will be rounded."""

    bits: Bits
    block_size: int | None


@dataclass(frozen=True, slots=True)
class _Place:
    """An activation that can be scaled.

    Attributes:
        source: What writes it.
        parts: (Constant, axis along which its channels lie): all of them are divided.
        readers: Its products.
        moments: Place in the moments.
    """

    source: ir.Node
    parts: tuple[tuple[ir.Value, int], ...]
    readers: tuple[WeightedLayer, ...]
    moments: int


def scale_channels(
    model: ir.Model, moments: Moments, request: ScalingRequest, *, threads: int = 1
) -> tuple[ScaledChannels, ...]:
    """Scale what can be scaled, in place.

    Args:
        model: float32; its constants become initializers.
        moments: Of this very graph.
        request: How weights will be rounded.
        threads: How many scalings are tried at a time; the result is the same.

    Raises:
        QuantizationError: when moments cannot be read.
    """
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    done = []
    for place in list(_places(model.graph, moments)):
        found = _best(place, moments, request, threads)
        if found is None:
            continue
        factors, scaled = found
        for value, axis in place.parts:
            _multiply(value, (1 / factors).astype(np.float32), axis)
        for layer in place.readers:
            if layer.weight is not None:
                _multiply(layer.weight, factors, 1 - layer.axis)
        done.append(scaled)
    return tuple(done)


def _places(graph: ir.Graph, moments: Moments) -> Iterator[_Place]:
    """The activations that only products read, and whose division has where to go."""
    layers = {layer.node: layer for layer in find_weighted_layers(graph) if not layer.reason}
    seen: set[ir.Value] = set()
    for layer in layers.values():
        value = layer.activation
        if value is None or value in seen or layer.node.op_type == "Conv":
            continue
        seen.add(value)
        place, source = moments.place(value.name or ""), value.producer()
        readers = [layers.get(node) for node in consumers(value)]
        own = tuple(each for each in readers if each is not None and _is_own(each.weight))
        if place is None or source is None or value.is_graph_output() or len(own) != len(readers):
            continue
        if any(each.activation is not value or each.node.op_type == "Conv" for each in own):
            continue
        parts = _parts(source, moments.index.tensors[place].inputs, layers)
        if parts:
            yield _Place(source, parts, own, place)


def _parts(
    source: ir.Node, channels: int, layers: dict[ir.Node, WeightedLayer]
) -> tuple[tuple[ir.Value, int], ...]:
    """The constants that a division of what a node writes goes into; empty when there are none."""
    if is_standard(source, *_NORMS):
        vectors = [value for value in source.inputs[1:] if value is not None]
        is_whole = all(_is_vector(value, channels) for value in vectors)
        return tuple((value, 0) for value in vectors) if vectors and is_whole else ()
    if not is_standard(source, "Mul"):
        return ()
    for value in source.inputs:
        if _is_vector(value, channels) and value is not None:
            return ((value, 0),)
    for value in source.inputs:
        found = _of_product(value, channels, layers)
        if found:
            return found
    return ()


def _of_product(
    value: ir.Value | None, channels: int, layers: dict[ir.Node, WeightedLayer]
) -> tuple[tuple[ir.Value, int], ...]:
    """Weight and bias of a product whose result only the multiplication reads."""
    if value is None or only_consumer(value) is None or value.is_graph_output():
        return ()
    node, biases = value.producer(), list[ir.Value]()
    if is_standard(node, "Add") and node is not None:
        constants = [each for each in node.inputs if _is_vector(each, channels)]
        others = [each for each in node.inputs if each is not None and each not in constants]
        if len(constants) != 1 or len(others) != 1 or only_consumer(others[0]) is None:
            return ()
        biases, node = [each for each in constants if each is not None], others[0].producer()
    layer = None if node is None else layers.get(node)
    if layer is None or layer.weight is None or not _is_own(layer.weight):
        return ()
    if node is not None and node.op_type == "Gemm" and (bias := input_of(node, 2)) is not None:
        if not _is_vector(bias, channels):
            return ()
        biases.append(bias)
    shape = _shape(layer.weight)
    if layer.node.op_type == "Conv" or len(shape) != 2 or shape[layer.axis] != channels:
        return ()
    return ((layer.weight, layer.axis), *((bias, 0) for bias in biases))


def _shape(value: ir.Value) -> tuple[int, ...]:
    return () if value.const_value is None else tuple(value.const_value.shape.numpy())


def _is_own(value: ir.Value | None) -> bool:
    """Whether a constant is one reader's alone, and no one can replace or fetch it."""
    if value is None or value.const_value is None:
        return False
    return len(list(value.uses())) == 1 and not (value.is_graph_input() or value.is_graph_output())


def _is_vector(value: ir.Value | None, channels: int) -> bool:
    if value is None or not _is_own(value) or value.const_value is None:
        return False
    return _shape(value) == (channels,) and value.const_value.dtype == ir.DataType.FLOAT


def _best(
    place: _Place, moments: Moments, request: ScalingRequest, threads: int
) -> tuple[NDArray[np.float32], ScaledChannels] | None:
    """The factors that lose least; None when no scaling is better than none."""
    magnitudes = moments.magnitudes(place.moments).astype(np.float64)
    products = moments.products(place.moments)
    weights = [_sampled(layer) for layer in place.readers]
    tried = {0.0: np.ones(len(magnitudes), np.float32)}
    for power in _POWERS:
        factors = power_of_two_factors(magnitudes, power)
        is_new = not any(np.array_equal(factors, other) for other in tried.values())
        if is_new and factors.min() != factors.max():
            tried[power] = factors
    # Scalings are shared out; threads of BLAS besides would only be in each other's way, and the last
    # bits of a sum hang on their number.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        losses = list(
            pool.map(lambda factors: _loss(weights, factors, products, request), tried.values())
        )
    before = losses[0]
    least, power = min(zip(losses, tried, strict=True))
    if least >= before:
        return None
    factors = tried[power]
    return factors, ScaledChannels(
        source=node_name(place.source),
        products=tuple(layer.name for layer in place.readers),
        power=power,
        largest=float(factors.max() / factors.min()),
        loss_ratio=float(least / before),
    )


def power_of_two_factors(magnitudes: NDArray[np.float64], power: float) -> NDArray[np.float32]:
    """`magnitudes^power`, around 1 and rounded to powers of two; 1 where nothing ever comes."""
    used = magnitudes > 0
    logs = np.zeros(len(magnitudes))
    if used.any():
        logs[used] = power * np.log2(magnitudes[used])
        logs[used] -= (logs[used].max() + logs[used].min()) / 2
    factors: NDArray[np.float32] = np.exp2(np.rint(logs)).astype(np.float32)
    return np.clip(factors, np.float32(1 / _LARGEST), np.float32(_LARGEST))


def _sampled(layer: WeightedLayer) -> NDArray[np.float32]:
    """Some outputs of a weight, (outputs, inputs)."""
    if layer.weight is None or layer.weight.const_value is None:
        raise ValueError(f"`{layer.name}` has no weight")
    rows = np.moveaxis(layer.weight.const_value.numpy(), layer.axis, 0)
    step = -(-len(rows) // _OUTPUTS)
    return np.ascontiguousarray(rows[::step], dtype=np.float32)


def _loss(
    weights: Sequence[NDArray[np.float32]],
    factors: NDArray[np.float32],
    products: NDArray[np.float32],
    request: ScalingRequest,
) -> float:
    """Sum over outputs of the mean square of what they lose."""
    total = 0.0
    for weight in weights:
        inputs = weight.shape[1]
        size = inputs if request.block_size is None else request.block_size
        if inputs % size:
            continue  # it stays float
        made = quantize_blocks(
            weight * factors, axis=1, bits=request.bits, block_size=size, method="clip"
        )
        steps = np.repeat(made.scale, size, axis=1)
        lost = made.values.astype(np.float32) * steps / factors - weight
        total += _mean_squares(lost, products)
    return total


def _mean_squares(lost: NDArray[np.float32], products: NDArray[np.float32]) -> float:
    """Sum of `d H d^T` over rows d; of H, which is symmetric, what lies above its diagonal serves twice."""
    total = 0.0
    for start in range(0, len(products), _PANEL):
        panel = slice(start, start + _PANEL)
        together = lost[:, :start] @ products[:start, panel]
        together *= 2
        together += lost[:, panel] @ products[panel, panel]
        together *= lost[:, panel]
        total += float(together.sum(dtype=np.float64))
    return total


def _multiply(value: ir.Value, factors: NDArray[np.float32], axis: int) -> None:
    """Multiply a constant in place, when it is next read: large weights are not held."""
    tensor = value.const_value
    if tensor is None:
        raise ValueError(f"`{value.name}` is not constant")
    shape = [1] * len(tensor.shape)
    shape[axis] = -1

    def made() -> ir.Tensor[Any]:
        array: NDArray[Any] = tensor.numpy() * factors.reshape(shape)
        return ir.Tensor(array.astype(np.float32, copy=False), name=value.name)

    value.const_value = ir.LazyTensor(
        made, dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=value.name
    )
