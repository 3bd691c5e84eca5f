"""A stage context for tests: it remembers what it was told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class RecordingContext:
    scratch: Path
    threads: int = 1
    resumable: Path | None = None
    steps: list[tuple[int, int, str]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def progress(self, done: int, total: int, unit: str) -> None:
        self.steps.append((done, total, unit))

    def log(self, message: str) -> None:
        self.lines.append(message)
