"""Scales where large weights count more, refined by least squares, as llama.cpp finds those of its k-quants.

Each weight counts by `rms + |w|`, where `rms` is the root mean square of its block: what
`make_qkx2_quants` of llama.cpp (ggml-quants.c) takes where it has no importances, and ONNX Runtime's
`k_quant` after it. For each of several scales the integers are fixed and the scale is replaced by the
best one for them, `sum(c w q) / sum(c q q)`; the best pair is kept. Theirs have a minimum beside the
scale, this form is symmetric.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.graph.weight_methods.base import (
    SHARES,
    WeightMethod,
    integers_of,
    loss_of,
    stored_scale,
    whole_steps,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.graph.weight_methods.base import Bits, Blocks, Scales


def _importance(blocks: Blocks) -> NDArray[np.float32]:
    rms = np.sqrt(np.square(blocks).mean(axis=2, keepdims=True))
    importance: NDArray[np.float32] = rms + np.abs(blocks)
    return importance


def _weighted(errors: Blocks, blocks: Blocks) -> NDArray[np.float32]:
    result: NDArray[np.float32] = (_importance(blocks) * np.square(errors)).sum(axis=2)
    return result


def _find(blocks: Blocks, bits: Bits, dtype: np.dtype[Any]) -> Scales:
    largest, importance = whole_steps(blocks, bits), _importance(blocks)
    best = stored_scale(largest, dtype)
    least = loss_of(blocks, best, bits, _weighted)
    for share in SHARES:
        tried = stored_scale(largest * np.float32(share), dtype)
        integers = integers_of(blocks, tried, bits)
        above = (importance * blocks * integers).sum(axis=2)
        below = (importance * np.square(integers)).sum(axis=2)
        refined = np.where(below > 0, above / np.where(below > 0, below, 1), largest)
        for scale in (tried, stored_scale(refined.astype(np.float32), dtype)):
            errors = loss_of(blocks, scale, bits, _weighted)
            best = np.where(errors < least, scale, best)
            least = np.minimum(errors, least)
    return best


K_QUANT: Final = WeightMethod(name="k_quant", find_scales=_find, loss=_weighted)
