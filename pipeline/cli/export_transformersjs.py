"""`convert export-transformersjs`: a folder that transformers.js loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.exporting import export_parameters

if TYPE_CHECKING:
    from pipeline.cli.exporting import Asked


@click.command("export-transformersjs")
@export_parameters
def export_transformersjs_command(asked: Asked) -> None:
    """Write ARTIFACT to DIRECTORY as transformers.js and the Hugging Face hub lay a model out.

    Targets become onnx/model.onnx (fp32), model_fp16.onnx, model_quantized.onnx (int8) and model_q4.onnx
    (int4), beside tokenizer and configuration; an encoder with a decoder becomes encoder_model.onnx and
    decoder_model_merged.onnx with the same endings. Where Node runs and @huggingface/transformers is
    installed in this directory or one above it, each is loaded, and must generate our tokens or compute
    our outputs; otherwise a note says that nothing was tried. DIRECTORY must be new or empty.

    \b
    Examples:
      convert export-transformersjs latest web/causal-lm
      convert export-transformersjs minilm web/minilm --target cpu-fp32 --target cpu-int8
      convert export-transformersjs latest web/ --force --json | jq -r '.models[].dtype'

    Exit codes: 0 it is written, 2 there is no such artifact or target, transformers.js has no name for
    it, it has no tokenizer, or something is in the way, 3 the artifact is damaged, or transformers.js
    computes something else.
    """  # noqa: D301 - \b is click's own
    from pipeline.bundle.transformers_js import export_transformers_js

    asked.write(export_transformers_js, packages=Path.cwd())
