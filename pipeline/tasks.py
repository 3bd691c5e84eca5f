"""The tasks a recipe may ask for: which inputs, outputs and model class each stands for.

Read by the plan and the command line, so nothing heavy is imported here. Names, synonyms and the
names of inputs and outputs are Optimum's, so that software made for its exports loads ours.
Source: `optimum.exporters.tasks.TasksManager`, optimum 2.3.0.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pipeline.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping

BATCH_AXIS: Final = "batch"
SEQUENCE_AXIS: Final = "sequence"
SENTENCE_EMBEDDING: Final = "sentence_embedding"
"""The pooled output that checkpoints of sentence-transformers have besides the task's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One input or output of a graph.

    Attributes:
        name: Its name in the graph.
        axes: The name of each axis from the first on; axes beyond these have a fixed size.
    """

    name: str
    axes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One task.

    Attributes:
        name: The name Optimum and the Hugging Face hub use.
        synonyms: Other names that mean the same.
        components: The graphs the model is cut into, in the order data flows through them.
        inputs: The inputs a model may take; those its `forward` does not know are left out.
        outputs: Fields of the model's output, in the order of the graph's outputs.
        auto_class: The class of `transformers` that loads it.
        head_suffixes: How the class that the checkpoint was saved from must end; empty when the
            task needs no head and any will do.
    """

    name: str
    synonyms: tuple[str, ...]
    components: tuple[str, ...] = ("model",)
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    auto_class: str
    head_suffixes: tuple[str, ...] = ()


def _per_token(*names: str) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=name, axes=(BATCH_AXIS, SEQUENCE_AXIS)) for name in names)


_TEXT_INPUTS = _per_token("input_ids", "attention_mask", "token_type_ids")

TASKS: Final[tuple[Task, ...]] = (
    Task(
        name="feature-extraction",
        synonyms=("default", "sentence-similarity"),
        inputs=_TEXT_INPUTS,
        outputs=_per_token("last_hidden_state"),
        auto_class="AutoModel",
    ),
    Task(
        name="text-classification",
        synonyms=("sequence-classification", "zero-shot-classification"),
        inputs=_TEXT_INPUTS,
        outputs=(TensorSpec(name="logits", axes=(BATCH_AXIS,)),),
        auto_class="AutoModelForSequenceClassification",
        head_suffixes=("ForSequenceClassification",),
    ),
    Task(
        name="token-classification",
        synonyms=(),
        inputs=_TEXT_INPUTS,
        outputs=_per_token("logits"),
        auto_class="AutoModelForTokenClassification",
        head_suffixes=("ForTokenClassification",),
    ),
    Task(
        name="question-answering",
        synonyms=(),
        inputs=_TEXT_INPUTS,
        outputs=_per_token("start_logits", "end_logits"),
        auto_class="AutoModelForQuestionAnswering",
        head_suffixes=("ForQuestionAnswering", "ForQuestionAnsweringSimple"),
    ),
    Task(
        name="fill-mask",
        synonyms=("masked-lm",),
        inputs=_TEXT_INPUTS,
        outputs=_per_token("logits"),
        auto_class="AutoModelForMaskedLM",
        head_suffixes=("ForMaskedLM", "ForPreTraining"),
    ),
)


def find_task(name: str) -> Task:
    """The task of this name, or of which this is a synonym.

    Raises:
        RecipeError: when there is none; names the nearest one and the valid set.
    """
    by_name = {known: task for task in TASKS for known in (task.name, *task.synonyms)}
    if name in by_name:
        return by_name[name]
    nearest = difflib.get_close_matches(name, by_name, n=1)
    question = f" - did you mean `{nearest[0]}`?" if nearest else ""
    valid = ", ".join(task.name for task in TASKS)
    raise RecipeError(f"task `{name}` is not known{question}", hint=f"use one of: {valid}")


def check_task(config: Mapping[str, object], task: Task) -> None:
    """Refuse a task that the checkpoint was not saved for; knows no architecture by its name.

    Args:
        config: The checkpoint's `config.json`.
        task: What the recipe asks for.

    Raises:
        RecipeError: when the checkpoint is not an encoder of text, or has no head for the task.
    """
    architectures = config.get("architectures")
    names = [str(name) for name in architectures] if isinstance(architectures, list) else []
    saved_as = f"saved as {', '.join(names)}" if names else "of unknown class"
    if not isinstance(config.get("vocab_size"), int):
        raise RecipeError(
            f"task `{task.name}` needs a text model, but the checkpoint ({saved_as}) has no "
            "`vocab_size` in config.json"
        )
    if config.get("is_encoder_decoder") is True:
        raise RecipeError(
            f"task `{task.name}` needs one encoder, but the checkpoint ({saved_as}) is an encoder "
            "with a decoder"
        )
    if task.head_suffixes and not any(name.endswith(task.head_suffixes) for name in names):
        valid = " or ".join(f"...{suffix}" for suffix in task.head_suffixes)
        raise RecipeError(
            f"task `{task.name}` needs a checkpoint saved as {valid}, but this one is {saved_as}: "
            "its head would have random weights",
            hint=_tasks_that_fit(names),
        )


def _tasks_that_fit(names: list[str]) -> str:
    fitting = [
        task.name
        for task in TASKS
        if not task.head_suffixes or any(name.endswith(task.head_suffixes) for name in names)
    ]
    return f"tasks that fit this checkpoint: {', '.join(fitting)}"
