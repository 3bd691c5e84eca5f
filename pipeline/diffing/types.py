"""What a comparison of two artifacts found: plain frozen data, the document of `convert diff --json`."""

from __future__ import annotations

from typing import Literal

from pipeline.bench.types import BenchmarkResult
from pipeline.parity.types import Metrics
from pipeline.records import Frozen


class Side(Frozen):
    """One of the two artifacts.

    Attributes:
        directory: Where it is.
        size_bytes: Of all its files but the manifest.
    """

    name: str
    version: str
    directory: str
    verdict: str
    created_at: str
    size_bytes: int


class Change(Frozen):
    """Something that is said on both sides, and differently; None: only the other side says it."""

    name: str
    old: str | None
    new: str | None


class NumberChange(Frozen):
    """A number that both reports have.

    Attributes:
        change: `new - old`; None when one of them has no number.
    """

    name: str
    old: float | None
    new: float | None
    change: float | None


class LayerChange(Frozen):
    """A layer whose weight is stored otherwise, or that only one graph has (then None)."""

    layer: str
    operator: str
    old: str | None
    new: str | None


class GraphChange(Frozen):
    """What differs between the delivered graphs of one component.

    Attributes:
        file: Path of the graph below the target's folder.
        is_same_file: Byte for byte; nothing below differs then.
        operators: Operator -> how many nodes, where the numbers differ.
        layers: Layers with a weight, where what is stored differs.
        layers_same: Layers that are stored alike.
        opset: Versions of the standard operators.
    """

    file: str
    is_same_file: bool
    operators: tuple[Change, ...] = ()
    layers: tuple[LayerChange, ...] = ()
    layers_same: int = 0
    opset: Change | None = None


class OutputDistance(Frozen):
    """The new graph's output against the old graph's, on the same inputs."""

    output: str
    metrics: Metrics


class TargetChange(Frozen):
    """One target.

    Attributes:
        state: `both`, `added` (only the new artifact has it) or `removed`.
        parity: Distances to the checkpoint, as each build measured them.
        has_same_samples: Both builds measured on the same samples of the same checkpoint.
        quality: Figures of quality, likewise.
        size: Bytes of the target's files.
        graphs: The delivered graphs.
        facts: Numbers of the stages that differ: coverage, fusions, engine layers.
        distances: New against old, run now; empty when they could not be run.
        speed: The new one against the old one, measured now and in the same launches.
        not_run_reason: Why `distances` and `speed` are missing; empty when they are there.
    """

    name: str
    state: Literal["both", "added", "removed"]
    parity: tuple[NumberChange, ...] = ()
    has_same_samples: bool = False
    quality: tuple[NumberChange, ...] = ()
    size: NumberChange | None = None
    graphs: tuple[GraphChange, ...] = ()
    facts: tuple[NumberChange, ...] = ()
    distances: tuple[OutputDistance, ...] = ()
    speed: BenchmarkResult | None = None
    not_run_reason: str = ""


class Crossed(Frozen):
    """A threshold that the new artifact does not keep."""

    target: str
    threshold: str
    sentence: str


class Difference(Frozen):
    """The whole comparison.

    Attributes:
        recipe: What the recipes say differently, by key path.
        versions: Packages, Python, platform, processor.
        source: Files of the checkpoint whose content differs.
        notes: What a reader should know of how this was measured.
        crossed: Thresholds that do not hold; empty when all do or none was given.
    """

    schema_version: Literal[1] = 1
    old: Side
    new: Side
    targets: tuple[TargetChange, ...]
    recipe: tuple[Change, ...]
    versions: tuple[Change, ...]
    source: tuple[Change, ...]
    notes: tuple[str, ...] = ()
    crossed: tuple[Crossed, ...] = ()
