"""`convert export-triton`: a model repository for Triton Inference Server."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pipeline.cli.options import json_option, output_option
from pipeline.cli.output import emit, say


@click.command("export-triton")
@click.argument("artifact")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--target", "targets", metavar="NAME", multiple=True, help="Only this; repeatable.")
@click.option("--name", help="What the models' names begin with; default the artifact's name.")
@click.option("--force", "must_replace", is_flag=True, help="Replace a repository in DIRECTORY.")
@output_option
@json_option
def export_triton_command(
    artifact: str,
    directory: Path,
    targets: tuple[str, ...],
    name: str | None,
    must_replace: bool,
    output: Path,
    is_json: bool,
) -> None:
    """Write a Triton model repository from ARTIFACT to DIRECTORY.

    Each target's ONNX graph is served by ONNX Runtime; engines of full TensorRT by the tensorrt
    backend, those of several GPUs as one model. Engines of TensorRT-RTX cannot be served by Triton,
    and are left out. For text there is a tokenizer, and an ensemble from text to the outputs.
    The artifact is verified first, and what is written is checked with Triton's own protobuf and its
    server's rules. DIRECTORY must be new or empty.

    \b
    Examples:
      convert export-triton latest models/
      convert export-triton minilm models/ --target cpu-int8 --name embed
      convert export-triton latest models/ --force --json | jq -r '.models[].name'

    Exit codes: 0 it is written, 2 there is no such artifact or target, it failed its gates, or
    something is in the way, 3 the artifact is damaged.
    """  # noqa: D301 - \b is click's own
    from pipeline.bundle.triton.repository import export_triton
    from pipeline.cli.lines import columns, one_line
    from pipeline.listing import find_artifact

    made = export_triton(
        find_artifact(artifact, output),
        directory,
        targets=targets,
        name=name,
        replace=must_replace,
    )
    if is_json:
        document = {
            "exit_code": 0,
            "directory": str(made.directory),
            "artifact": made.artifact,
            "models": [
                {"name": model.name, "backend": model.backend, "target": model.target}
                for model in made.models
            ],
            "notes": list(made.notes),
        }
        emit(json.dumps(document, indent=2))
        return
    for line in columns((model.name, model.backend, model.target) for model in made.models):
        emit(line)
    for note in made.notes:
        say(f"note: {one_line(note)}")
    emit(f"written: {one_line(made.directory)}")
    say(f"serve it: tritonserver --model-repository={one_line(directory.absolute())}")
