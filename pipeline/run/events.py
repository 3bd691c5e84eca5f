"""What an execution tells the outside while it goes on: plain values, rendered by the CLI."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeHit:
    """A node's result was in the store."""

    node: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStarted:
    """A node must run, and its process has started."""

    node: int
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeProgress:
    """A running node is `done` of `total` `unit` far."""

    node: int
    done: int
    total: int
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeWaiting:
    """Another process is making the same result; this one waits for it."""

    node: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFinished:
    """A node ran and its result is filed."""

    node: int
    wall_time_s: float
    peak_rss_mib: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFailed:
    """A node failed; nothing was filed."""

    node: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSkipped:
    """A node was not tried, because one that it needs failed."""

    node: int
    because: int


Event: TypeAlias = (
    NodeHit | NodeStarted | NodeProgress | NodeWaiting | NodeFinished | NodeFailed | NodeSkipped
)
Listener: TypeAlias = "Callable[[Event], None]"
