"""Figures of quality against other software and by hand, and their intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr
from sklearn.metrics import f1_score

from pipeline.data.sample_set import NO_LABEL
from pipeline.parity.gates import judge_quality
from pipeline.parity.quality.catalogue import meters_of
from pipeline.parity.quality.intervals import bootstrap_interval, newcombe_interval
from pipeline.parity.quality.meters import EntityF1, MacroF1, RightAnswers, SpanOverlap, TopAnswers
from pipeline.parity.quality.names import metric_names, why_impossible
from pipeline.parity.quality.similarity import midranks
from pipeline.parity.types import Parity, Quality
from pipeline.recipe.types import Bound, FigureGates, QualityGates
from pipeline.tasks import TASKS, find_task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.parity.quality.meters import Meter

NAMES = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG")


def _one_hot(classes: Sequence[int], width: int) -> np.ndarray:
    return np.eye(width, dtype=np.float32)[np.asarray(classes)]


def _figure(meter: Meter) -> Quality:
    found = meter.result()
    assert found is not None
    return found


# --- intervals --------------------------------------------------------------------------------


def test_newcombe_gives_the_interval_of_the_paper() -> None:
    # Newcombe (1998), table II, first example (36, 12, 2, 0), method 10.
    assert newcombe_interval(36, 12, 2, 0) == pytest.approx((0.0569, 0.3404), abs=5e-5)


@pytest.mark.parametrize(
    ("lost", "gained", "is_finding"),
    [(0, 0, False), (1, 0, False), (2, 1, False), (12, 2, True), (20, 0, True)],
)
def test_a_drop_of_one_sample_in_200_is_no_finding(
    lost: int, gained: int, *, is_finding: bool
) -> None:
    low, high = newcombe_interval(190 - lost, lost, gained, 10 - gained)
    drop = (lost - gained) / 200
    assert low <= drop <= high
    assert (low > 0.0) is is_finding


def test_the_bootstrap_covers_a_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        drops = generator.normal(0.1, 0.3, size=80)
        low, high = bootstrap_interval(
            80, lambda drawn, own=drops: drawn @ own / 80, resamples=400
        )
        covered += low <= 0.1 <= high
    assert 180 <= covered <= 200


# --- figures ----------------------------------------------------------------------------------


def test_macro_f1_is_that_of_scikit_learn() -> None:
    generator = np.random.default_rng(2)
    labels = generator.integers(0, 4, size=150)
    ours = np.where(generator.random(150) < 0.3, generator.integers(0, 4, size=150), labels)
    theirs = np.where(generator.random(150) < 0.1, generator.integers(0, 4, size=150), labels)
    meter = MacroF1("f1_macro")
    for label, mine, other in zip(labels, ours, theirs, strict=True):
        meter.add(int(label), {"logits": _one_hot(mine, 4)}, {"logits": _one_hot(other, 4)})
    found = _figure(meter)
    assert found.score == pytest.approx(f1_score(labels, ours, average="macro"))
    assert found.reference_score == pytest.approx(f1_score(labels, theirs, average="macro"))
    assert found.drop_low is not None
    assert found.drop_low > 0.0  # a model that is really worse is a finding


def test_entities_count_only_when_kind_and_both_ends_are_right() -> None:
    truth = (NO_LABEL, 1, 2, 0, 3, 4, 0, 1)
    right = [0, 1, 2, 0, 3, 4, 0, 1]
    wrong = [0, 1, 0, 0, 3, 4, 4, 2]  # too short, too long; a lone I- begins one
    meter = EntityF1("f1_entity", NAMES)
    meter.add(truth, {"logits": _one_hot(wrong, 5)}, {"logits": _one_hot(right, 5)})
    found = _figure(meter)
    assert (found.score, found.reference_score) == (pytest.approx(1 / 3), 1.0)
    assert found.answers == 3
    assert EntityF1("f1_entity", ("a", "b")).result() is None


def test_overlap_of_an_answer_by_hand() -> None:
    def outputs(first: int, last: int) -> dict[str, np.ndarray]:
        return {"start_logits": _one_hot(first, 9), "end_logits": _one_hot(last, 9)}

    meter = SpanOverlap("f1_span")
    meter.add((2, 4), outputs(3, 6), outputs(2, 4))
    found = _figure(meter)
    assert (found.score, found.reference_score) == (pytest.approx(2 * 2 / (3 + 4)), 1.0)


def test_a_class_among_the_five_likeliest_is_right_and_a_tie_is_not() -> None:
    logits = {"logits": np.array([9, 8, 7, 6, 5, 4, 3], np.float32)}
    meter = TopAnswers("top5_accuracy")
    for label in (0, 4, 5):
        meter.add(label, logits, logits)
    assert _figure(meter).score == pytest.approx(2 / 3)
    flat = TopAnswers("top5_accuracy")
    flat.add(0, {"logits": np.zeros(7)}, logits)
    assert _figure(flat).score == 0.0
    few = TopAnswers("top5_accuracy")
    few.add(0, {"logits": np.zeros(5)}, {"logits": np.zeros(5)})
    assert few.result() is None


def _embed(noise: float, samples: int = 40) -> dict[str, Quality]:
    generator = np.random.default_rng(3)
    meters = meters_of(find_task("feature-extraction"), ("sentence_embedding",), ())
    vectors = generator.standard_normal((samples, 16))
    moved = vectors + noise * generator.standard_normal(vectors.shape)
    for theirs, ours in zip(vectors, moved, strict=True):
        for meter in meters:
            meter.add(None, {"sentence_embedding": ours}, {"sentence_embedding": theirs})
    if noise:
        upper = np.triu_indices(samples, 1)
        cosines = [
            (m @ m.T / np.outer(np.linalg.norm(m, axis=1), np.linalg.norm(m, axis=1)))[upper]
            for m in (vectors, moved)
        ]
        assert _figure(meters[0]).score == pytest.approx(spearmanr(*cosines).statistic)
    return {found.metric: found for meter in meters if (found := meter.result()) is not None}


@pytest.mark.parametrize("kinds", [3, 1000])
def test_ranks_are_those_of_scipy(kinds: int) -> None:
    values = np.random.default_rng(kinds).integers(0, kinds, 200) / 7
    np.testing.assert_array_equal(midranks(values), rankdata(values))
    values[5] = np.nan
    np.testing.assert_array_equal(midranks(values), rankdata(values))


def test_embeddings_that_move_lose_their_neighbours() -> None:
    same, near, far = _embed(0.0), _embed(0.05), _embed(2.0)
    assert set(same) == {"spearman", "recall_at_1", "recall_at_10"}
    for metric, found in same.items():
        assert (found.score, found.drop) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-12))
        assert near[metric].score > 0.9 > far[metric].score
        assert far[metric].drop_low is not None
        assert far[metric].drop_low > 0.1
    assert "recall_at_10" not in _embed(0.1, samples=12)


def test_every_task_has_the_meters_that_its_names_say() -> None:
    for task in TASKS:
        outputs = [spec.name for spec in task.outputs]
        assert len(meters_of(task, outputs, NAMES)) == len(metric_names(task))


# --- gates ------------------------------------------------------------------------------------


def _parity(*, lost: int, samples: int, metric: str = "accuracy") -> Parity:
    meter = RightAnswers(metric, "class")
    good, bad = {"logits": np.array([1.0, 0.0])}, {"logits": np.array([0.0, 1.0])}
    for number in range(samples):
        meter.add(0, bad if number < lost else good, good)
    return Parity(
        outputs=(),
        problems=(),
        session="",
        batch_size=1,
        samples_seen=samples,
        qualities=(_figure(meter),),
    )


def _judge(parity: Parity, **gates: Any) -> tuple[str, str]:
    (result,) = judge_quality(
        parity,
        QualityGates(**gates),
        "accuracy",
        target="cpu",
        component="model",
        is_proxy=False,
    )
    return result.verdict, result.reason


def test_a_drop_that_is_real_fails_and_one_that_may_be_chance_is_told_as_such() -> None:
    limit = {"drop": Bound(max=0.004)}
    assert _judge(_parity(lost=12, samples=200), **limit)[0] == "failed"
    verdict, reason = _judge(_parity(lost=1, samples=200), **limit)
    assert verdict == "passed"
    assert "not told from no drop at all with 200 samples" in reason
    assert _judge(_parity(lost=1, samples=200), doubt="fails", **limit)[0] == "failed"


def test_limits_on_further_figures_fail_worse_targets() -> None:
    gates = {"metrics": {"f1_macro": FigureGates(score=Bound(min=0.9))}}
    assert _judge(_parity(lost=30, samples=200, metric="f1_macro"), **gates)[0] == "failed"
    assert _judge(_parity(lost=3, samples=200, metric="f1_macro"), **gates)[0] == "passed"
    verdict, reason = _judge(_parity(lost=3, samples=200), **gates)
    assert verdict == "failed"
    assert reason == "`f1_macro` could not be computed from these samples, only: accuracy"


@pytest.mark.parametrize(
    ("metric", "names", "words"),
    [
        ("top5_accuracy", ["a", "b", "c", "d", "e"], "says nothing of 5 classes"),
        ("top5_accuracy", ["a", "b", "c", "d", "e", "f"], ""),
        ("f1_entity", ["noun", "verb"], "as `B-PER` does"),
        ("f1_entity", ["O", "B-PER", "I-PER"], ""),
        ("f1_macro", ["a", "b"], ""),
    ],
)
def test_figures_that_no_sample_could_give(metric: str, names: list[str], words: str) -> None:
    config = {"id2label": {str(place): name for place, name in enumerate(names)}}
    reason = why_impossible(metric, config)
    assert words in reason
    assert bool(words) == bool(reason)
    assert why_impossible(metric, {}) == ""  # a checkpoint need not name its classes
