from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.engines.builder_log import (
    EngineMemory,
    count_gemm_kinds,
    count_layer_types,
    layer_fingerprint,
    parse_layers,
    parse_memory,
)
from pipeline.engines.facts import fused_attentions
from pipeline.errors import EngineBuildError

RECORDED = (Path(__file__).parent / "recorded" / "encoder_fp16_sm89.txt").read_text(
    encoding="utf-8"
)
"""The table of `graphs.encoder()`, built with TensorRT-RTX 1.7.1.116."""

TWO_PROFILES = (Path(__file__).parent / "recorded" / "two_profiles_fp16_sm89.txt").read_text(
    encoding="utf-8"
)
"""The table of `forms.one_attention("fp16")` with the profiles (1, 8..16) and (1..4, 8..32)."""

ROW = (
    "Name: {name}, LayerType: {type}, Inputs: [ {inputs}], Constants: [ {constants}], "
    "Outputs: [ {outputs}], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: a[0], b]"
)


def _tensor(dtype: str, dims: str = "-1,64", name: str = "n, m") -> str:
    return (
        f"{{ Name: {name}, Dimensions: [{dims}], Strides: [64,1], StrideOrder: [1,0], "
        f"Datatype: {dtype}, Format: (Linear) Row major linear format }}"
    )


def _row(kind: str, inputs: list[str], constants: list[str]) -> str:
    return "Layers:\n" + ROW.format(
        name="x",
        type=kind,
        inputs=", ".join(inputs),
        constants=", ".join(constants),
        outputs=_tensor("Half"),
    )


def test_every_line_of_a_recorded_table_becomes_a_layer() -> None:
    layers = parse_layers(RECORDED)
    assert len(layers) == RECORDED.split("\n\n")[0].count("LayerType: ")
    assert sum(count_layer_types(layers).values()) == len(layers)
    merged = next(layer for layer in layers if "project_q_0" in layer.onnx_nodes and layer.is_gemm)
    assert set(merged.onnx_nodes) >= {"project_q_0", "project_k_0", "project_v_0"}
    assert merged.weights is not None
    assert merged.weights.dims == (3, 64, 64)
    assert merged.inputs[0].dims[-1] == 64


SIZES_TO_DEVICE = (
    "Name: [ShapeHostToDeviceCopy 0], LayerType: ShapeHostToDevice, Inputs: [], Outputs: [ { Name: "
    "val_86, Location: Device, Dimensions: [], Datatype: Int64, Format: Format not available due to "
    "dynamic shapes }, { Name: sym_min, Location: Device, Dimensions: [], Datatype: Int64, Format: "
    "Format not available due to dynamic shapes }], ParameterType: ShapeH2D, shapeValues0: [-11], "
    "shapeValues1: [-7], TacticValue: 0x0000000000000000, StreamId: 0, Metadata: "
)
"""Of a DeBERTa, whose attention span is computed from the length; TensorRT-RTX 1.7.1.116."""


def test_a_layer_that_brings_sizes_to_the_gpu_has_neither_constants_nor_a_tactic() -> None:
    (layer,) = parse_layers(f"Layers:\n{SIZES_TO_DEVICE}\n\n")
    assert (layer.type, layer.tactic, layer.constants) == ("ShapeHostToDevice", "", ())
    assert [tensor.dtype for tensor in layer.outputs] == ["Int64", "Int64"]


def test_the_fused_attention_of_a_recorded_table_is_one_generated_kernel() -> None:
    fused = [
        layer
        for layer in parse_layers(RECORDED)
        if {"scores_0", "softmax_0", "context_0"} <= set(layer.onnx_nodes)
    ]
    assert [layer.type for layer in fused] == ["kgen"]


def test_gemms_of_a_recorded_table_are_half_by_half() -> None:
    assert count_gemm_kinds(parse_layers(RECORDED)) == {"Half x Half": 4}


@pytest.mark.parametrize(
    ("kind", "inputs", "constants", "expected"),
    [
        ("gemm", [_tensor("Int8")], [_tensor("Int8", "64,64")], {"Int8 x Int8": 1}),
        (
            "gemm",
            [_tensor("Half"), _tensor("Int8")],
            [_tensor("Int8", "64,64"), _tensor("Half", "1,64")],
            {"Int8 x Int8": 1},
        ),
        ("gemm", [_tensor("Half"), _tensor("Half")], [], {"Half x Half (activations)": 1}),
        ("gemm", [_tensor("Half")], [_tensor("Half", "64,1")], {"Half x Half": 1}),
        (
            "runtime_fusion",
            [_tensor("Half")],
            [_tensor("Half", "2,64"), _tensor("Int4", "64,64")],
            {"Half x Int4": 1},
        ),
        ("runtime_fusion", [_tensor("Half")], [_tensor("Half", "1,64")], {}),
        ("kgen", [_tensor("Half")], [_tensor("Half", "64,64")], {}),
    ],
)
def test_the_kind_of_a_gemm_is_what_it_multiplies(
    kind: str, inputs: list[str], constants: list[str], expected: dict[str, int]
) -> None:
    assert count_gemm_kinds(parse_layers(_row(kind, inputs, constants))) == expected


def test_node_names_may_hold_brackets_and_commas() -> None:
    assert parse_layers(_row("kgen", [], []))[0].onnx_nodes == ("a[0], b",)


def test_the_fingerprint_ignores_names_and_sees_types_shapes_and_order() -> None:
    layers = parse_layers(RECORDED)
    renamed = parse_layers(re.sub(r"Name: (\w+)_myl0", r"Name: other_\1", RECORDED))
    assert renamed[1].name != layers[1].name
    assert layer_fingerprint(renamed) == layer_fingerprint(layers)
    typed = parse_layers(RECORDED.replace("Datatype: Half", "Datatype: Float", 1))
    shaped = parse_layers(RECORDED.replace("[3,64,64]", "[3,64,63]", 1))
    turned = tuple(reversed(layers))
    prints = {layer_fingerprint(rows) for rows in (layers, typed, shaped, turned)}
    assert len(prints) == 4


@pytest.mark.parametrize(
    "record", ["", "Layers:", "Layers:\nName: x, LayerType: gemm, Inputs: []"]
)
def test_a_table_that_cannot_be_read_whole_is_an_error(record: str) -> None:
    with pytest.raises(EngineBuildError):
        parse_layers(record)


def test_memory_is_read_from_the_log_and_a_missing_figure_is_an_error() -> None:
    lines = (
        "Max Scratch Memory: 10 bytes",
        "Total Activation Memory: 20 bytes",
        "Total Weights Memory: 30 bytes",
    )
    assert parse_memory(lines) == EngineMemory(
        weights_bytes=30,
        activation_bytes=20,
        scratch_bytes=10,
        activations_by_profile=(20,),
    )
    with pytest.raises(EngineBuildError, match="Total Weights Memory"):
        parse_memory(lines[:2])


def test_memory_is_that_of_the_profile_that_takes_most() -> None:
    lines = (
        *("Max Scratch Memory: 10 bytes", "Total Activation Memory: 20 bytes"),
        *("Max Scratch Memory: 40 bytes", "Total Activation Memory: 50 bytes"),
        "Total Weights Memory: 30 bytes",
    )
    assert parse_memory(lines) == EngineMemory(
        weights_bytes=30,
        activation_bytes=50,
        scratch_bytes=40,
        activations_by_profile=(20, 50),
    )


def test_every_layer_of_an_engine_with_two_profiles_is_of_one_of_them() -> None:
    layers = parse_layers(TWO_PROFILES)
    first = [layer for layer in layers if layer.profile == 0]
    second = [layer for layer in layers if layer.profile == 1]
    assert (len(first), len(second)) == (8, 10)
    for rows in (first, second):
        assert count_gemm_kinds(tuple(rows)) == {"Half x Half": 2}
        assert fused_attentions(rows, [("scores", "softmax", "context")]) == 1
    # A fixed batch of one profile does not make it the other's.
    assert all(layer.name.endswith(f"_myl1_{i}") for i, layer in enumerate(second))


def test_layers_of_one_profile_are_all_of_it() -> None:
    assert {layer.profile for layer in parse_layers(RECORDED)} == {0}


def test_copies_are_known_by_their_type() -> None:
    (copy,) = parse_layers(_row("copy", [_tensor("Half")], []))
    (other,) = parse_layers(_row("kgen", [_tensor("Half")], []))
    assert copy.is_copy
    assert not other.is_copy


@pytest.mark.parametrize("kind", ["signal", "wait"])
def test_a_layer_between_two_streams_is_read(kind: str) -> None:
    """As the builder wrote it of MiniLM with 4-bit weights, TensorRT-RTX 1.7.1."""
    (layer,) = parse_layers(
        f"Layers:\nName: __mye79155_myl0_2, LayerType: {kind}, Inputs: [], Constants: [], "
        "Outputs: [], TacticName: , StreamId: 0, EventId: 1, Metadata: "
    )
    assert (layer.type, layer.inputs, layer.precision) == (kind, (), "")
