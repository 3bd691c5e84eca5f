"""Which products get 8 bits where the others have 4: those whose results lose most, under a budget.

What a product loses is the mean square of its result's error over that of its result, both from the
moments `H` of what goes into it: `tr(D H D^T) / tr(W H W^T)`, with `D` the error of plain rounding with
the scales of `clip`, for at most `_OUTPUTS` outputs. Its square root is the *noise* of the product. Under a
budget of bits, products are taken in the order of noise saved (its square) for each bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.graph.blockwise import quantize_blocks
from pipeline.graph.product_moments import Factors
from pipeline.graph.weight_only import input_axis, prepare, weight_only_reasons

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    from pipeline.calibration.moments import Moments
    from pipeline.graph.weight_methods.base import Bits
    from pipeline.graph.weight_only import WeightOnlyRequest
    from pipeline.graph.weighted_layers import WeightedLayer

_OUTPUTS: Final = 256
"""Of a product, spread over all of them, that are looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BitsOfLayers:
    """The bits of products that share one weight; mostly of one.

    Attributes:
        layers: Their names.
        weights: Numbers of the weight.
        noise: Bits -> what the result loses, RMSE over RMS; the largest of the layers.
        bits: What was chosen.
    """

    layers: tuple[str, ...]
    weights: int
    noise: dict[int, float]
    bits: Bits = 4


def measure(
    model: ir.Model, request: WeightOnlyRequest, moments: Moments
) -> tuple[BitsOfLayers, ...]:
    """What each product that would be quantised loses with 4 and with 8 bits.

    Args:
        model: The float graph that will be quantised; its constants become initializers.
        request: How; `bits` and `wide` count for nothing.
        moments: Of what goes into its products.

    Raises:
        QuantizationError: when a pattern matches nothing, or the moments of a product are missing.
        StageError: when an operator would mean something else in the opset that is needed.
    """
    layers = prepare(model, request)
    reasons = weight_only_reasons(layers, request)
    factors = Factors(model.graph, moments)
    groups: dict[ir.Value, list[WeightedLayer]] = {}
    for layer in layers:
        if layer not in reasons and layer.weight is not None:
            groups.setdefault(layer.weight, []).append(layer)
    return tuple(_measured(weight, group, request, factors) for weight, group in groups.items())


def _measured(
    weight: ir.Value, group: Sequence[WeightedLayer], request: WeightOnlyRequest, factors: Factors
) -> BitsOfLayers:
    if weight.const_value is None:
        raise ValueError(f"`{weight.name}` is not constant")
    first = group[0]
    rows = np.moveaxis(weight.const_value.numpy(), input_axis(first), 1)
    some = rows[:: -(-len(rows) // _OUTPUTS)].astype(np.float32)
    products = [factors.products(layer) for layer in group]
    noise = {}
    for bits in (4, 8):
        made = quantize_blocks(
            some, axis=1, bits=bits, block_size=request.block_size, method="clip"
        )
        scale = made.scale if request.block_size is not None else made.scale[:, None]
        steps = np.repeat(scale, some.shape[1] // scale.shape[1], axis=1)
        lost = made.values.astype(np.float32) * steps - some
        noise[bits] = max(_noise(lost, some, each) for each in products)
    return BitsOfLayers(
        layers=tuple(layer.name for layer in group), weights=rows.size, noise=noise
    )


def _noise(
    lost: NDArray[np.float32], weight: NDArray[np.float32], products: NDArray[np.float32]
) -> float:
    error = float(((lost @ products) * lost).sum(dtype=np.float64))
    size = float(((weight @ products) * weight).sum(dtype=np.float64))
    return math.sqrt(max(error, 0.0) / size) if size > 0 else 0.0


def choose_by_budget(
    measured: Sequence[BitsOfLayers], bits_budget: float
) -> tuple[BitsOfLayers, ...]:
    """8 bits for those that save most for each bit, as long as the mean of all weights allows it.

    Args:
        measured: What products lose.
        bits_budget: Mean bits of a weight at most, scales not counted; 4 to 8.
    """
    room = (bits_budget - 4) / 4 * sum(each.weights for each in measured)
    order = sorted(range(len(measured)), key=lambda place: (-_saved(measured[place]), place))
    wide = set()
    for place in order:
        if measured[place].weights <= room and _saved(measured[place]) > 0:
            room -= measured[place].weights
            wide.add(place)
    return _with_bits(measured, wide)


def choose_by_noise(
    measured: Sequence[BitsOfLayers], max_noise: float
) -> tuple[BitsOfLayers, ...]:
    """8 bits for those that would lose more than `max_noise` with 4."""
    wide = {place for place, each in enumerate(measured) if each.noise[4] > max_noise}
    return _with_bits(measured, wide)


def _saved(layers: BitsOfLayers) -> float:
    return (layers.noise[4] ** 2 - layers.noise[8] ** 2) / layers.weights


def _with_bits(measured: Sequence[BitsOfLayers], wide: set[int]) -> tuple[BitsOfLayers, ...]:
    return tuple(
        BitsOfLayers(
            layers=each.layers,
            weights=each.weights,
            noise=each.noise,
            bits=8 if place in wide else 4,
        )
        for place, each in enumerate(measured)
    )


def mean_bits(chosen: Sequence[BitsOfLayers]) -> float:
    """Of a weight, scales not counted."""
    weights = sum(each.weights for each in chosen)
    return sum(each.bits * each.weights for each in chosen) / weights if weights else 0.0
