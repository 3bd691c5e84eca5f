"""The check of packed weights: good packing has no difference, and each damage is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from pipeline.checks.base import Measured
from pipeline.checks.packing import PACKING, PackingLimits
from pipeline.graph.files import load_ir_model, save_ir_model
from pipeline.stages.check_packing import CHECK_PACKING, CheckPackingConfig
from pipeline.stages.pack_weights import PACK_WEIGHTS, PackWeightsConfig
from pipeline.stages.quantize_weights import QUANTIZE_WEIGHTS, QuantizeWeightsConfig
from tests.graph.models import parse, random, write
from tests.graph.test_shared_table import MODEL, WEIGHTS
from tests.mutants.bench import Context
from tests.mutants.surgery import Graph

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.parity.types import GateResult

ASKED: dict[str, Any] = {"embeddings": "int4", "method": "rtn"}


def _make(root: Path, model: onnx.ModelProto, **asked: Any) -> tuple[Path, Path]:
    """A graph with weights in few bits, and the same packed."""
    write(root / "float", model)
    few, packed = root / "few", root / "packed"
    for directory in (few, packed):
        directory.mkdir()
    QUANTIZE_WEIGHTS.run(
        QuantizeWeightsConfig(**asked), {"model": root / "float"}, few, Context(root)
    )
    PACK_WEIGHTS.run(PackWeightsConfig(), {"model": few}, packed, Context(root))
    return few, packed


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of a tied model, whose table is stored once."""
    return _make(tmp_path_factory.mktemp("tied"), parse(MODEL, WEIGHTS), **ASKED)


def _measure(plain: Path, packed: Path, tmp_path: Path, level: Any = 4) -> dict[str, Any]:
    config = CheckPackingConfig(accuracy_level=level)
    inputs = {"plain": plain, "model": packed}
    return dict(CHECK_PACKING.run(config, inputs, tmp_path, Context(tmp_path)))


def _judge(facts: dict[str, Any], **limits: int | None) -> tuple[GateResult, ...]:
    measured = Measured(
        target="cpu-int4",
        component="model",
        stage="pack_weights",
        node="pack_weights",
        arithmetic="quantized",
        is_proxy=False,
        facts=facts,
        floors={},
    )
    return PACKING.judge(measured, PackingLimits(**limits))


@pytest.mark.parametrize(
    "asked",
    [ASKED, {"method": "hqq", "symmetric": False}, {"method": "rtn", "lm_head": "int8"}],
    ids=str,
)
def test_good_packing_has_no_difference(tmp_path: Path, asked: dict[str, Any]) -> None:
    pair = _make(tmp_path, parse(MODEL, WEIGHTS), **asked)
    facts = _measure(*pair, tmp_path)
    stored = onnx.load(pair[1] / "model.onnx").graph
    assert facts["compared"] == {"nodes": len(stored.node), "tensors": len(stored.initializer)}
    assert [(each.measured, each.is_allowed) for each in _judge(facts)] == [(0.0, True)] * 2


def test_where_weights_are_stored_makes_no_difference(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    outside = []
    for name, directory in zip(("plain", "packed"), pair, strict=True):
        (tmp_path / name).mkdir()
        model = load_ir_model(directory / "model.onnx")
        save_ir_model(model, tmp_path / name, inline_limit_bytes=0)
        outside.append(tmp_path / name)
    assert (outside[1] / "model.onnx_data").stat().st_size > 1 << 14
    for plain, packed in ((pair[0], outside[1]), (outside[0], pair[1])):
        assert all(result.measured == 0 for result in _judge(_measure(plain, packed, tmp_path)))
    data = outside[1] / "model.onnx_data"
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    failed = [each for each in _judge(_measure(pair[0], outside[1], tmp_path)) if each.reason]
    assert [(each.metric, each.measured) for each in failed] == [
        ("pack_weights.changed_constants", 1.0)
    ]


def _product(graph: Graph, made: str = "hidden") -> Any:
    (found,) = [node for node in graph.all("MatMulNBits") if node.output[0] == made]
    return found


def _one_scale(graph: Graph) -> None:
    def moved(scales: Any) -> Any:
        scales[5, 1] = np.nextafter(scales[5, 1], np.float32(9))
        return scales

    graph.change(_product(graph).input[2], moved)


def _exchanged_scales(graph: Graph) -> None:
    graph.change(_product(graph).input[2], lambda scales: np.roll(scales, 1, axis=-1))


def _one_nibble(graph: Graph) -> None:
    def moved(packed: Any) -> Any:
        packed[3, 1, 7] ^= 0x10
        return packed

    graph.change(_product(graph).input[1], moved)


def _other_shape(graph: Graph) -> None:
    graph.put(_product(graph).input[2], graph.get(_product(graph).input[2]).reshape(-1))


def _added_tensor(graph: Graph) -> None:
    graph.put("stowaway", np.zeros(3, np.float32))


def _inputs(graph: Graph) -> None:
    graph.attribute(_product(graph), "K", 32)


def _bits(graph: Graph) -> None:
    graph.attribute(_product(graph), "bits", 8)


def _accuracy(graph: Graph) -> None:
    graph.attribute(_product(graph), "accuracy_level", 0)


def _extra_node(graph: Graph) -> None:
    graph.after(_product(graph).output[0], "Neg")


def _another_operator(graph: Graph) -> None:
    graph.nth("Relu").op_type = "Gelu"


def _other_weight(graph: Graph) -> None:
    first, second = graph.all("MatMulNBits")
    first.input[1], second.input[1] = second.input[1], first.input[1]


def _other_output(graph: Graph) -> None:
    graph.model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "elsewhere"


@pytest.mark.parametrize(
    ("damage", "kind", "layer", "said"),
    [
        (_one_scale, "changed_constants", "hidden", "has other numbers"),
        (_exchanged_scales, "changed_constants", "hidden", "has other numbers"),
        (_one_nibble, "changed_constants", "hidden", "has other numbers"),
        (_other_shape, "changed_constants", "hidden", "is FLOAT [128], not FLOAT [64,2]"),
        (_added_tensor, "changed_constants", "graph", "`stowaway` was added"),
        (_inputs, "changed_nodes", "hidden", "its attribute `K` is 32, not 64"),
        (_bits, "changed_nodes", "hidden", "its attribute `bits` is 8, not 4"),
        (_accuracy, "changed_nodes", "hidden", "its attribute `accuracy_level` is 0, not 4"),
        (_extra_node, "changed_nodes", "active", "it reads"),
        (_another_operator, "changed_nodes", "active", "Gelu in place of ai.onnx::Relu"),
        (_other_weight, "changed_nodes", "hidden", "it reads"),
        (_other_output, "changed_nodes", "graph", "its outputs are"),
    ],
)
def test_a_damage_is_a_difference(
    pair: tuple[Path, Path],
    tmp_path: Path,
    damage: Callable[[Graph], None],
    kind: str,
    layer: str,
    said: str,
) -> None:
    graph = Graph.read(pair[1])
    damage(graph)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    graph.write(damaged)
    facts = _measure(pair[0], damaged, tmp_path)
    (failed,) = [result for result in _judge(facts) if not result.is_allowed]
    assert (failed.metric, failed.layer) == (f"pack_weights.{kind}", layer)
    assert said in failed.reason
    assert failed.node == "pack_weights"
    assert all(
        each.is_allowed for each in _judge(facts, changed_nodes=None, changed_constants=None)
    )


def test_of_a_shared_table_the_product_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    graph = Graph.read(pair[1])
    graph.change(_product(graph, "logits").input[1], lambda packed: packed ^ 1)
    graph.write(tmp_path)
    (row,) = _measure(pair[0], tmp_path, tmp_path)["measures"]["changed_constants"]["first"]
    assert row["layer"] == "logits"


def test_another_accuracy_than_was_asked_for_is_a_difference_of_each_product(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    facts = _measure(*pair, tmp_path, level=0)
    assert facts["measures"]["changed_nodes"]["total"] == 2


BRANCHES = """
branches (float[batch, 64] x, bool wanted)
    => (float[batch, 64] y, float[batch, 64] other)
{
    inner = MatMul(x, weight)
    lead = Neg(inner)
    other = Abs(x)
    y = If (wanted) <
        then_branch = g () => (float[batch, 64] then_y)
        {
            factor = Constant<value = float {2.0}>()
            then_y = Mul(lead, factor)
        },
        else_branch = h () => (float[batch, 64] else_y) { else_y = Identity(lead) }
    >
}
"""


def test_branches_are_compared_and_so_is_the_order(tmp_path: Path) -> None:
    few, packed = _make(tmp_path, parse(BRANCHES, {"weight": random(64, 64)}), method="rtn")
    assert all(result.measured == 0 for result in _judge(_measure(few, packed, tmp_path)))
    model = onnx.load(packed / "model.onnx")
    (branch,) = [each.g for each in model.graph.node[-1].attribute if each.name == "then_branch"]
    (factor,) = branch.initializer
    factor.CopyFrom(onnx.numpy_helper.from_array(np.array(3, np.float32), factor.name))
    measures = _measure(few, write(tmp_path / "inner", model).parent, tmp_path)["measures"]
    assert [each["total"] for each in measures.values()] == [0, 1]
    model = onnx.load(packed / "model.onnx")
    first, second = (
        onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node[1:3]
    )
    model.graph.node[1].CopyFrom(second)
    model.graph.node[2].CopyFrom(first)
    measures = _measure(few, write(tmp_path / "moved", model).parent, tmp_path)["measures"]
    assert [each["total"] for each in measures.values()] == [1, 0]
    (row,) = measures["changed_nodes"]["first"]
    assert "stands where" in row["detail"]
