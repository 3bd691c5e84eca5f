"""The check of the cast to 16 bits: good casts have no difference, and each damage is one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import onnx
import pytest

from pipeline.checks.base import Measured
from pipeline.checks.cast import CAST_CHECK, CastLimits
from pipeline.graph.files import load_ir_model, save_ir_model
from pipeline.graph.half import cast_to_half
from pipeline.graph.half_rules import BFLOAT16
from pipeline.stages.check_cast import CHECK_CAST, CheckCastConfig
from pipeline.stages.export import EXPORT, ExportConfig
from tests.graph.models import parse, write
from tests.mutants.bench import Context
from tests.mutants.parts import attention_bias, linear, norms
from tests.mutants.surgery import Graph

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from pipeline.parity.types import GateResult


@pytest.fixture(scope="module")
def pair(sentence_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A float32 graph as the export makes it, and the same in float16."""
    original, half = (tmp_path_factory.mktemp(name) for name in ("float", "half"))
    config = ExportConfig(task="feature-extraction", component="model")
    EXPORT.run(config, {"checkpoint": sentence_encoder}, original, Context(half))
    model = load_ir_model(original / "model.onnx")
    cast_to_half(model)
    save_ir_model(model, half)
    return original, half


@pytest.fixture(scope="module")
def bfloat16(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float32 graph of the pair in bfloat16."""
    directory = tmp_path_factory.mktemp("bfloat16")
    model = load_ir_model(pair[0] / "model.onnx")
    cast_to_half(model, BFLOAT16)
    save_ir_model(model, directory)
    return directory


def _measure(original: Path, cast: Path, tmp_path: Path) -> dict[str, Any]:
    inputs = {"float": original, "model": cast}
    facts = CHECK_CAST.run(CheckCastConfig(), inputs, tmp_path, Context(tmp_path))
    return dict(facts)


def _judge(facts: dict[str, Any], **limits: int | None) -> tuple[GateResult, ...]:
    measured = Measured(
        target="rtx",
        component="model",
        stage="cast",
        node="cast",
        arithmetic="float16",
        is_proxy=True,
        facts=facts,
        floors={},
    )
    return CAST_CHECK.judge(measured, CastLimits(**limits))


def test_a_good_cast_has_no_difference(pair: tuple[Path, Path], tmp_path: Path) -> None:
    results = _judge(_measure(*pair, tmp_path))
    assert [result.measured for result in results] == [0.0, 0.0]
    assert all(result.is_allowed for result in results)


def test_fills_of_masks_are_no_difference_however_they_are_written(tmp_path: Path) -> None:
    text = """
    scores (float[n, 4] x, bool[n, 4] mask, bool[n, 4] other) => (float[n, 4] y)
    {
        lowest = Constant<value = float {-inf}>()
        shape = Shape(x)
        full = ConstantOfShape<value = float[1] {-3.4028234663852886e+38}>(shape)
        some = Where(mask, x, full)
        masked = Where(other, some, lowest)
        y = Softmax<axis = -1>(masked)
    }
    """
    original = write(tmp_path / "float", parse(text)).parent
    model = load_ir_model(original / "model.onnx")
    cast_to_half(model)
    half = tmp_path / "half"
    half.mkdir()
    save_ir_model(model, half)
    assert all(result.is_allowed for result in _judge(_measure(original, half, tmp_path)))
    damaged = onnx.load_model(half / "model.onnx")
    for node in damaged.graph.node:
        if node.op_type == "ConstantOfShape":
            node.attribute[0].t.CopyFrom(
                onnx.numpy_helper.from_array(np.array([-100], np.float16))
            )
    onnx.save_model(damaged, half / "model.onnx")
    assert not all(result.is_allowed for result in _judge(_measure(original, half, tmp_path)))


def _tanh(graph: Graph) -> None:
    graph.attribute(graph.nth("Gelu"), "approximate", "tanh")


def _epsilon(graph: Graph) -> None:
    graph.attribute(norms(graph)[0], "epsilon", 1e-5)


def _other_order(graph: Graph) -> None:
    first, second = graph.all("MatMul")[:2]
    first.input[1], second.input[1] = second.input[1], first.input[1]


def _dropout(graph: Graph) -> None:
    made = linear(graph, "down").last.output[0]
    noise = graph.insert("RandomNormalLike", [made], scale=1e-4)
    graph.redirect(made, graph.insert("Add", [made, noise]), but=[graph.maker(noise)])  # type: ignore[list-item]


def _operators(graph: Graph) -> None:
    graph.model.opset_import[0].version = 21


def _one_number(graph: Graph) -> None:
    def moved(bias: np.ndarray) -> np.ndarray:
        bias[0] = np.nextafter(bias[0], np.float16(1))
        return bias

    graph.change(linear(graph, "up").bias, moved)


def _bfloat16(graph: Graph) -> None:
    for name, array in list(graph.initializers()):
        if array.dtype == np.float16:
            graph.put(name, array.astype(ml_dtypes.bfloat16).astype(np.float16))


def _weak_mask(graph: Graph) -> None:
    graph.change(attention_bias(graph).input[2], lambda least: np.full_like(least, -10))


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (_tanh, "changed_nodes"),
        (_epsilon, "changed_nodes"),
        (_other_order, "changed_nodes"),
        (_dropout, "changed_nodes"),
        (_operators, "changed_nodes"),
        (_one_number, "changed_constants"),
        (_bfloat16, "changed_constants"),
        (_weak_mask, "changed_constants"),
    ],
)
def test_a_damage_is_a_difference(
    pair: tuple[Path, Path], tmp_path: Path, damage: Callable[[Graph], None], kind: str
) -> None:
    original, cast = pair
    graph = Graph(onnx.load(cast / "model.onnx"))
    damage(graph)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    graph.write(damaged)
    facts = _measure(original, damaged, tmp_path)
    failed = [result for result in _judge(facts) if not result.is_allowed]
    assert f"cast.{kind}" in {result.metric for result in failed}
    assert all(result.reason and result.layer and result.node == "cast" for result in failed)
    assert all(r.is_allowed for r in _judge(facts, changed_nodes=None, changed_constants=None))


def test_a_good_cast_to_bfloat16_has_no_difference(
    pair: tuple[Path, Path], bfloat16: Path, tmp_path: Path
) -> None:
    results = _judge(_measure(pair[0], bfloat16, tmp_path))
    assert [result.measured for result in results] == [0.0, 0.0]


def _one_bit(graph: Graph) -> None:
    def moved(bias: np.ndarray) -> np.ndarray:
        bits = bias.view(np.uint16)
        bits[0] += 1
        return bits.view(bias.dtype)

    graph.change(linear(graph, "up").bias, moved)


def _cut_off(graph: Graph) -> None:
    """Rounded toward zero, as one gets it who takes the upper 16 bits: half are one too small."""

    def cut(weight: np.ndarray) -> np.ndarray:
        bits = weight.view(np.uint16).copy()
        bits[::2] -= 1
        return bits.view(weight.dtype)

    graph.change(linear(graph, "up").weight, cut)


def _through_float16(graph: Graph) -> None:
    made = linear(graph, "up").last.output[0]
    half = graph.insert("Cast", [made], to=onnx.TensorProto.FLOAT16)
    back = graph.insert("Cast", [half], to=onnx.TensorProto.BFLOAT16)
    graph.redirect(made, back, but=[graph.maker(half)])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (_tanh, "changed_nodes"),
        (_epsilon, "changed_nodes"),
        (_through_float16, "changed_nodes"),
        (_one_bit, "changed_constants"),
        (_cut_off, "changed_constants"),
        (_weak_mask, "changed_constants"),
    ],
)
def test_a_damage_of_a_bfloat16_graph_is_a_difference(
    pair: tuple[Path, Path],
    bfloat16: Path,
    tmp_path: Path,
    damage: Callable[[Graph], None],
    kind: str,
) -> None:
    graph = Graph(onnx.load(bfloat16 / "model.onnx"))
    damage(graph)
    (tmp_path / "damaged").mkdir()
    graph.write(tmp_path / "damaged")
    facts = _measure(pair[0], tmp_path / "damaged", tmp_path)
    failed = [result for result in _judge(facts) if not result.is_allowed]
    assert {result.metric for result in failed} == {f"cast.{kind}"}
