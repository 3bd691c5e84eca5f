"""4 bits with zero points: least loss, products in both forms, one table for both ends, damage found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from pipeline.errors import RecipeError
from pipeline.graph.block_weights import read_block_weights
from pipeline.graph.matmul_nbits import pack_products
from pipeline.graph.shared_table import share_tables
from pipeline.graph.validity import require_valid
from pipeline.graph.weight_methods.asymmetric import ZERO_POINT_METHODS, Grid
from pipeline.graph.weight_methods.hqq import robust
from pipeline.graph.weight_only import quantize_weights
from pipeline.graph.weight_only_audit import audit_weight_only
from pipeline.graph.zero_points import quantize_with_zero_points
from tests.graph.models import parse, random, run, write
from tests.graph.test_normal_floats import changed, faults
from tests.graph.test_shared_table import IDS, MODEL, TABLE
from tests.graph.test_shared_table import WEIGHTS as TIED
from tests.graph.test_weight_only import LAYERS, WEIGHTS, request

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.graph.quantization_audit import Audit

METHODS = sorted(ZERO_POINT_METHODS)


def _weight(*shape: int) -> Any:
    """Skewed, with outliers, so that zero points matter."""
    drawn = np.random.default_rng(5).standard_t(3, shape) + 0.7
    return drawn.astype(np.float32)


def _loss(method: str, blocks: Any, dtype: Any) -> Any:
    return ZERO_POINT_METHODS[method].find(blocks, np.dtype(dtype)).loss(blocks, robust)


@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=str)
def test_hqq_has_less_of_its_loss_than_rtn_and_never_more_in_any_block(dtype: Any) -> None:
    blocks = _weight(64, 4, 32)
    blocks[3, 1] = 0
    plain, best = _loss("rtn", blocks, dtype), _loss("hqq", blocks, dtype)
    assert (best <= plain).all()
    assert best.sum() < 0.9 * plain.sum()


def _published(blocks: Any) -> Grid:
    """Badri and Shaji: the range's scale, `zero = mean(q - (w - e) / s)` for 20 steps; then rounded."""
    low, high = blocks.min(axis=2), blocks.max(axis=2)
    scale = ((high - low) / 15).astype(np.float32)
    zero, beta = np.rint(-low / scale), 10.0
    for _ in range(20):
        integers = np.clip(np.rint(blocks / scale[..., None] + zero[..., None]), 0, 15)
        errors = blocks - (integers - zero[..., None]) * scale[..., None]
        size = np.abs(errors)
        left = np.sign(errors) * np.maximum(size - np.power(size + 1e-8, -0.3) / beta, 0)
        zero = (integers - (blocks - left) / scale[..., None]).mean(axis=2)
        beta *= 1.01
    return Grid(scale, np.clip(np.rint(zero), 0, 15).astype(np.float32))


def test_hqq_comes_as_low_as_the_published_algorithm_with_whole_zero_points() -> None:
    blocks = _weight(64, 4, 32)
    theirs = _published(blocks).loss(blocks, robust)
    assert _loss("hqq", blocks, np.float32).sum() < theirs.sum()


@pytest.mark.parametrize(("method", "block_size"), [("clip", None), ("hqq", 32), ("rtn", 16)])
def test_packed_and_unpacked_products_are_those_of_the_rounded_weights(
    tmp_path: Path, method: str, block_size: int | None
) -> None:
    model = ir.serde.deserialize_model(parse(LAYERS, WEIGHTS))
    quantize_weights(model, request(symmetric=False, method=method, block_size=block_size))
    rounded = dict(WEIGHTS)
    for name, axis in (("first", 0), ("second", 1)):
        made = quantize_with_zero_points(
            WEIGHTS[name], axis=axis, block_size=block_size, method=method, threads=2
        )
        assert made.values.dtype == made.zero_point.dtype == ml_dtypes.uint4
        spread = [
            np.expand_dims(each.astype(np.float32), axis)
            if block_size is None
            else np.repeat(each.astype(np.float32), block_size, axis=axis)
            for each in (made.scale, made.zero_point)
        ]
        rounded[name] = (made.values.astype(np.float32) - spread[1]) * spread[0]
    feeds = {"x": random(5, 64, seed=6)}
    (wanted,) = run(write(tmp_path / "plain", parse(LAYERS, rounded)), feeds)
    path = write(tmp_path / "qdq", ir.serde.serialize_model(model))
    require_valid(path)
    np.testing.assert_allclose(run(path, feeds)[0], wanted, rtol=1e-5, atol=1e-4)
    report = pack_products(model, accuracy_level=0)
    assert (report.outcome.fired, report.compared) == (2, 64 * 96 + 48 * 96)
    (got,) = run(write(tmp_path / "packed", ir.serde.serialize_model(model)), feeds)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-4)
    for each in ("qdq", "packed"):
        with pytest.raises(RecipeError, match="zero point for each block"):
            list(read_block_weights(tmp_path / each / "model.onnx"))


def test_a_tied_table_with_zero_points_is_stored_once_too(tmp_path: Path) -> None:
    model = ir.serde.deserialize_model(parse(MODEL, TIED))
    asked = request(symmetric=False, method="hqq", embeddings="int4", block_size=16)
    quantize_weights(model, asked)
    original = ir.serde.deserialize_model(parse(MODEL, TIED))
    again = ir.serde.deserialize_model(ir.serde.serialize_model(model))
    assert faults(audit_weight_only(original, again, asked)) == {}
    pack_products(model, accuracy_level=0)
    (wanted,) = run(write(tmp_path / "apart", ir.serde.serialize_model(model)), IDS)
    (shared,) = share_tables(model)
    assert shared.reason == ""
    assert shared.bytes_saved == TABLE.size // 2 + 4 * TABLE.size // 16 + TABLE.size // 32
    (got,) = run(write(tmp_path / "together", ir.serde.serialize_model(model)), IDS)
    np.testing.assert_array_equal(got, wanted)


def _audit(damage: Any = None, done: dict[str, Any] | None = None, **asked: Any) -> Audit:
    asked = {"symmetric": False} | asked
    model = ir.serde.deserialize_model(parse(LAYERS, WEIGHTS))
    quantize_weights(model, request(**(asked if done is None else done)))
    proto = ir.serde.serialize_model(model)
    if damage is not None:
        damage(proto)
    original = ir.serde.deserialize_model(parse(LAYERS, WEIGHTS))
    return audit_weight_only(original, ir.serde.deserialize_model(proto), request(**asked))


@pytest.mark.parametrize(("method", "block_size"), [("clip", 32), ("hqq", None), ("rtn", 32)])
def test_a_good_graph_has_no_faults(method: str, block_size: int | None) -> None:
    audit = _audit(method=method, block_size=block_size)
    assert faults(audit) == {}
    assert audit.quantized == ["hidden", "y"]


def _plus_one(array: Any) -> Any:
    numbers = array.astype(np.int16)
    return ((numbers + 1) % 16).astype(array.dtype)


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (changed("first_quantized", _plus_one), "weight_error"),
        (changed("first_zero_point", _plus_one), "weight_error"),
        (changed("first_scale", lambda scale: scale * 2), "weight_step"),
        (changed("first_zero_point", lambda zeros: zeros[:, :1]), "wrong_formats"),
    ],
    ids=["integers", "zero points", "coarse", "too few"],
)
@pytest.mark.parametrize("method", METHODS)
def test_damage_is_found(damage: Any, kind: str, method: str) -> None:
    assert "hidden" in faults(_audit(damage, method=method))[kind]


def test_symmetric_weights_in_their_place_are_found() -> None:
    assert faults(_audit(done={}))["wrong_formats"] == {"hidden", "y"}
    found = faults(_audit(done={"symmetric": False}, symmetric=True))
    assert found["wrong_formats"] == {"hidden", "y"}
