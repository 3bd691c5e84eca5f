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

WEIGHT_ONLY = {"int8": "int8-weights", "int4": "int4"}
"""Precision whose weights alone have few bits, while products are fp16 -> its row of the table."""

FORMS = ("fp32", "fp16", "bf16", "int8", "int8-weights", "fp8", "int4")
"""Rows of the table: every way in which the products of a graph hold their numbers."""

PORTABLE = "portable"
"""An engine without a compute capability: for every one from Ampere (sm80) on."""

_PORTABLE_MASK = 0x7E
"""sm80 to sm121, and bit 6, which stands for later ones."""

_NO_FP8 = "it has no FP8 type"
_NO_NARROW_WEIGHTS = (
    "TensorRT-RTX widens the weights there in a kernel of their own, so nothing is gained"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeCapability:
    """One GPU generation that engines are built for.

    Attributes:
        name: Such as `sm89`.
        mask_bit: Its bit in the header's mask of compute capabilities.
        refusals: Row of `FORMS` -> why the builder refuses it.
        useless: Row of `FORMS` -> why it is refused although the builder takes it.
    """

    name: str
    mask_bit: int
    refusals: Mapping[str, str] = field(default_factory=dict)
    useless: Mapping[str, str] = field(default_factory=dict)


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
                useless={"int8-weights": _NO_NARROW_WEIGHTS},
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


_PORTABLE_USELESS = {"fp8": "it runs on sm80 and sm86 too, which have no FP8 type"}
"""The builder takes it all the same."""

TARGETS = (*COMPUTE_CAPABILITIES, PORTABLE)
"""Everything that an engine can be built for."""


def reason_against(target: str, form: str) -> str:
    """Why a known target and a row of `FORMS` do not go together; empty when they do."""
    if target == PORTABLE:
        return _PORTABLE_USELESS.get(form, "")
    row = COMPUTE_CAPABILITIES[target]
    return row.refusals.get(form) or row.useless.get(form, "")


def builder_refuses(target: str, form: str) -> bool:
    """Whether it is TensorRT-RTX itself that refuses the pair."""
    return target != PORTABLE and form in COMPUTE_CAPABILITIES[target].refusals


def allowed_precisions(target: str) -> tuple[str, ...]:
    """The precisions of `PRECISIONS` that a known target allows."""
    return tuple(p for p in PRECISIONS if not reason_against(target, p))


def capability_mask(target: str) -> int:
    """The mask that the header of an engine for one known target holds."""
    if target == PORTABLE:
        return _PORTABLE_MASK
    return 1 << COMPUTE_CAPABILITIES[target].mask_bit


def check_target(target: str, precision: str, *, is_weight_only: bool = False) -> None:
    """Refuse a pair that TensorRT-RTX cannot build.

    Args:
        target: A compute capability, or `portable`.
        precision: One of `PRECISIONS`.
        is_weight_only: Of int8: the weights alone have 8 bits.

    Raises:
        RecipeError: with the reason and the valid set.
    """
    if target not in TARGETS:
        raise RecipeError(
            f"TensorRT-RTX does not target {target}; it targets {', '.join(TARGETS)}"
        )
    if precision not in PRECISIONS:
        raise RecipeError(
            f"precision {precision} is not one of {', '.join(PRECISIONS)}",
        )
    form = WEIGHT_ONLY.get(precision, precision) if is_weight_only else precision
    reason = reason_against(target, form)
    if reason:
        fitting = [name for name in TARGETS if not reason_against(name, form)]
        what = f"{precision} weights" if is_weight_only else precision
        raise RecipeError(
            f"TensorRT-RTX does not build {what} for {target}: {reason}; "
            f"{target} allows {', '.join(allowed_precisions(target))}",
            hint=f"take another precision, or one of {', '.join(fitting)} for {what}",
        )


def require_builder() -> str:
    """The version of TensorRT-RTX that is installed here; imports nothing heavy.

    Raises:
        EnvironmentMissing: when it is not installed, naming the extra.
    """
    return require_module(TENSORRT_RTX)
