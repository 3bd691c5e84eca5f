"""How much memory and disk a build will take at most, before it starts.

An estimate from the size of the checkpoint and what each stage was measured to need
(`Stage.footprint`). A build is refused when the estimate does not fit, because a machine that runs
out of memory kills whatever it likes, and a disk that runs full stops everybody's work.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.environment import available_memory_bytes
from pipeline.errors import EnvironmentMissing
from pipeline.store.faults import free_bytes
from pipeline.targets.base import NodeRef

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.planning import Node, NodeStatus, Plan
    from pipeline.source import Source
    from pipeline.stages.base import Footprint

MIB = 1 << 20
FLOAT32_BYTES = 4
_NARROW_TYPES = frozenset({"BF16", "F16"})
"""As headers of safetensors files call them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeForecast:
    """What one node that has to run will take, in bytes.

    Attributes:
        remedy: The lines of a recipe that leave it out; empty when nothing does.
    """

    name: str
    memory_bytes: int
    disk_bytes: int
    remedy: str = ""


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
    size = checkpoint_size(plan.source)
    kept = _kept_output_bytes(plan)
    nodes = [
        _node_forecast(plan, status.node, size, kept)
        for status in statuses
        if status.record is None
    ]
    if not nodes:
        return Forecast(nodes=(), output_bytes=0)
    delivered = [
        _disk_bytes(plan.nodes[made.node.node].stage.footprint, size)
        for target in plan.targets
        for group in target.chain.deliverables.values()
        for made in group
    ]
    return Forecast(nodes=tuple(nodes), output_bytes=sum(delivered))


def _node_forecast(plan: Plan, node: Node, size: CheckpointSize, kept: int) -> NodeForecast:
    footprint = node.stage.footprint
    outputs = kept if footprint.keeps_outputs else 0
    model = node.inputs.get("model")
    to_run = (
        plan.nodes[model.node].stage.footprint.memory_to_run if isinstance(model, NodeRef) else 0.0
    )
    return NodeForecast(
        name=node.name,
        memory_bytes=footprint.memory_bytes(size.weights, size.largest, to_run) + outputs,
        disk_bytes=_disk_bytes(footprint, size) + outputs,
        remedy=_remedy(plan, node),
    )


def _disk_bytes(footprint: Footprint, size: CheckpointSize) -> int:
    return round(footprint.disk_share_of(size.weights, is_narrow=size.is_narrow) * size.weights)


def _remedy(plan: Plan, node: Node) -> str:
    """What of the recipe would leave a node out, and make the report say so."""
    for target in plan.targets:
        for validations in target.validations.values():
            for place, (link, validation) in enumerate(validations):
                if validation.node == node.index and place + 1 < len(validations):
                    stage = plan.nodes[link.node.node].stage.name
                    return f"`gates: {{stages: {{{stage}: null}}}}`"
        for check in target.checks:
            if check.node.node == node.index:
                return f"`gates: {{checks: {{{check.check}: null}}}}`"
        if any(ref.node == node.index for ref in target.benchmarks.values()):
            return "`benchmark: null`"
    return ""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSize:
    """What the headers of a checkpoint's safetensors files say.

    Attributes:
        parameters: Numbers that they hold.
        largest: Bytes of the largest tensor, as float32.
        is_narrow: Whether most numbers are stored in 16 bits.
    """

    parameters: int
    largest: int
    is_narrow: bool

    @property
    def weights(self) -> int:
        """Bytes of all numbers as float32."""
        return self.parameters * FLOAT32_BYTES


def checkpoint_size(source: Source) -> CheckpointSize:
    """Read the headers of the checkpoint's safetensors files."""
    total = largest = narrow = 0
    for name, file in source.files.items():
        if not name.endswith(".safetensors"):
            continue
        with file.path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
        for key, entry in header.items():
            if key == "__metadata__":
                continue
            elements = math.prod(int(size) for size in entry["shape"])
            total += elements
            largest = max(largest, elements)
            narrow += elements if entry["dtype"] in _NARROW_TYPES else 0
    return CheckpointSize(
        parameters=total, largest=largest * FLOAT32_BYTES, is_narrow=2 * narrow > total
    )


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
            hint="use a machine with more memory, or end what else runs here; "
            + (f"{_leaving_out(found, available)}; " if largest.remedy else "")
            + "`--no-forecast` starts anyway",
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


def _leaving_out(found: Forecast, available: int) -> str:
    """What a recipe may say of all that is too large and may be left out."""
    large = [node for node in found.nodes if node.memory_bytes > available and node.remedy]
    remedies = dict.fromkeys(node.remedy for node in large)
    return f"{' and '.join(remedies)} in the recipe leaves it out, and the report says so"


def _device(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return path.stat().st_dev
