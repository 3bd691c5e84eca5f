"""How often a model gives the true answer, and how that compares with the checkpoint.

The checkpoint is asked the same questions, so every figure is a paired one: what matters is on how
many samples only one of the two is right, not how hard the samples are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.data.sample_set import NO_LABEL
from pipeline.parity.types import Quality

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.data.sample_set import Label
    from pipeline.tasks import Answer

Array: TypeAlias = NDArray[Any]

METRICS: Mapping[Answer, str] = {
    "class": "accuracy",
    "choice": "accuracy",
    "token_classes": "token_accuracy",
    "span": "exact_match",
}
"""Kind of answer -> name of the share of right ones."""


def right_answers(answer: Answer, label: Label, outputs: Mapping[str, Array]) -> NDArray[np.bool_]:
    """Which answers of one sample are right.

    Args:
        answer: What the label says.
        label: The true answer, as `pipeline.data.sample_set.SampleEntry.label` has it.
        outputs: The sample's outputs by name, without batch axis and padding: `logits` (classes,),
            (choices,) or (sequence, classes); `start_logits` and `end_logits` (sequence,).

    Returns:
        One element for each answer that counts: tokens with a label, else the sample.
    """
    if answer == "span":
        found = best_span(outputs["start_logits"], outputs["end_logits"])
        return np.array([found == tuple(np.atleast_1d(label).tolist())])
    predicted = np.argmax(outputs["logits"], axis=-1)
    wanted = np.asarray(label)
    if answer == "token_classes":
        counted = wanted != NO_LABEL
        return np.asarray(predicted[counted] == wanted[counted])
    return np.atleast_1d(predicted == wanted)


def best_span(start: Array, end: Array) -> tuple[int, int]:
    """First and last token of the likeliest answer: the largest sum with start <= end.

    Args:
        start: float (sequence,), how likely each token is the first.
        end: The same of the last.
    """
    # Read from the right, the running maximum is the best end at or after each token.
    reversed_end = end[::-1].astype(np.float64)
    best_end = np.maximum.accumulate(reversed_end)[::-1]
    first = int(np.argmax(start.astype(np.float64) + best_end))
    return first, first + int(np.argmax(end[first:]))


class QualityTally:
    """Counts right answers of a candidate and of the reference, sample by sample.

    Args:
        answer: What labels say.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._samples = 0
        self._counts = np.zeros((2, 2), dtype=np.int64)

    def add(
        self, label: Label, candidate: Mapping[str, Array], reference: Mapping[str, Array]
    ) -> None:
        """Count one labelled sample; both mappings as in `right_answers`."""
        ours = right_answers(self._answer, label, candidate)
        theirs = right_answers(self._answer, label, reference)
        np.add.at(self._counts, (theirs.astype(int), ours.astype(int)), 1)
        self._samples += 1

    def result(self) -> Quality | None:
        """The figures; None when nothing was labelled."""
        (neither, gained), (lost, both) = self._counts.tolist()
        answers = neither + gained + lost + both
        if not answers:
            return None
        return Quality(
            metric=METRICS[self._answer],
            samples=self._samples,
            answers=answers,
            score=(gained + both) / answers,
            reference_score=(lost + both) / answers,
            drop=(lost - gained) / answers,
            gained=gained,
            lost=lost,
        )
