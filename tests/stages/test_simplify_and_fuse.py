"""Large graphs: simplified and fused in one stage as by two, and checked on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
import pytest

from pipeline.errors import ExportError, StageError
from pipeline.graph import simplification
from pipeline.graph.files import load_ir_model, save_ir_model
from pipeline.stages.fuse import FuseConfig
from pipeline.stages.simplify_and_fuse import SIMPLIFY_AND_FUSE, SimplifyAndFuseConfig
from tests.stages.context import RecordingContext
from tests.stages.test_fuse_decoder import fuse_family

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """What the stages one by one made, and the facts of the last."""
    root = tmp_path_factory.mktemp("llama")
    _, _, facts = fuse_family(root, "llama")
    model = load_ir_model(root / "export" / "model.onnx")
    (root / "outside").mkdir()
    save_ir_model(model, root / "outside", inline_limit_bytes=0)
    return root, facts


def _run(root: Path, output: Path, config: SimplifyAndFuseConfig | None = None) -> dict[str, Any]:
    output.mkdir(exist_ok=True)
    config = config or SimplifyAndFuseConfig()
    context = RecordingContext(output.parent)
    return dict(SIMPLIFY_AND_FUSE.run(config, {"model": root / "outside"}, output, context))


def _nodes(path: Path) -> list[bytes]:
    model = onnx.load_model(path, load_external_data=False)
    return [node.SerializeToString(deterministic=True) for node in model.graph.node]


def test_it_makes_what_the_two_stages_make(
    tmp_path: Path, llama: tuple[Path, dict[str, Any]]
) -> None:
    root, expected = llama
    facts = _run(root, tmp_path / "both")
    assert _nodes(tmp_path / "both" / "model.onnx") == _nodes(root / "fuse" / "model.onnx")
    simplified = facts.pop("simplified")
    assert facts == expected
    assert simplified["nodes_after"] < simplified["nodes_before"]
    weights = {
        name: value.const_value.numpy().tobytes()
        for name, value in load_ir_model(
            tmp_path / "both" / "model.onnx"
        ).graph.initializers.items()
        if value.const_value is not None
    }
    for name, value in load_ir_model(root / "fuse" / "model.onnx").graph.initializers.items():
        assert value.const_value is not None
        assert weights[name] == value.const_value.numpy().tobytes()


def test_what_is_asked_of_fuse_is_done(tmp_path: Path, llama: tuple[Path, dict[str, Any]]) -> None:
    asked = SimplifyAndFuseConfig(fuse=FuseConfig(last_logits=True))
    facts = _run(llama[0], tmp_path / "both", asked)
    assert facts["fusions"]["last_logits"]["fired"] == 1


def _renamed(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "tokens"
    for node in model.graph.node:
        node.input[:] = ["tokens" if name == "input_ids" else name for name in node.input]


def _invalid(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "MatMul").op_type = "MatMull"


def mask_lost(model: onnx.ModelProto) -> None:
    """The mask's shape is all that is read of it; ones stand in its place."""
    node = next(
        node
        for node in model.graph.node
        if "attention_mask" in node.input and node.op_type != "Shape"
    )
    shape = onnx.helper.make_node("Shape", ["attention_mask"], ["its_shape"])
    one = onnx.helper.make_tensor("one", onnx.TensorProto.INT64, [1], [1])
    ones = onnx.helper.make_node("ConstantOfShape", ["its_shape"], ["ones"], value=one)
    node.input[:] = ["ones" if name == "attention_mask" else name for name in node.input]
    model.graph.node.insert(0, ones)
    model.graph.node.insert(0, shape)


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (_renamed, StageError, "input `input_ids` changed"),
        (_invalid, StageError, "not valid ONNX"),
        (mask_lost, ExportError, "attention_mask"),
    ],
)
def test_a_tool_that_breaks_the_graph_is_found_out(
    tmp_path: Path,
    llama: tuple[Path, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    damage: Any,
    error: type[Exception],
    words: str,
) -> None:
    sound = simplification.simplify_model

    def broken(model: onnx.ModelProto, tool: Any) -> onnx.ModelProto:
        made = sound(model, tool)
        damage(made)
        return made

    monkeypatch.setattr(simplification, "simplify_model", broken)
    with pytest.raises(error, match=words):
        _run(llama[0], tmp_path / "both")
