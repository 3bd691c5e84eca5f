"""The Python API: what the command line does, as functions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ArtifactError, GateFailed, StageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.build import BuildOptions, BuildResult
    from pipeline.planning import NodeStatus, Plan
    from pipeline.recipe.parts import Scalar
    from pipeline.recipe.types import Recipe
    from pipeline.report.schema import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A published artifact on disk.

    Attributes:
        path: Its directory, `artifacts/<name>/<version>`.
        name: The recipe's name.
        version: Twelve hex digits of the digest of everything it was made from.
    """

    path: Path
    name: str
    version: str

    @classmethod
    def open(cls, path: str | Path) -> Artifact:
        """Open an artifact without verifying it.

        Raises:
            ArtifactError: there is none at `path`.
        """
        from pipeline.publish import read_manifest

        directory = Path(path).resolve()
        manifest = read_manifest(directory)
        return cls(path=directory, name=str(manifest["name"]), version=str(manifest["version"]))

    def report(self) -> Report:
        """The report it carries.

        Raises:
            ArtifactError: the report is missing, damaged or of an unknown version.
        """
        from pipeline.report import load_report

        return load_report(self.path / "report.json")

    def target(self, name: str) -> Path:
        """The folder of one target, usable as it is.

        Raises:
            ArtifactError: there is no such target.
        """
        targets = [target.name for target in self.report().targets]
        if name not in targets:
            raise ArtifactError(
                f"there is no target `{name}`, only: {', '.join(targets)}", where=str(self.path)
            )
        return self.path / name

    def verify(self) -> None:
        """Check every file against the manifest, both ways.

        Raises:
            ArtifactError: a file is missing, added or changed; the message names it.
        """
        from pipeline.publish import verify_artifact

        problems = verify_artifact(self.path)
        if problems:
            raise ArtifactError("; ".join(problems[:5]), where=str(self.path))


def plan(
    recipe: str | Path,
    *,
    store: str | Path | None = None,
    variables: Mapping[str, Scalar] | None = None,
) -> tuple[Plan, tuple[NodeStatus, ...]]:
    """The plan of a recipe, and for each node whether its result is there, or why it must run.

    Runs nothing. Args and errors as `convert`.
    """
    from pipeline.build import open_store, prepare_plan
    from pipeline.planning import plan_status
    from pipeline.recipe import load_recipe_file

    opened = open_store(_options(None, store))
    made = prepare_plan(load_recipe_file(recipe, variables), opened)
    return made, plan_status(made, opened)


def convert(
    recipe: str | Path,
    *,
    output: str | Path | None = None,
    store: str | Path | None = None,
    variables: Mapping[str, Scalar] | None = None,
) -> Artifact:
    """Build what a recipe asks for, and return the artifact once it holds its gates.

    Args:
        recipe: Path of the recipe.
        output: Where artifacts go; `artifacts` under the current directory when None.
        store: Root of the store; `$CONVERT_STORE` or the user's cache directory when None.
        variables: Values for variables of the recipe.

    Raises:
        RecipeError: the recipe is wrong, asks for what cannot be, or has a matrix that makes several
            recipes.
        GateFailed: a gate does not hold; `where` is the directory with the report.
        StageError: a stage failed; `where` is the directory with the report.
        ArtifactError: the checkpoint, the store or the artifact is damaged or cannot be written.
        EnvironmentMissing: a package is not installed.
    """
    from pipeline.build import build
    from pipeline.recipe import load_recipe_file

    result = build(load_recipe_file(recipe, variables), _options(output, store))
    raise_for_verdict(result)
    return Artifact.open(result.directory)


def convert_all(
    recipe: str | Path,
    *,
    output: str | Path | None = None,
    store: str | Path | None = None,
    variables: Mapping[str, Scalar] | None = None,
) -> tuple[Artifact, ...]:
    """Build every recipe that the matrix of a recipe makes, and return their artifacts in order.

    All are planned before the first one is built. Args and errors as `convert`; what fails ends the
    call, and what was built before stays published.
    """
    from pipeline.build import build, open_store, prepare_plan
    from pipeline.recipe import load_recipes

    loaded = load_recipes(recipe, variables)
    options = _options(output, store)
    opened = open_store(options)
    for each in loaded:
        prepare_plan(each, opened)
    artifacts = []
    for each in loaded:
        result = build(each, options)
        raise_for_verdict(result)
        artifacts.append(Artifact.open(result.directory))
    return tuple(artifacts)


def load_recipe(path: str | Path, variables: Mapping[str, Scalar] | None = None) -> Recipe:
    """Read and check a recipe.

    Raises:
        RecipeError: with file, line, column and key of every mistake.
    """
    from pipeline.recipe import load_recipe as load

    return load(path, variables)


def raise_for_verdict(result: BuildResult) -> None:
    """Raise when a build did not pass.

    Raises:
        GateFailed: a gate does not hold.
        StageError: a stage failed.
    """
    if result.verdict == "passed":
        return
    kind = StageError if result.verdict == "error" else GateFailed
    raise kind(
        "; ".join(result.reasons),
        where=str(result.directory),
        hint=f"see {result.directory / 'report.md'}",
    )


def _options(output: str | Path | None, store: str | Path | None) -> BuildOptions:
    from pipeline.build import BuildOptions

    options = BuildOptions()
    if output is not None:
        options = replace(options, output=Path(output))
    if store is not None:
        options = replace(options, store=Path(store))
    return options
