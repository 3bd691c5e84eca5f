"""How nodes come out of an execution: plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.planning import Node
    from pipeline.store import StageRecord


@dataclass(frozen=True, kw_only=True)
class NodeFailure:
    """Why a node failed."""

    message: str
    hint: str = ""
    where: str = ""
    signal: str = ""
    exit_code: int = 3
    last_lines: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """What failed and where, such as `test.jsonl:12: ...`."""
        return f"{self.where}: {self.message}" if self.where else self.message


@dataclass(frozen=True, kw_only=True)
class NodeOutcome:
    """How one node came out of an execution.

    Attributes:
        record: Its result; None when it failed or was skipped.
        has_run: It ran in this execution, with or without success.
        reasons: Why it had to run, or which failed node it waited for.
    """

    node: Node
    record: StageRecord | None
    has_run: bool
    reasons: tuple[str, ...] = ()
    failure: NodeFailure | None = None
