"""`convert export-optimum`: folders that Optimum's classes for ONNX Runtime load."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipeline.cli.exporting import export_parameters

if TYPE_CHECKING:
    from pipeline.cli.exporting import Asked


@click.command("export-optimum")
@export_parameters
def export_optimum_command(asked: Asked) -> None:
    """Write the graphs of ARTIFACT to DIRECTORY as Optimum lays them out.

    Each target gets a folder with model.onnx, or model_quantized.onnx, its configuration, tokenizer and
    ort_config.json; the class that loads it stands beside its name. Of an encoder with a decoder they are
    encoder_model.onnx and decoder_model_merged.onnx, which must choose the artifact's tokens when they are
    run as Optimum does. The artifact is verified first. DIRECTORY must be new or empty.

    \b
    Examples:
      convert export-optimum latest optimum/
      convert export-optimum minilm optimum/ --target cpu-int8 --force
      convert export-optimum latest optimum/ --json | jq -r '.models[].loader'

    Exit codes: 0 it is written, 2 there is no such artifact or target, or something is in the way, 3 the
    artifact is damaged, or what was written chooses other tokens.
    """  # noqa: D301 - \b is click's own
    from pipeline.bundle.optimum_layout import export_optimum

    asked.write(export_optimum)
