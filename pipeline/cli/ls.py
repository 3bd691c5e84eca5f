"""`convert ls`: artifacts and their versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.options import json_option
from pipeline.cli.output import emit
from pipeline.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.listing import ArtifactEntry


@click.command("ls")
@click.argument("output", type=click.Path(path_type=Path), default=Path("artifacts"))
@json_option
def ls_command(output: Path, is_json: bool) -> int:
    """List artifacts and their versions.

    OUTPUT is where they are, or the directory of one of them; default: artifacts.

    `*` marks the version that `latest` leads to. Files are not verified; see `convert verify`.

    \b
    Examples:
      convert ls
      convert ls /srv/models
      convert ls --json | jq -r '.artifacts[] | select(.is_latest) | .path'

    Exit codes: 0 all is well, also when there is none; 3 a manifest or a link is damaged; 2 there is
    no such directory.
    """  # noqa: D301 - \b is click's own
    from pipeline.cli.lines import one_line
    from pipeline.listing import list_artifacts

    listing = list_artifacts(output)
    is_damaged = bool(listing.problems) or any(entry.damage for entry in listing.entries)
    code = ExitCode.STAGE_FAILED if is_damaged else ExitCode.OK
    if is_json:
        document = {
            "exit_code": int(code),
            "artifacts": [_entry_json(entry) for entry in listing.entries],
            "problems": list(listing.problems),
        }
        emit(json.dumps(document, indent=2))
        return int(code)
    for line in _lines(listing.entries):
        emit(line)
    if not listing.entries:
        emit(f"no artifacts in {one_line(output)}")
    for problem in listing.problems:
        click.echo(f"problem: {one_line(problem)}", err=True)
    return int(code)


def _lines(entries: Sequence[ArtifactEntry]) -> Iterator[str]:
    from pipeline.cli.lines import columns

    whole = [entry for entry in entries if not entry.has_failed]
    failed = [entry for entry in entries if entry.has_failed]
    rows = [_row(entry) for entry in (*whole, *failed)]
    lines = list(
        columns([("", "NAME", "VERSION", "VERDICT", "CREATED", "SIZE", "TARGETS"), *rows])
    )
    if rows:
        yield lines[0]
    yield from lines[1 : len(whole) + 1]
    if failed:
        yield ""
        yield "failed builds:"
        yield from lines[len(whole) + 1 :]


def _row(entry: ArtifactEntry) -> tuple[str, ...]:
    from pipeline.cli.lines import size

    mark = "*" if entry.is_latest else ""
    if entry.facts is None:
        return (mark, entry.name, entry.version, "DAMAGED", "", "", entry.damage)
    return (
        mark,
        entry.name,
        entry.version,
        entry.facts.verdict,
        entry.facts.created_at,
        size(entry.facts.size_bytes),
        ", ".join(target.name for target in entry.facts.targets),
    )


def _entry_json(entry: ArtifactEntry) -> dict[str, object]:
    facts = entry.facts
    return {
        "name": entry.name,
        "version": entry.version,
        "path": str(entry.directory),
        "is_latest": entry.is_latest,
        "has_failed": entry.has_failed,
        "damage": entry.damage,
        "verdict": facts.verdict if facts else None,
        "created_at": facts.created_at if facts else None,
        "size_bytes": facts.size_bytes if facts else None,
        "targets": [target.name for target in facts.targets] if facts else None,
    }
