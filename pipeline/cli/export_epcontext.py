"""`convert export-epcontext`: engines for ONNX Runtime's TensorRT providers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipeline.cli.exporting import export_parameters

if TYPE_CHECKING:
    from pipeline.cli.exporting import Asked


@click.command("export-epcontext")
@export_parameters
def export_epcontext_command(asked: Asked) -> None:
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

    asked.write(export_ep_context)
