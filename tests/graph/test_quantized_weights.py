from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.graph.quantized_weights import WeightType, quantize_columns, quantize_rows

MATRICES = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
    elements=st.floats(-1e3, 1e3, width=32),
)
KINDS = [WeightType(dtype=dtype, bits=bits) for dtype in ("int8", "uint8") for bits in (7, 8)]


@given(MATRICES, st.sampled_from(KINDS), st.booleans())
def test_no_value_moves_by_more_than_half_its_scale_and_zero_stays(
    matrix: np.ndarray, kind: WeightType, per_channel: bool
) -> None:
    made = quantize_columns(matrix, kind, per_channel=per_channel)

    restored = (made.values.astype(np.float64) - made.zero_point) * made.scale
    # A zero point that is rounded can push the outermost value out by half a step more.
    limit = 0.5 if kind.dtype == "int8" else 1.0
    assert (np.abs(restored - matrix) <= made.scale * (limit + 1e-3)).all()
    assert (restored[matrix == 0] == 0).all()
    assert made.scale.shape == made.zero_point.shape == (matrix.shape[1:] if per_channel else ())


@given(MATRICES)
def test_no_value_of_a_row_moves_by_more_than_half_the_scale_of_the_row(
    table: np.ndarray,
) -> None:
    made = quantize_rows(table)

    assert (np.abs(made.values * made.scale - table) <= made.scale * 0.501).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_of_zeros_gives_zeros(kind: WeightType) -> None:
    made = quantize_columns(np.zeros((4, 2), np.float32), kind, per_channel=True)

    assert (made.values == made.zero_point).all()
    assert (made.scale == 1).all()
