"""The contract of preparation: a row goes in, tensors and a label come out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from pipeline.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from PIL import Image

    from pipeline.data.labels import Classes
    from pipeline.data.rows import Row
    from pipeline.data.sample_set import InputSpec, Label, Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """Which column holds what; None for what is not used."""

    text: str | None = None
    text_pair: str | None = None
    choices: str | tuple[str, ...] | None = None
    image: str | None = None
    audio: str | None = None
    target: str | None = None
    label: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are used, each once."""
        choices = (self.choices,) if isinstance(self.choices, str) else self.choices or ()
        named = (
            *(self.text, self.text_pair, *choices, self.image),
            *(self.audio, self.target, self.label),
        )
        return tuple(dict.fromkeys(name for name in named if name is not None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What preparation needs to know.

    Attributes:
        checkpoint: Directory of the tokenizer's or image processor's files and `config.json`.
        data: Directory that paths of images and sounds are relative to; None for built-in sources.
        fields: Which column holds what.
        max_length: Longest sample, tokens; 0 for images.
        num_choices: Most choices of a question; 0 for other tasks.
        classes: The checkpoint's classes; None when labels are of another kind, or not read.
        start: Token with which a decoder behind an encoder begins; None for other models.
    """

    checkpoint: Path
    data: Path | None
    fields: Fields
    max_length: int
    num_choices: int
    classes: Classes | None
    start: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """One sample.

    Attributes:
        tensors: By input name, without a batch axis.
        text: What it is, for people.
        extents: Size of each named axis.
        label: The true answer, None when it has none.
        is_cut: It was too long, and something is left out of it.
        unlabelled_because: Why it has no label though its row has one; empty otherwise.
        picture: What it looks like, small.
    """

    tensors: Mapping[str, Tensor]
    text: str
    extents: Mapping[str, int] = field(default_factory=dict)
    label: Label | None = None
    is_cut: bool = False
    unlabelled_because: str = ""
    picture: Image.Image | None = None


class Preparation(Protocol):
    """Rows to samples of one task."""

    @property
    def inputs(self) -> Mapping[str, InputSpec]:
        """By name, the inputs of every sample; known after the first one at the latest."""

    @property
    def notes(self) -> Mapping[str, str | None]:
        """What the stage's facts say of the checkpoint's files, such as the padding token."""

    def prepare(self, row: Row) -> Prepared:
        """The sample of a row.

        Raises:
            StageError: when the row does not hold what the task needs.
        """


def read_text(row: Row, column: str) -> str:
    """The text in a column.

    Raises:
        StageError: when it is no text, or there is nothing in it.
    """
    value = row.values[column]
    if value is None or value == "":
        raise StageError(
            f"column `{column}` is empty",
            where=row.where,
            hint="leave the row out, or write a text into it",
        )
    if not isinstance(value, str):
        raise StageError(
            f"column `{column}` holds {describe(value)}, a text is needed",
            where=row.where,
            hint=_text_hint(value),
        )
    if not value.strip():
        raise StageError(
            f"the text in column `{column}` is blank",
            where=row.where,
            hint="leave the row out, or write a text into it",
        )
    return value


def _text_hint(value: object) -> str:
    """How a conversation becomes a text, which is what chat data hold; nothing for other values."""
    turns = value if isinstance(value, list | tuple) else ()
    if not turns or not all(isinstance(turn, dict) and "role" in turn for turn in turns):
        return ""
    return (
        "a conversation is compared as the text that the model sees: write that into a column, made "
        "with `tokenizer.apply_chat_template(messages, tokenize=False)` of transformers"
    )


def describe(value: object) -> str:
    """A value of the wrong kind, for a message."""
    shown = repr(value)
    if len(shown) > 60:
        shown = f"{shown[:57]}..."
    kinds = {
        bool: "the truth value",
        int: "the number",
        float: "the number",
        str: "the text",
        list: "the list",
        dict: "the object",
        bytes: "the bytes",
    }
    return f"{kinds.get(type(value), type(value).__name__)} `{shown}`"
