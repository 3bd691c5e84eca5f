"""`convert export-triton`: a model repository for Triton Inference Server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipeline.cli.exporting import export_parameters

if TYPE_CHECKING:
    from pipeline.cli.exporting import Asked


@click.command("export-triton")
@export_parameters
@click.option("--name", help="What the models' names begin with; default the artifact's name.")
def export_triton_command(asked: Asked, name: str | None) -> None:
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

    serve = f"tritonserver --model-repository={asked.directory.absolute()}"
    asked.write(export_triton, serve=serve, name=name)
