"""Float16 graphs with their arithmetic in float32, and how large their values get."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
from onnx import numpy_helper

from pipeline.graph.widened import Widening, widen

if TYPE_CHECKING:
    from numpy.typing import NDArray

GRAPH = """
<ir_version: 10, opset_import: ["" : 20]>
agraph (float[n, 4] x, bool[n, 4] seen) => (float[n, 4] y)
<float16[n, 4] h, float16[n, 4] fill, float16[n, 4] scores, float16[n, 4] shares, float16[n, 4] out,
 float16[4, n] turned>
{
    h = Cast <to = 10> (x)
    fill = Where (seen, zero, lowest)
    scores = Add (h, fill)
    shares = Softmax (scores)
    turned = Transpose (shares)
    out = Mul (shares, weight)
    y = Cast <to = 1> (out)
}
"""
# In this syntax a float16 is given by its bits: 16384 is 2.0.
BRANCH = """
<ir_version: 10, opset_import: ["" : 20]>
agraph (float[n, 4] x, bool on) => (float[n, 4] y)
<float16[n, 4] h, float16[n, 4] either>
{
    h = Cast <to = 10> (x)
    either = If (on) <
        then_branch = more () => (float16[n, 4] a) { two = Constant <value = float16 {16384}> () a = Mul (h, two) },
        else_branch = same () => (float16[n, 4] b) { b = Identity (h) }
    >
    y = Cast <to = 1> (either)
}
"""


def _widened(text: str, **weights: NDArray[np.float16]) -> tuple[onnx.ModelProto, Widening]:
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in weights.items()
    )
    model = ir.serde.deserialize_model(proto)
    widening = widen(model)
    return ir.serde.serialize_model(model), widening


def _run(
    model: onnx.ModelProto, widening: Widening, **feeds: NDArray[np.generic]
) -> dict[str, float]:
    session = ort.InferenceSession(model.SerializeToString())
    names = [each.output for each in widening.watched]
    results = session.run(names, feeds)
    return {
        each.value: float(result) for each, result in zip(widening.watched, results, strict=True)
    }


def _half(*numbers: float) -> NDArray[np.float16]:
    return np.array(numbers if len(numbers) > 1 else numbers[0], np.float16)


def _feeds() -> dict[str, NDArray[np.generic]]:
    seen = np.array([[True, True, False, False]])
    return {"x": np.array([[3.0, -70000.0, 5.0, 1.0]], np.float32), "seen": seen}


def test_values_beyond_float16_are_seen_and_fills_of_a_mask_are_not() -> None:
    for lowest in (-np.inf, -65504.0, -32752.0):
        model, widening = _widened(
            GRAPH, zero=_half(0.0), lowest=_half(lowest), weight=_half(1.0, 2.0, 3.0, 4.0)
        )
        assert widening.stand_ins == ("lowest",)
        assert not widening.infinite_weights
        largest = _run(model, widening, **_feeds())
        assert largest["h"] == 70000.0
        assert largest["fill"] == 0.0
        assert largest["scores"] == 70000.0
        assert largest["out"] <= 4.0
        assert "turned" not in largest  # only moves what was looked at


def test_a_tensor_that_a_node_fills_for_a_mask_is_no_overflow() -> None:
    text = GRAPH.replace(
        "fill = Where (seen, zero, lowest)",
        "shape = Shape (x) filled = ConstantOfShape <value = float16[1] {63487}> (shape) "
        "fill = Where (seen, zero, filled)",  # -65504
    ).replace("float16[n, 4] fill,", "float16[n, 4] fill, float16[n, 4] filled,")
    model, widening = _widened(text, zero=_half(0.0), weight=_half(1.0, 2.0, 3.0, 4.0))
    assert len(widening.stand_ins) == 1
    largest = _run(model, widening, **_feeds())
    assert largest["filled"] == largest["fill"] == 0.0
    assert largest["scores"] == 70000.0


def test_infinite_weights_are_no_fill() -> None:
    _, widening = _widened(
        GRAPH, zero=_half(0.0), lowest=_half(-1e4), weight=_half(1.0, np.inf, 3.0, 4.0)
    )
    assert widening.infinite_weights == ("weight",)
    assert widening.stand_ins == ()


def test_nothing_of_float16_is_left_in_branches_either() -> None:
    model, widening = _widened(BRANCH)
    feeds = {"x": np.array([[3.0, -5.0, 5.5, 1.0]], np.float32), "on": np.array(True)}
    assert _run(model, widening, **feeds)["either"] == 2 * 5.5
    assert {each.op_type for each in widening.watched} == {"Cast", "If"}
