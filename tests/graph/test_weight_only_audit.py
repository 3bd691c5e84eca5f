"""Good graphs with weights in few bits are found right; one damaged block or node is found, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from pipeline.graph.weight_only import quantize_weights
from pipeline.graph.weight_only_audit import audit_weight_only
from tests.graph.models import parse, random
from tests.graph.test_weight_only import EIGHT_BITS, LAYERS, TIED, WEIGHTS, request

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipeline.graph.quantization_audit import Audit

    Damage = Callable[[onnx.ModelProto], None]

FORMS: dict[str, dict[str, Any]] = {
    "rtn": {},
    "clip": {"method": "clip"},
    "hqq": {"method": "hqq"},
    "k_quant": {"method": "k_quant"},
    "one scale": {"block_size": None},
    "8 bits": EIGHT_BITS,
    "rtn, signs": {"signed_scales": True},
    "clip, signs": {"method": "clip", "signed_scales": True},
    "hqq, signs": {"method": "hqq", "signed_scales": True},
    "k_quant, signs": {"method": "k_quant", "signed_scales": True},
}


def _audit(
    damage: Damage | None = None,
    *,
    text: str = LAYERS,
    weights: Mapping[str, np.ndarray] = WEIGHTS,
    asked: Mapping[str, Any] | None = None,
    **done: Any,
) -> Audit:
    def model() -> ir.Model:
        return ir.serde.deserialize_model(parse(text, weights))

    made = model()
    quantize_weights(made, request(**done))
    proto = ir.serde.serialize_model(made)
    if damage is not None:
        damage(proto)
    wanted = request(**(done if asked is None else asked))
    return audit_weight_only(model(), ir.serde.deserialize_model(proto), wanted)


def _faults(audit: Audit) -> dict[str, list[str]]:
    """Kind -> the layers beyond the limits of `pipeline.checks.quantization`."""
    limits = {"weight_error": 0.51, "weight_step": 1.05}
    found: dict[str, list[str]] = {}
    for row in audit.rows:
        if row.value is None or row.value > limits.get(row.kind, 0):
            found.setdefault(row.kind, []).append(row.layer)
    return found


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=str)
def test_a_good_graph_has_no_faults(form: str, dtype: Any) -> None:
    kinds = {np.float32: "float", np.float16: "float16", ml_dtypes.bfloat16: "bfloat16"}
    weights = {name: (array * 0.02).astype(dtype) for name, array in WEIGHTS.items()}
    weights["first"][:32, 5] = 0  # a block of zeros
    text = LAYERS.replace("float[", f"{kinds[dtype]}[")
    audit = _audit(text=text, weights=weights, **FORMS[form])
    assert _faults(audit) == {}
    assert audit.quantized == ["hidden", "y"]
    assert audit.weight_share == audit.layer_share == 1.0


def test_shared_weights_and_excluded_layers_have_no_faults() -> None:
    weights = {"weight": random(32, 32)}
    assert _faults(_audit(text=TIED, weights=weights)) == {}
    audit = _audit(text=TIED, weights=weights, exclude_nodes=("z",))
    assert _faults(audit) == {}
    assert [name for name, _ in audit.kept_float] == ["y", "z"]


def _tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    found: onnx.TensorProto = next(
        tensor for tensor in model.graph.initializer if tensor.name == name
    )
    return found


def _edit(name: str, change: Callable[[np.ndarray], Any]) -> Damage:
    """Replaces the content of an initializer by what is made of it, in its own type."""

    def damage(model: onnx.ModelProto) -> None:
        tensor = _tensor(model, name)
        array = numpy_helper.to_array(tensor)
        changed = np.asarray(change(array.astype(np.float32))).astype(array.dtype)
        tensor.CopyFrom(numpy_helper.from_array(changed, name))

    return damage


def _first_block(array: np.ndarray, factor: float) -> np.ndarray:
    """The first scale of the third output, whatever the shape."""
    changed = array.copy()
    changed.T[2, ..., None][0] *= factor
    return changed


def _one_more(array: np.ndarray) -> np.ndarray:
    changed = array.copy()
    place = int(np.argmin(np.abs(changed)))  # where there is room
    changed.reshape(-1)[place] += 1
    return changed


def _rolled(array: np.ndarray) -> np.ndarray:
    return np.roll(array, 1, axis=-1)


def _zero_point(number: int) -> Damage:
    def damage(model: onnx.ModelProto) -> None:
        scale = _tensor(model, "first_scale")
        kind = _tensor(model, "first_quantized").data_type
        count = int(np.prod(scale.dims))
        zeros = helper.make_tensor("zero", kind, list(scale.dims), [number] * count)
        model.graph.initializer.append(zeros)
        next(node for node in model.graph.node if "first_scale" in node.input).input.append("zero")

    return damage


FAULTS: dict[str, tuple[Damage, str]] = {
    "one scale x 2": (_edit("first_scale", lambda scale: _first_block(scale, 2)), "weight_error"),
    "one scale / 2": (
        _edit("first_scale", lambda scale: _first_block(scale, 0.5)),
        "weight_error",
    ),
    "scales of another output": (_edit("first_scale", _rolled), "weight_error"),
    "integers of another output": (_edit("first_quantized", _rolled), "weight_error"),
    "one integer": (_edit("first_quantized", _one_more), "weight_error"),
    "zero point": (_zero_point(1), "wrong_formats"),
    "no number": (_edit("first_scale", lambda scale: scale * np.nan), "wrong_formats"),
    "a scale below zero": (_edit("first_scale", lambda scale: -scale), "wrong_formats"),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
@pytest.mark.parametrize("form", sorted(FORMS))
def test_a_damaged_weight_is_found_in_its_layer(fault: str, form: str) -> None:
    damage, kind = FAULTS[fault]
    if fault == "a scale below zero" and "signed_scales" in FORMS[form]:
        kind = "weight_error"  # it may be, and fits neither the integers nor the block
    faults = _faults(_audit(damage, **FORMS[form]))
    assert {layer for each in faults.values() for layer in each} == {"hidden"}
    assert kind in faults


@pytest.mark.parametrize("form", sorted(FORMS))
def test_small_weights_that_became_zeros_are_found(form: str) -> None:
    """Half a step of 1 is more than all of them: only the step itself says that they are gone."""

    def damage(model: onnx.ModelProto) -> None:
        _edit("first_scale", np.ones_like)(model)
        _edit("first_quantized", np.zeros_like)(model)

    text = LAYERS.replace("float[", "float16[")
    weights = {name: (array * 0.0003).astype(np.float16) for name, array in WEIGHTS.items()}
    assert _faults(_audit(text=text, weights=weights, **FORMS[form])) == {}
    faults = _faults(_audit(damage, text=text, weights=weights, **FORMS[form]))
    assert faults["weight_step"] == ["hidden"]


def test_a_zero_point_of_zero_is_none() -> None:
    assert _faults(_audit(_zero_point(0))) == {}


def test_a_stale_block_is_found() -> None:
    """One block whose integers and scales are those of an older weight."""

    def damage(model: onnx.ModelProto) -> None:
        older = dict(WEIGHTS, first=WEIGHTS["first"] + random(64, 96, seed=9) * np.float32(0.3))
        other = ir.serde.deserialize_model(parse(LAYERS, older))
        quantize_weights(other, request(method="clip"))
        proto = ir.serde.serialize_model(other)
        for name, rows in (("first_quantized", slice(32, 64)), ("first_scale", slice(1, 2))):
            array = numpy_helper.to_array(_tensor(model, name)).copy()
            array[rows, 7] = numpy_helper.to_array(_tensor(proto, name))[rows, 7]
            _tensor(model, name).CopyFrom(numpy_helper.from_array(array, name))

    audit = _audit(damage, method="clip")
    assert "hidden" in _faults(audit)["weight_error"]
    (worst,) = [row for row in audit.rows if row.kind == "weight_error" and row.layer == "hidden"]
    assert "output 7, block 1" in worst.detail


@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize("method", ["rtn", "clip"])
def test_a_block_that_was_rounded_with_another_scale_is_found(method: str, factor: float) -> None:
    """Integers and scale fit each other: only the error says that the scale is not a good one."""

    def damage(model: onnx.ModelProto) -> None:
        scale = numpy_helper.to_array(_tensor(model, "first_scale")).copy()
        values = numpy_helper.to_array(_tensor(model, "first_quantized")).copy()
        scale[0, 4] *= factor
        steps = np.rint(WEIGHTS["first"][:32, 4] / scale[0, 4])
        values[:32, 4] = np.clip(steps, -8, 7).astype(values.dtype)
        for name, array in (("first_scale", scale), ("first_quantized", values)):
            _tensor(model, name).CopyFrom(numpy_helper.from_array(array, name))

    faults = _faults(_audit(damage, method=method))
    kind = "weight_error" if (method, factor) == ("rtn", 0.5) else "weight_step"
    assert faults == {kind: ["hidden"]}


@pytest.mark.parametrize(
    "done",
    [{"block_size": 16}, {"block_size": None}, EIGHT_BITS],
    ids=str,
)
def test_another_form_than_was_asked_for_is_found(done: dict[str, Any]) -> None:
    assert set(_faults(_audit(asked={}, **done))["wrong_formats"]) == {"hidden", "y"}


def test_a_layer_that_was_left_float_is_found() -> None:
    audit = _audit(asked={}, exclude_nodes=("y",))
    assert _faults(audit) == {"missing_layers": ["y"]}
    assert audit.layer_share == 0.5


def test_a_rounded_input_is_found() -> None:
    def damage(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array(0.1, np.float32), "step"))
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "step"], ["small"]),
            helper.make_node("DequantizeLinear", ["small", "step"], ["large"]),
        ]
        for node in model.graph.node:
            node.input[:] = ["large" if name == "x" else name for name in node.input]
        for number, node in enumerate(nodes):
            model.graph.node.insert(number, node)

    assert _faults(_audit(damage)) == {"changed_nodes": ["hidden"]}


def test_numbers_and_nodes_that_are_not_quantised_are_compared() -> None:
    nudged = _edit("bias", lambda bias: bias * np.float32(1.001))
    assert _faults(_audit(nudged)) == {"changed_constants": ["y"]}

    def sigmoid(model: onnx.ModelProto) -> None:
        next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Sigmoid"

    assert _faults(_audit(sigmoid)) == {"changed_nodes": ["active"]}


def test_negative_scales_are_found_where_there_may_be_none() -> None:
    done = {"method": "clip", "signed_scales": True}
    faults = _faults(_audit(asked={"method": "clip"}, **done))
    assert "hidden" in faults["wrong_formats"]
    assert _faults(_audit(**done)) == {}


@pytest.mark.parametrize("method", ["rtn", "clip"])
def test_a_scale_that_lost_its_sign_is_found(method: str) -> None:
    """The fault of whoever takes the size of a block for its scale."""
    faults = _faults(_audit(_edit("first_scale", np.abs), method=method, signed_scales=True))
    assert faults["weight_error"] == ["hidden"]
    assert faults["weight_step"] == ["hidden"]
