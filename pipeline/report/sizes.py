"""What a target's bytes are: weights by operator and element type, engines, the other files."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.report.schema import FileEntry, Report, TargetReport

ROOT = "all"
MODEL_NAMES = (".onnx", ".onnx_data", ".onnx.data")
ENGINE_NAMES = (".engine", ".plan")
MAX_LEAVES = 40
"""Of one target; the smallest ones beyond that are one leaf."""

GRAPH, MODEL, ENGINE, OTHER = "graph", "model", "engine", "other file"
PLAIN_KINDS = (GRAPH, MODEL, OTHER, "int64", "int32", "bool")
"""Kinds that are neither engines nor element types in which weights are stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeNode:
    """A rectangle of the treemap.

    Attributes:
        identity: Unique among all.
        parent: Identity of the one it lies in; None for the outermost.
        target: Name of the target it belongs to; empty for the outermost.
        kind: Element type or what else it is; empty for what holds others.
    """

    identity: str
    parent: str | None
    target: str
    name: str
    kind: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SizePart:
    """A part of what is delivered for a target."""

    name: str
    kind: str
    size_bytes: int


def size_parts(target: TargetReport) -> tuple[SizePart, ...]:
    """What all files of a target are made of, the largest first; the sum is that of the files."""
    models = sum(file.size_bytes for file in target.files if file.path.endswith(MODEL_NAMES))
    parts = list(_weights(target)) if models else []
    known = sum(part.size_bytes for part in parts)
    if known > models:  # what the graph counts and what was delivered are not the same thing
        parts, known = [], 0
    if parts and models > known:
        parts.append(SizePart(name="graph", kind=GRAPH, size_bytes=models - known))
    is_split = bool(parts)
    for file in target.files:
        if not (is_split and file.path.endswith(MODEL_NAMES)):
            parts.append(_whole(file))
    parts.sort(key=lambda part: (-part.size_bytes, part.name))
    rest = parts[MAX_LEAVES:]
    if rest:
        size = sum(part.size_bytes for part in rest)
        name = f"{len(rest)} smaller parts"
        parts = [*parts[:MAX_LEAVES], SizePart(name=name, kind=OTHER, size_bytes=size)]
    return tuple(parts)


def _weights(target: TargetReport) -> Iterator[SizePart]:
    several = len({weight.component for weight in target.weights}) > 1
    sizes: Counter[tuple[str, str]] = Counter()
    for weight in target.weights:
        name = f"{weight.component}: {weight.part}" if several else weight.part
        sizes[name, weight.dtype] += weight.size_bytes
    for (name, dtype), size in sizes.items():
        if size > 0:
            yield SizePart(name=name, kind=dtype, size_bytes=size)


def _whole(file: FileEntry) -> SizePart:
    kind = OTHER
    if file.path.endswith(ENGINE_NAMES):
        kind = ENGINE
    elif file.path.endswith(MODEL_NAMES):
        kind = MODEL
    return SizePart(name=file.path.rpartition("/")[2], kind=kind, size_bytes=file.size_bytes)


def size_nodes(report: Report) -> tuple[SizeNode, ...]:
    """The treemap of all targets that have files."""
    groups = [(target.name, size_parts(target)) for target in report.targets if target.files]
    if not groups:
        return ()
    total = sum(part.size_bytes for _, parts in groups for part in parts)
    nodes = [
        SizeNode(
            identity=ROOT, parent=None, target="", name="all targets", kind="", size_bytes=total
        )
    ]
    for place, (target, parts) in enumerate(groups):
        group = f"{ROOT}/{place}"
        size = sum(part.size_bytes for part in parts)
        nodes.append(
            SizeNode(
                identity=group, parent=ROOT, target=target, name=target, kind="", size_bytes=size
            )
        )
        nodes += [
            SizeNode(
                identity=f"{group}/{number}",
                parent=group,
                target=target,
                name=part.name,
                kind=part.kind,
                size_bytes=part.size_bytes,
            )
            for number, part in enumerate(parts)
        ]
    return tuple(nodes)
