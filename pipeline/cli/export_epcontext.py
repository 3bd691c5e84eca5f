"""`convert export-epcontext`: engines for ONNX Runtime's TensorRT providers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipeline.cli.exporting import export_parameters, tell_export

if TYPE_CHECKING:
    from pathlib import Path


@click.command("export-epcontext")
@export_parameters
def export_epcontext_command(
    artifact: str,
    directory: Path,
    targets: tuple[str, ...],
    must_replace: bool,
    output: Path,
    is_json: bool,
) -> None:
    """Write the engines of ARTIFACT to DIRECTORY as ONNX models for ONNX Runtime.

    Beside each engine lies a model with one EPContext node, which the execution provider for
    TensorRT-RTX, or for TensorRT, loads the engine through: the engine is not built again on the
    machine that serves it. The artifact is verified first. DIRECTORY must be new or empty.

    \b
    Examples:
      convert export-epcontext latest ort-models/
      convert export-epcontext minilm ort-models/ --target rtx-fp16 --force
      convert export-epcontext latest ort-models/ --json | jq -r '.models[].path'

    Exit codes: 0 it is written, 2 there is no such artifact, target or engine, the artifact failed its
    gates, or something is in the way, 3 the artifact is damaged.
    """  # noqa: D301 - \b is click's own
    from pipeline.bundle.ep_context import export_ep_context
    from pipeline.listing import find_artifact

    made = export_ep_context(
        find_artifact(artifact, output), directory, targets=targets, replace=must_replace
    )
    tell_export(
        directory=made.directory,
        artifact=made.artifact,
        models=[
            {
                "path": model.path,
                "target": model.target,
                "compute_capability": model.compute_capability,
                "provider": model.provider,
            }
            for model in made.models
        ],
        notes=made.notes,
        is_json=is_json,
    )
