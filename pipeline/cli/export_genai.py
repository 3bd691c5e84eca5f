"""`convert export-genai`: folders that ONNX Runtime GenAI loads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipeline.cli.exporting import export_parameters

if TYPE_CHECKING:
    from pipeline.cli.exporting import Asked


@click.command("export-genai")
@export_parameters
def export_genai_command(asked: Asked) -> None:
    """Write the decoders of ARTIFACT, or its Whisper, to DIRECTORY for ONNX Runtime GenAI.

    Each target gets a folder with its graphs, its tokenizer and genai_config.json. Where
    onnxruntime-genai is installed it generates text from each, and must choose the tokens that our own
    loop chooses; otherwise a note says that nothing was tried. The artifact is verified first. DIRECTORY
    must be new or empty.

    \b
    Examples:
      convert export-genai latest genai/
      convert export-genai causal-lm genai/ --target cpu-int4 --force
      convert export-genai latest genai/ --json | jq -r '.models[].trial'

    Exit codes: 0 it is written, 2 there is no such artifact or target, it has no tokenizer, its
    generation_config.json contradicts the model, or something is in the way, 3 the artifact is damaged,
    or GenAI chose other tokens.
    """  # noqa: D301 - \b is click's own
    from pipeline.bundle.genai import export_genai

    asked.write(export_genai)
