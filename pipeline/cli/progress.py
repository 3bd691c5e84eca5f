"""What is shown while a plan is executed: a live tree on a terminal, plain lines elsewhere.

Everything goes to standard error. Without a terminal each event is one line, and a heartbeat tells
that long work goes on, so that CI systems do not take it for dead.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from typing import TYPE_CHECKING, Protocol, Self

from pipeline.run.events import (
    NodeFailed,
    NodeFinished,
    NodeHit,
    NodeProgress,
    NodeSkipped,
    NodeStarted,
    NodeWaiting,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console, RenderableType

    from pipeline.planning import Plan
    from pipeline.run.events import Event

HEARTBEAT_S = 15.0


class Progress(Protocol):
    """Something that shows what happens."""

    def begin(self, plan: Plan) -> None:
        """The plan is known."""

    def listen(self, event: Event) -> None:
        """Something happened; called from several threads."""

    def log(self, node: int, line: str) -> None:
        """A stage logged a line; called from several threads."""


@contextlib.contextmanager
def make_progress(*, is_quiet: bool, is_verbose: bool) -> Iterator[Progress]:
    """The progress display that fits where standard error goes."""
    if is_quiet:
        yield _Silent()
    elif sys.stderr.isatty() and not is_verbose:
        with _Live() as live:
            yield live
    else:
        with _Plain() as plain:
            yield plain


class _Silent:
    """Shows nothing."""

    def begin(self, plan: Plan) -> None:
        pass

    def listen(self, event: Event) -> None:
        pass

    def log(self, node: int, line: str) -> None:
        pass


class _Plain:
    """One line an event, and a heartbeat."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._started: dict[int, float] = {}
        self._progress: dict[int, str] = {}
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._last_line_s = time.monotonic()
        self._heart = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._heart.join()

    def begin(self, plan: Plan) -> None:
        self._names = [node.name for node in plan.nodes]

    def _print(self, line: str) -> None:
        with self._lock:
            self._last_line_s = time.monotonic()
            sys.stderr.write(line + "\n")
            sys.stderr.flush()

    def _beat(self) -> None:
        while not self._is_over.wait(1.0):
            if self._started and time.monotonic() - self._last_line_s > HEARTBEAT_S:
                now = time.monotonic()
                going = [
                    f"{self._names[node]} {now - since:.0f} s{self._progress.get(node, '')}"
                    for node, since in list(self._started.items())
                ]
                self._print("  ...  " + ", ".join(going))

    def log(self, node: int, line: str) -> None:
        self._print(f"   |   {self._names[node]}: {line}")

    def listen(self, event: Event) -> None:
        name = self._names[event.node]
        if isinstance(event, NodeHit):
            return
        if isinstance(event, NodeProgress):
            self._progress[event.node] = f" ({event.done}/{event.total} {event.unit})"
            return
        if isinstance(event, NodeStarted):
            self._started[event.node] = time.monotonic()
            self._print(f"  run  {name}")
        elif isinstance(event, NodeWaiting):
            self._print(f" wait  {name}: another process is making it")
        else:
            self._started.pop(event.node, None)
            self._print(_ending_line(event, name))


def _ending_line(event: Event, name: str) -> str:
    if isinstance(event, NodeFinished):
        return f" done  {name}  {event.wall_time_s:.1f} s, {event.peak_rss_mib:.0f} MiB"
    if isinstance(event, NodeFailed):
        return f"FAILED {name}: {event.message}"
    return f" skip  {name}"


class _Live:
    """A table of all nodes that is drawn anew four times a second."""

    def __init__(self) -> None:
        self._plan: Plan | None = None
        self._events: dict[int, Event] = {}
        self._started: dict[int, float] = {}
        self._stack = contextlib.ExitStack()
        self._console: Console | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def begin(self, plan: Plan) -> None:
        self._plan = plan

    def log(self, node: int, line: str) -> None:
        pass

    def listen(self, event: Event) -> None:
        self._events[event.node] = event
        if isinstance(event, NodeStarted):
            self._started[event.node] = time.monotonic()
            self._show()

    def _show(self) -> None:
        """Start drawing with the first node that runs: when all is up to date there is no need."""
        if self._console is not None:
            return
        from rich.console import Console
        from rich.live import Live

        self._console = Console(stderr=True)
        self._stack.enter_context(
            Live(
                console=self._console,
                get_renderable=self._render,
                refresh_per_second=4,
                transient=False,
            )
        )

    def _render(self) -> RenderableType:
        from rich.tree import Tree

        assert self._plan is not None
        root = Tree(f"[bold]{self._plan.recipe.name}[/bold]")
        branches: dict[int, Tree] = {}
        for node in self._plan.nodes:
            parents = node.parents()
            # Under the parent that comes last, so that a node stands below what it waits for.
            parent = branches.get(parents[0], root) if parents else root
            branches[node.index] = parent.add(self._line(node.index))
        return root

    def _line(self, index: int) -> str:
        assert self._plan is not None
        name = self._plan.nodes[index].name
        event = self._events.get(index)
        if event is None:
            return f"[dim]{name}[/dim]"
        if isinstance(event, NodeHit):
            return f"{name} [green]hit[/green]"
        if isinstance(event, NodeFinished):
            return f"{name} [green]done[/green] {event.wall_time_s:.1f} s"
        if isinstance(event, NodeFailed):
            return f"[red]{name} FAILED[/red]"
        if isinstance(event, NodeSkipped):
            return f"[yellow]{name} skipped[/yellow]"
        elapsed = time.monotonic() - self._started.get(index, time.monotonic())
        detail = ""
        if isinstance(event, NodeProgress):
            detail = f" {event.done}/{event.total} {event.unit}"
        if isinstance(event, NodeWaiting):
            detail = " waits for another process"
        return f"[cyan]{name}[/cyan] {elapsed:.0f} s{detail}"
