"""`convert export-openvino`: stateful IR that OpenVINO GenAI runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipeline.cli.exporting import export_parameters, tell_export

if TYPE_CHECKING:
    from pathlib import Path


@click.command("export-openvino")
@export_parameters
def export_openvino_command(
    artifact: str,
    directory: Path,
    targets: tuple[str, ...],
    must_replace: bool,
    output: Path,
    is_json: bool,
) -> None:
    """Write the decoders of ARTIFACT to DIRECTORY as stateful models of OpenVINO GenAI.

    Each target gets a folder with openvino_model.xml, whose cache is state of the model, and its
    tokenizer as a model too. OpenVINO must be installed: it converts, and then generates text, which
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
    from pipeline.listing import find_artifact

    made = export_openvino(
        find_artifact(artifact, output), directory, targets=targets, replace=must_replace
    )
    tell_export(
        directory=made.directory,
        artifact=made.artifact,
        models=[
            {"target": model.target, "precision": model.precision, "trial": model.trial}
            for model in made.models
        ],
        notes=made.notes,
        is_json=is_json,
    )
