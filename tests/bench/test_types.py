"""A shape says its sizes, with and without the names of its axes."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pipeline.bench.types import Shaped


@pytest.mark.parametrize(
    ("axes", "shape", "label", "description"),
    [
        (("batch",), (8,), "8", "batch 8"),
        (("batch", "sequence"), (8, 64), "8 x 64", "batch 8, sequence 64"),
        (
            ("batch", "num_choices", "sequence"),
            (2, 4, 64),
            "2 x 4 x 64",
            "batch 2, num_choices 4, sequence 64",
        ),
    ],
)
def test_a_shape_is_told_short_and_long(
    axes: tuple[str, ...], shape: tuple[int, ...], label: str, description: str
) -> None:
    shaped = Shaped(axes=axes, shape=shape)
    assert (shaped.batch, shaped.label, shaped.description) == (shape[0], label, description)
    assert Shaped.model_validate_json(shaped.model_dump_json()) == shaped


@pytest.mark.parametrize(("axes", "shape"), [((), ()), (("batch",), (1, 2)), (("batch",), ())])
def test_a_shape_with_other_sizes_than_axes_is_refused(
    axes: tuple[str, ...], shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValidationError, match="one size for each of"):
        Shaped(axes=axes, shape=shape)
