"""From axis names to an optimization profile: smallest, usual and largest shape of each input."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from pipeline.errors import EngineBuildError
from pipeline.tasks import PAST_AXIS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Shape: TypeAlias = "tuple[int, ...]"
InputProfile: TypeAlias = "tuple[Shape, Shape, Shape]"
"""The smallest, the usual and the largest shape of one input."""

Axes: TypeAlias = "Sequence[int | str | None]"


def check_ranges(ranges: Mapping[str, tuple[int, int, int]]) -> None:
    """Hold every range against 1 <= min <= opt <= max; a cache may be empty.

    Raises:
        EngineBuildError: naming the axis.
    """
    for axis, (smallest, usual, largest) in ranges.items():
        least = 0 if axis == PAST_AXIS else 1
        if not least <= smallest <= usual <= largest:
            raise EngineBuildError(
                f"the profile of axis `{axis}` does not hold {least} <= min <= opt <= max: "
                f"{smallest}, {usual}, {largest}",
                hint="order the three sizes of the axis in `shapes` or in `profiles` of the recipe",
            )


def profile_from_axes(
    inputs: Mapping[str, Axes], ranges: Mapping[str, tuple[int, int, int]]
) -> dict[str, InputProfile]:
    """The profile of every input.

    Args:
        inputs: Input name -> its dims: a size, the name of a dynamic axis, or None for a dynamic
            axis without a name.
        ranges: Axis name -> (min, opt, max).

    Raises:
        EngineBuildError: for a range out of order, and for all dynamic axes without a range at once.
    """
    check_ranges(ranges)
    missing = [
        f"axis {index} of {name} ({'unnamed' if dim is None else f'`{dim}`'})"
        for name, dims in inputs.items()
        for index, dim in enumerate(dims)
        if not isinstance(dim, int) and (dim is None or dim not in ranges)
    ]
    if missing:
        raise EngineBuildError(
            f"no shapes are given for {', '.join(missing)}; they are given for "
            f"{', '.join(f'`{axis}`' for axis in ranges) or 'no axis'}",
            hint="every dynamic axis of the graph needs a name that `shapes` in the recipe has",
        )
    return {name: _input_profile(dims, ranges) for name, dims in inputs.items()}


def profiles_from_axes(
    inputs: Mapping[str, Axes], profiles: Sequence[Mapping[str, tuple[int, int, int]]]
) -> tuple[dict[str, InputProfile], ...]:
    """Every optimization profile; see `profile_from_axes`.

    Raises:
        EngineBuildError: as there; for two profiles that a graph without the axis in which they
            differ cannot tell apart.
    """
    found = [profile_from_axes(inputs, ranges) for ranges in profiles]
    for number, profile in enumerate(found):
        if profile in found[:number]:
            raise EngineBuildError(
                f"profiles {found.index(profile)} and {number} give the graph's inputs the same "
                "shapes",
                hint="leave one of them out",
            )
    return tuple(found)


def _input_profile(dims: Axes, ranges: Mapping[str, tuple[int, int, int]]) -> InputProfile:
    shapes = [
        tuple(dim if isinstance(dim, int) else ranges[dim or ""][which] for dim in dims)
        for which in range(3)
    ]
    return shapes[0], shapes[1], shapes[2]
