"""The tasks a recipe may ask for: which inputs, outputs and model class each stands for.

Read by the plan and the command line, so nothing heavy is imported here. Names, synonyms and the
names of inputs and outputs are Optimum's, so that software made for its exports loads ours.
Source: `optimum.exporters.tasks.TasksManager`, optimum 2.3.0.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from pipeline.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping

BATCH_AXIS: Final = "batch"
SEQUENCE_AXIS: Final = "sequence"
CHOICES_AXIS: Final = "num_choices"
PAST_AXIS: Final = "past_sequence"
"""Tokens that a decoder's cache holds already."""
TOTAL_AXIS: Final = "total_sequence"
"""Tokens of the cache and new ones together: what attention looks at."""
ENCODER_AXIS: Final = "encoder_sequence"
"""Tokens of the source that an encoder has read, as its decoder sees them."""
DERIVED_AXES: Final = frozenset({PAST_AXIS, TOTAL_AXIS, ENCODER_AXIS})
"""Axes that a recipe gives no sizes for, as they follow from the sequence and the cache."""
ENCODER: Final = "encoder"
DECODER: Final = "decoder"
SENTENCE_EMBEDDING: Final = "sentence_embedding"
"""The pooled output that checkpoints of sentence-transformers have besides the task's own."""

Modality: TypeAlias = Literal["text", "image", "audio"]
Answer: TypeAlias = Literal["class", "choice", "token_classes", "span"]
"""What the true answer of a sample is: one class; which of its choices; a class for each of its
tokens; the first and the last token of a passage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One input or output of a graph.

    Attributes:
        name: Its name in the graph.
        axes: The name of each free axis and the size of each fixed one, from the first on; axes
            beyond these have a fixed size.
        dtype: numpy's name of the element type that is fed; outputs are float32 throughout.
    """

    name: str
    axes: tuple[str | int, ...]
    dtype: Literal["int64", "float32"] = "int64"

    @property
    def named_axes(self) -> tuple[str, ...]:
        """Names of the free axes alone."""
        return tuple(axis for axis in self.axes if isinstance(axis, str))


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one graph of a model takes and gives, beside keys and values; fields as in `Task`."""

    inputs: tuple[TensorSpec, ...]
    required: tuple[str, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One task.

    Attributes:
        name: The name Optimum and the Hugging Face hub use.
        synonyms: Other names that mean the same.
        components: The graphs the model is cut into, in the order data flows through them.
        inputs: The inputs a model may take; those its `forward` does not know are left out.
        required: Those of them that every model of the task takes.
        outputs: Fields of the model's output, in the order of the graph's outputs.
        auto_class: The class of `transformers` that loads it.
        head_suffixes: How the class that the checkpoint was saved from must end; empty when the
            task needs no head and any will do.
        modality: What samples are made of, and so which of the checkpoint's files prepare them.
        columns: Column of the data that each field of a sample is read from unless the recipe says
            otherwise; the fields named here must be there.
        answer: What a label says; None when the task has none that could be counted.
        ranked: Outputs of which the place of the largest element is what users read.
        has_cache: It is a decoder, whose keys and values of every layer are inputs
            `past_key_values.N.key` and `.value`, and outputs `present.N.key` and `.value`. How many
            there are and how large is the model's, so they are not among `inputs` and `outputs`.
        parts: Of an encoder with a decoder, what each of the two takes and gives; empty for one
            graph. `inputs` are then those of the encoder and `outputs` those of the decoder.
    """

    name: str
    synonyms: tuple[str, ...]
    components: tuple[str, ...] = ("model",)
    inputs: tuple[TensorSpec, ...]
    required: tuple[str, ...]
    outputs: tuple[TensorSpec, ...]
    auto_class: str
    head_suffixes: tuple[str, ...] = ()
    modality: Modality = "text"
    columns: Mapping[str, str]
    answer: Answer | None = None
    ranked: tuple[str, ...] = ()
    has_cache: bool = False
    parts: Mapping[str, Part] = field(default_factory=dict)

    def part(self, component: str) -> Part:
        """What one of the components takes and gives."""
        whole = Part(inputs=self.inputs, required=self.required, outputs=self.outputs)
        return self.parts.get(component, whole)

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of all axes whose size a recipe chooses, the batch first."""
        specs = (spec for name in self.components for spec in self.part(name).inputs)
        named = (axis for spec in specs for axis in spec.named_axes)
        return tuple(axis for axis in dict.fromkeys(named) if axis not in DERIVED_AXES)


def _per_token(*names: str) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=name, axes=(BATCH_AXIS, SEQUENCE_AXIS)) for name in names)


_TEXT_INPUTS = _per_token("input_ids", "attention_mask", "token_type_ids")
_TEXT_REQUIRED = ("input_ids", "attention_mask")
_CHOICE_INPUTS = tuple(
    TensorSpec(name=spec.name, axes=(BATCH_AXIS, CHOICES_AXIS, SEQUENCE_AXIS))
    for spec in _TEXT_INPUTS
)
_DECODER_INPUTS = (
    *_per_token("input_ids"),
    TensorSpec(name="attention_mask", axes=(BATCH_AXIS, TOTAL_AXIS)),
    *_per_token("position_ids"),
)
_SOURCE_INPUTS = _per_token("input_ids", "attention_mask")
_SOUND_INPUTS = (TensorSpec(name="input_features", axes=(BATCH_AXIS,), dtype="float32"),)
_SOURCE_MASK = TensorSpec(name="encoder_attention_mask", axes=(BATCH_AXIS, ENCODER_AXIS))
_IMAGE_INPUTS = (TensorSpec(name="pixel_values", axes=(BATCH_AXIS,), dtype="float32"),)
_IMAGE_REQUIRED = ("pixel_values",)
_TEXT = {"text": "text"}
_IMAGE = {"image": "image"}

TASKS: Final[tuple[Task, ...]] = (
    Task(
        name="feature-extraction",
        synonyms=("default", "sentence-similarity"),
        inputs=_TEXT_INPUTS,
        required=_TEXT_REQUIRED,
        outputs=_per_token("last_hidden_state"),
        auto_class="AutoModel",
        columns=_TEXT,
    ),
    Task(
        name="text-classification",
        synonyms=("sequence-classification", "zero-shot-classification"),
        inputs=_TEXT_INPUTS,
        required=_TEXT_REQUIRED,
        outputs=(TensorSpec(name="logits", axes=(BATCH_AXIS,)),),
        auto_class="AutoModelForSequenceClassification",
        head_suffixes=("ForSequenceClassification",),
        columns=_TEXT,
        answer="class",
        ranked=("logits",),
    ),
    Task(
        name="token-classification",
        synonyms=(),
        inputs=_TEXT_INPUTS,
        required=_TEXT_REQUIRED,
        outputs=_per_token("logits"),
        auto_class="AutoModelForTokenClassification",
        head_suffixes=("ForTokenClassification",),
        columns=_TEXT,
        answer="token_classes",
        ranked=("logits",),
    ),
    Task(
        name="question-answering",
        synonyms=(),
        inputs=_TEXT_INPUTS,
        required=_TEXT_REQUIRED,
        outputs=_per_token("start_logits", "end_logits"),
        auto_class="AutoModelForQuestionAnswering",
        head_suffixes=("ForQuestionAnswering", "ForQuestionAnsweringSimple"),
        columns={"text": "question", "text_pair": "context"},
        answer="span",
        ranked=("start_logits", "end_logits"),
    ),
    Task(
        name="fill-mask",
        synonyms=("masked-lm",),
        inputs=_TEXT_INPUTS,
        required=_TEXT_REQUIRED,
        outputs=_per_token("logits"),
        auto_class="AutoModelForMaskedLM",
        head_suffixes=("ForMaskedLM", "ForPreTraining"),
        columns=_TEXT,
        ranked=("logits",),
    ),
    Task(
        name="text-generation",
        synonyms=("text-generation-with-past", "causal-lm"),
        inputs=_DECODER_INPUTS,
        required=tuple(spec.name for spec in _DECODER_INPUTS),
        outputs=_per_token("logits"),
        auto_class="AutoModelForCausalLM",
        head_suffixes=("ForCausalLM", "LMHeadModel"),
        columns=_TEXT,
        ranked=("logits",),
        has_cache=True,
    ),
    Task(
        name="text2text-generation",
        synonyms=("text2text-generation-with-past", "seq2seq-lm", "translation", "summarization"),
        components=(ENCODER, DECODER),
        inputs=_SOURCE_INPUTS,
        required=_TEXT_REQUIRED,
        outputs=_per_token("logits"),
        auto_class="AutoModelForSeq2SeqLM",
        head_suffixes=("ForConditionalGeneration", "MTModel", "LMHeadModel"),
        columns={"text": "text", "target": "target"},
        ranked=("logits",),
        has_cache=True,
        parts={
            ENCODER: Part(
                inputs=_SOURCE_INPUTS,
                required=_TEXT_REQUIRED,
                outputs=_per_token("last_hidden_state"),
            ),
            DECODER: Part(
                inputs=(*_per_token("input_ids"), _SOURCE_MASK),
                required=("input_ids", "encoder_attention_mask"),
                outputs=_per_token("logits"),
            ),
        },
    ),
    Task(
        name="automatic-speech-recognition",
        synonyms=("automatic-speech-recognition-with-past", "speech2seq-lm"),
        components=(ENCODER, DECODER),
        inputs=_SOUND_INPUTS,
        required=("input_features",),
        outputs=_per_token("logits"),
        auto_class="AutoModelForSpeechSeq2Seq",
        head_suffixes=("ForConditionalGeneration",),
        modality="audio",
        columns={"audio": "audio", "target": "text"},
        ranked=("logits",),
        has_cache=True,
        parts={
            ENCODER: Part(
                inputs=_SOUND_INPUTS,
                required=("input_features",),
                outputs=(TensorSpec(name="last_hidden_state", axes=(BATCH_AXIS,)),),
            ),
            # All of 30 seconds is always looked at, silence too, so there is no mask.
            DECODER: Part(
                inputs=_per_token("input_ids"),
                required=("input_ids",),
                outputs=_per_token("logits"),
            ),
        },
    ),
    Task(
        name="multiple-choice",
        synonyms=(),
        inputs=_CHOICE_INPUTS,
        required=_TEXT_REQUIRED,
        outputs=(TensorSpec(name="logits", axes=(BATCH_AXIS, CHOICES_AXIS)),),
        auto_class="AutoModelForMultipleChoice",
        head_suffixes=("ForMultipleChoice",),
        columns={"text": "text", "choices": "choices"},
        answer="choice",
        ranked=("logits",),
    ),
    Task(
        name="image-classification",
        synonyms=(),
        inputs=_IMAGE_INPUTS,
        required=_IMAGE_REQUIRED,
        outputs=(TensorSpec(name="logits", axes=(BATCH_AXIS,)),),
        auto_class="AutoModelForImageClassification",
        head_suffixes=("ForImageClassification", "ForImageClassificationWithTeacher"),
        modality="image",
        columns=_IMAGE,
        answer="class",
        ranked=("logits",),
    ),
    Task(
        name="image-feature-extraction",
        synonyms=(),
        inputs=_IMAGE_INPUTS,
        required=_IMAGE_REQUIRED,
        outputs=(TensorSpec(name="last_hidden_state", axes=(BATCH_AXIS,)),),
        auto_class="AutoModel",
        modality="image",
        columns=_IMAGE,
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
        RecipeError: when the checkpoint is of another modality, has a decoder, or has no head for
            the task.
    """
    architectures = config.get("architectures")
    names = [str(name) for name in architectures] if isinstance(architectures, list) else []
    saved_as = f"saved as {', '.join(names)}" if names else "of unknown class"
    sign = _SIGNS[task.modality]
    if not isinstance(config.get(sign), int):
        article = "a" if task.modality == "text" else "an"
        raise RecipeError(
            f"task `{task.name}` needs {article} {task.modality} model, but the checkpoint "
            f"({saved_as}) has no `{sign}` in config.json",
            hint=_tasks_that_fit(config),
        )
    is_pair = config.get("is_encoder_decoder") is True
    if is_pair and not task.parts:
        raise RecipeError(
            f"task `{task.name}` needs one encoder, but the checkpoint ({saved_as}) is an encoder "
            "with a decoder",
            hint=_tasks_that_fit(config),
        )
    if task.parts and not is_pair:
        raise RecipeError(
            f"task `{task.name}` needs an encoder with a decoder, but config.json of the checkpoint "
            f"({saved_as}) says no `is_encoder_decoder: true`",
            hint=_tasks_that_fit(config),
        )
    if task.modality == "text" and task.parts and _hears(config):
        raise RecipeError(
            f"task `{task.name}` reads texts, but the checkpoint ({saved_as}) listens",
            hint=_tasks_that_fit(config),
        )
    if task.head_suffixes and not any(name.endswith(task.head_suffixes) for name in names):
        valid = " or ".join(f"...{suffix}" for suffix in task.head_suffixes)
        raise RecipeError(
            f"task `{task.name}` needs a checkpoint saved as {valid}, but this one is {saved_as}: "
            "its head would have random weights",
            hint=_tasks_that_fit(config),
        )


_SIGNS: Final[Mapping[Modality, str]] = {
    "text": "vocab_size",
    "image": "num_channels",
    "audio": "num_mel_bins",
}
"""What every `config.json` of a model for this kind of input has."""


def _hears(config: Mapping[str, object]) -> bool:
    return isinstance(config.get(_SIGNS["audio"]), int)


def fitting_tasks(config: Mapping[str, object]) -> tuple[Task, ...]:
    """The tasks that a checkpoint can be converted for, those with a head of their own first."""
    architectures = config.get("architectures")
    names = [str(name) for name in architectures] if isinstance(architectures, list) else []
    found = [
        task
        for task in TASKS
        if isinstance(config.get(_SIGNS[task.modality]), int)
        and (config.get("is_encoder_decoder") is True) == bool(task.parts)
        and not (task.modality == "text" and task.parts and _hears(config))
        and (not task.head_suffixes or any(name.endswith(task.head_suffixes) for name in names))
    ]
    return tuple(sorted(found, key=lambda task: not task.head_suffixes))


def _tasks_that_fit(config: Mapping[str, object]) -> str:
    fitting = [task.name for task in fitting_tasks(config)]
    return f"tasks that fit this checkpoint: {', '.join(fitting)}" if fitting else ""
