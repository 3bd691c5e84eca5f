"""`convert export-epcontext`: engines for ONNX Runtime's TensorRT providers."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pipeline.cli.options import json_option, output_option
from pipeline.cli.output import emit, say


@click.command("export-epcontext")
@click.argument("artifact")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--target", "targets", metavar="NAME", multiple=True, help="Only this; repeatable.")
@click.option(
    "--force", "must_replace", is_flag=True, help="Replace what was written there earlier."
)
@output_option
@json_option
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
    from pipeline.cli.lines import columns, one_line
    from pipeline.listing import find_artifact

    made = export_ep_context(
        find_artifact(artifact, output), directory, targets=targets, replace=must_replace
    )
    if is_json:
        document = {
            "exit_code": 0,
            "directory": str(made.directory),
            "artifact": made.artifact,
            "models": [
                {
                    "path": model.path,
                    "target": model.target,
                    "compute_capability": model.compute_capability,
                    "provider": model.provider,
                }
                for model in made.models
            ],
            "notes": list(made.notes),
        }
        emit(json.dumps(document, indent=2))
        return
    for line in columns((m.path, m.compute_capability, m.provider) for m in made.models):
        emit(line)
    for note in made.notes:
        say(f"note: {one_line(note)}")
    emit(f"written: {one_line(made.directory)}")
