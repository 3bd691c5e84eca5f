"""Compute capabilities that TensorRT-RTX targets, and the precisions that each of them allows.

Light and pure: the plan asks here, so that an impossible pair is refused before anything is built.

Source: `IBuilderConfig.set_compute_capability` and real builds with TensorRT-RTX 1.7.1 for every
pair; bit numbers as seen in the header of the engines that came out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from pipeline.engines.module import TENSORRT_RTX, require_module
from pipeline.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "int4")
"""Precisions of the matrix products; what is left around int8, fp8 and int4 is fp16."""

_NO_FP8 = "it has no FP8 type"


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeCapability:
    """One GPU generation that engines are built for.

    Attributes:
        name: Such as `sm89`.
        mask_bit: Its bit in the header's mask of compute capabilities.
        refusals: Precision -> why the builder refuses it.
    """

    name: str
    mask_bit: int
    refusals: Mapping[str, str] = field(default_factory=dict)


COMPUTE_CAPABILITIES: Mapping[str, ComputeCapability] = MappingProxyType(
    {
        target.name: target
        for target in (
            ComputeCapability(
                name="sm75",
                mask_bit=0,
                refusals={
                    "fp32": "it has no FP32 matrix product",
                    "bf16": "it has no BF16 type",
                    "int4": "it has no INT4 type",
                    "fp8": _NO_FP8,
                },
            ),
            ComputeCapability(name="sm80", mask_bit=1, refusals={"fp8": _NO_FP8}),
            ComputeCapability(name="sm86", mask_bit=2, refusals={"fp8": _NO_FP8}),
            ComputeCapability(name="sm89", mask_bit=3),
            ComputeCapability(name="sm120", mask_bit=4),
            ComputeCapability(name="sm121", mask_bit=5),
        )
    }
)
"""By name, in ascending order."""


def allowed_precisions(compute_capability: str) -> tuple[str, ...]:
    """The precisions of `PRECISIONS` that a known compute capability allows."""
    target = COMPUTE_CAPABILITIES[compute_capability]
    return tuple(p for p in PRECISIONS if p not in target.refusals)


def capability_mask(compute_capability: str) -> int:
    """The mask that the header of an engine for one known compute capability holds."""
    return 1 << COMPUTE_CAPABILITIES[compute_capability].mask_bit


def check_target(compute_capability: str, precision: str) -> None:
    """Refuse a pair that TensorRT-RTX cannot build.

    Raises:
        RecipeError: with the reason and the valid set.
    """
    if compute_capability not in COMPUTE_CAPABILITIES:
        raise RecipeError(
            f"TensorRT-RTX does not target {compute_capability}; it targets "
            f"{', '.join(COMPUTE_CAPABILITIES)}"
        )
    if precision not in PRECISIONS:
        raise RecipeError(
            f"precision {precision} is not one of {', '.join(PRECISIONS)}",
        )
    reason = COMPUTE_CAPABILITIES[compute_capability].refusals.get(precision)
    if reason is not None:
        fitting = [n for n, t in COMPUTE_CAPABILITIES.items() if precision not in t.refusals]
        raise RecipeError(
            f"TensorRT-RTX does not build {precision} for {compute_capability}: {reason}; "
            f"{compute_capability} allows {', '.join(allowed_precisions(compute_capability))}",
            hint=f"take another precision, or one of {', '.join(fitting)} for {precision}",
        )


def require_builder() -> str:
    """The version of TensorRT-RTX that is installed here; imports nothing heavy.

    Raises:
        EnvironmentMissing: when it is not installed, naming the extra.
    """
    return require_module(TENSORRT_RTX)
