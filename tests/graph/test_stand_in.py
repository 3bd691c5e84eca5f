"""A graph in bfloat16 is run as torch runs it on a CPU: in float32, every result rounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from pipeline.errors import StageError
from pipeline.graph.files import load_ir_model, load_model, save_ir_model
from pipeline.graph.half import cast_to_half
from pipeline.graph.half_rules import BFLOAT16, FLOAT16
from pipeline.graph.observed import write_observed_model
from pipeline.graph.stand_in import NOTE, write_stand_in
from pipeline.runtimes.torch_model import load_torch_model
from pipeline.stages.export import EXPORT, ExportConfig
from tests.graph.models import parse, random, run, write
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TWO_LAYERS = """
g (float[n, 8] x) => (float[n, 8] y)
{
    hidden = MatMul(x, w)
    shifted = Add(hidden, b)
    active = Tanh(shifted)
    back = MatMul(active, w)
    y = Softmax<axis = -1>(back)
}
"""
TASK = "feature-extraction"


def _two_layers(root: Path, kind: object = BFLOAT16) -> Path:
    """Directory of a small graph in 16 bits."""
    model = ir.serde.deserialize_model(parse(TWO_LAYERS, {"w": random(8, 8), "b": random(8)}))
    cast_to_half(model, kind)  # type: ignore[arg-type]
    root.mkdir(parents=True)
    save_ir_model(model, root)
    return root


def _rounded(array: np.ndarray) -> np.ndarray:
    return array.astype(ml_dtypes.bfloat16).astype(np.float32)


def test_results_are_those_of_float32_rounded_to_nearest_even(tmp_path: Path) -> None:
    stand_in = write_stand_in(_two_layers(tmp_path / "bf16"), tmp_path)
    assert stand_in.note == NOTE
    x, w, b = 3 * random(64, 8, seed=1), _rounded(random(8, 8)), _rounded(random(8))
    (given,) = run(stand_in.model / "model.onnx", {"x": x})
    shifted = _rounded(_rounded(_rounded(x) @ w) + b)
    back = _rounded(_rounded(np.tanh(shifted)) @ w)
    powers = np.exp(back - back.max(-1, keepdims=True))
    wanted = _rounded(powers / powers.sum(-1, keepdims=True))
    # Sums in another order may round to the other side.
    np.testing.assert_allclose(given, wanted, rtol=2**-7)
    assert (given == wanted).mean() > 0.9


def test_every_result_is_a_number_of_bfloat16(tmp_path: Path) -> None:
    source = _two_layers(tmp_path / "bf16")
    stand_in = write_stand_in(source, tmp_path)
    made = [
        name
        for node in load_model(source / "model.onnx").graph.node
        for name in node.output
        if name != "y"
    ]
    (tmp_path / "observed").mkdir()
    path = write_observed_model(stand_in.model, made, tmp_path / "observed", is_float32=False)
    for array in run(path, {"x": random(5, 8)}):
        np.testing.assert_array_equal(array, _rounded(array))


def test_what_is_not_bfloat16_is_run_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "fp32").mkdir()
    write(tmp_path / "fp32" / "model", parse(TWO_LAYERS, {"w": random(8, 8), "b": random(8)}))
    for source in (tmp_path / "fp32" / "model", _two_layers(tmp_path / "fp16", FLOAT16)):
        stand_in = write_stand_in(source, tmp_path)
        assert (stand_in.model, stand_in.note) == (source, "")
    assert not list(tmp_path.glob("stand-in*"))


def test_as_a_user_would_run_it_bfloat16_stays_what_it_is(tmp_path: Path) -> None:
    source = _two_layers(tmp_path / "bf16")
    assert write_stand_in(source, tmp_path, "all").model == source


def test_a_row_that_is_masked_altogether_stays_finite(tmp_path: Path) -> None:
    text = """
    g (float[n, 4] x, bool[n, 4] mask) => (float[n, 4] y)
    {
        zero = Constant<value = float {0.0}>()
        lowest = Constant<value = float {-3.4028234663852886e+38}>()
        fill = Where(mask, zero, lowest)
        masked = Add(x, fill)
        y = Softmax<axis = -1>(masked)
    }
    """
    model = ir.serde.deserialize_model(parse(text))
    result = cast_to_half(model, BFLOAT16)
    assert result.clamped_constants == ("lowest",)  # it would be infinite: it rounds up
    (tmp_path / "in").mkdir()
    save_ir_model(model, tmp_path / "in")
    stand_in = write_stand_in(tmp_path / "in", tmp_path)
    feeds = {"x": random(1, 4), "mask": np.zeros((1, 4), dtype=bool)}
    (given,) = run(stand_in.model / "model.onnx", feeds)
    np.testing.assert_array_equal(given, np.full((1, 4), 0.25, dtype=np.float32))


def test_a_model_is_as_far_from_float32_as_in_torch(
    tmp_path: Path, sentence_encoder: Path
) -> None:
    import torch

    (tmp_path / "export").mkdir()
    config = ExportConfig(task=TASK, component="model")
    context = RecordingContext(tmp_path)
    EXPORT.run(config, {"checkpoint": sentence_encoder}, tmp_path / "export", context)
    model = load_ir_model(tmp_path / "export" / "model.onnx")
    cast_to_half(model, BFLOAT16)
    (tmp_path / "bf16").mkdir()
    save_ir_model(model, tmp_path / "bf16")
    stand_in = write_stand_in(tmp_path / "bf16", tmp_path)
    ids = np.random.default_rng(3).integers(5, 60, (8, 24))
    feeds = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }
    component = load_torch_model(sentence_encoder, TASK, "model")
    tensors = [torch.from_numpy(feeds[name]) for name in component.input_names]
    place = component.output_names.index("last_hidden_state")
    with torch.no_grad():
        right = component.module(*tensors)[place].numpy()
        theirs = component.module.to(torch.bfloat16)(*tensors)[place].float().numpy()
    ours = run(stand_in.model / "model.onnx", feeds)[place]
    own, torchs = (float(np.sqrt(np.square(each - right).mean())) for each in (ours, theirs))
    assert 0.6 < own / torchs < 1.4
    assert torchs / float(np.sqrt(np.square(right).mean())) > 1e-3  # and that is bfloat16's


def _subgraph(model: ir.Model) -> None:
    branch = ir.Graph([], [], nodes=[], name="empty", opset_imports={"": 20})
    model.graph.node(0).attributes["body"] = ir.AttrGraph("body", branch)


def _half_output(model: ir.Model) -> None:
    model.graph.outputs[0].type = ir.TensorType(ir.DataType.BFLOAT16)


@pytest.mark.parametrize(
    ("change", "words"),
    [(_subgraph, "with subgraphs or functions"), (_half_output, "`y` is bfloat16")],
)
def test_what_cannot_be_rounded_is_refused(
    tmp_path: Path, change: Callable[[ir.Model], None], words: str
) -> None:
    model = load_ir_model(_two_layers(tmp_path / "bf16") / "model.onnx")
    change(model)
    (tmp_path / "changed").mkdir()
    save_ir_model(model, tmp_path / "changed")
    with pytest.raises(StageError, match=words):
        write_stand_in(tmp_path / "changed", tmp_path)
