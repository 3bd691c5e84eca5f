"""`convert judge`: other limits for what is measured already, in a second."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.build import EXIT_CODES
from pipeline.cli.github import github_option, tell_github
from pipeline.cli.options import json_option, variables_option
from pipeline.cli.output import emit, say

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.parity.types import GateResult
    from pipeline.recipe import LoadedRecipe
    from pipeline.rejudging import GateChange, Judgement
    from pipeline.report.places import Places

KINDS = {
    "broken": "holds no longer",
    "mended": "holds now",
    "new": "new",
    "gone": "gone",
    "limit": "other limit",
}

MAX_CHANGES = 20
"""Lines about changed gates; `--json` has all."""


@click.command("judge")
@click.argument("artifact")
@click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    help="Whose gates to apply; without it, the artifact's own are applied again.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write the re-judged report there, in all its forms.",
)
@click.option(
    "--artifacts",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("artifacts"),
    show_default=True,
    help="Where artifacts are.",
)
@click.option(
    "--store",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where digests are remembered; default $CONVERT_STORE, or the user's cache directory.",
)
@click.option(
    "--rehash",
    "must_rehash",
    is_flag=True,
    help="Read every file of the artifact again, even if it seems unchanged.",
)
@variables_option
@json_option
@github_option
def judge_command(  # noqa: PLR0913, PLR0917 - one parameter an option
    artifact: str,
    recipe: Path | None,
    output: Path | None,
    artifacts: Path,
    store: Path | None,
    must_rehash: bool,
    variables: dict[str, str],
    is_json: bool,
    is_github: bool | None,
) -> int:
    """Apply the gates of a changed recipe to what ARTIFACT has measured; nothing is built.

    ARTIFACT is an artifact's directory, passed or failed, a name below --artifacts with or without
    /VERSION, `latest` where there is one artifact, or a report.json. It is verified first, and never
    changed; a model that is the same by size, inode and times as when `convert judge` last read it is
    not read again, where `convert verify` always reads every byte. Only the gates may differ: other targets are refused, other differences named and not
    applied. Without --recipe, the stored verdict is held against the stored numbers.

    \b
    Examples:
      convert judge latest --recipe recipe.yaml
      convert judge minilm/failed/4f0c2a91d3be --recipe looser.yaml --output judged
      convert judge artifacts/minilm/latest                    # does its verdict hold?
      convert judge report.json --recipe recipe.yaml --json | jq '.changes'

    Exit codes: 0 the gates hold; 1 one does not; 2 the recipe is wrong, is of other targets or limits
    what was not measured; 3 the artifact is damaged, or a stage of its build had failed.
    """  # noqa: D301 - \b is click's own
    from pipeline.store import resolve_store_root
    from pipeline.stored_reports import locate_report, opened_report

    if recipe is None and variables:
        raise click.UsageError("`--var` sets a variable of a recipe, and no `--recipe` is given")
    place = locate_report(artifact, artifacts)
    root = store or resolve_store_root(os.environ)
    with opened_report(place, root, must_rehash=must_rehash) as finish:
        # Imported while files are hashed: on two cores that hides one of the two.
        from pipeline.recipe import load_recipes
        from pipeline.rejudging import choose_recipe, judge_again, judge_by, write_judgement

        given = None if recipe is None else load_recipes(recipe, variables)
        stored = finish()
    loaded = None if given is None else choose_recipe(given, stored.report.name)
    judgement = judge_again(stored) if loaded is None else judge_by(stored, loaded)
    if output is not None:
        write_judgement(judgement, output, _places(loaded))
    if is_json:
        emit(json.dumps(_document(judgement, output), indent=2))
    _print_summary(judgement, output)
    tell_github(lambda: judgement.report, loaded, is_github=is_github)
    return int(EXIT_CODES[judgement.report.verdict])


def _places(loaded: LoadedRecipe | None) -> Places | None:
    if loaded is None:
        return None
    from pipeline.recipe.places import recipe_places

    return recipe_places(loaded)


def _print_summary(judgement: Judgement, output: Path | None) -> None:
    """The verdict as a build prints it, and what is not as it was, on standard error."""
    from pipeline.cli.lines import counted, one_line
    from pipeline.report import render_terminal_summary

    report, stored = judgement.report, judgement.stored
    say(render_terminal_summary(report).rstrip())
    say("")
    before = stored.report.verdict
    if report is stored.report:
        say(f"judged again by the artifact's own gates: its verdict, {before}, follows")
    else:
        name = one_line(report.rejudged.recipe if report.rejudged else "")
        same = "still " if report.verdict == before else ""
        say(f"judged again by the gates of {name}: {before} before, {same}{report.verdict} now")
        for line in _change_lines(judgement.changes):
            say(line)
        if not judgement.changes:
            say("  every gate is as it was")
    where = stored.artifact or stored.path
    if stored.artifact is None:
        say("note: this report lies alone, so nothing says that it is as it was published")
    say(f"{'artifact (verified)' if stored.artifact else 'report'}: {where}")
    if stored.unread:
        files = counted(stored.unread, "large file")
        say(f"note: {files} unchanged since an earlier judge, so not read again; see --rehash")
    if output is not None:
        say(f"report: {output / 'report.html'}")


def _change_lines(changes: Sequence[GateChange]) -> Iterator[str]:
    from pipeline.cli.lines import columns

    rows = [
        (KINDS[change.kind], *_name(change), _said(change.before), "->", _said(change.after))
        for change in sorted(changes, key=lambda change: list(KINDS).index(change.kind))
    ]
    yield from columns(rows[:MAX_CHANGES])
    if len(rows) > MAX_CHANGES:
        yield f"  and {len(rows) - MAX_CHANGES:,} more, see --json"


def _name(change: GateChange) -> tuple[str, str]:
    gate = change.after or change.before
    assert gate is not None
    return gate.gate, ": ".join(filter(None, (gate.target, gate.metric)))


def _said(gate: GateResult | None) -> str:
    if gate is None:
        return "-"
    if gate.verdict == "not_run":
        return f"not run ({'allowed' if gate.is_allowed else 'not allowed'})"
    measured = "" if gate.measured is None else f"{gate.measured:.6g} "
    return f"{gate.verdict} ({measured}{gate.limit})"


def _document(judgement: Judgement, output: Path | None) -> dict[str, object]:
    report, stored = judgement.report, judgement.stored
    return {
        "verdict": report.verdict,
        "exit_code": int(EXIT_CODES[report.verdict]),
        "artifact": str(stored.artifact.resolve()) if stored.artifact else None,
        "is_verified": stored.artifact is not None,
        "unread_files": stored.unread,
        "stored_verdict": stored.report.verdict,
        "changes": [
            {
                "kind": change.kind,
                "before": change.before.model_dump(mode="json") if change.before else None,
                "after": change.after.model_dump(mode="json") if change.after else None,
            }
            for change in judgement.changes
        ],
        "ignored": list(judgement.ignored),
        "output": str(output.resolve()) if output else None,
        "report": report.model_dump(mode="json"),
    }
