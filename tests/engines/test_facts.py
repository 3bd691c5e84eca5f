from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.engines.builder_log import LayerRow, TensorRow
from pipeline.engines.facts import (
    fused_attentions,
    gemm_share,
    layer_facts,
    layer_role,
    short_row,
)
from pipeline.errors import EngineBuildError

BLOCK = ("scores", "softmax", "context")


def _layer(kind: str, *nodes: str, dtype: str = "Half", weights: str = "") -> LayerRow:
    tensor = TensorRow((-1, 64), dtype, "linear")
    constants = (TensorRow((64, 64), weights, "linear"),) if weights else ()
    return LayerRow(
        name="any",
        type=kind,
        inputs=(tensor,),
        constants=constants,
        outputs=(tensor,),
        tactic="",
        onnx_nodes=nodes,
    )


def test_attention_in_one_kernel_is_fused_whatever_the_kernel_is_called() -> None:
    assert fused_attentions([_layer("kgen", "mask", *BLOCK)], [BLOCK]) == 1


def test_attention_in_two_products_and_a_softmax_is_not_fused() -> None:
    layers = [
        _layer("gemm", "scores"),
        _layer("kgen", "scores", "softmax"),
        _layer("gemm", "context"),
    ]
    assert fused_attentions(layers, [BLOCK]) == 0


def test_an_attention_node_is_fused_unless_a_plain_product_works_for_it() -> None:
    fused = [_layer("kgen", "attention"), _layer("kgen", "attention", "turn")]
    assert fused_attentions(fused, [("attention",)]) == 1
    assert fused_attentions([*fused, _layer("gemm", "attention")], [("attention",)]) == 0
    assert fused_attentions([], [("attention",)]) == 0


def test_the_share_of_gemms_counts_those_with_weights() -> None:
    layers = [
        _layer("gemm", weights="Half"),
        _layer("gemm", dtype="Float", weights="Float"),
        _layer("gemm", dtype="Float"),
    ]
    assert gemm_share(layers, "fp16") == 0.5
    assert gemm_share([_layer("kgen")], "fp16") is None


def _widening(weights: str = "Int4") -> LayerRow:
    """As TensorRT-RTX 1.7.1 logs it: a kernel that reads no tensor and writes weights as floats."""
    return replace(_layer("kgen", weights=weights), inputs=())


def test_weights_that_are_written_out_as_floats_are_products_of_another_kind() -> None:
    # The product itself reads two tensors, and may be a fusion that is no plain product.
    layers = (_widening(), _layer("runtime_fusion"), _layer("runtime_fusion", weights="Int4"))
    assert gemm_share(layers, "int4") == 0.5
    facts = layer_facts(layers, [], "int4", memory=(0,), is_weight_only=True)
    assert facts["widened_weights"] == 1
    with pytest.raises(EngineBuildError, match="1 weights that are written out as floats") as none:
        layer_facts((_widening(), _layer("gemm")), [], "int4", memory=(0,), is_weight_only=True)
    assert "fp16" in none.value.hint


def test_tables_that_are_read_by_index_and_floats_are_no_widened_weights() -> None:
    index = TensorRow((-1, 8), "Int64", "linear")
    table = replace(_widening("Int8"), inputs=(index,))
    assert gemm_share([table, _widening("Half"), _layer("kgen", weights="Int4")], "int4") is None


def test_an_engine_without_one_gemm_of_the_precision_is_refused() -> None:
    with pytest.raises(EngineBuildError, match=r"fp16 was asked for.*: 1 Float x Float"):
        layer_facts((_layer("gemm", dtype="Float", weights="Float"),), [], "fp16", memory=(0,))


def test_coverage_says_nothing_of_what_the_graph_does_not_have() -> None:
    facts = layer_facts((_layer("kgen"),), [], "fp16", memory=(3 << 19,))
    assert facts["coverage"] == {"activation_memory_mib": 1.5, "copy_layers": 0}


def test_copies_and_reformats_are_counted() -> None:
    layers = (_layer("copy"), _layer("Reformat"), _layer("kgen"))
    facts = layer_facts(layers, [], "fp16", memory=(0,))
    assert facts["copy_layers"] == facts["coverage"]["copy_layers"] == 2  # type: ignore[call-overload, index]


def test_weights_alone_in_eight_bits_are_told_from_products_in_eight_bits() -> None:
    layers = (_layer("runtime_fusion", weights="Int8"),)
    facts = layer_facts(layers, [], "int8", memory=(0,), is_weight_only=True)
    assert facts["coverage"]["int8_gemms"] == 1  # type: ignore[call-overload, index]
    with pytest.raises(EngineBuildError, match=r"int8 was asked for.*: 1 Half x Int8"):
        layer_facts(layers, [], "int8", memory=(0,))
    with pytest.raises(EngineBuildError, match="int8 weights were asked for"):
        layer_facts(
            (_layer("gemm", dtype="Int8", weights="Int8"),),
            [],
            "int8",
            memory=(0,),
            is_weight_only=True,
        )


def _wide(layer: LayerRow) -> LayerRow:
    """The layer with float32 behind it."""
    return replace(layer, outputs=(TensorRow((1,), "Float", ""),))


@pytest.mark.parametrize(
    ("layer", "precision"),
    [
        (_layer("gemm", dtype="Int8", weights="Int8"), "int8"),
        (_layer("runtime_fusion", dtype="Half", weights="Int4"), "fp16"),
        (_layer("gemm", dtype="FP8", weights="FP8"), "fp8"),
        (_wide(_layer("correlation", dtype="FP8", weights="FP8")), "fp8"),
        (_wide(_layer("CaskConvolution", dtype="Int8", weights="Int8")), "int8"),
        (_layer("kgen", dtype="BFloat16"), "bf16"),
        (_layer("shape_call", dtype="Int64"), "int64"),
        (_wide(_layer("kgen")), "fp32"),
        (replace(_layer("wait"), inputs=(), outputs=()), ""),
    ],
)
def test_the_precision_of_a_layer_is_what_it_computes_in(layer: LayerRow, precision: str) -> None:
    assert layer.precision == precision
    assert short_row(layer, [])["precision"] == precision  # type: ignore[call-overload, index]


@pytest.mark.parametrize(
    ("layer", "role"),
    [
        (_layer("gemm", weights="Half"), "product"),
        (_layer("correlation", weights="Half"), "product"),
        (replace(_layer("kgen"), onnx_nodes=("scores", "softmax", "values")), "attention"),
        (replace(_layer("gemm"), onnx_nodes=("scores", "softmax", "values")), "product"),
        (replace(_layer("kgen"), onnx_nodes=("scores", "softmax")), "other"),
        (_layer("copy"), "copy"),
    ],
)
def test_the_role_of_a_layer(layer: LayerRow, role: str) -> None:
    attentions = [("scores", "softmax", "values")]
    assert layer_role(layer, attentions) == role
    assert short_row(layer, attentions)["role"] == role  # type: ignore[call-overload, index]


def test_only_the_kernel_of_an_attention_node_is_the_attention() -> None:
    heads = _layer("kgen", "project", "attention")
    kernel = replace(heads, inputs=heads.inputs * 4, onnx_nodes=("attention",))
    blocks = [("attention",)]
    assert [layer_role(layer, blocks) for layer in (heads, kernel)] == ["other", "attention"]


def _in_profile(layer: LayerRow, number: int) -> LayerRow:
    return replace(layer, profile=number)


def test_counts_are_of_one_profile_and_coverage_is_of_the_worst() -> None:
    half, full = _layer("gemm", weights="Half"), _layer("gemm", dtype="Float", weights="Float")
    layers = (
        *(half, half, _layer("kgen", *BLOCK)),
        *(_in_profile(row, 1) for row in (half, full, _layer("copy"), _layer("gemm", "scores"))),
    )
    facts = layer_facts(layers, [BLOCK], "fp16", memory=(1 << 20, 3 << 20))
    assert (facts["layers"], facts["fused_attention"], facts["copy_layers"]) == (3, 1, 0)
    assert facts["coverage"] == {
        "activation_memory_mib": 3.0,
        "copy_layers": 1,
        "fused_attention": 0.0,
        "fp16_gemms": 0.5,
    }
    first, second = facts["by_profile"]  # type: ignore[misc, union-attr]
    assert (first["fused_attention"], second["fused_attention"]) == (1, 0)  # type: ignore[index, call-overload]
    assert second["activation_memory_bytes"] == 3 << 20  # type: ignore[index, call-overload]


def test_a_profile_without_layers_means_that_the_table_was_not_understood() -> None:
    with pytest.raises(EngineBuildError, match="which of 2 profiles"):
        layer_facts((_layer("kgen"),), [], "fp16", memory=(1, 2))


def test_one_profile_without_the_precision_is_enough_to_refuse() -> None:
    layers = (
        _layer("gemm", weights="Half"),
        _in_profile(_layer("gemm", dtype="Float", weights="Float"), 1),
    )
    with pytest.raises(EngineBuildError, match="fp16 was asked for"):
        layer_facts(layers, [], "fp16", memory=(1, 2))
