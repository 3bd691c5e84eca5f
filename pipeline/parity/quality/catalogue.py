"""Which meters a task gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.parity.quality.meters import (
    EntityF1,
    MacroF1,
    Meter,
    RightAnswers,
    SpanOverlap,
    TopAnswers,
)
from pipeline.parity.quality.names import EMBEDDINGS, OF_ANSWERS, OF_EMBEDDINGS, metric_names
from pipeline.parity.quality.similarity import NeighbourRecall, RankCorrelation, Similarities

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from pipeline.tasks import Answer, Task


def meters_of(task: Task, outputs: Collection[str], label_names: Sequence[str]) -> list[Meter]:
    """A meter for each figure of `metric_names(task)`, in that order.

    Args:
        task: The task.
        outputs: The outputs that the reference has.
        label_names: Name of each class; empty when there are none.
    """
    if task.answer is not None:
        return [_of_answers(name, task.answer, label_names) for name in OF_ANSWERS[task.answer]]
    embedding = next((name for name in EMBEDDINGS if name in outputs), None)
    if embedding is None or not metric_names(task):
        return []
    similarities = Similarities(embedding)
    spearman, *recalls = OF_EMBEDDINGS
    return [
        RankCorrelation(spearman, similarities),
        *(NeighbourRecall(name, similarities, int(name.rpartition("_")[2])) for name in recalls),
    ]


def _of_answers(name: str, answer: Answer, label_names: Sequence[str]) -> Meter:
    match name:
        case "top5_accuracy":
            return TopAnswers(name)
        case "f1_macro":
            return MacroF1(name)
        case "f1_entity":
            return EntityF1(name, label_names)
        case "f1_span":
            return SpanOverlap(name)
        case _:
            return RightAnswers(name, answer)
