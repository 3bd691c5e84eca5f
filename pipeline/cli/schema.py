"""`convert schema`: the JSON Schema of the recipe."""

from __future__ import annotations

import json

import click

from pipeline.cli.output import emit


@click.command("schema")
def schema_command() -> None:
    """Print the JSON Schema of the recipe, for editors and for checks in CI.

    \b
    Example:
      convert schema > recipe.schema.json
    """  # noqa: D301 - \b is click's own
    from pipeline.recipe.schema import recipe_json_schema

    emit(json.dumps(recipe_json_schema(), indent=2))
