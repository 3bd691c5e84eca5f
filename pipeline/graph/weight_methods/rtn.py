"""Round to nearest, with the scale by the largest weight: no error is more than half a step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pipeline.graph.weight_methods.base import WeightMethod, stored_scale, whole_steps

if TYPE_CHECKING:
    import numpy as np

    from pipeline.graph.weight_methods.base import Bits, Blocks, Scales


def _find(blocks: Blocks, bits: Bits, dtype: np.dtype[Any]) -> Scales:
    return stored_scale(whole_steps(blocks, bits), dtype)


RTN: Final = WeightMethod(name="rtn", find_scales=_find)
