"""One class a figure: each is given sample by sample, and gives a `Quality` in the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.data.sample_set import NO_LABEL
from pipeline.parity.quality.answers import best_span, right_answers
from pipeline.parity.quality.intervals import bootstrap_interval, newcombe_interval
from pipeline.parity.quality.names import TOP
from pipeline.parity.types import Quality

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.data.sample_set import Label
    from pipeline.tasks import Answer

Array: TypeAlias = NDArray[Any]
Outputs: TypeAlias = "Mapping[str, Array]"


class Meter(Protocol):
    """One figure in the making."""

    def add(self, label: Label | None, candidate: Outputs, reference: Outputs) -> None:
        """Count one sample.

        Args:
            label: The true answer; None when the sample has none.
            candidate: The sample's outputs by name, without batch axis and padding.
            reference: The checkpoint's.
        """

    def result(self) -> Quality | None:
        """The figure; None when there was nothing to count."""


class RightAnswers:
    """Share of right answers; each answer is either right or wrong.

    Args:
        metric: What the figure is called.
        answer: What labels say.
    """

    def __init__(self, metric: str, answer: Answer) -> None:
        self._metric = metric
        self._answer = answer
        self._rows: list[tuple[int, int, int, int]] = []

    def _right(self, label: Label, outputs: Outputs) -> NDArray[np.bool_]:
        return right_answers(self._answer, label, outputs)

    def add(self, label: Label | None, candidate: Outputs, reference: Outputs) -> None:
        """Count one sample, when it has a label."""
        if label is None:
            return
        ours, theirs = self._right(label, candidate), self._right(label, reference)
        self._rows.append(
            (
                int(np.sum(theirs & ours)),
                int(np.sum(theirs & ~ours)),
                int(np.sum(~theirs & ours)),
                int(np.sum(~theirs & ~ours)),
            )
        )

    def result(self) -> Quality | None:
        """The figure; None when nothing was labelled."""
        counts = np.array(self._rows or [(0, 0, 0, 0)])
        both, lost, gained, neither = (int(n) for n in counts.sum(axis=0))
        answers = both + lost + gained + neither
        if not answers:
            return None
        if answers == len(self._rows):
            low, high = newcombe_interval(both, lost, gained, neither)
        else:  # several answers a sample are not independent of each other
            drops, sizes = counts[:, 1] - counts[:, 2], counts.sum(axis=1)
            low, high = bootstrap_interval(
                len(counts), lambda drawn: (drawn @ drops) / np.maximum(1, drawn @ sizes)
            )
        return Quality(
            metric=self._metric,
            samples=len(self._rows),
            answers=answers,
            score=(gained + both) / answers,
            reference_score=(lost + both) / answers,
            drop=(lost - gained) / answers,
            drop_low=low,
            drop_high=high,
            gained=gained,
            lost=lost,
        )


class TopAnswers(RightAnswers):
    """Share of samples whose true class is among the `TOP` likeliest; None with few classes."""

    def __init__(self, metric: str) -> None:
        super().__init__(metric, "class")

    def add(self, label: Label | None, candidate: Outputs, reference: Outputs) -> None:
        """Count one sample, when there are more classes than `TOP`."""
        if candidate["logits"].size > TOP:
            super().add(label, candidate, reference)

    def _right(self, label: Label, outputs: Outputs) -> NDArray[np.bool_]:
        logits = outputs["logits"]
        # A tie counts against the true class, so that equal logits are no right answer.
        above = np.sum(logits >= logits[np.asarray(label)])
        return np.array([above <= TOP])


class _MeanOfSamples:
    """A number between 0 and 1 for each sample; the figure is their mean."""

    def __init__(self, metric: str) -> None:
        self._metric = metric
        self._ours: list[float] = []
        self._theirs: list[float] = []

    def result(self) -> Quality | None:
        if not self._ours:
            return None
        ours, theirs = np.array(self._ours), np.array(self._theirs)
        drops = theirs - ours
        low, high = bootstrap_interval(len(drops), lambda drawn: drawn @ drops / len(drops))
        return Quality(
            metric=self._metric,
            samples=len(ours),
            answers=len(ours),
            score=float(ours.mean()),
            reference_score=float(theirs.mean()),
            drop=float(drops.mean()),
            drop_low=low,
            drop_high=high,
            gained=int(np.sum(ours > theirs)),
            lost=int(np.sum(ours < theirs)),
        )


class SpanOverlap(_MeanOfSamples):
    """F1 of the tokens of an answer against those of the true one (as SQuAD's F1 does with words).

    P. Rajpurkar et al., SQuAD: 100,000+ Questions (2016), section 6.1.
    """

    def add(self, label: Label | None, candidate: Outputs, reference: Outputs) -> None:
        """Count one sample, when it has a label."""
        if label is None:
            return
        first, last = np.atleast_1d(label).tolist()
        for scores, outputs in ((self._ours, candidate), (self._theirs, reference)):
            start, end = best_span(outputs["start_logits"], outputs["end_logits"])
            shared = max(0, min(last, end) - max(first, start) + 1)
            scores.append(2 * shared / ((last - first + 1) + (end - start + 1)))


class _CountedF1:
    """F1 from counts of true positives, predictions and labels, added up over samples."""

    def __init__(self, metric: str) -> None:
        self._metric = metric
        self._ours: list[Array] = []
        self._theirs: list[Array] = []

    @staticmethod
    def _score(counts: Array) -> Array:
        """F1 from (..., classes, 3), the mean over the classes that occur; 1 where none does."""
        hits, predicted, labelled = np.moveaxis(counts.astype(np.float64), -1, 0)
        occurs = (predicted + labelled) > 0
        scores = np.divide(2 * hits, predicted + labelled, out=np.zeros_like(hits), where=occurs)
        found = occurs.sum(axis=-1)
        mean: Array = np.divide(
            scores.sum(axis=-1), found, out=np.ones(scores.shape[:-1]), where=found > 0
        )
        return mean

    def result(self) -> Quality | None:
        if not self._ours:
            return None
        ours, theirs = np.stack(self._ours), np.stack(self._theirs)
        if not theirs[..., 2].sum():
            return None  # nothing that could be found is labelled
        flat = ours.reshape(len(ours), -1), theirs.reshape(len(theirs), -1)
        shape = ours.shape[1:]

        def drops(drawn: Array) -> Array:
            scores = [self._score((drawn @ part).reshape(len(drawn), *shape)) for part in flat]
            gap: Array = scores[1] - scores[0]
            return gap

        low, high = bootstrap_interval(len(ours), drops)
        score, reference = (float(self._score(part.sum(axis=0))) for part in (ours, theirs))
        alone = [self._score(part) for part in (ours, theirs)]
        return Quality(
            metric=self._metric,
            samples=len(ours),
            answers=int(theirs[..., 2].sum()),
            score=score,
            reference_score=reference,
            drop=reference - score,
            drop_low=low,
            drop_high=high,
            gained=int(np.sum(alone[0] > alone[1])),
            lost=int(np.sum(alone[0] < alone[1])),
        )


class MacroF1(_CountedF1):
    """F1 of each class, averaged over the classes that occur."""

    def add(self, label: Label | None, candidate: Outputs, reference: Outputs) -> None:
        """Count one sample, when it has a label."""
        if label is None:
            return
        wanted = np.atleast_1d(label)
        counted = wanted != NO_LABEL
        for counts, outputs in ((self._ours, candidate), (self._theirs, reference)):
            logits = np.atleast_2d(outputs["logits"])
            predicted = logits.argmax(axis=-1)[counted]
            classes = logits.shape[-1]
            truth = wanted[counted]
            hits = np.bincount(truth[truth == predicted], minlength=classes)
            found = np.bincount(predicted, minlength=classes)
            labelled = np.bincount(truth, minlength=classes)
            counts.append(np.stack([hits, found, labelled], axis=-1))


class EntityF1(_CountedF1):
    """F1 of whole entities, from labels such as B-PER and I-PER; None for other labels.

    An entity is right when its kind, its first and its last token are (CoNLL-2003: E. F. Tjong Kim
    Sang and F. De Meulder, Introduction to the CoNLL-2003 Shared Task).

    Args:
        metric: What the figure is called.
        names: Name of each class.
    """

    def __init__(self, metric: str, names: Sequence[str]) -> None:
        super().__init__(metric)
        self._names = names
        self._has_entities = any(name.startswith("B-") for name in names)

    def add(self, label: Label | None, candidate: Outputs, reference: Outputs) -> None:
        """Count one sample, when it has a label and labels are of entities."""
        if label is None or not self._has_entities:
            return
        wanted = np.atleast_1d(label)
        counted = wanted != NO_LABEL
        truth = self._entities(wanted[counted])
        for counts, outputs in ((self._ours, candidate), (self._theirs, reference)):
            found = self._entities(outputs["logits"].argmax(axis=-1)[counted])
            counts.append(np.array([[len(truth & found), len(found), len(truth)]]))

    def _entities(self, classes: Array) -> frozenset[tuple[str, int, int]]:
        """(kind, first, last) of each; an I- without its B- begins one, as conlleval has it."""
        found, kind, first = set(), "", 0
        for place, number in enumerate([*classes.tolist(), -1]):
            name = self._names[number] if 0 <= number < len(self._names) else "O"
            prefix, _, own = name.partition("-")
            if kind and (prefix != "I" or own != kind):
                found.add((kind, first, place - 1))
                kind = ""
            if prefix in {"B", "I"} and not kind:
                kind, first = own, place
        return frozenset(found)
