"""Which figures there are for which task; light, because the plan reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.tasks import Answer, Task

OF_ANSWERS: Final[Mapping[Answer, tuple[str, ...]]] = {
    "class": ("accuracy", "top5_accuracy", "f1_macro"),
    "choice": ("accuracy",),
    "token_classes": ("token_accuracy", "f1_macro", "f1_entity"),
    "span": ("exact_match", "f1_span"),
}
"""Kind of answer -> its figures; the first one is what `score` and `drop` of a recipe limit."""

OF_EMBEDDINGS: Final = ("spearman", "recall_at_1", "recall_at_10")
"""Figures of embeddings; they need no label, for the checkpoint's own similarities are the truth."""

EMBEDDINGS: Final = ("sentence_embedding", "last_hidden_state")
"""Outputs that are embeddings, the better one first."""

TOP: Final = 5
"""Of so many classes or fewer the right one is always among the likeliest."""


def metric_names(task: Task) -> tuple[str, ...]:
    """Names of the figures that a task may have; which of them it has the data decide."""
    if task.answer is not None:
        return OF_ANSWERS[task.answer]
    outputs = {spec.name for spec in task.outputs}
    return OF_EMBEDDINGS if outputs & set(EMBEDDINGS) else ()


def why_impossible(metric: str, config: Mapping[str, object]) -> str:
    """Why no sample could give a figure of the task; empty when some may.

    Args:
        metric: One of `metric_names(task)`.
        config: The checkpoint's `config.json`, which may name its classes.
    """
    names = config.get("id2label")
    if not isinstance(names, dict):
        return ""
    if metric == "top5_accuracy" and len(names) <= TOP:
        return f"it says nothing of {len(names)} classes"
    if metric == "f1_entity" and not any(str(name).startswith("B-") for name in names.values()):
        return "no class of the checkpoint begins an entity, as `B-PER` does"
    return ""
