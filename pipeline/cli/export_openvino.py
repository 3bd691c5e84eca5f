"""`convert export-openvino`: stateful IR that OpenVINO GenAI runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipeline.cli.exporting import export_parameters

if TYPE_CHECKING:
    from pipeline.cli.exporting import Asked


@click.command("export-openvino")
@export_parameters
def export_openvino_command(asked: Asked) -> None:
    """Write the decoders of ARTIFACT, or its Whisper, to DIRECTORY as models of OpenVINO GenAI.

    Each target gets a folder with openvino_model.xml, whose cache is state of the model, and its
    tokenizer as a model too; Whisper becomes openvino_encoder_model.xml and openvino_decoder_model.xml,
    which WhisperPipeline loads. OpenVINO must be installed: it converts, and then generates text, which
    must have the tokens that our own loop chooses. DIRECTORY must be new or empty.

    \b
    Examples:
      convert export-openvino latest openvino/
      convert export-openvino causal-lm openvino/ --target cpu-int4 --force
      convert export-openvino latest openvino/ --json | jq -r '.models[].trial'

    Exit codes: 0 it is written, 2 there is no such artifact or target, it has no tokenizer, or
    something is in the way, 3 the artifact is damaged, or OpenVINO chose other tokens, 4 OpenVINO is not
    installed.
    """  # noqa: D301 - \b is click's own
    from pipeline.bundle.openvino_ir import export_openvino

    asked.write(export_openvino)
