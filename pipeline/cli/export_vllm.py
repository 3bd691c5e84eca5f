"""`convert export-vllm`: a quantised checkpoint in the compressed-tensors format."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.exporting import tell_export
from pipeline.cli.options import json_option, output_option


@click.command("export-vllm")
@click.argument("artifact")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--target", metavar="NAME", help="Which, when several have weights in few bits.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    metavar="DIRECTORY",
    help="The checkpoint that ARTIFACT was made from; default where the artifact says it was.",
)
@click.option(
    "--force", "must_replace", is_flag=True, help="Replace what was written there earlier."
)
@output_option
@json_option
def export_vllm_command(
    artifact: str,
    directory: Path,
    target: str | None,
    checkpoint: Path | None,
    must_replace: bool,
    output: Path,
    is_json: bool,
) -> None:
    """Write the checkpoint of ARTIFACT with its weights in few bits, for vLLM, to DIRECTORY.

    The integers and scales are those of the artifact's graph, in the compressed-tensors format, and a
    table of tokens in few bits becomes the floats that it stands for; all else is the checkpoint's,
    whose digests must be those that the artifact states. Where
    compressed-tensors is installed, transformers loads it, and its logits must be the graph's; otherwise
    a note says that nothing was tried. DIRECTORY must be new or empty.

    \b
    Examples:
      convert export-vllm latest vllm/
      convert export-vllm causal-lm vllm/ --target cpu-int4 --checkpoint ./my-checkpoint
      convert export-vllm latest vllm/ --force --json | jq -r '.models[].trial'

    Exit codes: 0 it is written, 2 there is no such artifact, target or checkpoint, the checkpoint is
    another one, the target's weights have zero points or are NF4, or something is in the way, 3 the artifact is damaged, or what was written computes
    something else.
    """  # noqa: D301 - \b is click's own
    from pipeline.bundle.vllm import export_vllm
    from pipeline.bundle.written import Export
    from pipeline.listing import find_artifact

    made = export_vllm(
        find_artifact(artifact, output),
        directory,
        target=target,
        checkpoint=checkpoint,
        replace=must_replace,
    )
    tell_export(
        Export(
            directory=made.directory,
            artifact=made.artifact,
            models=(made.model,),
            notes=made.notes,
        ),
        serve=f"vllm serve {directory.absolute()}",
        is_json=is_json,
    )
