"""What a power cut may leave: a model of a file system that keeps only what was synced.

After SQLite's crash tests. Content counts as durable after fsync of the file, a name after fsync of
its directory; every other change since may have reached the disk or not, each independently of
all others. No real file system is that weak, so a store that is right here is right on all.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Snapshot = tuple[tuple[str, bytes | None], ...]
"""Relative path and content of everything on the disk; None for a directory."""


@dataclass(eq=False)
class Node:
    """A file, or a directory when `names` is not None."""

    content: bytes = b""
    is_durable: bool = False
    names: dict[str, Node] | None = None
    durable_names: dict[str, Node] = field(default_factory=dict)


class Trace:
    """The calls that were made below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[tuple[str, tuple[object, ...]]] = []

    def watch(self, name: str, arguments: tuple[object, ...]) -> None:
        self.calls.append((name, arguments))

    def stage_wrote(self, output: Path, content: dict[str, bytes]) -> None:
        """What a stage writes does not pass through the store; nobody syncs it."""
        for path, data in content.items():
            if (parent := (output / path).parent) != output:
                self.calls.append(("make_directory", (parent,)))
            self.calls.append(("create", (output / path, data)))

    def describe(self, step: int) -> str:
        name, arguments = self.calls[step - 1] if step else ("start", ())
        return f"({name} {str(arguments[0] if arguments else '')[-60:]})"

    def iter_crashes(self) -> Iterator[tuple[int, Snapshot]]:
        """Each state that the disk may be in after each number of calls."""
        top = Node(names={})
        yield 0, ()
        for step, (name, arguments) in enumerate(self.calls, start=1):
            self._apply(top, name, arguments)
            yield from ((step, snapshot) for snapshot in _iter_states(top))

    def _find(self, top: Node, path: Path) -> Node:
        node = top
        for part in path.relative_to(self.root).parts:
            node = node.names[part]
        return node

    def _apply(self, top: Node, call: str, arguments: tuple[object, ...]) -> None:
        path = arguments[0]
        if call == "make_read_only" or (call == "sync" and path == self.root.parent):
            return
        if call == "sync":
            node = self._find(top, path)
            node.is_durable = True
            if node.names is not None:
                node.durable_names = dict(node.names)
            return
        parent = self._find(top, path.parent)
        if call == "make_directory":
            parent.names[path.name] = Node(names={})
        elif call == "create":
            parent.names[path.name] = Node(content=arguments[1])
        else:
            target = arguments[1]
            self._find(top, target.parent).names[target.name] = parent.names.pop(path.name)


def _iter_states(top: Node) -> Iterator[Snapshot]:
    """Every choice of which unsynced names and contents reached the disk."""
    for flat in _iter_directory(top, "", 0):
        yield tuple(sorted(flat.items()))


def _iter_directory(node: Node, prefix: str, depth: int) -> Iterator[dict[str, bytes | None]]:
    if prefix == "v1/tmp/":  # nothing in it is ever trusted: what survives there does not matter
        yield {}
        return
    certain = {n: child for n, child in node.durable_names.items() if node.names.get(n) is child}
    changed = [n for n in {**node.durable_names, **node.names} if n not in certain]
    options = [[node.durable_names.get(name), node.names.get(name)] for name in changed]
    for choice in itertools.product(*options):
        children = dict(certain)
        children.update({n: c for n, c in zip(changed, choice, strict=True) if c is not None})
        yield from _iter_children(children, prefix, depth)


def _iter_children(
    children: dict[str, Node], prefix: str, depth: int
) -> Iterator[dict[str, bytes | None]]:
    parts: list[list[dict[str, bytes | None]]] = []
    for name, child in children.items():
        path = prefix + name
        if child.names is not None:
            inner = _iter_directory(child, f"{path}/", depth + 1)
            parts.append([{path: None, **flat} for flat in inner])
        else:
            half = child.content[: len(child.content) // 2]
            contents = {child.content} if child.is_durable else {child.content, half, b""}
            parts.append([{path: content} for content in sorted(contents)])
    for choice in itertools.product(*parts):
        yield {path: content for flat in choice for path, content in flat.items()}


def restore(snapshot: Snapshot, root: Path) -> None:
    """Write a state to a real directory."""
    root.mkdir(parents=True)
    for path, content in snapshot:
        if content is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(content)
