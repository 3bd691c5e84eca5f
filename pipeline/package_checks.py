"""Whether the packages that we depend on are here, new enough, and fit this machine."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipeline.environment import (
    DISTRIBUTION,
    ONNXRUNTIME_DISTRIBUTIONS,
    find_package,
    installed_onnxruntime,
    is_importable,
)
from pipeline.errors import EnvironmentMissing

if TYPE_CHECKING:
    from collections.abc import Iterator

State = Literal["ok", "note", "missing", "problem"]

IMPORT_TIME_S = 180.0

NATIVE_MODULES = ("onnxruntime", "onnx", "onnxsim", "torch", "tensorrt_rtx")
"""Modules whose libraries may not fit this machine although pip installed them."""

_REQUIREMENT = re.compile(
    r"(?P<name>[\w.-]+)\s*(?:(?P<relation>>=|==)\s*(?P<version>[\w.+!]+))?"
    r"\s*(?:;\s*extra\s*==\s*[\"'](?P<extra>[\w-]+)[\"'])?"
)
"""The only forms that our own `pyproject.toml` uses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        area: `python`, `packages`, `cpu`, `memory`, `gpu`, `store`, `hub` or `targets`.
        name: What was looked at.
        state: `ok`; `note`, which nobody needs to act on; `missing`, which some targets need; or
            `problem`, which every target suffers from.
        detail: What was found.
        hint: A command or an edit that mends it, or empty.
    """

    area: str
    name: str
    state: State
    detail: str
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """A distribution that is needed; `minimum` and `extra` may be empty."""

    name: str
    minimum: str
    is_exact: bool
    extra: str


def check_packages() -> Iterator[Check]:
    """Every package that we depend on: there, and new enough; and one ONNX Runtime only."""
    try:
        requirements = own_requirements()
    except importlib.metadata.PackageNotFoundError:
        yield Check(
            area="packages",
            name=DISTRIBUTION,
            state="problem",
            detail="not installed, so what it needs is not known",
            hint=f"pip install '{DISTRIBUTION}[cpu]', or `pip install -e '.[cpu]'` in its sources",
        )
        return
    fact = find_package(DISTRIBUTION)
    version = fact.version if fact else "unknown version"
    yield Check(area="packages", name=DISTRIBUTION, state="ok", detail=version)
    yield _onnxruntime_check(requirements)
    for requirement in requirements:
        if requirement.extra in {"", "rtx"}:
            yield _package_check(requirement)


def own_requirements() -> tuple[Requirement, ...]:
    """What our own distribution declares.

    Raises:
        PackageNotFoundError: it is not installed.
        ValueError: a requirement is written in a form that we do not use.
    """
    found = []
    for text in importlib.metadata.requires(DISTRIBUTION) or ():
        match = _REQUIREMENT.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"requirement {text!r} is of an unknown form")
        found.append(
            Requirement(
                name=match["name"],
                minimum=match["version"] or "",
                is_exact=match["relation"] == "==",
                extra=match["extra"] or "",
            )
        )
    return tuple(found)


def is_satisfied(requirement: Requirement, version: str) -> bool:
    """Whether a version is the one, or new enough; compares release numbers only."""
    if requirement.is_exact:
        return _release(version) == _release(requirement.minimum)
    return _release(version) >= _release(requirement.minimum)


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version without zeros at the end: `2.13.0+cpu` -> (2, 13)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in match.group().split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _onnxruntime_check(requirements: tuple[Requirement, ...]) -> Check:
    try:
        installed = installed_onnxruntime()
    except EnvironmentMissing as error:
        return Check(
            area="packages",
            name=" / ".join(ONNXRUNTIME_DISTRIBUTIONS),
            state="problem",
            detail=error.message,
            hint=error.hint,
        )
    return _package_check(next(r for r in requirements if r.name == installed))


def _package_check(requirement: Requirement) -> Check:
    bad: State = "missing" if requirement.extra == "rtx" else "problem"
    sign = "==" if requirement.is_exact else ">="
    wanted = f"{sign}{requirement.minimum}" if requirement.minimum else ""
    fact = find_package(requirement.name)
    extra = f"[{requirement.extra}]" if requirement.extra else ""
    if fact is None:
        return Check(
            area="packages",
            name=requirement.name,
            state=bad,
            detail=f"not installed; {wanted or 'any version'} is needed",
            hint=f"pip install '{DISTRIBUTION}{extra}'",
        )
    if not is_satisfied(requirement, fact.version):
        return Check(
            area="packages",
            name=requirement.name,
            state=bad,
            detail=f"{fact.version} is installed; {wanted} is needed",
            hint=f"pip install '{requirement.name}{wanted}'",
        )
    return Check(area="packages", name=requirement.name, state="ok", detail=fact.version)


def check_imports() -> tuple[Check, ...]:
    """Import what has native code, as far as it is installed; only failures are told."""
    modules = [module for module in NATIVE_MODULES if is_importable(module)]
    with ThreadPoolExecutor(2) as pool:
        reasons = list(pool.map(_import_failure, modules))
    failures = tuple(
        Check(
            area="packages",
            name=f"import {module}",
            state="missing" if module == "tensorrt_rtx" else "problem",
            detail=reason,
            hint=f"install {module} again; it may be built for another CPU or C library",
        )
        for module, reason in zip(modules, reasons, strict=True)
        if reason
    )
    return failures or (
        Check(area="packages", name="imports", state="ok", detail=", ".join(modules)),
    )


def _import_failure(module: str) -> str:
    """Why a module cannot be imported; empty when it can."""
    try:
        done = subprocess.run(  # noqa: S603 - one of NATIVE_MODULES
            [sys.executable, "-P", "-c", f"import {module}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=IMPORT_TIME_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"importing it took longer than {IMPORT_TIME_S:g} s"
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines()
    return lines[-1][:300] if lines else f"importing it ended with status {done.returncode}"
