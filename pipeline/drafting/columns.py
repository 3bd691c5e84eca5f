"""Which columns of a data set hold what, by the names that data sets usually give them.

A name that is not clear is an error, never a guess: labels of the wrong column would make every
figure wrong and no gate would notice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pipeline.data.fields import PAIR_TASKS
from pipeline.data.rows import listed
from pipeline.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.tasks import Task

Tiers = tuple[tuple[str, ...], ...]
"""Names by rank: one of an earlier row wins over those of later rows; two of one row are unclear."""

PAIRS: Final = (
    ("text", "text_pair"),
    ("text1", "text2"),
    ("sentence1", "sentence2"),
    ("sent1", "sent2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("query", "passage"),
)
"""Columns of two texts that are read together, as GLUE, SNLI, SWAG and MS MARCO name them."""

_ONE_TEXT: Tiers = (
    ("text",),
    (
        "sentence",
        "review",
        "content",
        "comment",
        "tweet",
        "document",
        "body",
        "message",
        "utterance",
        "query",
        "question",
        "passage",
        "abstract",
        "headline",
        "title",
    ),
    tuple(dict.fromkeys(first for first, _ in PAIRS)),
)
_CLASS: Tiers = (
    ("label", "labels"),
    ("target", "class", "category", "sentiment", "intent", "topic", "gold_label"),
)

TEXT: Final[Mapping[str, Tiers]] = {
    "token-classification": (("tokens", "words"), ("text",), ("sentence",)),
    "question-answering": (("question",), ("query",)),
    "multiple-choice": (("text",), ("question",), ("query", "premise", "ctx", "sentence")),
    "text2text-generation": (
        ("text",),
        ("source", "src", "input", "document", "article", "dialogue", "question", "sentence"),
    ),
}
"""Task -> names of its text; the other tasks take `_ONE_TEXT`."""
PASSAGE: Final[Tiers] = (("context",), ("passage", "paragraph", "document"))
CHOICES: Final[Tiers] = (("choices",), ("options", "endings", "candidates"))
IMAGE: Final[Tiers] = (
    ("image",),
    ("img", "picture", "photo"),
    ("file_name", "filename", "image_path", "path", "file"),
)
AUDIO: Final[Tiers] = (
    ("audio",),
    ("sound", "speech", "wav"),
    ("file_name", "filename", "audio_path", "path", "file"),
)
TARGET: Final[Mapping[str, Tiers]] = {
    "text2text-generation": (
        ("target",),
        ("summary", "highlights", "translation", "tgt", "output", "response", "answer"),
    ),
    "automatic-speech-recognition": (
        ("text",),
        ("transcription", "transcript", "sentence", "normalized_text", "target"),
    ),
}
"""Task -> names of the text that is to be written."""
LABEL: Final[Mapping[str, Tiers]] = {
    "class": _CLASS,
    "token_classes": (("ner_tags", "tags"), ("labels", "label"), ("pos_tags",)),
    "span": (("answers",), ("answer",), ("label",)),
    "choice": (("label", "labels"), ("answer", "target"), ("answer_idx", "answer_index")),
}
"""Kind of answer -> names of the true one."""

_NUMBERED = re.compile(r"(ending|choice|option|answer)[_ ]?(\d+)", re.IGNORECASE)
"""One column for each choice, as SWAG (`ending0`) and COPA (`choice1`) have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnOptions:
    """The columns that the user names; None for those that are to be found.

    Attributes:
        has_labels: False: labels are left out, though there may be a column with them.
    """

    text: str | None = None
    text_pair: str | None = None
    choices: tuple[str, ...] = ()
    image: str | None = None
    audio: str | None = None
    target: str | None = None
    label: str | None = None
    has_labels: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which column holds what, as `data` of a recipe says it; None for what is not used."""

    text: str | None = None
    text_pair: str | None = None
    choices: str | tuple[str, ...] | None = None
    image: str | None = None
    audio: str | None = None
    target: str | None = None
    label: str | None = None


def find_columns(task: Task, present: Sequence[str], given: ColumnOptions, where: str) -> Columns:
    """The columns that a task reads of a table.

    Args:
        task: What samples are for.
        present: All columns of the table.
        given: What the user says of them.
        where: The table, for messages.

    Raises:
        RecipeError: a column is not there, or it is not clear which one is meant.
    """
    finder = _Finder(task, present, given, where)
    text, text_pair = finder.find_texts()
    return Columns(
        text=text,
        text_pair=text_pair,
        choices=finder.find_choices(),
        image=finder.find_image(),
        audio=finder.find_audio(),
        target=finder.find_target(),
        label=finder.find_label(),
    )


class _Finder:
    def __init__(
        self, task: Task, present: Sequence[str], given: ColumnOptions, where: str
    ) -> None:
        self._task = task
        self._given = given
        self._where = where
        self._present = present
        self._by_folded = {name.casefold(): name for name in present}
        self._require_options()

    def find_texts(self) -> tuple[str | None, str | None]:
        task, given = self._task, self._given
        if "text" not in task.columns:
            return None, None
        if task.name == "question-answering":
            passage = given.text_pair or self._must_find(PASSAGE, "passage", "--text-pair")
            return given.text or self._must_find(TEXT[task.name], "question", "--text"), passage
        if given.text is not None:
            return given.text, given.text_pair
        pair = self._find_pair()
        if pair is not None and given.text_pair is None:
            return pair
        tiers = TEXT.get(task.name, _ONE_TEXT)
        return self._must_find(tiers, "text", "--text"), given.text_pair

    def find_choices(self) -> str | tuple[str, ...] | None:
        if "choices" not in self._task.columns:
            return None
        if self._given.choices:
            return self._given.choices[0] if len(self._given.choices) == 1 else self._given.choices
        found = self._find(CHOICES, "choices", "--choices")
        numbered = self._numbered_choices()
        if found is None and len(numbered) > 1:
            return numbered
        return found or self._must_find(CHOICES, "choices", "--choices")

    def find_image(self) -> str | None:
        if "image" not in self._task.columns:
            return None
        return self._given.image or self._must_find(IMAGE, "image", "--image")

    def find_audio(self) -> str | None:
        if "audio" not in self._task.columns:
            return None
        return self._given.audio or self._must_find(AUDIO, "sound", "--audio")

    def find_target(self) -> str | None:
        if "target" not in self._task.columns:
            return None
        tiers = TARGET[self._task.name]
        return self._given.target or self._must_find(tiers, "text to write", "--target-text")

    def find_label(self) -> str | None:
        if self._task.answer is None or not self._given.has_labels:
            return None
        return self._given.label or self._find(LABEL[self._task.answer], "label", "--label")

    def _find_pair(self) -> tuple[str, str] | None:
        """Both columns of a usual pair, for tasks that judge two texts together."""
        if self._task.name not in PAIR_TASKS or self._task.answer is None:
            return None
        folded = self._by_folded
        found = [
            (folded[first], folded[second])
            for first, second in PAIRS
            if first in folded and second in folded
        ]
        if len(found) > 1:
            pairs = " and ".join(f"`{first}`, `{second}`" for first, second in found)
            raise self._error(f"more than one pair of columns may be the texts: {pairs}", "--text")
        return found[0] if found else None

    def _numbered_choices(self) -> tuple[str, ...]:
        groups: dict[str, list[tuple[int, str]]] = {}
        for name in self._present:
            match = _NUMBERED.fullmatch(name)
            if match:
                groups.setdefault(match[1].casefold(), []).append((int(match[2]), name))
        if len(groups) > 1:
            raise self._error("more than one group of columns may be the choices", "--choices")
        return tuple(name for group in groups.values() for _, name in sorted(group))

    def _find(self, tiers: Tiers, what: str, option: str) -> str | None:
        for tier in tiers:
            found = [self._by_folded[name] for name in tier if name in self._by_folded]
            if len(found) > 1:
                raise self._error(
                    f"the {what} may be in {' or '.join(map(_quoted, found))}", option
                )
            if found:
                return found[0]
        return None

    def _must_find(self, tiers: Tiers, what: str, option: str) -> str:
        found = self._find(tiers, what, option)
        if found is None:
            usual = listed(name for tier in tiers for name in tier)
            raise self._error(
                f"no column has a usual name of the {what} ({usual}), which task "
                f"`{self._task.name}` reads",
                option,
            )
        return found

    def _require_options(self) -> None:
        """Columns that the user names must be there, and be read by the task."""
        task, given = self._task, self._given
        readable = {*task.columns, *({"text_pair"} if task.name in PAIR_TASKS else ())}
        named: dict[str, Sequence[str]] = {
            "text": (given.text,) if given.text else (),
            "text_pair": (given.text_pair,) if given.text_pair else (),
            "choices": given.choices,
            "image": (given.image,) if given.image else (),
            "audio": (given.audio,) if given.audio else (),
            "target": (given.target,) if given.target else (),
        }
        for field, columns in named.items():
            option = "--target-text" if field == "target" else f"--{field.replace('_', '-')}"
            if columns and field not in readable:
                raise RecipeError(
                    f"task `{task.name}` reads no `{field}`",
                    where=option,
                    hint=f"it reads: {', '.join(sorted(readable))}",
                )
            for column in columns:
                self._require(column, option)
        if given.label is not None:
            if task.answer is None:
                raise RecipeError(
                    f"task `{task.name}` has no answers that could be right or wrong",
                    where="--label",
                    hint="leave `--label` out",
                )
            self._require(given.label, "--label")

    def _require(self, column: str, option: str) -> None:
        if column not in self._present:
            raise self._error(f"there is no column `{column}`", option)

    def _error(self, message: str, option: str) -> RecipeError:
        leave_out = ", or --no-labels" if option == "--label" else ""
        return RecipeError(
            f"{message}; the columns are: {listed(self._present)}",
            where=self._where,
            hint=f"say which one it is: {option} COLUMN{leave_out}",
        )


def _quoted(name: str) -> str:
    return f"`{name}`"
