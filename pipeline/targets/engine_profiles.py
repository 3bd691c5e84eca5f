"""Which shapes engines are made for: those of a recipe, and of decoders those of their cache.

A decoder's engine takes `past_sequence` tokens out of its cache and `sequence` new ones, and its mask is as
long as both. TensorRT-RTX 1.7.1 does not notice a mask that is longer or shorter than that, so the range of
the mask is never written by anybody: it is the sum of the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from pipeline.errors import RecipeError
from pipeline.tasks import PAST_AXIS, SEQUENCE_AXIS, TOTAL_AXIS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.targets.base import ChainBuilder
    from pipeline.targets.shape_ranges import ProfileShapes


class AtKey(RecipeError):
    """A recipe error that knows where below its target it belongs.

    Args:
        message: What is wrong.
        *key_path: Keys and indices from the target down.
        where: Set by the plan, which knows the target's own place.
        hint: What to do.
    """

    def __init__(
        self, message: str, *key_path: str | int, where: str = "", hint: str = ""
    ) -> None:
        super().__init__(message, where=where, hint=hint)
        self.key_path = key_path


Ranges: TypeAlias = "dict[str, tuple[int, int, int]]"

_NO_PAST = (0, 0, 0)
_ONE = (1, 1, 1)


def engine_profiles(
    profiles: Sequence[ProfileShapes] | None, builder: ChainBuilder
) -> tuple[Ranges, ...]:
    """The ranges of every profile: axis -> (min, opt, max).

    Args:
        profiles: As the recipe has them; None: the recipe's `shapes`, and of a decoder a second profile
            for one more token behind any past of a text that `shapes` allows.
        builder: Of the plan.

    Raises:
        AtKey: for an axis that the task has not, a range outside of `shapes`, a text beyond the
            positions of the checkpoint, and two profiles that are the same.
    """
    if builder.task.has_cache and not profiles:
        return _decoder_profiles(dict(builder.profile))
    found: list[Ranges] = []
    for number, profile in enumerate(profiles or ()):
        ranges = _ranges(number, profile, builder)
        if ranges in found:
            raise AtKey(
                f"`profiles[{found.index(ranges)}]` has the same shapes",
                "profiles",
                number,
                hint="leave one of them out",
            )
        found.append(ranges)
    return tuple(found) or (dict(builder.profile),)


def _decoder_profiles(shapes: Ranges) -> tuple[Ranges, ...]:
    """The start of a text, of as many tokens as `shapes` says; and one token behind a past."""
    _, usual, longest = shapes[SEQUENCE_AXIS]
    first = _with_total({**shapes, PAST_AXIS: _NO_PAST})
    if longest == 1:
        return (first,)
    past = (1, min(usual, longest - 1), longest - 1)
    return first, _with_total({**shapes, SEQUENCE_AXIS: _ONE, PAST_AXIS: past})


def _ranges(number: int, profile: ProfileShapes, builder: ChainBuilder) -> Ranges:
    """All axes of one profile that a recipe has."""
    has_cache = builder.task.has_cache
    shapes = dict(builder.profile)
    known = (*shapes, PAST_AXIS) if has_cache else tuple(shapes)
    for axis, extent in profile.given().items():
        where = ("profiles", number, axis)
        if axis not in known:
            raise AtKey(
                f"inputs of task `{builder.task_name}` have no axis `{axis}`",
                *where,
                hint=f"its axes are: {', '.join(known)}",
            )
        if axis == PAST_AXIS:
            continue
        smallest, _, largest = shapes[axis]
        # A decoder reads its own text token by token, whatever it was given.
        least = 1 if has_cache and axis == SEQUENCE_AXIS else smallest
        if extent.min < least or extent.max > largest:
            raise AtKey(
                f"{axis} goes from {extent.min} to {extent.max}, and `shapes.{axis}` from "
                f"{smallest} to {largest}",
                *where,
                hint="keep every profile inside of `shapes`, which is what is compared "
                "with the checkpoint",
            )
    ranges = {**shapes, **{axis: extent.sizes() for axis, extent in profile.given().items()}}
    if not has_cache:
        return ranges
    total = _with_total({PAST_AXIS: _NO_PAST, **ranges})
    limit, longest = builder.source.max_positions, total[TOTAL_AXIS][2]
    # TensorRT builds an engine that reads past the positions, and says nothing.
    if limit is not None and longest > limit:
        raise AtKey(
            f"{ranges.get(PAST_AXIS, _NO_PAST)[2]} tokens in the cache and "
            f"{ranges[SEQUENCE_AXIS][2]} new ones are {longest}, and the checkpoint has {limit} "
            "positions",
            "profiles",
            number,
            hint="lower `max` of `past_sequence` or of `sequence`",
        )
    return total


def _with_total(ranges: Mapping[str, tuple[int, int, int]]) -> Ranges:
    smallest, usual, largest = (
        past + new for past, new in zip(ranges[PAST_AXIS], ranges[SEQUENCE_AXIS], strict=True)
    )
    return {**ranges, TOTAL_AXIS: (smallest, usual, largest)}
