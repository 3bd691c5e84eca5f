"""The table of targets and precisions against TensorRT-RTX itself, which builds or refuses.

A spanning subset by default: every form, every target, and every refusal once; all pairs are slow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import pytest

from pipeline.engines.build import BuiltEngine, EngineRequest, build_engine
from pipeline.engines.builder_log import count_gemm_kinds, layer_fingerprint, parse_layers
from pipeline.engines.facts import fused_attentions, gemm_share
from pipeline.engines.header import read_engine_header
from pipeline.engines.module import TENSORRT_RTX
from pipeline.engines.targets import (
    COMPUTE_CAPABILITIES,
    FORMS,
    PORTABLE,
    TARGETS,
    builder_refuses,
    capability_mask,
    reason_against,
)
from pipeline.errors import EngineBuildError
from tests.engines.forms import one_attention
from tests.engines.graphs import HIDDEN

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("tensorrt_rtx")

SHAPES = {"x": ((1, 8, HIDDEN), (2, 16, HIDDEN), (4, 32, HIDDEN))}
BLOCKS = {False: ("scores", "softmax", "context"), True: ("context",)}
PAIRS = [(form, target) for form in FORMS for target in TARGETS]
ALLOWED = [pair for pair in PAIRS if not reason_against(pair[1], pair[0])]
REFUSED = [pair for pair in PAIRS if builder_refuses(pair[1], pair[0])]
USELESS = [pair for pair in PAIRS if pair not in ALLOWED and pair not in REFUSED]
# Every form once, and every target once.
SPANNING = [
    ("fp32", "sm80"),
    ("fp16", "sm75"),
    ("bf16", "sm86"),
    ("int8", "sm120"),
    ("int8-weights", "sm121"),
    ("fp8", "sm89"),
    ("int4", PORTABLE),
]
REFUSED_ONCE = [("fp32", "sm75"), ("bf16", "sm75"), ("fp8", "sm80"), ("int4", "sm75")]


def _build(form: str, target: str, root: Path, *, is_operator: bool) -> BuiltEngine:
    (root / "in").mkdir()
    (root / "scratch").mkdir()
    onnx.save(one_attention(form, is_operator=is_operator), root / "in" / "model.onnx")
    request = EngineRequest(
        module=TENSORRT_RTX,
        model=root / "in" / "model.onnx",
        compute_capabilities=() if target == PORTABLE else (target,),
        profiles=(SHAPES,),
        is_attention_decomposable=is_operator,
    )
    return build_engine(request, root / "scratch")


def _require_built(form: str, target: str, root: Path, *, is_operator: bool) -> None:
    built = _build(form, target, root, is_operator=is_operator)
    layers = parse_layers(built.result.layers)
    assert gemm_share(layers, form) == 1, count_gemm_kinds(layers)
    # In float32 attention has no kernel: it falls apart into products.
    assert fused_attentions(layers, [BLOCKS[is_operator]]) == (form != "fp32")
    assert read_engine_header(built.path).capability_mask == capability_mask(target)


@pytest.mark.parametrize("is_operator", [False, True], ids=["products", "operator"])
@pytest.mark.parametrize(("form", "target"), SPANNING)
def test_a_pair_that_the_table_allows_is_built_in_its_precision(
    tmp_path: Path, form: str, target: str, is_operator: bool
) -> None:
    _require_built(form, target, tmp_path, is_operator=is_operator)


@pytest.mark.slow
@pytest.mark.parametrize("is_operator", [False, True], ids=["products", "operator"])
@pytest.mark.parametrize(("form", "target"), ALLOWED)
def test_every_pair_that_the_table_allows_is_built(
    tmp_path: Path, form: str, target: str, is_operator: bool
) -> None:
    _require_built(form, target, tmp_path, is_operator=is_operator)


@pytest.mark.parametrize(("form", "target"), REFUSED_ONCE)
def test_a_pair_that_the_table_refuses_is_refused_by_the_builder(
    tmp_path: Path, form: str, target: str
) -> None:
    with pytest.raises(
        EngineBuildError, match=r"FP32 GEMM is not supported|HW-specific datatypes"
    ):
        _build(form, target, tmp_path, is_operator=False)


@pytest.mark.slow
@pytest.mark.parametrize("is_operator", [False, True], ids=["products", "operator"])
@pytest.mark.parametrize(("form", "target"), REFUSED)
def test_every_pair_that_the_table_refuses_is_refused_by_the_builder(
    tmp_path: Path, form: str, target: str, is_operator: bool
) -> None:
    with pytest.raises(
        EngineBuildError, match=r"FP32 GEMM is not supported|HW-specific datatypes"
    ):
        _build(form, target, tmp_path, is_operator=is_operator)


def test_pairs_are_refused_without_the_builder_for_two_reasons_only() -> None:
    assert USELESS == [("int8-weights", "sm75"), ("fp8", PORTABLE)]
    assert set(SPANNING) <= set(ALLOWED)
    assert {form for form, _ in SPANNING} == set(FORMS)
    assert {target for _, target in SPANNING} == {*COMPUTE_CAPABILITIES, PORTABLE}
    assert set(REFUSED_ONCE) <= set(REFUSED)


def test_weights_in_eight_bits_are_widened_in_front_of_the_products_of_sm75(
    tmp_path: Path,
) -> None:
    layers = parse_layers(
        _build("int8-weights", "sm75", tmp_path, is_operator=False).result.layers
    )
    assert gemm_share(layers, "int8-weights") == 0
    assert "Half x Half (activations)" in count_gemm_kinds(layers)


def test_a_portable_engine_with_fp8_says_that_it_runs_where_there_is_none(
    tmp_path: Path,
) -> None:
    built = _build("fp8", PORTABLE, tmp_path, is_operator=False)
    header = read_engine_header(built.path)
    assert {"sm80", "sm86"} <= set(header.compute_capabilities)


@pytest.mark.parametrize("form", ["fp16", "bf16", "int4"])
def test_leave_to_fall_apart_changes_nothing_where_attention_has_a_kernel(
    tmp_path: Path, form: str
) -> None:
    prints = set()
    for is_decomposable in (False, True):
        root = tmp_path / str(is_decomposable)
        (root / "in").mkdir(parents=True)
        (root / "scratch").mkdir()
        onnx.save(one_attention(form, is_operator=True), root / "in" / "model.onnx")
        request = EngineRequest(
            module=TENSORRT_RTX,
            model=root / "in" / "model.onnx",
            compute_capabilities=("sm89",),
            profiles=(SHAPES,),
            is_attention_decomposable=is_decomposable,
        )
        layers = parse_layers(build_engine(request, root / "scratch").result.layers)
        assert fused_attentions(layers, [BLOCKS[True]]) == 1
        prints.add(layer_fingerprint(layers))
    assert len(prints) == 1


def test_attention_in_float32_needs_leave_to_fall_apart(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "scratch").mkdir()
    onnx.save(one_attention("fp32", is_operator=True), tmp_path / "in" / "model.onnx")
    request = EngineRequest(
        module=TENSORRT_RTX,
        model=tmp_path / "in" / "model.onnx",
        compute_capabilities=("sm89",),
        profiles=(SHAPES,),
    )
    with pytest.raises(EngineBuildError, match="not supported by a dedicated kernel") as caught:
        build_engine(request, tmp_path / "scratch")
    assert "cast the graph first" in caught.value.hint
