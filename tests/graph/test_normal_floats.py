"""NF4: the bytes are those of ONNX Runtime's quantiser, products use them, and damage is found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from pipeline.errors import RecipeError, StageError
from pipeline.graph.block_weights import read_block_weights
from pipeline.graph.normal_floats import (
    NF4,
    NormalFloats,
    loss_of,
    pack,
    quantize_normal_floats,
    require_equal,
    unpack,
)
from pipeline.graph.token_costs import token_costs
from pipeline.graph.vocabulary import float_share
from pipeline.graph.weight_only import quantize_weights
from pipeline.graph.weight_only_audit import audit_weight_only
from tests.graph.models import parse, random, run, write
from tests.graph.test_weight_only import LAYERS, WEIGHTS, request

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.graph.quantization_audit import Audit


def _made(**asked: Any) -> onnx.ModelProto:
    model = ir.serde.deserialize_model(parse(LAYERS, WEIGHTS))
    quantize_weights(model, request(**{"numbers": "nf4"} | asked))
    return ir.serde.serialize_model(model)


@pytest.mark.parametrize("block_size", [16, 64, 256])
def test_the_bytes_are_those_of_onnxruntime(block_size: int) -> None:
    from onnxruntime.capi._pybind_state import quantize_matmul_bnb4

    weight = np.random.default_rng(1).standard_t(4, (256, 96)).astype(np.float32)
    weight[:16, 3] = np.resize(NF4, 16)  # numbers that are met exactly
    made = quantize_normal_floats(weight, axis=0, block_size=block_size, method="rtn", threads=2)
    packed = np.zeros(weight.size // 2, np.uint8)
    largest = np.zeros(weight.size // block_size, np.float32)
    turned = np.ascontiguousarray(weight.T)
    quantize_matmul_bnb4(packed, turned, largest, block_size, 1, 96, 256)
    np.testing.assert_array_equal(pack(made), packed)
    np.testing.assert_array_equal(made.scale.reshape(-1), largest)


@pytest.mark.parametrize("method", ["rtn", "clip"])
def test_the_operator_computes_with_what_we_say_it_does(tmp_path: Path, method: str) -> None:
    made = _made(method=method)
    assert [node.op_type for node in made.graph.node] == [
        "MatMulBnb4",
        "Relu",
        "MatMulBnb4",
        "Add",
    ]
    rounded = {
        name: quantize_normal_floats(WEIGHTS[name], axis=axis, block_size=32, method=method)
        for name, axis in (("first", 0), ("second", 1))
    }
    plain = dict(WEIGHTS, first=rounded["first"].floats().T, second=rounded["second"].floats())
    plain["first"] = np.ascontiguousarray(plain["first"])
    feeds = {"x": random(5, 64, seed=6)}
    (got,) = run(write(tmp_path / "made", made), feeds)
    (wanted,) = run(write(tmp_path / "plain", parse(LAYERS, plain)), feeds)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-4)


def test_a_weight_takes_half_a_byte_and_is_counted(tmp_path: Path) -> None:
    made = _made()
    sizes = {tensor.name: len(tensor.raw_data) for tensor in made.graph.initializer}
    weights = 64 * 96 + 48 * 96
    assert sizes["first_quantized"] + sizes["second_quantized"] == weights // 2
    assert float_share(ir.serde.deserialize_model(made).graph) < 0.04  # the bias
    costs = token_costs(write(tmp_path / "made", made))
    assert costs.products == weights
    assert costs.weight_bytes == weights // 2 + 4 * weights // 32


def test_clipping_never_has_more_error() -> None:
    weight = np.random.default_rng(5).standard_t(4, (64, 128)).astype(np.float32)
    blocks = weight.reshape(64, 4, 32)
    scales = [
        quantize_normal_floats(weight, axis=1, block_size=32, method=method).scale
        for method in ("rtn", "clip")
    ]
    plain, clipped = (loss_of(blocks, scale) for scale in scales)
    assert (clipped <= plain).all()
    assert clipped.sum() < 0.97 * plain.sum()


def test_every_code_survives_and_a_bit_that_differs_is_an_error() -> None:
    codes = np.resize(np.arange(16, dtype=np.uint8), (3, 32))
    made = NormalFloats(codes=codes, scale=np.array([[0.5], [3.0], [1e-8]], np.float32))
    packed = pack(made)
    assert require_equal(made, packed) == 96
    np.testing.assert_array_equal(unpack(packed, made.scale, 3).codes, codes)
    for damage in (packed ^ np.eye(1, packed.size, 7, np.uint8)[0], (packed << 4) | (packed >> 4)):
        with pytest.raises(StageError, match="not what it was"):
            require_equal(made, damage.astype(np.uint8))


def _audit(
    damage: Callable[[onnx.ModelProto], None] | None = None,
    done: dict[str, Any] | None = None,
    **asked: Any,
) -> Audit:
    asked = {"numbers": "nf4"} | asked
    model = ir.serde.deserialize_model(parse(LAYERS, WEIGHTS))
    quantize_weights(model, request(**(asked if done is None else done)))
    proto = ir.serde.serialize_model(model)
    if damage is not None:
        damage(proto)
    original = ir.serde.deserialize_model(parse(LAYERS, WEIGHTS))
    return audit_weight_only(original, ir.serde.deserialize_model(proto), request(**asked))


def faults(audit: Audit) -> dict[str, set[str]]:
    """Kind -> layers, of what is beyond the limits of the check."""
    limits = {"weight_error": 0.51, "weight_step": 1.05}
    found: dict[str, set[str]] = {}
    for row in audit.rows:
        if row.value is None or row.value > limits.get(row.kind, 0):
            found.setdefault(row.kind, set()).add(row.layer)
    return found


def changed(name: str, change: Callable[[Any], Any]) -> Callable[[onnx.ModelProto], None]:
    """Damage one constant."""

    def damage(model: onnx.ModelProto) -> None:
        tensor = next(each for each in model.graph.initializer if each.name == name)
        made = change(numpy_helper.to_array(tensor).copy())
        tensor.CopyFrom(numpy_helper.from_array(made, name))

    return damage


@pytest.mark.parametrize("method", ["rtn", "clip"])
def test_a_good_graph_has_no_faults(method: str) -> None:
    audit = _audit(method=method)
    assert faults(audit) == {}
    assert audit.quantized == ["hidden", "y"]
    assert audit.weight_share == audit.layer_share == 1.0


def _one_code(packed: Any) -> Any:
    packed[5] ^= 0x30
    return packed


def _attribute(model: onnx.ModelProto) -> None:
    node = next(each for each in model.graph.node if each.op_type == "MatMulBnb4")
    next(each for each in node.attribute if each.name == "quant_type").i = 0


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (changed("first_quantized", _one_code), "weight_error"),
        (changed("first_quantized", lambda packed: (packed << 4) | (packed >> 4)), "weight_error"),
        (changed("first_scale", lambda scale: np.roll(scale, 1)), "weight_error"),
        (changed("first_scale", lambda scale: scale * 2), "weight_step"),
        (changed("first_scale", lambda scale: -scale), "wrong_formats"),
        (_attribute, "missing_layers"),
    ],
    ids=["code", "halves", "other scales", "coarse", "negative", "fp4"],
)
@pytest.mark.parametrize("method", ["rtn", "clip"])
def test_damage_is_found(damage: Any, kind: str, method: str) -> None:
    assert "hidden" in faults(_audit(damage, method=method))[kind]


def test_integers_in_its_place_are_found() -> None:
    assert faults(_audit(done={}))["wrong_formats"] == {"hidden", "y"}
    assert faults(_audit(done={"numbers": "nf4"}, numbers="integers"))["wrong_formats"] == {
        "hidden",
        "y",
    }


def test_it_is_no_checkpoint_of_integers(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="NF4"):
        list(read_block_weights(write(tmp_path / "made", _made())))
