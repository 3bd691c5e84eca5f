"""`convert export-optimum`: folders that Optimum's classes for ONNX Runtime load."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipeline.cli.exporting import export_parameters, tell_export

if TYPE_CHECKING:
    from pathlib import Path


@click.command("export-optimum")
@export_parameters
def export_optimum_command(
    artifact: str,
    directory: Path,
    targets: tuple[str, ...],
    must_replace: bool,
    output: Path,
    is_json: bool,
) -> None:
    """Write the graphs of ARTIFACT to DIRECTORY as Optimum lays them out.

    Each target gets a folder with model.onnx, or model_quantized.onnx, its configuration, tokenizer and
    ort_config.json; the class that loads it stands beside its name. The artifact is verified first.
    DIRECTORY must be new or empty.

    \b
    Examples:
      convert export-optimum latest optimum/
      convert export-optimum minilm optimum/ --target cpu-int8 --force
      convert export-optimum latest optimum/ --json | jq -r '.models[].loader'

    Exit codes: 0 it is written, 2 there is no such artifact or target, or something is in the way, 3 the
    artifact is damaged.
    """  # noqa: D301 - \b is click's own
    from pipeline.bundle.optimum_layout import export_optimum
    from pipeline.listing import find_artifact

    made = export_optimum(
        find_artifact(artifact, output), directory, targets=targets, replace=must_replace
    )
    tell_export(
        directory=made.directory,
        artifact=made.artifact,
        models=[
            {"target": model.target, "path": model.path, "loader": model.loader}
            for model in made.models
        ],
        notes=made.notes,
        is_json=is_json,
    )
