"""Builds all recipes that one file stands for, one after the other."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.build import open_store, prepare_plan
from pipeline.cli.build import EXIT_CODES, build_one, print_summary, result_document
from pipeline.cli.github import tell_github
from pipeline.cli.lines import columns
from pipeline.cli.output import emit, error_document, say
from pipeline.errors import ExitCode, PipelineError
from pipeline.recipe.written import values_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.build import BuildOptions
    from pipeline.cli.build import Shown
    from pipeline.recipe import LoadedRecipe

WORST_LAST = (
    ExitCode.OK,
    ExitCode.GATE_FAILED,
    ExitCode.STAGE_FAILED,
    ExitCode.ENVIRONMENT_MISSING,
    ExitCode.USAGE,
)
"""The exit code of several builds is the last of these that one of them has."""


def build_several(
    loaded: Sequence[LoadedRecipe], options: BuildOptions, shown: Shown, *, is_json: bool
) -> int:
    """Build every recipe, whatever becomes of the others, and return the worst exit code.

    All are planned first, so that a mistake in the last one is found before the first one is built.

    Raises:
        PipelineError: a recipe asks for what cannot be; nothing was built then.
    """
    store = open_store(options)
    for each in loaded:
        prepare_plan(each, store, must_rehash=options.must_rehash)
    options = replace(options, must_rehash=False)  # that was done just now
    documents: list[dict[str, object]] = []
    rows: list[tuple[str, str, str]] = []
    codes: list[ExitCode] = []
    for number, each in enumerate(loaded, 1):
        name = each.recipe.name
        if not shown.is_quiet:
            say(f"\n=== {name} ({number} of {len(loaded)}): {values_text(each.values)}")
        head: dict[str, object] = {"recipe": name, "values": dict(each.values)}
        try:
            result = build_one(each, options, shown)
        except PipelineError as error:
            say(f"error: {error}")
            codes.append(error.exit_code)
            document = error_document(type(error).__name__, error, int(error.exit_code))
            rows.append((name, "error", error.message.partition("\n")[0]))
        else:
            print_summary(result, is_quiet=shown.is_quiet)
            tell_github(result.report, each, is_github=shown.is_github)
            codes.append(EXIT_CODES[result.verdict])
            document = result_document(result)
            rows.append((name, result.verdict, str(result.directory)))
        documents.append(head | document)
    code = max(codes, key=WORST_LAST.index)
    if is_json:
        passed = code is ExitCode.OK
        whole = "passed" if passed else "failed" if code is ExitCode.GATE_FAILED else "error"
        emit(json.dumps({"verdict": whole, "exit_code": int(code), "builds": documents}, indent=2))
    say("")
    for line in columns(rows):
        say(line)
    return int(code)
