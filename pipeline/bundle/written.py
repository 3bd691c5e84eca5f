"""What every export returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from pathlib import Path

Model = TypeVar("Model", covariant=True)  # noqa: PLC0105 - it is read only


@dataclass(frozen=True, slots=True, kw_only=True)
class Export(Generic[Model]):
    """What was written.

    Attributes:
        directory: Where it lies.
        artifact: Which one it is of, as `name/version`.
        models: What was made of the targets, a dataclass each, whose fields are told in their order.
        notes: What was left out, or is not as one may think, a sentence each.
    """

    directory: Path
    artifact: str
    models: tuple[Model, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedModel:
    """One folder that a program loaded which generates text.

    Attributes:
        target: Name of the target and of the folder.
        trial: What came of it, a sentence; empty when it was not tried.
    """

    target: str
    precision: str
    trial: str
