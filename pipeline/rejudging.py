"""Judges what an artifact has measured by other limits, without a build: `convert judge`.

The artifact is verified first and never changed. Only `gates` of the new recipe are applied; whatever
else differs in it would take a build, so it is named and left out, and other targets are refused.
"""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError

from pipeline.errors import ArtifactError, RecipeError
from pipeline.hashing import sha256_bytes
from pipeline.judging import judged, require_measured
from pipeline.publish import MANIFEST_FILE
from pipeline.recipe import dump_recipe
from pipeline.recipe.types import Recipe
from pipeline.report.printable import printable_text
from pipeline.report.schema import Rejudged
from pipeline.stages.catalogue import STAGES
from pipeline.stored_reports import REPORT_FILE, locate_report, opened_report

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pipeline.hashing import JSON
    from pipeline.parity.types import GateResult
    from pipeline.recipe import LoadedRecipe
    from pipeline.report.places import Places
    from pipeline.report.schema import Report
    from pipeline.stored_reports import StoredReport

DECLARED = {stage.name: stage.coverage for stage in STAGES}

GateId = tuple[str, str, str]
"""Kind, target and metric of a gate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateChange:
    """One gate that is not what it was in the stored report.

    Attributes:
        kind: `broken` or `mended` when the verdict changed, `limit` when only the limit did, `new`
            and `gone` for gates that one of the recipes does not have.
        before: What the stored report says; None for a new gate.
        after: What is said now; None for a gate that is gone.
    """

    kind: Literal["broken", "mended", "limit", "new", "gone"]
    before: GateResult | None
    after: GateResult | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A report, judged again.

    Attributes:
        stored: What the artifact has.
        report: The same numbers with the new verdict; `rejudged` and a warning say what it is.
        changes: Every gate that is not what it was.
        ignored: Differences of the recipe that were not applied, a sentence each.
    """

    stored: StoredReport
    report: Report
    changes: tuple[GateChange, ...]
    ignored: tuple[str, ...]


def find_report(name: str, output: Path) -> StoredReport:
    """The report of an artifact as a user names it, verified, every byte of it.

    Args:
        name: See `locate_report`.
        output: Where artifacts are.

    Raises:
        RecipeError: there is no such artifact.
        ArtifactError: it is damaged, or its report is of an unknown schema version.
    """
    with opened_report(locate_report(name, output)) as finish:
        return finish()


def choose_recipe(loaded: Sequence[LoadedRecipe], name: str) -> LoadedRecipe:
    """Of the recipes that a file stands for, the one of an artifact's name; the only one in any case.

    Raises:
        RecipeError: none of several has that name.
    """
    if len(loaded) == 1:
        return loaded[0]
    for each in loaded:
        if each.recipe.name == name:
            return each
    names = ", ".join(f"`{each.recipe.name}`" for each in loaded[:5])
    raise RecipeError(
        f"none of its {len(loaded)} recipes is named `{name}`: {names}{', ...' * (len(loaded) > 5)}",
        where=str(loaded[0].path),
    )


def judge_again(stored: StoredReport) -> Judgement:
    """Judge a report by its own gates: a check that its verdict follows from its numbers.

    Raises:
        ArtifactError: it does not.
    """
    report = stored.report
    gates = _stored_recipe(stored).gates
    again = judged(report, gates, declared=DECLARED)
    faults = [*_contradictions(report, again)]
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ArtifactError(
            "the stored verdict does not follow from the stored numbers: "
            f"{printable_text(faults[0])}{more}",
            where=str(stored.path),
            hint="another version of convert judged it, or it was edited: build again",
        )
    return Judgement(stored=stored, report=report, changes=(), ignored=())


def judge_by(stored: StoredReport, loaded: LoadedRecipe) -> Judgement:
    """Judge a report by the gates of a recipe.

    Raises:
        RecipeError: the recipe is of other targets, or limits what was not measured.
        ArtifactError: the recipe in the report is of another version of convert.
    """
    report = stored.report
    recipe = loaded.recipe
    built = _stored_recipe(stored)
    _require_targets(loaded, built)
    require_measured(report, recipe.gates, built.gates, declared=DECLARED, where=loaded.where)
    ignored = tuple(_ignored(dump_recipe(built), dump_recipe(recipe)))
    again = judged(report, recipe.gates, declared=DECLARED)
    note = Rejudged(
        at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        recipe=loaded.path.name,
        recipe_sha256=sha256_bytes(loaded.content),
        stored_verdict=report.verdict,
        ignored=ignored,
    )
    new = again.model_copy(
        update={
            "recipe": {**report.recipe, "gates": dump_recipe(recipe)["gates"]},
            "rejudged": note,
            "warnings": (*_sentences(note), *report.warnings),
        }
    )
    return Judgement(stored=stored, report=new, changes=_changes(report, new), ignored=ignored)


def write_judgement(judgement: Judgement, directory: Path, places: Places | None) -> None:
    """Write a re-judged report in all its forms; an earlier one in the same place is replaced.

    Raises:
        RecipeError: the directory is, or lies in, an artifact, and artifacts are never changed.
        ArtifactError: a file cannot be written.
    """
    from pipeline.report.write import write_report

    absolute = directory.resolve()
    for home in (absolute, *absolute.parents):
        if (home / MANIFEST_FILE).is_file() and (home / REPORT_FILE).is_file():
            raise RecipeError(
                f"`{directory}` is in an artifact, and artifacts are never changed",
                hint="choose another directory for --output",
            )
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(
            f"the report cannot be written: {error.strerror}", where=str(directory)
        ) from error
    write_report(judgement.report, directory, places)


def _stored_recipe(stored: StoredReport) -> Recipe:
    try:
        return Recipe.model_validate_json(json.dumps(stored.report.recipe))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(
            "the recipe in the report is not one of this version of convert: "
            f"`{printable_text(key)}`: {printable_text(first['msg'])}",
            where=str(stored.path),
            hint="judge it with the version of convert that wrote it, or build again",
        ) from error


def _require_targets(loaded: LoadedRecipe, built: Recipe) -> None:
    before = {target.name for target in built.targets}
    after = {target.name for target in loaded.recipe.targets}
    if before == after:
        return
    told = [f"the artifact has no `{name}`" for name in sorted(after - before)]
    told += [f"the recipe has no `{name}`" for name in sorted(before - after)]
    raise loaded.error(
        f"its targets are not those of the artifact: {'; '.join(told[:5])}",
        "targets",
        hint="only `gates` may differ; other targets take a build",
    )


def _ignored(before: JSON, after: JSON, path: str = "") -> Iterator[str]:
    """Keys, other than the gates, that differ between two recipes: `key: before, not after`."""
    if path == "gates":
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys((*before, *after)):
            inner = f"{path}.{key}" if path else key
            yield from _ignored(before.get(key), after.get(key), inner)
    elif path == "targets" and isinstance(before, list) and isinstance(after, list):
        yield from _ignored(_by_name(before), _by_name(after), path)
    elif before != after:
        yield f"`{path}` is {_shown(before)} in the artifact, and {_shown(after)} in the recipe"


def _by_name(targets: list[JSON]) -> dict[str, JSON]:
    return {str(target["name"]): target for target in targets if isinstance(target, dict)}


def _shown(value: JSON) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _sentences(note: Rejudged) -> Iterator[str]:
    yield (
        f"Judged again on {note.at} by the gates of `{note.recipe}` (SHA-256 "
        f"{note.recipe_sha256[:12]}); the build's own verdict was {note.stored_verdict}. Nothing was "
        "measured anew."
    )
    for sentence in note.ignored:
        yield f"Not applied, because it takes a build: {sentence}."


def _by_id(report: Report) -> dict[GateId, GateResult]:
    return {(gate.gate, gate.target, gate.metric): gate for gate in report.gates}


def _changes(before: Report, after: Report) -> tuple[GateChange, ...]:
    old, new = _by_id(before), _by_id(after)
    return tuple(
        change
        for name in dict.fromkeys((*new, *old))
        if (change := _change(old.get(name), new.get(name))) is not None
    )


def _change(before: GateResult | None, after: GateResult | None) -> GateChange | None:
    kind: Literal["broken", "mended", "limit", "new", "gone"]
    if before is None or after is None:
        kind = "new" if before is None else "gone"
    elif before.is_allowed != after.is_allowed:
        kind = "mended" if after.is_allowed else "broken"
    elif before.limit != after.limit:
        kind = "limit"
    else:
        return None
    return GateChange(kind=kind, before=before, after=after)


def _contradictions(stored: Report, again: Report) -> Iterator[str]:
    """Where a report says something else than its numbers; wording is not looked at."""
    old, new = _by_id(stored), _by_id(again)
    for name in dict.fromkeys((*old, *new)):
        before, after = old.get(name), new.get(name)
        what = " ".join(filter(None, (name[0], name[1], name[2])))
        if before is None or after is None:
            told = "is judged, and the report does not have it"
            yield f"{what} {told if before is None else 'is in the report, and no gate makes it'}"
        elif (before.verdict, before.is_allowed) != (after.verdict, after.is_allowed):
            yield f"{what} is {before.verdict}, and should be {after.verdict}"
        elif (before.measured, before.limit) != (after.measured, after.limit):
            yield f"{what} was {before.measured!r} ({before.limit}), and is {after.measured!r} ({after.limit})"
    if stored.verdict != again.verdict:
        yield f"the verdict is {stored.verdict}, and should be {again.verdict}"
