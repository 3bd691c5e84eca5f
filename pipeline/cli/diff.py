"""`convert diff`: two artifacts of one model, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pipeline.cli.options import json_option, output_option
from pipeline.cli.output import emit
from pipeline.errors import ExitCode

RATIO = click.FloatRange(min=0.0, min_open=True)
LOSS = click.FloatRange(min=0.0)


@click.command("diff")
@click.argument("old")
@click.argument("new")
@click.option("--target", "targets", multiple=True, metavar="NAME", help="Only this one; repeat.")
@click.option("--no-speed", is_flag=True, help="Do not measure speed, which takes minutes.")
@click.option(
    "--launches",
    type=click.IntRange(3, 50),
    default=3,
    show_default=True,
    help="Fresh processes for each target's speed.",
)
@click.option(
    "--max-slowdown",
    type=RATIO,
    help="Time of NEW over that of OLD, e.g. 1.05; certain ones fail.",
)
@click.option("--max-growth", type=RATIO, help="Size of NEW over that of OLD, e.g. 1.02.")
@click.option(
    "--max-cosine-loss", type=LOSS, help="Of the worst cosine with the checkpoint, e.g. 0.001."
)
@click.option("--max-quality-loss", type=LOSS, help="Of every figure of quality, e.g. 0.005.")
@click.option("--no-removed", is_flag=True, help="Fail when NEW lacks a target of OLD.")
@click.option(
    "--markdown",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the comparison there.",
)
@click.option(
    "--store",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where samples are looked for; default $CONVERT_STORE, or the user's cache directory.",
)
@output_option
@json_option
def diff_command(old: str, new: str, *, is_json: bool, **options: Any) -> int:
    """Compare two artifacts of one model: parity, speed, size, graphs, recipe, versions.

    OLD and NEW are artifacts' directories, or names below --output with or without /VERSION. Both
    are verified first. Their outputs and their speed are measured now, in the same launches; their
    distances to the checkpoint are those of their builds. Thresholds are for CI: without any,
    nothing fails.

    \b
    Examples:
      convert diff artifacts/minilm/3f2a91d4c0be artifacts/minilm/latest
      convert diff minilm/3f2a91d4c0be minilm --no-speed
      convert diff minilm/3f2a91d4c0be minilm --max-slowdown 1.05 --max-growth 1.02
      convert diff minilm/3f2a91d4c0be minilm --json | jq '.targets[].size'

    Exit codes: 0 all thresholds hold, 1 one does not, 2 these are two different models or there is
    no such artifact, 3 an artifact is damaged.
    """  # noqa: D301 - \b is click's own
    import os
    from dataclasses import fields

    from pipeline.diffing.markdown import render_markdown
    from pipeline.diffing.run import DiffOptions, compare_artifacts
    from pipeline.diffing.thresholds import Thresholds
    from pipeline.listing import find_artifact
    from pipeline.store import Store, resolve_store_root

    output, markdown = options["output"], options["markdown"]
    thresholds = {field.name: options[field.name] for field in fields(Thresholds)}
    found = compare_artifacts(
        find_artifact(old, output),
        find_artifact(new, output),
        Store(options["store"] or resolve_store_root(os.environ)),
        DiffOptions(
            targets=options["targets"],
            has_speed=not options["no_speed"],
            launches=options["launches"],
            thresholds=Thresholds(**thresholds),
            progress=_tell,
        ),
    )
    code = ExitCode.GATE_FAILED if found.crossed else ExitCode.OK
    text = render_markdown(found)
    if markdown is not None:
        markdown.parent.mkdir(parents=True, exist_ok=True)
        markdown.write_text(text, encoding="utf-8")
    if is_json:
        document = {"exit_code": int(code), **found.model_dump(mode="json")}
        emit(json.dumps(document, indent=2))
    else:
        _show(text)
    return int(code)


def _show(text: str) -> None:
    """Markdown as it is into files and pipes; set for reading on a terminal."""
    import sys

    if not sys.stdout.isatty():
        emit(text.rstrip())
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown(text))


def _tell(done: int, total: int, target: str) -> None:
    """Progress on standard error: one line, written over where it is a terminal."""
    import sys

    if sys.stderr.isatty():
        end = "\n" if done == total else "\r"
        click.echo(f"  ...  {target}: {done}/{total} launches{end}", err=True, nl=False)
    elif done in {0, total}:
        click.echo(f"  ...  {target}: {done}/{total} launches", err=True)
