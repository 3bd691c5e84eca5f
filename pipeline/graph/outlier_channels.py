"""Makes the few channels of a normalised tensor smaller that would spoil its quantisation.

    x W  ->  (x / s) (s W)

where s is 1 but for a few channels. A layer normalisation with single weights that are far larger
than the others writes channels of which all 256 levels are for the rare large numbers. They are
found by those weights, without data. How far a channel may be moved into W is for W to say: at most
as far as its row stays below the largest weight of nine columns in ten, whose scales then stay as
they are.

Source: G. Xiao et al., "SmoothQuant", 2023, arXiv:2211.10438, which measures channels on samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.graph.fusions.matching import (
    GraphEditor,
    consumers,
    is_standard,
    node_name,
)
from pipeline.graph.outlier_neurons import constant_array, is_own_matrix, norm_weights

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

LARGE: Final = 2.0
"""Times the median of a normalisation's weights; above it lies an outlier."""

MOST: Final = 4.0
"""Largest divisor of a channel; the levels that it loses are still finer than it needs."""

_COLUMNS_THAT_MAY_GROW: Final = 0.1


@dataclass(frozen=True, slots=True)
class DampedChannels:
    """Channels that are divided before quantisation.

    Attributes:
        norm: Name of the normalisation that writes them.
        channels: Their numbers.
    """

    norm: str
    channels: tuple[int, ...]


def damp_outlier_channels(graph: ir.Graph) -> tuple[DampedChannels, ...]:
    """Divides outliers before the products that read a normalised tensor, and multiplies weights.

    The graph computes the same up to rounding; whatever else reads the tensor reads it as it was.

    Args:
        graph: Edited in place; float32, with constants as initializers.
    """
    editor = GraphEditor(graph)
    damped = []
    for norm in list(graph):
        weights = norm_weights(norm)
        products = [node for node in consumers(norm.outputs[0]) if _is_reader(node, norm)]
        if weights is None or not products:
            continue
        matrices = [constant_array(node.inputs[1]) for node in products]
        if any(len(matrix) != len(weights) for matrix in matrices):
            continue
        divisors = channel_divisors(weights, np.concatenate(matrices, axis=1))
        channels = np.flatnonzero(divisors > 1)
        if not len(channels):
            continue
        name = node_name(norm)
        inverse = editor.constant(editor.name(f"{name}_damping"), 1 / divisors)
        source = editor.insert(
            products[0], "Mul", [norm.outputs[0], inverse], output=f"{norm.outputs[0].name}_damped"
        )
        for node, matrix in zip(products, matrices, strict=True):
            grown = editor.constant(
                editor.name(f"{node_name(node)}_grown"), matrix * divisors[:, None]
            )
            node.replace_input_with(0, source)
            node.replace_input_with(1, grown)
        damped.append(DampedChannels(name, tuple(map(int, channels))))
    return tuple(damped)


def channel_divisors(
    weights: NDArray[np.float32], matrix: NDArray[np.float32]
) -> NDArray[np.float32]:
    """By what each channel is to be divided: float32 (channels,), at least 1.

    Args:
        weights: Of the normalisation, (channels,).
        matrix: What the normalised tensor is multiplied by, (channels, columns).
    """
    sizes, entries = np.abs(weights), np.abs(matrix)
    divisors = np.ones(len(sizes), dtype=np.float32)
    largest = entries.max(axis=0)
    for channel in np.flatnonzero(sizes > LARGE * np.median(sizes)):
        with np.errstate(divide="ignore", invalid="ignore"):
            room = np.nan_to_num(largest / entries[channel], nan=MOST, posinf=MOST)
        divisors[channel] = np.clip(np.quantile(room, _COLUMNS_THAT_MAY_GROW), 1, MOST)
    return divisors


def _is_reader(node: ir.Node, norm: ir.Node) -> bool:
    return (
        is_standard(node, "MatMul")
        and node.inputs[0] is norm.outputs[0]
        and is_own_matrix(node.inputs[1])
    )
