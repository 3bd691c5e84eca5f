"""Which artifacts there are, what each says of itself, and how a user names one.

Only manifests are read: nothing here hashes a file, so nothing here says that an artifact is whole.
That is `verification.py`.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from pipeline.errors import ArtifactError, RecipeError
from pipeline.publish import FAILED, LATEST, MANIFEST_FILE, read_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Part(BaseModel):
    """A part of a manifest of which only some keys matter here."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class FileFacts(_Part):
    """One file: path relative to the artifact, and its length."""

    path: str
    size_bytes: NonNegativeInt


class TargetFacts(_Part):
    """One target, as the recipe in the manifest declares it."""

    name: str
    runtime: str
    precision: str = ""
    compute_capability: tuple[str, ...] = ()


class SourceFacts(_Part):
    """Where the checkpoint came from."""

    source: str
    revision: str | None = None


class EnvironmentFacts(_Part):
    """Where and with what the artifact was made."""

    python: str = ""
    platform: str = ""
    cpu_model: str = ""
    packages: dict[str, str] = {}


class _Recipe(_Part):
    targets: tuple[TargetFacts, ...]


class _Files(_Part):
    files: tuple[FileFacts, ...]


class ArtifactFacts(_Part):
    """What a manifest says of its artifact; see `publish.py` for who writes it.

    Attributes:
        version: Twelve hex digits, and the time after them when a stage failed.
        verdict: `passed`, `failed` (a gate) or `error` (a stage).
        created_at: UTC, ISO 8601.
    """

    name: str
    version: str
    verdict: str
    reasons: tuple[str, ...]
    created_at: str
    build_digest: str
    recipe: _Recipe
    source: SourceFacts
    environment: EnvironmentFacts
    files: _Files

    @property
    def targets(self) -> tuple[TargetFacts, ...]:
        """All targets that were asked for."""
        return self.recipe.targets

    @property
    def size_bytes(self) -> int:
        """Sum of the sizes of all files but the manifest."""
        return sum(file.size_bytes for file in self.files.files)

    def files_of(self, target: str) -> tuple[FileFacts, ...]:
        """The files in a target's folder."""
        return tuple(file for file in self.files.files if file.path.startswith(f"{target}/"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactEntry:
    """One version in a listing.

    Attributes:
        name: The artifact's name, as its directory has it.
        version: As its directory has it.
        directory: Where it is.
        facts: What its manifest says; None when that cannot be read.
        damage: Why the manifest cannot be read, or empty.
        is_latest: `latest` leads to it.
        has_failed: It stands under `failed/`.
    """

    name: str
    version: str
    directory: Path
    facts: ArtifactFacts | None
    damage: str
    is_latest: bool
    has_failed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """All artifacts of a directory.

    Attributes:
        entries: By name, then those that passed before those that failed, the newest first.
        problems: What is wrong beside damaged manifests, a sentence each.
    """

    entries: tuple[ArtifactEntry, ...]
    problems: tuple[str, ...]


def read_facts(directory: Path) -> ArtifactFacts:
    """What the manifest of an artifact says.

    Raises:
        ArtifactError: it cannot be read, or lacks something.
    """
    document = read_manifest(directory)
    try:
        return ArtifactFacts.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(
            f"{MANIFEST_FILE} is damaged: `{key}`: {first['msg']}", where=str(directory)
        ) from error


def list_artifacts(output: Path) -> Listing:
    """All versions of all artifacts under a directory, or of one when it is an artifact's own.

    Raises:
        RecipeError: there is no such directory.
        ArtifactError: it cannot be read.
    """
    if path_kind(output) != "directory":
        raise RecipeError(
            f"there is no directory `{output}`",
            hint="name the directory that was given to `convert` as --output",
        )
    try:
        is_home = _is_home(output)
        homes = [output] if is_home else _directories(output)
        problems = tuple(problem for home in homes for problem in _latest_problems(home))
        entries = tuple(entry for home in homes for entry in _versions(home))
    except OSError as error:
        raise ArtifactError(f"cannot be listed: {error.strerror}", where=str(output)) from error
    return Listing(entries=entries, problems=problems)


def path_kind(path: Path) -> Literal["file", "directory", "other", "nothing"]:
    """What a path that a user named leads to.

    Raises:
        RecipeError: it cannot be looked at.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "nothing"
    except OSError as error:
        raise RecipeError(f"`{path}` cannot be looked at: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        return "directory"
    return "file" if stat.S_ISREG(mode) else "other"


def find_artifact(name: str, output: Path) -> Path:
    """The directory of an artifact as a user names it.

    Args:
        name: A directory; or, below `output`, a name or `name/version`; or `latest` when just one
            artifact there has one.
        output: Where artifacts are.

    Raises:
        RecipeError: no artifact goes by this name.
        ArtifactError: `latest` leads nowhere.
    """
    if name == LATEST and path_kind(Path(name)) != "directory":
        return _only_latest(output)
    for path in (Path(name), output / name):
        if path_kind(path) == "directory":
            if is_artifact(path):
                # A manifest knows no links, so verification needs the directory behind one.
                return path.resolve() if path.is_symlink() else path
            if (path / LATEST).is_symlink():
                return _follow_latest(path)
            if path.name == LATEST or _is_home(path):
                raise _without_latest(path)
    messages = {
        "file": f"`{name}` is a file",
        "directory": f"`{name}` is a directory without manifest.json",
        "other": f"`{name}` is neither a file nor a directory",
        "nothing": f"there is no artifact `{name}`",
    }
    raise RecipeError(
        f"{messages[path_kind(Path(name))]}, and an artifact is a directory such as {output}/<name>/<version>",
        hint=f"convert ls {output}",
    )


def is_artifact(directory: Path) -> bool:
    """Whether a directory is an artifact, be it a damaged one that lost its manifest."""
    return (directory / MANIFEST_FILE).is_file() or all(
        (directory / name).is_file() for name in ("report.json", "recipe.yaml")
    )


def _only_latest(output: Path) -> Path:
    homes = [home for home in _directories(output) if (home / LATEST).is_symlink()]
    if len(homes) == 1:
        return _follow_latest(homes[0])
    if not homes:
        raise RecipeError(f"no artifact in `{output}` has passed, so there is no latest one")
    raise RecipeError(
        f"`{LATEST}` may be that of {', '.join(home.name for home in homes)}",
        hint=f"name one: `{homes[0].name}` in place of `{LATEST}`",
    )


def _follow_latest(home: Path) -> Path:
    directory = home / (home / LATEST).readlink()
    if not directory.is_dir():
        raise ArtifactError(f"`{LATEST}` leads to nothing", where=str(home / LATEST))
    return directory


def _without_latest(home: Path) -> RecipeError:
    return RecipeError(
        f"no version of `{home.name}` has passed, so there is no latest one",
        hint=f"name a version: convert ls {home}",
    )


def _directories(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    return sorted(
        child
        for child in path.iterdir()
        if child.is_dir() and not child.is_symlink() and not child.name.startswith(".")
    )


def _is_home(path: Path) -> bool:
    """Whether a directory holds the versions of one artifact."""
    if (path / LATEST).is_symlink():
        return True
    return any(is_artifact(child) for child in (*_directories(path), *_directories(path / FAILED)))


def _latest_problems(home: Path) -> Iterator[str]:
    link = home / LATEST
    if link.is_symlink() and not link.is_dir():
        yield f"{home.name}: `{LATEST}` leads to {link.readlink()}, which is not there"


def _versions(home: Path) -> Iterator[ArtifactEntry]:
    link = home / LATEST
    latest = link.readlink().name if link.is_symlink() else ""
    name = home.resolve().name
    passed = [child for child in _directories(home) if child.name != FAILED]
    for has_failed, directories in ((False, passed), (True, _directories(home / FAILED))):
        entries = [_entry(name, path, latest, has_failed=has_failed) for path in directories]
        yield from sorted(entries, key=_created_at, reverse=True)


def _created_at(entry: ArtifactEntry) -> str:
    return entry.facts.created_at if entry.facts else ""


def _entry(name: str, directory: Path, latest: str, *, has_failed: bool) -> ArtifactEntry:
    facts, damage = None, ""
    try:
        facts = read_facts(directory)
    except ArtifactError as error:
        damage = error.message
    return ArtifactEntry(
        name=name,
        version=directory.name,
        directory=directory,
        facts=facts,
        damage=damage,
        is_latest=not has_failed and directory.name == latest,
        has_failed=has_failed,
    )
