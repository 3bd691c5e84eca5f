"""Embeddings and LM head in few bits: what is stored, what runs, and what the audit says of damage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from pipeline.errors import QuantizationError
from pipeline.graph.vocabulary import float_share, head_facts
from pipeline.graph.weight_only import quantize_weights
from pipeline.graph.weight_only_audit import audit_weight_only
from tests.graph.models import parse, random, run, write
from tests.graph.test_weight_only import request

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pipeline.graph.quantization_audit import Audit

TOKENS, SIZE = 512, 64
MODEL = """
language_model (int64[batch, sequence] ids) => (float[batch, sequence, 512] logits)
{
    embedding = Gather(table, ids)
    hidden = MatMul(embedding, inner)
    active = Relu(hidden)
    product = MatMul(active, head)
    logits = Add(product, bias)
}
"""
WEIGHTS = {
    "table": random(TOKENS, SIZE, seed=1),
    "inner": random(SIZE, SIZE, seed=2),
    "head": random(SIZE, TOKENS, seed=3),
    "bias": random(TOKENS, seed=4),
}


def _model(weights: Mapping[str, np.ndarray] = WEIGHTS, text: str = MODEL) -> ir.Model:
    return ir.serde.deserialize_model(parse(text, dict(weights)))


def _made(**asked: Any) -> tuple[onnx.ModelProto, float]:
    model = _model()
    quantize_weights(model, request(**asked))
    return ir.serde.serialize_model(model), float_share(model.graph)


def _kinds(model: onnx.ModelProto) -> dict[str, str]:
    """Name of a weight -> the type it is stored in."""
    found = {}
    for tensor in model.graph.initializer:
        name = tensor.name.removesuffix("_quantized")
        if name in WEIGHTS:
            found[name] = onnx.TensorProto.DataType.Name(tensor.data_type)
    return found


@pytest.mark.parametrize(
    ("asked", "kinds"),
    [
        ({}, ("FLOAT", "INT4", "INT4")),
        ({"embeddings": "int8"}, ("INT8", "INT4", "INT4")),
        ({"embeddings": "int4", "lm_head": "int8"}, ("INT4", "INT4", "INT8")),
        ({"lm_head": "float"}, ("FLOAT", "INT4", "FLOAT")),
        ({"bits": 8, "block_size": None, "lm_head": "int4"}, ("FLOAT", "INT8", "INT4")),
        ({"bits": 8, "block_size": None, "embeddings": "int4"}, ("INT4", "INT8", "INT8")),
    ],
    ids=str,
)
def test_each_of_them_is_stored_as_it_is_asked(
    tmp_path: Path, asked: dict[str, Any], kinds: tuple[str, str, str]
) -> None:
    made, share = _made(**asked)
    assert _kinds(made) == dict(zip(("table", "inner", "head"), kinds, strict=True)) | {
        "bias": "FLOAT"
    }
    floats = 4 * (TOKENS + SIZE * TOKENS * kinds.count("FLOAT"))
    total = sum(len(tensor.raw_data) for tensor in made.graph.initializer)
    assert share == pytest.approx(floats / total)
    feeds = {"ids": np.random.default_rng(0).integers(0, TOKENS, (2, 5))}
    (got,) = run(write(tmp_path / "made", made), feeds)
    (wanted,) = run(write(tmp_path / "float", parse(MODEL, WEIGHTS)), feeds)
    noise = np.sqrt(np.square(got - wanted).mean() / np.square(wanted).mean())
    assert 0 < noise < 0.3


FORMS: dict[str, dict[str, Any]] = {
    "int8": {"embeddings": "int8"},
    "int4": {"embeddings": "int4", "lm_head": "int8"},
}


def _audit(
    damage: Callable[[onnx.ModelProto], None] | None, asked: dict[str, Any], **done: Any
) -> Audit:
    proto, _ = _made(**(done or asked))
    if damage is not None:
        damage(proto)
    return audit_weight_only(_model(), ir.serde.deserialize_model(proto), request(**asked))


def _faults(audit: Audit) -> dict[str, set[str]]:
    limits = {"weight_error": 0.51, "weight_step": 1.05}
    found: dict[str, set[str]] = {}
    for row in audit.rows:
        if row.value is None or row.value > limits.get(row.kind, 0):
            found.setdefault(row.kind, set()).add(row.layer)
    return found


@pytest.mark.parametrize("form", sorted(FORMS))
def test_good_ones_have_no_faults(form: str) -> None:
    audit = _audit(None, FORMS[form])
    assert _faults(audit) == {}
    assert audit.quantized == ["hidden", "product"]


def _rolled(name: str) -> Callable[[onnx.ModelProto], None]:
    def damage(model: onnx.ModelProto) -> None:
        tensor = next(each for each in model.graph.initializer if each.name == name)
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(np.roll(array, 1, axis=0), name))

    return damage


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize("name", ["table_quantized", "table_scale"])
def test_rows_of_other_tokens_are_found(form: str, name: str) -> None:
    assert _faults(_audit(_rolled(name), FORMS[form]))["weight_error"] == {"embedding"}


def test_another_width_than_was_asked_for_is_found() -> None:
    int4, int8 = {"embeddings": "int4"}, {"embeddings": "int8"}
    assert "embedding" in _faults(_audit(None, int4, **int8))["wrong_formats"]
    assert "embedding" in _faults(_audit(None, int8, **int4))["wrong_formats"]
    assert _faults(_audit(None, int4, embeddings="float")) == {"missing_layers": {"embedding"}}
    assert "product" in _faults(_audit(None, {"lm_head": "int8"}, lm_head="int4"))["wrong_formats"]
    assert _faults(_audit(None, {}, lm_head="float")) == {"missing_layers": {"product"}}


def test_a_tied_head_is_said_to_be_tied() -> None:
    assert head_facts(_model()) == {"layer": "product", "is_tied": False}
    tied = dict(WEIGHTS, head=np.ascontiguousarray(WEIGHTS["table"].T))
    assert head_facts(_model(tied)) == {"layer": "product", "is_tied": True}
    other = MODEL.replace("logits", "scores")
    assert head_facts(_model(text=other)) is None


def test_what_is_not_there_is_an_error() -> None:
    classifier = MODEL.replace("logits", "scores")
    with pytest.raises(
        QuantizationError, match="no product with a constant weight makes `logits`"
    ):
        quantize_weights(_model(text=classifier), request(lm_head="int8"))
    computed = MODEL.replace("Gather(table, ids)", "Gather(table, place)").replace(
        "{\n", "{\n    place = Add(ids, ids)\n", 1
    )
    words = "no table is looked up by token alone.*tables below 64 KiB do not count"
    with pytest.raises(QuantizationError, match=words):
        quantize_weights(_model(text=computed), request(embeddings="int4"))


def test_integers_of_a_table_are_the_nearest() -> None:
    made, _ = _made(embeddings="int4")
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    assert held["table_quantized"].dtype == ml_dtypes.int4
    scale = np.repeat(held["table_scale"], 32, axis=1)
    steps = np.clip(WEIGHTS["table"] / scale, -8, 7)
    assert np.abs(held["table_quantized"].astype(np.float32) - steps).max() <= 0.5001
