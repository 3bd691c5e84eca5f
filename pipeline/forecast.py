"""How much memory and disk a build will take at most, before it starts.

An estimate from the size of the checkpoint and what each stage was measured to need
(`Stage.footprint`). A build is refused when the estimate does not fit, because a machine that runs
out of memory kills whatever it likes, and a disk that runs full stops everybody's work.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.environment import available_memory_bytes
from pipeline.errors import EnvironmentMissing
from pipeline.store.faults import free_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.planning import Node, NodeStatus, Plan
    from pipeline.source import Source

MIB = 1 << 20
FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeForecast:
    """What one node that has to run will take, in bytes."""

    name: str
    memory_bytes: int
    disk_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a build will take.

    Attributes:
        nodes: The nodes that have to run.
        output_bytes: What the artifact's folder will hold.
    """

    nodes: tuple[NodeForecast, ...]
    output_bytes: int

    @property
    def memory_bytes(self) -> int:
        """Peak memory of the largest stage."""
        return max((node.memory_bytes for node in self.nodes), default=0)

    @property
    def store_bytes(self) -> int:
        """What the store will grow by."""
        return sum(node.disk_bytes for node in self.nodes)


def forecast(plan: Plan, statuses: Sequence[NodeStatus]) -> Forecast:
    """What the nodes that have no result yet will take."""
    weights = parameter_count(plan.source) * FLOAT32_BYTES
    kept = _kept_output_bytes(plan)
    nodes = [
        _node_forecast(status.node, weights, kept) for status in statuses if status.record is None
    ]
    if not nodes:
        return Forecast(nodes=(), output_bytes=0)
    delivered = [
        plan.nodes[made.node.node].stage.footprint.disk_per_weight * weights
        for target in plan.targets
        for group in target.chain.deliverables.values()
        for made in group
    ]
    return Forecast(nodes=tuple(nodes), output_bytes=round(sum(delivered)))


def _node_forecast(node: Node, weights: int, kept: int) -> NodeForecast:
    footprint = node.stage.footprint
    outputs = kept if footprint.keeps_outputs else 0
    memory = footprint.base_mib * MIB + footprint.share_of(weights) * weights + outputs
    return NodeForecast(
        name=node.name,
        memory_bytes=round(memory),
        disk_bytes=round(footprint.disk_per_weight * weights) + outputs,
    )


def _kept_output_bytes(plan: Plan) -> int:
    """The reference's outputs for all evaluation samples, at their usual length.

    How wide an output is, only the model knows; of those that are wide, `config.json` says it.
    """
    samples = plan.recipe.data.evaluation.samples
    sequence = plan.recipe.shapes.sequence
    if samples == "all" or sequence is None:
        return 0
    widths = {"last_hidden_state": "hidden_size", "logits": "vocab_size"}
    per_token = [
        plan.source.config.get(widths[spec.name], 0)
        for spec in plan.task.outputs
        if "sequence" in spec.axes and spec.name in widths and plan.task.answer is None
    ]
    width = sum(size for size in per_token if isinstance(size, int))
    return samples * sequence.opt * width * FLOAT32_BYTES


def parameter_count(source: Source) -> int:
    """Numbers that the checkpoint's safetensors files hold, from their headers."""
    total = 0
    for name, file in source.files.items():
        if not name.endswith(".safetensors"):
            continue
        with file.path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
        for key, entry in header.items():
            if key != "__metadata__":
                elements = 1
                for size in entry["shape"]:
                    elements *= int(size)
                total += elements
    return total


def require_room(found: Forecast, *, store: Path, output: Path) -> None:
    """Refuse a build that cannot fit.

    Raises:
        EnvironmentMissing: with the numbers, when memory or a disk is too small.
    """
    largest = max(found.nodes, key=lambda node: node.memory_bytes, default=None)
    available = available_memory_bytes()
    if largest is not None and largest.memory_bytes > available:
        raise EnvironmentMissing(
            f"`{largest.name}` will need about {largest.memory_bytes / MIB:,.0f} MiB of memory, and "
            f"{available / MIB:,.0f} MiB are available",
            hint="use a machine with more memory, or end what else runs here; `--no-forecast` "
            "starts anyway",
        )
    needs = {store: found.store_bytes, output: found.output_bytes}
    if _device(store) == _device(output):
        needs = {store: found.store_bytes + found.output_bytes}
    for place, need in needs.items():
        free = free_bytes(place)
        if need > free:
            raise EnvironmentMissing(
                f"the build will write about {need / MIB:,.0f} MiB, and {free / MIB:,.0f} MiB are "
                f"free at {place}",
                hint="free some space, or set CONVERT_STORE or --output to a larger disk; "
                "`--no-forecast` starts anyway",
            )


def _device(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return path.stat().st_dev
