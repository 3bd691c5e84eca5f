"""`convert inspect`: what a recipe, an artifact, an ONNX model or an engine holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipeline.cli.options import json_option, output_option
from pipeline.cli.output import emit

if TYPE_CHECKING:
    from pathlib import Path


@click.command("inspect")
@click.argument("path")
@click.option("--layers", "has_layers", is_flag=True, help="Of a model: each layer's precision.")
@output_option
@json_option
def inspect_command(path: str, has_layers: bool, output: Path, is_json: bool) -> int:
    """Show what a recipe, artifact, ONNX model or TensorRT engine holds.

    A recipe is shown with all defaults filled in. A model is read in a process of its own, with
    limits on time and memory. Of an engine, the first 64 bytes are read, without TensorRT; where the
    facts that its builder wrote lie beside it, they are shown, and its digest is held against them.

    \b
    Examples:
      convert inspect recipe.yaml
      convert inspect latest
      convert inspect artifacts/minilm/latest/cpu-int8/model.onnx --layers
      convert inspect artifacts/minilm/latest/rtx-fp16/model.sm89.engine
      convert inspect model.onnx --json | jq '.model.weight_bytes'

    Exit codes: 0 it is shown; 2 there is nothing, or nothing known, or the recipe is wrong; 3 the
    artifact, model or engine is damaged, or not the one that the facts beside it are of; an artifact
    with such an engine is shown all the same.
    """  # noqa: D301 - \b is click's own
    from pipeline.cli.inspect_text import exit_code, inspection_json, inspection_lines
    from pipeline.inspection import inspect_path

    found = inspect_path(path, output)
    if is_json:
        emit(inspection_json(found))
    else:
        for line in inspection_lines(found, has_layers=has_layers):
            emit(line)
    return exit_code(found)
