"""Which columns a task reads: its own names, or those that the recipe gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from pipeline.data.prepare.base import Fields
from pipeline.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.tasks import Task


class _Columns(Protocol):
    @property
    def text(self) -> str | None: ...
    @property
    def text_pair(self) -> str | None: ...
    @property
    def choices(self) -> str | tuple[str, ...] | None: ...
    @property
    def image(self) -> str | None: ...
    @property
    def audio(self) -> str | None: ...
    @property
    def target(self) -> str | None: ...
    @property
    def label(self) -> str | None: ...


PAIR_TASKS: Final = frozenset(
    {"feature-extraction", "text-classification", "fill-mask", "multiple-choice"}
)
"""Tasks that take a second text when the recipe names a column for it."""


def pick_fields(task: Task, columns: _Columns) -> Fields:
    """The columns that hold the fields of a task's samples.

    Args:
        task: The task.
        columns: The recipe's `data.evaluation` or `data.calibration`, or a stage's config.

    Raises:
        RecipeError: a column is named for something that the task does not read.
    """
    given: dict[str, str | tuple[str, ...] | None] = {
        "text": columns.text,
        "text_pair": columns.text_pair,
        "choices": columns.choices,
        "image": columns.image,
        "audio": columns.audio,
        "target": columns.target,
    }
    readable = {*task.columns, *({"text_pair"} if task.name in PAIR_TASKS else ())}
    for name, column in given.items():
        if column is not None and name not in readable:
            raise RecipeError(
                f"`{name}` is `{_shown(column)}`, and task `{task.name}` reads no `{name}`",
                hint=f"it reads: {', '.join(sorted(readable))}",
            )
    if columns.label is not None and task.answer is None:
        raise RecipeError(
            f"`label` is `{columns.label}`, and task `{task.name}` has no answers that could be "
            "right or wrong",
            hint="leave `label` out",
        )
    chosen: Mapping[str, str | tuple[str, ...] | None] = {
        name: column if column is not None else task.columns.get(name)
        for name, column in given.items()
    }
    return Fields(
        text=_one(chosen["text"]),
        text_pair=_one(chosen["text_pair"]),
        choices=chosen["choices"],
        image=_one(chosen["image"]),
        audio=_one(chosen["audio"]),
        target=_one(chosen["target"]),
        label=columns.label,
    )


def _one(column: str | tuple[str, ...] | None) -> str | None:
    return column if isinstance(column, str) else None


def _shown(column: str | tuple[str, ...]) -> str:
    return column if isinstance(column, str) else ", ".join(column)
