"""Keys of nodes, and the reason why each must run.

A node's key needs the digests of its inputs, so keys of nodes below one that must run are not known
before it has run: when it yields the same bytes as before, everything below it is a hit again
("early cut-off").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.environment import (
    code_digest,
    machine_facts,
    platform_tag,
    python_tag,
    require_packages,
)
from pipeline.hashing import canonical_json, tagged_digest
from pipeline.planning.types import (
    ATTEMPT_TAG,
    KEY_TAG,
    Node,
    NodeStatus,
    Plan,
    Records,
)
from pipeline.targets.base import NodeRef, SourceRef

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pipeline.hashing import JSON
    from pipeline.store import StageRecord


def require_nodes_packages(nodes: Iterable[Node]) -> None:
    """Refuse a plan whose stages lack packages here.

    Raises:
        EnvironmentMissing: naming the package and what installs it.
    """
    for node in nodes:
        require_packages(node.stage)


def node_preimage(node: Node, inputs: Mapping[str, JSON]) -> dict[str, JSON]:
    """Everything that can change what a node makes.

    Args:
        node: The node.
        inputs: Port -> digest of the content behind it.
    """
    stage = node.stage
    packages = {name: fact.to_json() for name, fact in require_packages(stage).items()}
    return {
        "stage": stage.name,
        "stage_version": stage.version,
        "code": code_digest(stage.run.__module__),
        "component": node.component,
        "config": node.config.model_dump(mode="json"),
        "inputs": dict(inputs),
        "packages": packages,
        "python": python_tag(),
        "platform": platform_tag(),
        "machine": {**machine_facts(stage.machine, gpu=node.config.gpu_number)},
    }


def input_digests(plan: Plan, node: Node, trees: Mapping[int, str]) -> dict[str, JSON] | None:
    """Port -> digest of its content; None while one of them is not known (`trees` lacks a parent).

    A checkpoint has a digest a file, so that `explain` can say which of them changed.
    """
    digests: dict[str, JSON] = {}
    for port, ref in node.inputs.items():
        if isinstance(ref, SourceRef):
            digests[port] = plan.group_content(ref.group)
        elif ref.node in trees:
            digests[port] = trees[ref.node]
        else:
            return None
    return digests


def node_address(plan: Plan, node: Node) -> str:
    """The name under which the store remembers a node's last key, for explanations only."""
    return tagged_digest("convert/address/1", [plan.recipe.name, node.name])


def explain(preimage: Mapping[str, JSON], last: StageRecord | None) -> tuple[str, ...]:
    """Why there is no result for this preimage, compared with the node's last one."""
    if last is None:
        return ("it has never run under this name",)
    changes = tuple(_differences(last.preimage, preimage, ""))
    return changes or ("its result is no longer in the store",)


def _differences(old: Mapping[str, JSON], new: Mapping[str, JSON], path: str) -> Iterator[str]:
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        here = f"{path}.{name}" if path else name
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, here)
        elif path == "inputs":
            yield f"input `{name}` has other content"
        elif path.startswith("inputs."):
            state = "is new" if before is None else "is gone" if after is None else "has changed"
            yield f"`{name}` of the checkpoint {state}"
        elif name == "code":
            yield "the code of the stage changed"
        else:
            yield f"{here}: {_short(before)} -> {_short(after)}"


def _short(value: JSON) -> str:
    text = canonical_json(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def attempt_key(node: Node, preimage: Mapping[str, JSON]) -> str:
    """Under which attempts at a node find one another; empty when each begins anew.

    Args:
        node: The node.
        preimage: `node_preimage` of it.
    """
    ignored = node.stage.resumable
    if ignored is None:
        return ""
    config = node.config.model_dump(mode="json", exclude=set(ignored))
    return tagged_digest(ATTEMPT_TAG, {**preimage, "config": config})


def node_status(plan: Plan, node: Node, records: Records, trees: Mapping[int, str]) -> NodeStatus:
    """Whether a node's result is there, given the output digests of the nodes before it."""
    digests = input_digests(plan, node, trees)
    if digests is None:
        missing = [
            f"input `{port}` comes from `{plan.nodes[ref.node].name}`, which must run"
            for port, ref in node.inputs.items()
            if isinstance(ref, NodeRef) and ref.node not in trees
        ]
        return NodeStatus(node=node, key=None, record=None, reasons=tuple(missing))
    preimage = node_preimage(node, digests)
    key = tagged_digest(KEY_TAG, preimage)
    record = records.find(key)
    if record is not None:
        return NodeStatus(node=node, key=key, record=record)
    reasons = explain(preimage, records.remembered(node_address(plan, node)))
    return NodeStatus(node=node, key=key, record=None, reasons=reasons)


def plan_status(plan: Plan, records: Records) -> tuple[NodeStatus, ...]:
    """The status of every node as far as it can be known without running anything."""
    trees: dict[int, str] = {}
    statuses = []
    for node in plan.nodes:
        status = node_status(plan, node, records, trees)
        if status.record is not None:
            trees[node.index] = status.record.tree
        statuses.append(status)
    return tuple(statuses)
