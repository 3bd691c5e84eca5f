"""Right answers, counted beside the checkpoint's own; every gate is failed by a model that is worse."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from pipeline.data.reference_set import ReferenceIndex, save_reference
from pipeline.data.sample_set import (
    NO_LABEL,
    InputSpec,
    SampleEntry,
    SampleIndex,
    save_samples,
    tensor_name,
)
from pipeline.parity.compare import ParityRecorder
from pipeline.parity.gates import judge_parity, judge_quality
from pipeline.parity.quality.answers import best_span, right_answers
from pipeline.parity.quality.meters import RightAnswers
from pipeline.parity.types import Parity
from pipeline.recipe.types import Bound, ParityGates, QualityGates
from pipeline.runtimes.base import ModelTensor
from pipeline.stages.validate import VALIDATE, ValidateConfig
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.data.sample_set import Label
    from pipeline.tasks import Answer

WIDTH, CLASSES, SAMPLES = 4, 3, 12
GRAPH = """
<ir_version: 10, opset_import: ["" : 20]>
classifier (float[batch, 2, 4] pixel_values) => (float[batch, 3] logits)
{
    pooled = ReduceMean <keepdims = 0> (pixel_values, axis)
    logits = MatMul (pooled, weight)
}
"""
GATES = QualityGates(drop=Bound(max=0.1), score=Bound(min=0.8))


def _weight() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((WIDTH, CLASSES)).astype(np.float32)


def _validate(tmp_path: Path, weight: np.ndarray, *, is_labelled: bool = True) -> Parity:
    """Compare a classifier of tiny images with the one whose weight is `_weight()`."""
    images = np.random.default_rng(5).standard_normal((SAMPLES, 2, WIDTH)).astype(np.float32)
    logits = images.mean(axis=1) @ _weight()
    index = SampleIndex(
        source="test",
        use="evaluation",
        seed=0,
        max_length=None,
        inputs={"pixel_values": InputSpec(dtype="float32", axes=(None, None))},
        label_names=("cat", "dog", "fox"),
        samples=tuple(
            SampleEntry(
                index=i,
                text=f"{i}.png",
                extents={},
                # The checkpoint is wrong about the first sample.
                label=int((row.argmax() + (i == 0)) % CLASSES) if is_labelled else None,
            )
            for i, row in enumerate(logits)
        ),
    )
    save_samples(index, [{"pixel_values": image} for image in images], tmp_path)
    save_reference(
        ReferenceIndex(
            task="image-classification",
            component="model",
            inputs=("pixel_values",),
            outputs=("logits",),
            samples=SAMPLES,
            session="numpy",
        ),
        {tensor_name("logits", i): row for i, row in enumerate(logits)},
        tmp_path,
    )
    model = onnx.parser.parse_model(GRAPH)
    constants = {"axis": np.array([1], np.int64), "weight": weight.astype(np.float32)}
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in constants.items()
    )
    onnx.save(model, tmp_path / "model.onnx")
    config = ValidateConfig(task="image-classification", optimizations="all", batch_size=5)
    ports = {"model": tmp_path, "samples": tmp_path, "reference": tmp_path}
    VALIDATE.run(config, ports, tmp_path, RecordingContext(tmp_path))
    return Parity.model_validate_json((tmp_path / "parity.json").read_bytes())


def _failed(parity: Parity, gates: QualityGates = GATES) -> list[str]:
    results = judge_quality(
        parity, gates, "accuracy", target="cpu", component="model", is_proxy=False
    )
    return [result.metric for result in results if result.verdict != "passed"]


def test_a_good_image_classifier_keeps_the_checkpoints_score(tmp_path: Path) -> None:
    parity = _validate(tmp_path, _weight())
    assert parity.problems == ()
    accuracy, f1_macro = parity.qualities  # three classes have no five likeliest
    assert (accuracy.metric, f1_macro.metric) == ("accuracy", "f1_macro")
    assert (accuracy.samples, accuracy.answers) == (SAMPLES, SAMPLES)
    assert accuracy.score == accuracy.reference_score == pytest.approx(11 / 12)
    assert (accuracy.drop, accuracy.gained, accuracy.lost) == (0.0, 0, 0)
    assert accuracy.drop_low is not None
    assert accuracy.drop_high is not None
    assert -0.3 < accuracy.drop_low < 0.0 < accuracy.drop_high < 0.3
    assert parity.outputs[0].metrics.top1_agreement == 1.0
    assert _failed(parity) == []


def test_classes_in_another_order_fail_both_limits_and_top1(tmp_path: Path) -> None:
    parity = _validate(tmp_path, _weight()[:, [1, 2, 0]])
    assert _failed(parity) == ["accuracy.score", "accuracy.drop"]
    gates = ParityGates(top1_agreement=Bound(min=0.99))
    results = judge_parity(parity, gates, target="cpu", component="model", is_proxy=False)
    assert [result.verdict for result in results] == ["passed", "failed"]


def test_a_quality_gate_without_labels_fails(tmp_path: Path) -> None:
    parity = _validate(tmp_path, _weight(), is_labelled=False)
    assert parity.qualities == ()
    (result,) = judge_quality(
        parity,
        QualityGates(drop=Bound(max=0.5)),
        "accuracy",
        target="cpu",
        component="model",
        is_proxy=False,
    )
    assert result.verdict == "failed"
    assert "no sample of the evaluation data has a label" in result.reason


@pytest.mark.parametrize(
    ("answer", "label", "outputs", "right"),
    [
        ("class", 1, {"logits": [0.1, 0.9]}, [True]),
        ("class", 0, {"logits": [0.1, 0.9]}, [False]),
        ("choice", 2, {"logits": [0.1, 0.2, 0.9]}, [True]),
        (
            "token_classes",
            (NO_LABEL, 1, 0, NO_LABEL),
            {"logits": [[1, 0], [0, 1], [0, 1], [1, 0]]},
            [True, False],
        ),
        ("span", (1, 2), {"start_logits": [0, 5, 0], "end_logits": [0, 0, 3]}, [True]),
        ("span", (1, 1), {"start_logits": [0, 5, 0], "end_logits": [0, 0, 3]}, [False]),
        # The best end lies before the best start, so the best pair is another.
        ("span", (0, 0), {"start_logits": [4, 0, 5], "end_logits": [9, 0, 1]}, [True]),
    ],
)
def test_right_answers_by_hand(
    answer: Answer, label: Label, outputs: dict[str, list[float]], right: list[bool]
) -> None:
    arrays = {name: np.array(values, np.float32) for name, values in outputs.items()}
    assert right_answers(answer, label, arrays).tolist() == right


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=9))
def test_the_best_span_is_that_of_trying_all(pairs: list[tuple[float, float]]) -> None:
    start, end = (np.array(column) for column in zip(*pairs, strict=True))
    first, last = best_span(start, end)
    assert first <= last
    best = max(start[i] + end[j] for i in range(len(pairs)) for j in range(i, len(pairs)))
    assert start[first] + end[last] == pytest.approx(best)


def test_paired_counts_say_which_answers_changed() -> None:
    tally = RightAnswers("accuracy", "class")
    good, bad = {"logits": np.array([1.0, 0.0])}, {"logits": np.array([0.0, 1.0])}
    for candidate, reference in ((good, good), (good, bad), (bad, good), (bad, good)):
        tally.add(0, candidate, reference)
    result = tally.result()
    assert result is not None
    assert (result.gained, result.lost, result.answers) == (1, 2, 4)
    assert (result.score, result.reference_score, result.drop) == (0.5, 0.75, 0.25)
    assert RightAnswers("accuracy", "class").result() is None


def test_the_vectors_of_a_feature_map_are_its_channels() -> None:
    reference = np.zeros((1, 2, 3, 4), np.float32)
    reference[:, 0] = 1.0
    candidate = reference.copy()
    candidate[0, :, 1, 2] = [0.0, 1.0]  # at one place another direction
    axes = ("batch", 2, 3, 4)
    recorder = ParityRecorder(["map"], [ModelTensor(name="map", dtype="float32", shape=axes)])
    entry = SampleEntry(index=0, text="", extents={})
    recorder.add_batch([entry], {"map": candidate}, {"map": [reference[0]]})
    (output,) = recorder.finish([], session="", batch_size=1, samples=1).outputs
    assert output.metrics.cosine_similarity == 0.0
    assert output.metrics.cosine_similarity_mean == pytest.approx(11 / 12)
    assert output.metrics.elements == 24
