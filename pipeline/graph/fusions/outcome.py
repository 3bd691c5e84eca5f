"""What a fusion did: how often it fired, and why it did not where it might have."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.hashing import JSON


class Refused(Exception):
    """A candidate does not fulfil a condition of the fusion; the text is the reason.

    Never leaves the package: it becomes a `Refusal`.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One candidate that was left as it was.

    Attributes:
        node: Name of the candidate node, or of its first output when it has no name.
        reason: One sentence without a full stop.
    """

    node: str
    reason: str


@dataclass(slots=True, kw_only=True)
class Outcome:
    """Counts of one fusion over one graph.

    Attributes:
        fired: How many times the graph was rewritten.
        refused: The candidates that were left, in graph order.
    """

    fired: int = 0
    refused: list[Refusal] = field(default_factory=list)

    @property
    def found(self) -> int:
        """How many candidates there were."""
        return self.fired + len(self.refused)

    def as_json(self) -> dict[str, JSON]:
        """The outcome as facts of a stage."""
        return {
            "fired": self.fired,
            "refused": [{"node": item.node, "reason": item.reason} for item in self.refused],
        }
