"""`convert plan`: what would run, and why. Runs nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from pipeline.cli.options import (
    json_option,
    recipe_argument,
    store_options,
    variables_option,
)
from pipeline.cli.output import emit, say

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.planning import NodeStatus, Plan
    from pipeline.recipe import LoadedRecipe

    Planned = tuple[LoadedRecipe, Plan, tuple[NodeStatus, ...]]


@click.command("plan")
@recipe_argument
@click.option("--explain", is_flag=True, help="Say for each node why it must run.")
@variables_option
@json_option
@store_options
def plan_command(
    recipe: Path,
    explain: bool,
    variables: dict[str, str],
    is_json: bool,
    store: Path | None,
    is_store_trusted: bool,
    must_rehash: bool,
) -> None:
    """Show what converting RECIPE would do: for each node hit, or that it must run.

    A recipe with a matrix is shown with every recipe and target that it makes.

    \b
    Examples:
      convert plan recipe.yaml
      convert plan recipe.yaml --explain
      convert plan recipe.yaml --json | jq '.nodes[] | select(.state == "run")'
    """  # noqa: D301 - \b is click's own
    from pipeline.build import BuildOptions, open_store, prepare_plan
    from pipeline.planning import plan_status
    from pipeline.recipe import load_recipes

    options = BuildOptions(store=store, is_store_trusted=is_store_trusted)
    opened = open_store(options)
    planned: list[Planned] = []
    for loaded in load_recipes(recipe, variables):
        plan = prepare_plan(loaded, opened, must_rehash=must_rehash, note=say)
        for line in plan.source.notes:
            say(f"note: {line}")
        planned.append((loaded, plan, plan_status(plan, opened)))
    if is_json:
        emit(json.dumps(_document(planned), indent=2))
        return
    from pipeline.recipe.written import values_text

    makers: dict[str, str] = {}
    for loaded, plan, statuses in planned:
        if len(planned) > 1 or loaded.values:
            emit(f"{loaded.recipe.name}: {values_text(loaded.values)}")
        _print_targets(loaded)
        _print_nodes(plan, statuses, makers, must_explain=explain)
        _print_left_out(plan)
        if len(planned) > 1:
            emit()
    all_statuses = [status for _, _, statuses in planned for status in statuses]
    to_run = sum(status.record is None for status in all_statuses)
    total = f"{len(all_statuses)} nodes"
    if len(planned) == 1:
        emit()
    else:
        total = f"{len(planned)} recipes, {total}"
    emit(f"{total}: {len(all_statuses) - to_run} hit, {to_run} to run")
    if to_run and not explain:
        emit("--explain says why")


def _print_targets(loaded: LoadedRecipe) -> None:
    """The targets that a matrix made, with its values; those that are written out go without."""
    from pipeline.recipe.written import values_text

    for target, values in zip(loaded.recipe.targets, loaded.target_values, strict=False):
        if values:
            emit(f"      target {target.name}: {values_text(values)}")


def _print_nodes(
    plan: Plan,
    statuses: Sequence[NodeStatus],
    makers: dict[str, str],
    *,
    must_explain: bool,
) -> None:
    """One line a node; `makers` remembers, from recipe to recipe, who makes a key first."""
    width = max(len(status.node.name) for status in statuses)
    for status in statuses:
        inputs = ", ".join(plan.nodes[parent].name for parent in status.node.parents())
        line = f"{_state(status):4}  {status.node.name:{width}}"
        emit(f"{line}  <- {inputs}" if inputs else line.rstrip())
        maker = makers.setdefault(status.key, plan.recipe.name) if status.key else ""
        if not must_explain:
            continue
        for reason in status.reasons:
            emit(f"      because {reason}")
        if status.record is None and maker not in {"", plan.recipe.name}:
            emit(f"      but `{maker}` makes it before")


def _print_left_out(plan: Plan) -> None:
    """What a recipe says is not to be looked at, which nobody should miss."""
    for target in plan.targets:
        for each in target.left_out:
            emit(f"not run: `{each.stage}` of `{target.name}`: {each.reason}")
        for name in target.left_out_checks:
            emit(
                f"not run: check `{name}` of `{target.name}`: `gates.checks.{name}: null` leaves it out"
            )


def _state(status: NodeStatus) -> str:
    return "run" if status.record is None else "hit"


def _document(planned: Sequence[Planned]) -> dict[str, object]:
    return {
        "recipes": [
            {
                "name": loaded.recipe.name,
                "values": dict(loaded.values),
                "targets": _targets_json(loaded),
            }
            for loaded, _, _ in planned
        ],
        "left_out": [
            {
                "recipe": plan.recipe.name,
                "target": target.name,
                "component": each.component,
                "stage": each.stage,
                "checks": list(each.checks),
                "reason": each.reason,
            }
            for _, plan, _ in planned
            for target in plan.targets
            for each in target.left_out
        ],
        "left_out_checks": [
            {"recipe": plan.recipe.name, "target": target.name, "check": name}
            for _, plan, _ in planned
            for target in plan.targets
            for name in target.left_out_checks
        ],
        "nodes": [
            _node_json(status, plan.recipe.name)
            for _, plan, statuses in planned
            for status in statuses
        ],
    }


def _targets_json(loaded: LoadedRecipe) -> list[dict[str, object]]:
    targets = loaded.recipe.targets
    values = loaded.target_values or ({},) * len(targets)
    return [
        {"name": target.name, "values": dict(each)}
        for target, each in zip(targets, values, strict=True)
    ]


def _node_json(status: NodeStatus, recipe: str) -> dict[str, object]:
    return {
        "recipe": recipe,
        "name": status.node.name,
        "stage": status.node.stage.name,
        "component": status.node.component,
        "state": _state(status),
        "key": status.key,
        "reasons": list(status.reasons),
        "config": status.node.config.model_dump(mode="json"),
    }
