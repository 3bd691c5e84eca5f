"""What a model answers, and whether that is the true answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.data.sample_set import NO_LABEL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.data.sample_set import Label
    from pipeline.tasks import Answer

Array: TypeAlias = NDArray[Any]


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
