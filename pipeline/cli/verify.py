"""`convert verify`: every digest of an artifact or of the store, both ways."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pipeline.cli.options import json_option, output_option
from pipeline.cli.output import emit
from pipeline.errors import ExitCode


@click.command("verify")
@click.argument("path", required=False)
@click.option(
    "--store",
    is_flag=False,
    flag_value="",
    metavar="[ROOT]",
    help="Verify the store at ROOT; default $CONVERT_STORE, or the user's cache directory.",
)
@output_option
@json_option
def verify_command(path: str | None, store: str | None, output: Path, is_json: bool) -> int:
    """Check every digest of an artifact, or of the store.

    Every file is held against the manifest, and the manifest against every file. PATH is an artifact's directory, or a name below --output with or without /VERSION, or `latest`
    where there is one artifact. A file that is missing, added or changed is named.

    \b
    Examples:
      convert verify artifacts/minilm/latest
      convert verify minilm
      convert verify latest --json | jq '.problems'
      convert verify --store                  # every result in the store

    Exit codes: 0 all is as it was published, 3 something is damaged, 2 there is no such artifact or
    store.
    """  # noqa: D301 - \b is click's own
    from pipeline.cli.lines import counted, one_line, size
    from pipeline.listing import find_artifact
    from pipeline.verification import verify_published, verify_store

    if (path is None) == (store is None):
        raise click.UsageError("name either an artifact, or --store: convert verify latest")
    if store is not None:
        found = verify_store(_store_root(store))
    else:
        found = verify_published(find_artifact(path or "", output))
    code = ExitCode.STAGE_FAILED if found.problems else ExitCode.OK
    if is_json:
        document = {
            "exit_code": int(code),
            "kind": "artifact" if store is None else "store",
            "path": str(found.path),
            "is_whole": not found.problems,
            "counts": dict(found.counts),
            "problems": list(found.problems),
        }
        emit(json.dumps(document, indent=2))
        return int(code)
    for problem in found.problems:
        emit(one_line(problem))
    counts = [
        size(count) if name == "size_bytes" else f"{count} {name}"
        for name, count in found.counts.items()
    ]
    word = counted(len(found.problems), "problem") if found.problems else "whole"
    emit(f"{word}: {one_line(found.path)} ({', '.join(counts)})")
    return int(code)


def _store_root(named: str) -> Path:
    import os

    from pipeline.store import resolve_store_root

    return Path(named) if named else resolve_store_root(os.environ)
