"""`convert plan`: what would run, and why. Runs nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from pipeline.cli.options import json_option, recipe_argument, store_options
from pipeline.cli.output import emit, say

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.planning import NodeStatus


@click.command("plan")
@recipe_argument
@click.option("--explain", is_flag=True, help="Say for each node why it must run.")
@json_option
@store_options
def plan_command(
    recipe: Path,
    explain: bool,
    is_json: bool,
    store: Path | None,
    is_store_trusted: bool,
    must_rehash: bool,
) -> None:
    """Show what converting RECIPE would do: for each node hit, or that it must run.

    \b
    Examples:
      convert plan recipe.yaml
      convert plan recipe.yaml --explain
      convert plan recipe.yaml --json | jq '.nodes[] | select(.state == "run")'
    """  # noqa: D301 - \b is click's own
    from pipeline.build import BuildOptions, open_store, prepare_plan
    from pipeline.planning import plan_status
    from pipeline.recipe import load_recipe_file

    options = BuildOptions(store=store, is_store_trusted=is_store_trusted)
    opened = open_store(options)
    plan = prepare_plan(load_recipe_file(recipe), opened, must_rehash=must_rehash, note=say)
    for line in plan.source.notes:
        say(f"note: {line}")
    statuses = plan_status(plan, opened)
    if is_json:
        emit(json.dumps({"nodes": [_node_json(status) for status in statuses]}, indent=2))
        return
    width = max(len(status.node.name) for status in statuses)
    for status in statuses:
        inputs = ", ".join(plan.nodes[parent].name for parent in status.node.parents())
        line = f"{_state(status):4}  {status.node.name:{width}}"
        emit(f"{line}  <- {inputs}" if inputs else line.rstrip())
        if explain:
            for reason in status.reasons:
                emit(f"      because {reason}")
    to_run = sum(status.record is None for status in statuses)
    emit(f"\n{len(statuses)} nodes: {len(statuses) - to_run} hit, {to_run} to run")
    if to_run and not explain:
        emit("--explain says why")


def _state(status: NodeStatus) -> str:
    return "run" if status.record is None else "hit"


def _node_json(status: NodeStatus) -> dict[str, object]:
    return {
        "name": status.node.name,
        "stage": status.node.stage.name,
        "component": status.node.component,
        "state": _state(status),
        "key": status.key,
        "reasons": list(status.reasons),
        "config": status.node.config.model_dump(mode="json"),
    }
