"""The explicit list of methods; the names are those that `pipeline.stages.quantize_weights` offers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pipeline.graph.weight_methods.clip import CLIP
from pipeline.graph.weight_methods.gptq import GPTQ
from pipeline.graph.weight_methods.hqq import HQQ
from pipeline.graph.weight_methods.k_quant import K_QUANT
from pipeline.graph.weight_methods.rtn import RTN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.graph.weight_methods.base import WeightMethod

METHODS: Final[Mapping[str, WeightMethod]] = {
    method.name: method for method in (RTN, CLIP, HQQ, K_QUANT, GPTQ)
}
"""Name -> method."""
