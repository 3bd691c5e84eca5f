"""`convert check CANDIDATE --reference CHECKPOINT`: is a model that exists already right?"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.github import github_option, tell_github
from pipeline.cli.options import (
    column_options,
    json_option,
    output_option,
    store_options,
    variables_option,
)
from pipeline.cli.output import emit, say

if TYPE_CHECKING:
    from pipeline.build import BuildResult
    from pipeline.drafting import CheckDraft, ColumnOptions


def _renames(
    _context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]
) -> dict[str, str]:
    renames: dict[str, str] = {}
    for text in given:
        name, equals, ours = text.rpartition("=")
        if not name or not equals or not ours:
            raise click.BadParameter(f"`{text}` is not GRAPH_NAME=NAME")
        renames[name] = ours
    return renames


@click.command("check")
@click.argument("candidate")
@click.option(
    "--reference", help="The checkpoint it was made from: as `model.source` of a recipe."
)
@click.option("--revision", help="Branch, tag or commit of a checkpoint on a hub; default main.")
@click.option("--file", help="Which model of the folder, such as onnx/model_quantized.onnx.")
@click.option("--target", help="Which target, when the candidate is an artifact of convert.")
@click.option("--task", help="What the model is for; default: what fits both.")
@click.option("--data", help="Samples to compare on: a table, or a folder of images.")
@column_options
@click.option("--samples", type=click.IntRange(1, 100_000), help="How many samples.")
@click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    help="Says task, shapes, data and limits; what it builds is not built.",
)
@click.option("--like", metavar="TARGET", help="Take the limits of this target of the recipe.")
@click.option(
    "--rename",
    multiple=True,
    metavar="GRAPH_NAME=NAME",
    callback=_renames,
    help="What an input or output of the graph is; may be repeated.",
)
@click.option("--benchmark", is_flag=True, help="Also time it against torch.")
@click.option("--allow-not-run", is_flag=True, help="What cannot run here may stay unchecked.")
@click.option("--name", help="Name of the report's folder; default: check- and the candidate's.")
@output_option
@variables_option
@json_option
@click.option("-q", "--quiet", is_flag=True, help="Only errors and the verdict.")
@click.option("-v", "--verbose", is_flag=True, help="Also every line that a stage logs.")
@github_option
@store_options
def check_command(  # noqa: PLR0913, PLR0917 - one parameter an option
    candidate: str,
    reference: str | None,
    revision: str | None,
    file: str | None,
    target: str | None,
    task: str | None,
    data: str | None,
    columns: ColumnOptions,
    samples: int | None,
    recipe: Path | None,
    like: str | None,
    rename: dict[str, str],
    benchmark: bool,
    allow_not_run: bool,
    name: str | None,
    output: Path,
    variables: dict[str, str],
    is_json: bool,
    quiet: bool,
    verbose: bool,
    is_github: bool | None,
    store: Path | None,
    is_store_trusted: bool,
    must_rehash: bool,
) -> int:
    """Check a model that exists already against the checkpoint it was made from.

    CANDIDATE is an .onnx file, or a folder as Optimum, transformers.js, Olive, ONNX Runtime GenAI or
    convert make them. It is compared on samples and on inputs that usual samples do not hold, against
    limits from the checkpoint's own noise; its tokenizer and configuration are compared too. A decoder
    is also read token by token with its cache, and continued. Nothing of it is trusted: no library of
    it is loaded, and its weights are not copied into the report's folder.

    \b
    Examples:
      convert check model.onnx --reference ./my-checkpoint
      convert check ./onnx-model --file onnx/model_quantized.onnx --reference org/name
      convert check model.onnx --reference ./my-checkpoint --data reviews.csv --label stars
      convert check artifacts/minilm/latest --target cpu-int8 --recipe recipe.yaml

    Exit codes: 0 it holds its limits, 1 it does not, 2 the candidate, the checkpoint or an option will
    not do, 3 a stage failed or a file is damaged, 4 something needed is missing here.
    """  # noqa: D301 - \b is click's own
    from pipeline.build import BuildOptions
    from pipeline.cli.build import EXIT_CODES, Shown, build_one
    from pipeline.drafting import CheckOptions, draft_check
    from pipeline.recipe import load_recipe_file
    from pipeline.store import resolve_store_root

    if recipe is None and like is not None:
        raise click.UsageError("--like names a target of a recipe: give --recipe too")
    root = (store or resolve_store_root(os.environ)).absolute()
    options = CheckOptions(
        candidate=candidate,
        reference=reference,
        store=root,
        recipe=None if recipe is None else load_recipe_file(recipe, variables),
        like=like,
        revision=revision,
        task=task,
        data=data,
        columns=columns,
        samples=samples,
        file=file,
        target=target,
        rename=rename,
        name=name,
        has_benchmark=benchmark,
        may_skip=allow_not_run,
    )
    note = (lambda _: None) if quiet else say
    draft = draft_check(options, note=note)
    build_options = BuildOptions(
        output=output, store=root, is_store_trusted=is_store_trusted, must_rehash=must_rehash
    )
    shown = Shown(is_quiet=quiet, is_verbose=verbose, is_github=is_github)
    result = build_one(draft.loaded, build_options, shown)
    code = int(EXIT_CODES[result.verdict])
    if is_json:
        emit(json.dumps(_document(draft, result, code), indent=2))
    _show(draft, result, is_quiet=quiet)
    tell_github(result.report, draft.loaded, is_github=is_github)
    return code


def _show(draft: CheckDraft, result: BuildResult, *, is_quiet: bool) -> None:
    from pipeline.report.check_text import render_check

    if is_quiet:
        say(f"{result.verdict}: {result.directory}")
        for reason in result.reasons:
            say(f"  {reason}")
        return
    say("")
    text = render_check(
        result.report(), precision=draft.precision, assumed=draft.assumed, notes=draft.notes
    )
    say(text.rstrip())
    say(f"\nreport: {result.directory / 'report.html'}")


def _document(draft: CheckDraft, result: BuildResult, code: int) -> dict[str, object]:
    from pipeline.report.check_text import advice

    report = result.report()
    return {
        "verdict": result.verdict,
        "exit_code": code,
        "artifact": str(result.directory.resolve()),
        "is_up_to_date": result.is_up_to_date,
        "candidate": {
            "file": str(draft.candidate.place.model.resolve()),
            "companions": sorted(draft.candidate.companions),
            "artifact": draft.candidate.artifact or None,
            "precision": draft.precision,
            "opset": draft.candidate.facts.opset,
            "producer": draft.candidate.facts.producer,
            "size_bytes": draft.candidate.facts.size_bytes,
        },
        "assumed": list(draft.assumed),
        "notes": list(draft.notes),
        "advice": list(advice(report)),
        "report": report.model_dump(mode="json"),
    }
