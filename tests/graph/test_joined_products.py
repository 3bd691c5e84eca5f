"""Products of one input become one; no bit of a result changes, and no weight of its parts is lost."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from pipeline.data.decoder_inputs import positions_of
from pipeline.errors import StageError
from pipeline.graph import joined_products
from pipeline.graph.block_weights import read_block_weights
from pipeline.graph.joined_products import MOST, join_products
from pipeline.graph.matmul_nbits import pack_products
from pipeline.graph.shared_table import share_tables
from pipeline.graph.weight_only import quantize_weights
from pipeline.runtimes.decoder import Feed
from pipeline.runtimes.ort_decoder import OrtDecoder
from pipeline.stages.pack_weights import PACK_WEIGHTS, PackWeightsConfig
from pipeline.stages.quantize_weights import QUANTIZE_WEIGHTS, QuantizeWeightsConfig
from tests.graph.models import parse, random
from tests.graph.test_weight_only import request
from tests.stages.context import RecordingContext
from tests.stages.test_fuse_decoder import fuse_family

if TYPE_CHECKING:
    from pathlib import Path

INPUTS = 128
SIZES = {"query": 96, "key": 32, "value": 16}


def _model(sizes: dict[str, int], adds: str = "") -> ir.Model:
    """Products of x, with what `Gemm` or an `Add` behind them adds; each is an output."""
    weights: dict[str, Any] = {}
    lines = []
    for number, (name, size) in enumerate(sizes.items()):
        weights[f"{name}_weight"] = random(INPUTS, size, seed=number)
        weights[f"{name}_bias"] = random(size, seed=9 + number)
        product = f"MatMul(x, {name}_weight)"
        if adds == "Gemm":
            lines.append(f"{name} = Gemm(x, {name}_weight, {name}_bias)")
        elif adds:
            lines += [f"{name}_product = {product}", f"{name} = Add({name}_bias, {name}_product)"]
        else:
            lines.append(f"{name} = {product}")
    results = ", ".join(f"float[rows, {size}] {name}" for name, size in sizes.items())
    body = " ".join(lines)
    text = f"products (float[rows, {INPUTS}] x) => ({results}) {{ {body} }}"
    return ir.serde.deserialize_model(parse(text, weights))


def _pack(model: ir.Model, level: int = 4, **asked: Any) -> None:
    quantize_weights(model, request(**asked))
    pack_products(model, accuracy_level=level)
    share_tables(model)


def _results(model: ir.Model, x: Any, threads: int = 1) -> dict[str, Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    content = ir.serde.serialize_model(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"x": x}), strict=True))


def _require_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert np.array_equal(array.view(np.uint32), other[name].view(np.uint32)), name


@pytest.mark.parametrize("adds", ["", "Gemm", "Add"])
@pytest.mark.parametrize(
    ("level", "asked"),
    [
        (4, {}),
        (4, {"block_size": 64, "method": "clip", "symmetric": False}),
        (4, {"bits": 8, "block_size": None}),
        (0, {}),
    ],
    ids=str,
)
def test_no_bit_changes(level: int, asked: dict[str, Any], adds: str) -> None:
    model = _model(SIZES, adds)
    _pack(model, level, **asked)
    rows = {count: random(count, INPUTS, seed=count) for count in (1, 2, 33)}
    expected = {(count, t): _results(model, x, t) for count, x in rows.items() for t in (1, 2)}
    before = set(model.graph.initializers)
    outcome = join_products(model)
    assert (outcome.fired, outcome.refused) == (3, [])
    assert Counter(node.op_type for node in model.graph) == {"MatMulNBits": 1, "Split": 1}
    assert not before & set(model.graph.initializers)  # its parts are stored no more
    onnx.checker.check_model(ir.serde.serialize_model(model))
    for (count, threads), results in expected.items():
        _require_same(_results(model, rows[count], threads), results)


def test_an_exchange_of_two_parts_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison with the parts fails when they lie elsewhere."""
    model = _model({"key": 32, "value": 32})
    _pack(model)
    stack = np.concatenate
    monkeypatch.setattr(joined_products.np, "concatenate", lambda parts: stack(parts[::-1]))
    with pytest.raises(StageError, match="not what it was after products were joined"):
        join_products(model)


def _with_other_bits(model: ir.Model) -> None:
    next(iter(model.graph)).attributes["block_size"] = ir.AttrInt64("block_size", 64)


def _with_another_reader(model: ir.Model) -> None:
    first, second, _ = model.graph
    second.replace_input_with(2, first.inputs[2])


def _with_fed_scales(model: ir.Model) -> None:
    first = next(iter(model.graph))
    scales = first.inputs[2]
    assert scales is not None
    model.graph.inputs.append(scales)


@pytest.mark.parametrize(
    ("sizes", "level", "asked", "change", "fired", "reasons"),
    [
        (SIZES | {"key": 24}, 4, {}, None, 2, ["its 24 outputs are no multiple of 16"]),
        (SIZES, 0, {"bits": 8, "block_size": None}, None, 0, ["its sums would be cut"] * 3),
        (SIZES, 4, {}, _with_other_bits, 2, ["have other bits, blocks, or form"]),
        (SIZES, 4, {}, _with_another_reader, 0, ["read by another node"] * 2 + ["have other"]),
        (SIZES, 4, {}, _with_fed_scales, 2, ["is not constant"]),
        (
            {f"layer_{number}": 16 for number in range(MOST + 1)}, 4, {}, None, 0,
            ["6 products read its input, 5 are joined at most"] * 6,
        ),
    ],
    ids=["columns", "float", "block", "reader", "fed", "many"],
)  # fmt: skip
def test_what_is_left_says_why(
    sizes: dict[str, int], level: int, asked: Any, change: Any, fired: int, reasons: list[str]
) -> None:
    model = _model(sizes)
    _pack(model, level, **asked)
    if change is not None:
        change(model)
    count = len(model.graph)
    outcome = join_products(model)
    assert outcome.fired == fired
    assert len(model.graph) == count - fired + (2 if fired else 0)
    assert len(outcome.refused) == len(reasons)
    for refusal, reason in zip(outcome.refused, reasons, strict=True):
        assert reason in refusal.reason


def test_parts_are_read_back_as_they_were(tmp_path: Path) -> None:
    model = _model(SIZES)
    _pack(model)
    ir.save(model, tmp_path / "apart.onnx")
    join_products(model)
    ir.save(model, tmp_path / "joined.onnx")
    apart = list(read_block_weights(tmp_path / "apart.onnx"))
    joined = list(read_block_weights(tmp_path / "joined.onnx"))
    assert [weight.name for weight in joined] == list(SIZES)
    for one, other in zip(apart, joined, strict=True):
        assert np.array_equal(one.integers, other.integers)
        assert np.array_equal(one.scale, other.scale)


JOINED = {"llama": 5, "qwen2": 5, "gemma": 2, "phi": 4, "gpt2": 0}
"""Of each of two layers: query, key and value, and gate and up; of Phi what is beside the attention too.

GPT-2 has one product for three; keys and values of the tiny Gemma have 8 outputs.
"""


@pytest.mark.parametrize(
    "family",
    [pytest.param(each, marks=() if each == "llama" else pytest.mark.slow) for each in JOINED],
)
def test_a_decoder_writes_the_same_bits(tmp_path: Path, family: str) -> None:
    """A prompt and what follows it, of two texts, one of them padded."""
    _, fused, _ = fuse_family(tmp_path, family)
    few, packed = tmp_path / "few", tmp_path / "packed"
    for output in (few, packed):
        output.mkdir()
    context = RecordingContext(tmp_path)
    asked = QuantizeWeightsConfig.model_validate({"block_size": 16, "method": "rtn"})
    QUANTIZE_WEIGHTS.run(asked, {"model": fused.parent}, few, context)
    facts: Any = PACK_WEIGHTS.run(PackWeightsConfig(), {"model": few}, packed, context)
    assert facts["joined"]["fired"] == 2 * JOINED[family]
    apart = ir.load(few / "model.onnx")
    pack_products(apart, accuracy_level=4)
    share_tables(apart)
    (tmp_path / "apart").mkdir()
    ir.save(apart, tmp_path / "apart/model.onnx")
    one, other = (_steps(tmp_path / name / "model.onnx") for name in ("apart", "packed"))
    _require_same(one, other)


def _steps(path: Path) -> dict[str, Any]:
    tokens = np.random.default_rng(0).integers(1, 90, (2, 9))
    mask = np.ones_like(tokens)
    mask[1, :2] = 0
    positions = positions_of(mask)
    found: dict[str, Any] = {}
    with OrtDecoder(path, threads=1) as decoder:
        cache = decoder.empty(2)
        for start, end in ((0, 7), (7, 8), (8, 9)):
            feed = Feed(
                tokens=tokens[:, start:end], mask=mask[:, :end], positions=positions[:, start:end]
            )
            found[f"logits {end}"], cache = decoder.step(feed, cache)
        return found | decoder.read(cache)
