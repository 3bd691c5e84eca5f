"""Good quantised graphs are found exactly right; one damaged number or node is found, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest

from pipeline.calibration.methods import Range
from pipeline.graph.qdq import QdqOptions, quantize_static
from pipeline.graph.qdq_placements import PLACEMENTS, PlacementName
from pipeline.graph.quantization import QuantizationOptions, quantize_dynamic
from pipeline.graph.quantization_audit import (
    Audit,
    StaticRequest,
    audit_dynamic,
    audit_static,
)
from tests.graph.models import parse, random
from tests.graph.test_outliers import BLOCK, _weights
from tests.graph.test_qdq import CONV, CONV_WEIGHTS, GEMM, GEMM_WEIGHTS, RESIDUAL, RESIDUAL_WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import onnx

ORT: PlacementName = "onnxruntime-cpu"
TRT: PlacementName = "tensorrt"

SHARED = """
tied (float[batch, 8] x) => (float[batch, 8] y, float[batch, 8] z)
{
    y = MatMul(x, weight)
    z = MatMul(y, weight)
}
"""
TABLE = """
words (int64[batch, sequence] ids) => (float[batch, sequence, 8] y)
{
    row = Gather(table, ids)
    y = MatMul(row, weight)
}
"""
GRAPHS: dict[str, tuple[str, dict[str, np.ndarray]]] = {
    "residual": (RESIDUAL, RESIDUAL_WEIGHTS),
    "gemm": (GEMM, GEMM_WEIGHTS),
    "conv": (CONV, CONV_WEIGHTS),
    "shared": (SHARED, {"weight": random(8, 8, seed=10)}),
    "table": (TABLE, {"table": random(3000, 8, seed=11), "weight": random(8, 8, seed=12)}),
    "outliers": (BLOCK, _weights()),
    "zeros": (SHARED, {"weight": np.diag(np.array([1, 0, 2, 0, 3, 0, 4, 0], np.float32))}),
}


def _model(name: str) -> ir.Model:
    return ir.serde.deserialize_model(parse(*GRAPHS[name]))


def _options(placement: PlacementName, **changes: Any) -> QdqOptions:
    is_ort = placement == ORT
    fields: dict[str, Any] = {
        "per_channel": True,
        "activation_dtype": "uint8" if is_ort else "int8",
        "weight_dtype": "int8",
        "reduce_range": False,
        "quantize_embeddings": is_ort,
        "op_types": ("MatMul", "Gemm", "Conv"),
        "exclude_nodes": (),
    }
    return QdqOptions(**(fields | changes))


def _ranges(model: ir.Model, scale: float = 1.0) -> dict[str, Range]:
    names = [value.name for value in model.graph.inputs]
    names += [value.name for node in model.graph for value in node.outputs]
    return {
        name or "": Range(
            low=-(3.0 + number) * scale,
            high=(4.0 + number) * scale,
            magnitude=(4.0 + number) * scale,
        )
        for number, name in enumerate(names)
    }


def _static(
    name: str,
    placement: PlacementName,
    damage: Callable[[onnx.ModelProto], None] | None = None,
    asked: Mapping[str, Any] | None = None,
    **done: Any,
) -> Audit:
    made = _model(name)
    ranges = _ranges(made)
    quantize_static(made, PLACEMENTS[placement], ranges, _options(placement, **done))
    request = StaticRequest(
        options=_options(placement, **(done if asked is None else asked)),
        placement=PLACEMENTS[placement],
        ranges=ranges,
    )
    return audit_static(_model(name), _damaged(made, damage), request)


def _dynamic_options(**changes: Any) -> QuantizationOptions:
    fields: dict[str, Any] = {
        "per_channel": True,
        "weight_dtype": "int8",
        "reduce_range": False,
        "quantize_embeddings": True,
        "treat_outliers": True,
    }
    return QuantizationOptions(**(fields | changes))


def _dynamic(
    name: str,
    damage: Callable[[onnx.ModelProto], None] | None = None,
    asked: Mapping[str, Any] | None = None,
    **done: Any,
) -> Audit:
    made = _model(name)
    quantize_dynamic(made, _dynamic_options(**done))
    options = _dynamic_options(**(done if asked is None else asked))
    return audit_dynamic(_model(name), _damaged(made, damage), options)


def _damaged(made: ir.Model, damage: Callable[[onnx.ModelProto], None] | None) -> ir.Model:
    proto = ir.serde.serialize_model(made)
    if damage is not None:
        damage(proto)
    return ir.serde.deserialize_model(proto)


def _faults(audit: Audit) -> dict[str, list[str]]:
    """Kind -> the layers for which it is more than a good graph may have."""
    limits = {"weight_error": 0.51, "weight_step": 1.001, "bias_error": 0.51}
    found: dict[str, list[str]] = {}
    for row in audit.rows:
        if row.value is None or row.value > limits.get(row.kind, 1e-6):
            found.setdefault(row.kind, []).append(row.layer)
    return found


@pytest.mark.parametrize("name", sorted(GRAPHS))
@pytest.mark.parametrize("placement", [ORT, TRT])
@pytest.mark.parametrize("per_channel", [True, False])
def test_a_good_static_graph_has_no_faults(
    name: str, placement: PlacementName, per_channel: bool
) -> None:
    audit = _static(name, placement, per_channel=per_channel)
    assert _faults(audit) == {}
    assert audit.quantized
    assert audit.activations
    assert audit.weight_share == audit.layer_share == 1.0


@pytest.mark.parametrize("name", ["conv", "gemm", "residual", "table"])
@pytest.mark.parametrize(
    "changes",
    [
        {"weight_dtype": "uint8"},
        {"activation_dtype": "int8"},
        {"reduce_range": True},
        {"weight_dtype": "uint8", "reduce_range": True, "per_channel": False},
        {"quantize_embeddings": False},
    ],
    ids=str,
)
def test_all_options_of_onnxruntime_have_no_faults(name: str, changes: dict[str, Any]) -> None:
    assert _faults(_static(name, ORT, **changes)) == {}


@pytest.mark.parametrize("name", sorted({*GRAPHS} - {"conv"}))
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"per_channel": False},
        {"weight_dtype": "uint8"},
        {"reduce_range": True},
        {"treat_outliers": False},
        {"quantize_embeddings": False},
    ],
    ids=str,
)
def test_a_good_dynamic_graph_has_no_faults(name: str, changes: dict[str, Any]) -> None:
    audit = _dynamic(name, **changes)
    assert _faults(audit) == {}
    assert audit.layer_share == 1.0


def test_float_parts_of_outliers_are_known() -> None:
    audit = _dynamic("outliers")
    assert [reason for _, reason in audit.kept_float] == ["neurons of `up` that are outliers"] * 2
    assert audit.layer_share == 1.0
    assert 0.9 < audit.weight_share < 1.0


def _initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def _edit(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Any], None]:
    from onnx import numpy_helper

    def damage(model: onnx.ModelProto) -> None:
        tensor = _initializer(model, name)
        array = change(numpy_helper.to_array(tensor).copy())
        tensor.CopyFrom(numpy_helper.from_array(array, name))

    return damage


def _swap(first: int, second: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[..., [first, second]] = array[..., [second, first]]
        return array

    return change


def _one_more(array: np.ndarray) -> np.ndarray:
    array.reshape(-1)[3] += 1
    return array


WEIGHT_FAULTS: dict[str, tuple[Callable[[Any], None], str]] = {
    "scale x 2": (_edit("second_scale", lambda scale: scale * 2), "weight_error"),
    "one scale": (_edit("second_scale", lambda scale: scale * [1, 1, 1, 2, 1, 1, 1, 1]), ""),
    "swapped columns": (_edit("second_quantized", _swap(1, 5)), "weight_error"),
    "one number": (_edit("second_quantized", _one_more), "weight_error"),
    "zero point": (_edit("second_zero_point", lambda zero: zero + zero.dtype.type(1)), ""),
    "scale of zero": (_edit("second_scale", lambda scale: scale * 0), "weight_error"),
    "scale that is no number": (_edit("second_scale", lambda scale: scale * np.nan), ""),
}


@pytest.mark.parametrize("fault", sorted(WEIGHT_FAULTS))
@pytest.mark.parametrize("form", ["dynamic", ORT, TRT])
def test_a_damaged_weight_is_found_in_its_layer(fault: str, form: PlacementName) -> None:
    damage, kind = WEIGHT_FAULTS[fault]

    def typed(model: onnx.ModelProto) -> None:
        damage(model)
        for tensor in model.graph.initializer:
            if tensor.data_type == 11:  # double, which the change of a scale made of it
                from onnx import numpy_helper

                array = numpy_helper.to_array(tensor).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    audit = _dynamic("residual", typed) if form == "dynamic" else _static("residual", form, typed)
    faults = _faults(audit)
    layers = {layer for each in faults.values() for layer in each}
    assert layers == {"back"}
    assert (kind or "weight_error") in faults


@pytest.mark.parametrize("form", ["dynamic", ORT, TRT])
def test_coarser_weights_than_needed_are_found(form: PlacementName) -> None:
    """Twice the scale and half the integers: every number is within half a (larger) step."""

    def damage(model: onnx.ModelProto) -> None:
        from onnx import numpy_helper

        weight, scale = RESIDUAL_WEIGHTS["second"], _initializer(model, "second_scale")
        larger = numpy_helper.to_array(scale) * np.float32(2)
        integers = np.rint(weight / larger).astype(np.int8)
        scale.CopyFrom(numpy_helper.from_array(larger, scale.name))
        tensor = _initializer(model, "second_quantized")
        tensor.CopyFrom(numpy_helper.from_array(integers, tensor.name))

    audit = (
        _dynamic("residual", damage) if form == "dynamic" else _static("residual", form, damage)
    )
    assert _faults(audit) == {"weight_step": ["back"]}


@pytest.mark.parametrize("form", ["dynamic", ORT, TRT])
@pytest.mark.parametrize(
    ("done", "kind"),
    [
        ({"per_channel": False}, "wrong_formats"),
        ({"weight_dtype": "uint8"}, "wrong_formats"),
        ({"reduce_range": True}, "weight_step"),
    ],
    ids=str,
)
def test_another_form_than_was_asked_for_is_found(
    form: PlacementName, done: dict[str, Any], kind: str
) -> None:
    audit = (
        _dynamic("residual", asked={}, **done)
        if form == "dynamic"
        else _static("residual", form, asked={}, **done)
    )
    assert set(_faults(audit)[kind]) == {"hidden", "back"}


def test_too_many_bits_are_found() -> None:
    assert "wrong_formats" in _faults(_static("residual", ORT, asked={"reduce_range": True}))
    assert "wrong_formats" in _faults(_dynamic("residual", asked={"reduce_range": True}))


@pytest.mark.parametrize("form", ["dynamic", ORT, TRT])
def test_a_layer_that_was_left_float_is_found(form: PlacementName) -> None:
    done = {"exclude_nodes": ("back",)}
    audit = (
        _dynamic("residual", asked={}, **done)
        if form == "dynamic"
        else _static("residual", form, asked={}, **done)
    )
    assert _faults(audit)["missing_layers"] == ["back"]
    assert audit.layer_share == 0.5
    good = _dynamic("residual", **done) if form == "dynamic" else _static("residual", form, **done)
    assert _faults(good) == {}
    assert good.kept_float == [("back", "excluded by `back`")]


def test_a_table_that_was_left_float_is_found() -> None:
    audit = _dynamic("table", asked={}, quantize_embeddings=False)
    assert _faults(audit) == {"missing_layers": ["row"]}


def test_a_table_with_rows_in_other_places_is_found() -> None:
    for audit in (
        _dynamic("table", _edit("table_quantized", lambda rows: np.roll(rows, 1, axis=0))),
        _static("table", ORT, _edit("table_quantized", lambda rows: np.roll(rows, 1, axis=0))),
    ):
        assert _faults(audit) == {"weight_error": ["row"]}


def test_a_weight_that_two_layers_read_must_fit_both() -> None:
    audit = _static("shared", ORT, _edit("weight_quantized", _one_more))
    assert _faults(audit) == {"weight_error": ["y", "z"]}


@pytest.mark.parametrize("name", ["gemm", "conv"])
def test_a_damaged_bias_is_found(name: str) -> None:
    layer = "y" if name == "gemm" else "inner"
    audit = _static(name, ORT, _edit("bias_quantized", lambda bias: bias + np.int32(2)))
    assert _faults(audit) == {"bias_error": [layer]}
    audit = _static(name, ORT, _edit("bias_scale", lambda scale: scale * np.float32(2)))
    assert _faults(audit) == {"bias_error": [layer]}


@pytest.mark.parametrize("form", ["dynamic", ORT, TRT])
def test_a_number_that_is_not_quantised_and_changed_is_found(form: PlacementName) -> None:
    damage = _edit("bias", lambda bias: np.nextafter(bias, np.float32(9)))
    audit = (
        _dynamic("residual", damage) if form == "dynamic" else _static("residual", form, damage)
    )
    assert _faults(audit) == {"changed_constants": ["biased"]}


def _rewire(node: str, index: int, name: str) -> Callable[[Any], None]:
    def damage(model: onnx.ModelProto) -> None:
        found = next(each for each in model.graph.node if node in each.output)
        found.input[index] = name

    return damage


def _retype(node: str, operator: str) -> Callable[[Any], None]:
    def damage(model: onnx.ModelProto) -> None:
        next(each for each in model.graph.node if node in each.output).op_type = operator

    return damage


def _opset(model: onnx.ModelProto) -> None:
    next(each for each in model.opset_import if not each.domain).version = 19


def _rename_output(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            if name == "y":
                node.output[index] = "other"
    model.graph.output[0].name = "other"


NODE_FAULTS: dict[str, tuple[Callable[[Any], None], str]] = {
    "residual of another tensor": (_rewire("y", 1, "back"), "y"),
    "another operator": (_retype("active", "Sigmoid"), "active"),
    "a bias that is dropped": (_retype("biased", "Identity"), "biased"),
    "older opset": (_opset, "graph"),
    "another output": (_rename_output, "graph"),
}


@pytest.mark.parametrize("fault", sorted(NODE_FAULTS))
@pytest.mark.parametrize("form", ["dynamic", ORT, TRT])
def test_a_changed_node_is_found(fault: str, form: PlacementName) -> None:
    damage, layer = NODE_FAULTS[fault]
    audit = (
        _dynamic("residual", damage) if form == "dynamic" else _static("residual", form, damage)
    )
    assert _faults(audit)["changed_nodes"][0] == layer


ACTIVATION_FAULTS: dict[str, tuple[Callable[[Any], None], set[str]]] = {
    "scale x 2": (_edit("x_scale", lambda scale: scale * np.float32(2)), {"activation_scales"}),
    "zero point": (
        _edit("x_zero_point", lambda zero: zero + zero.dtype.type(1)),
        {"activation_scales"},
    ),
}


@pytest.mark.parametrize("fault", sorted(ACTIVATION_FAULTS))
@pytest.mark.parametrize("placement", [ORT, TRT])
def test_a_damaged_scale_of_an_activation_is_found(fault: str, placement: PlacementName) -> None:
    damage, kinds = ACTIVATION_FAULTS[fault]
    faults = _faults(_static("residual", placement, damage))
    assert kinds <= set(faults)
    assert set(faults) <= {"activation_scales", "wrong_formats"}
    assert {layer for each in faults.values() for layer in each} == {"hidden"}


def test_halves_of_a_pair_that_differ_are_found() -> None:
    from onnx import numpy_helper

    def damage(model: onnx.ModelProto) -> None:
        scale = numpy_helper.to_array(_initializer(model, "x_scale")) * np.float32(2)
        model.graph.initializer.append(numpy_helper.from_array(scale, "larger"))
        back = next(
            node
            for node in model.graph.node
            if node.op_type == "DequantizeLinear" and "x_quantized" in node.input
        )
        back.input[1] = "larger"

    assert _faults(_static("residual", ORT, damage)) == {"wrong_formats": ["hidden"]}


def test_a_layer_whose_input_is_not_rounded_computes_with_floats() -> None:
    def damage(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            for index, name in enumerate(node.input):
                if name == "x_dequantized":
                    node.input[index] = "x"

    audit = _static("residual", ORT, damage)
    assert _faults(audit) == {"missing_layers": ["hidden"]}


def test_a_half_damaged_product_of_integers_is_no_product() -> None:
    """The zero point of the input is left out: what is rounded is not what is multiplied."""

    def damage(model: onnx.ModelProto) -> None:
        node = next(each for each in model.graph.node if each.op_type == "MatMulInteger")
        node.input[2] = ""

    faults = _faults(_dynamic("residual", damage))
    assert "hidden" in faults["missing_layers"]
    assert faults["changed_nodes"]
