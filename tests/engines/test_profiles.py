from __future__ import annotations

import pytest

from pipeline.engines.profiles import profile_from_axes
from pipeline.errors import EngineBuildError

RANGES = {"batch": (1, 8, 32), "sequence": (8, 128, 512)}


def test_dynamic_axes_take_their_ranges_and_static_ones_their_size() -> None:
    profile = profile_from_axes({"ids": ("batch", "sequence"), "past": ("batch", 4, 16)}, RANGES)
    assert profile == {
        "ids": ((1, 8), (8, 128), (32, 512)),
        "past": ((1, 4, 16), (8, 4, 16), (32, 4, 16)),
    }


def test_all_axes_without_a_range_are_named_at_once() -> None:
    with pytest.raises(EngineBuildError) as caught:
        profile_from_axes({"ids": ("batch", "s43"), "mask": (None, "sequence")}, RANGES)
    assert "axis 1 of ids (`s43`), axis 0 of mask (unnamed)" in caught.value.message
    assert "given for `batch`, `sequence`" in caught.value.message


@pytest.mark.parametrize("values", [(2, 1, 3), (1, 4, 3), (0, 1, 2)])
def test_a_range_out_of_order_is_refused_naming_its_axis(values: tuple[int, int, int]) -> None:
    with pytest.raises(EngineBuildError, match="`batch` does not hold 1 <= min <= opt <= max"):
        profile_from_axes({"ids": ("batch",)}, {"batch": values})
