"""GPTQ: outputs lose less than by plain rounding, and a damaged result is found by the audit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from threadpoolctl import threadpool_limits

from pipeline.calibration.moments import Moments, MomentsIndex, TensorMoments
from pipeline.errors import QuantizationError
from pipeline.graph.blockwise import quantize_blocks
from pipeline.graph.weight_methods import compensation
from pipeline.graph.weight_methods.compensation import factor_of
from pipeline.graph.weight_only import quantize_weights
from pipeline.graph.weight_only_audit import audit_weight_only
from tests.graph.models import parse, random
from tests.graph.test_weight_only import request

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.graph.quantization_audit import Audit

INPUTS, OUTPUTS, BLOCK = 96, 40, 32
LAYERS = """
one (float[batch, 96] x) => (float[batch, 40] y)
{
    y = MatMul(x, first)
}
"""


def _activations(seed: int = 0) -> np.ndarray:
    """Rows whose features hang together and differ in size, as those of models do."""
    generator = np.random.default_rng(seed)
    mixed = generator.normal(size=(400, 24)) @ generator.normal(size=(24, INPUTS))
    sizes = np.exp(generator.normal(size=INPUTS))
    rows: np.ndarray = ((mixed + generator.normal(size=mixed.shape)) * sizes).astype(np.float32)
    return rows


def _products(rows: np.ndarray) -> np.ndarray:
    return rows.T @ rows / np.float32(len(rows))


def write_moments(directory: Path, rows: np.ndarray, name: str = "x") -> Moments:
    """As the stage writes them."""
    directory.mkdir(exist_ok=True)
    tensor = TensorMoments(names=(name,), inputs=rows.shape[1], count=len(rows))
    index = MomentsIndex(samples=1, has_products=True, tensors=(tensor,))
    (directory / "moments.json").write_text(index.model_dump_json())
    np.save(directory / "00000.products.npy", _products(rows))
    np.save(directory / "00000.magnitudes.npy", np.abs(rows).mean(axis=0))
    return Moments(directory)


WEIGHT = random(INPUTS, OUTPUTS, seed=5)


def _restored(
    method: str, rows: np.ndarray, dtype: Any = np.float32, **changes: Any
) -> np.ndarray:
    form: dict[str, Any] = {"bits": 4, "block_size": BLOCK} | changes
    factor = factor_of(_products(rows))
    made = quantize_blocks(WEIGHT.astype(dtype), axis=0, method=method, factor=factor, **form)
    scale = made.scale.astype(np.float32)
    if form["block_size"] is None:
        return np.asarray(made.values.astype(np.float32) * scale)
    return np.asarray(
        made.values.astype(np.float32) * np.repeat(scale, form["block_size"], axis=0)
    )


@pytest.mark.parametrize(
    "form",
    [{}, {"block_size": None}, {"block_size": 16}, {"bits": 8, "block_size": None}],
    ids=str,
)
def test_every_output_loses_less_on_rows_like_those_of_calibration(form: dict[str, Any]) -> None:
    rows = _activations()
    wanted = rows @ WEIGHT
    lost = {
        method: np.square(rows @ _restored(method, rows, **form) - wanted).sum(axis=0)
        for method in ("clip", "gptq")
    }
    # Damping counts too, so that an output may lose a little more of what was seen.
    assert (lost["gptq"] <= lost["clip"] * 1.02).all()
    assert lost["gptq"].sum() < 0.6 * lost["clip"].sum()


def test_rounding_in_parts_of_columns_is_the_textbook_recursion(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Algorithm 1 of Frantar et al., one input after the other, with the inverse of the moments."""
    rows = _activations()
    factor = factor_of(_products(rows))
    monkeypatch.setattr(compensation, "_COLUMNS", 7)
    monkeypatch.setattr(compensation, "_FEW", 3)
    made = quantize_blocks(WEIGHT, axis=0, bits=4, block_size=BLOCK, method="gptq", factor=factor)
    hessian = (factor.upper @ factor.upper.T).astype(np.float64)
    inverse = np.linalg.cholesky(np.linalg.inv(hessian)).T
    weight = WEIGHT.T[:, factor.order].astype(np.float64)
    steps = np.repeat(made.scale.T.astype(np.float64), BLOCK, axis=1)[:, factor.order]
    integers = np.empty_like(weight)
    for place in range(INPUTS):
        chosen = np.clip(np.rint(weight[:, place] / steps[:, place]), -8, 7)
        error = (weight[:, place] - chosen * steps[:, place]) / inverse[place, place]
        weight[:, place:] -= np.outer(error, inverse[place, place:])
        integers[:, place] = chosen
    got = made.values.astype(np.int8).T[:, factor.order]
    assert (got == integers).all(axis=1).mean() > 0.9  # of others plain rounding was better


def test_threads_change_no_bit() -> None:
    """Neither the threads that share outputs out, nor those of BLAS."""
    generator = np.random.default_rng(2)
    rows = generator.normal(size=(300, 1000)).astype(np.float32)
    weight = generator.normal(size=(1000, 700)).astype(np.float32)
    found = []
    for threads in (1, 2, 3):
        with threadpool_limits(threads, user_api="blas"):
            factor = factor_of(_products(rows))
            made = quantize_blocks(
                weight, axis=0, bits=4, block_size=8, method="gptq", factor=factor, threads=threads
            )
        found.append((factor.upper.tobytes(), made.values.tobytes()))
    assert len(set(found)) == 1


def test_the_factor_is_that_of_the_moments() -> None:
    moments = _products(_activations())
    factor = factor_of(moments)
    assert (np.tril(factor.upper, -1) == 0).all()
    wanted = moments[np.ix_(factor.order, factor.order)].astype(np.float64)
    wanted[np.diag_indices(INPUTS)] += compensation.DAMPING * np.diagonal(wanted).mean()
    upper = factor.upper.astype(np.float64)
    np.testing.assert_allclose(upper @ upper.T, wanted, rtol=1e-5, atol=1e-6 * wanted.max())
    errors = random(3, INPUTS, seed=9)
    np.testing.assert_allclose(factor.spread(errors), errors[:, factor.order] @ upper, rtol=1e-6)


def test_moments_that_are_none_are_refused() -> None:
    good = _products(_activations())
    for bad, message in (
        (good[:3], "no square"),
        (np.full_like(good, np.nan), "no numbers"),
        (good - 2 * np.diag(np.diagonal(good)), "negative"),
        (np.where(np.eye(INPUTS), good, 50 * good.max()), "not positive"),
    ):
        with pytest.raises(QuantizationError, match=message):
            factor_of(bad)
    assert np.isfinite(factor_of(np.zeros_like(good)).upper).all()


def test_a_product_that_calibration_did_not_see_is_named(tmp_path: Path) -> None:
    model = ir.serde.deserialize_model(parse(LAYERS, {"first": WEIGHT}))
    asked = request(method="gptq")
    other = write_moments(tmp_path, _activations(), name="other")
    with pytest.raises(QuantizationError, match="did not see what goes into `y`"):
        quantize_weights(model, asked, other)
    with pytest.raises(QuantizationError, match="no moments"):
        quantize_weights(ir.serde.deserialize_model(parse(LAYERS, {"first": WEIGHT})), asked)
    few = write_moments(tmp_path, _activations()[:, :64])
    with pytest.raises(QuantizationError, match="has 96 inputs, calibration saw 64"):
        quantize_weights(ir.serde.deserialize_model(parse(LAYERS, {"first": WEIGHT})), asked, few)


def _audit(
    moments: Moments, damage: Callable[[onnx.ModelProto], None] | None = None, **changes: Any
) -> Audit:
    dtype = changes.pop("dtype", np.float32)
    name = {np.float32: "float", np.float16: "float16"}.get(dtype, "bfloat16")

    def model() -> ir.Model:
        text = LAYERS.replace("float[", f"{name}[")
        return ir.serde.deserialize_model(parse(text, {"first": WEIGHT.astype(dtype)}))

    made = model()
    asked = request(method="gptq", **changes)
    quantize_weights(made, asked, moments)
    proto = ir.serde.serialize_model(made)
    if damage is not None:
        damage(proto)
    return audit_weight_only(model(), ir.serde.deserialize_model(proto), asked, moments)


def _faults(audit: Audit) -> set[str]:
    limits = {"weight_error": 0.51, "weight_step": 1.05}
    return {
        row.kind for row in audit.rows if row.value is None or row.value > limits.get(row.kind, 0)
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=str)
@pytest.mark.parametrize(
    "form",
    [{}, {"signed_scales": True}, {"block_size": None}, {"bits": 8, "block_size": None}],
    ids=str,
)
def test_a_good_result_has_no_faults(tmp_path: Path, dtype: Any, form: dict[str, Any]) -> None:
    audit = _audit(write_moments(tmp_path, _activations()), dtype=dtype, **form)
    assert _faults(audit) == set()
    worst = max(row.value or 0 for row in audit.rows if row.kind == "weight_error")
    assert 0.4 < worst <= 0.5001


def _replace(model: onnx.ModelProto, values: np.ndarray, scale: np.ndarray | None = None) -> None:
    for tensor in model.graph.initializer:
        for name, array in (("first_quantized", values), ("first_scale", scale)):
            if tensor.name == name and array is not None:
                dtype = numpy_helper.to_array(tensor).dtype
                tensor.CopyFrom(numpy_helper.from_array(array.astype(dtype), name))


def _arrays(model: onnx.ModelProto) -> tuple[np.ndarray, np.ndarray]:
    held = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    return held["first_quantized"].astype(np.float32), held["first_scale"]


def _in_another_order(model: onnx.ModelProto) -> None:
    """Rounded in the order of the inputs, by a factor of that order: blocks come in a wrong one."""
    products = _products(_activations())
    turned = np.arange(INPUTS)[::-1]
    factor = factor_of(products[np.ix_(turned, turned)])
    made = quantize_blocks(WEIGHT, axis=0, bits=4, block_size=BLOCK, method="gptq", factor=factor)
    _replace(model, made.values.astype(np.float32), made.scale)


def _of_other_moments(model: onnx.ModelProto) -> None:
    factor = factor_of(_products(_activations(seed=8)))
    made = quantize_blocks(WEIGHT, axis=0, bits=4, block_size=BLOCK, method="gptq", factor=factor)
    _replace(model, made.values.astype(np.float32), made.scale)


def _one_more(model: onnx.ModelProto) -> None:
    values, _ = _arrays(model)
    values[5, 3] += 1 if values[5, 3] < 7 else -1
    _replace(model, values)


def _scale_twice(model: onnx.ModelProto) -> None:
    values, scale = _arrays(model)
    changed = scale.copy()
    changed[1, 4] *= 2
    _replace(model, values, changed)


def _coarse_output(model: onnx.ModelProto) -> None:
    """Plain rounding of one output with twice the scales: every integer is the nearest one."""
    values, scale = _arrays(model)
    changed = scale.copy()
    changed[:, 4] *= 2
    values[:, 4] = np.rint(WEIGHT[:, 4] / np.repeat(changed[:, 4], BLOCK))
    _replace(model, values, changed)


def _outputs_rolled(model: onnx.ModelProto) -> None:
    values, scale = _arrays(model)
    _replace(model, np.roll(values, 1, axis=1), np.roll(scale, 1, axis=1))


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (_in_another_order, "weight_error"),
        (_of_other_moments, "weight_error"),
        (_one_more, "weight_error"),
        (_scale_twice, "weight_error"),
        (_coarse_output, "weight_step"),
        (_outputs_rolled, "weight_error"),
    ],
)
def test_a_damaged_result_is_found(
    tmp_path: Path, damage: Callable[[onnx.ModelProto], None], kind: str
) -> None:
    audit = _audit(write_moments(tmp_path, _activations()), damage)
    assert kind in _faults(audit)
    assert {row.layer for row in audit.rows if row.kind == kind} == {"y"}
