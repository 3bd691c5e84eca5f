"""What is here and what is missing: Python, packages, CPU, memory, GPU, store, targets.

What can be tried is tried: packages with native code are imported, each in a process of its own, and
the store's calls are made in a temporary directory on its file system, which is deleted afterwards.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipeline.environment import (
    DISTRIBUTION,
    ONNXRUNTIME_DISTRIBUTIONS,
    cores,
    cpu_flags,
    cpu_model,
    find_package,
    installed_onnxruntime,
    is_importable,
    memory_mib,
    nvidia_driver_version,
    platform_tag,
)
from pipeline.errors import EnvironmentMissing
from pipeline.store_trial import examine_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

State = Literal["ok", "note", "missing", "problem"]

OLDEST_PYTHON = (3, 11)
IMPORT_TIME_S = 180.0
TOOL_TIME_S = 20.0

NATIVE_MODULES = ("onnxruntime", "onnx", "onnxsim", "torch", "tensorrt_rtx")
"""Modules whose libraries may not fit this machine although pip installed them."""

RUNTIMES = ("onnxruntime", "tensorrt-rtx")
"""All runtimes that a target may have; a test holds this against the recipe's schema."""

X86_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")
ARM_FLAGS = ("asimd", "asimddp", "i8mm", "sve")
"""Instructions that matter for INT8, as Linux names them."""

_REQUIREMENT = re.compile(
    r"(?P<name>[\w.-]+)\s*(?:(?P<relation>>=|==)\s*(?P<version>[\w.+!]+))?"
    r"\s*(?:;\s*extra\s*==\s*[\"'](?P<extra>[\w-]+)[\"'])?"
)
"""The only forms that our own `pyproject.toml` uses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        area: `python`, `packages`, `cpu`, `memory`, `gpu`, `store` or `targets`.
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


def examine(store_root: Path) -> tuple[Check, ...]:
    """Look at everything, in the order in which it should be mended.

    Args:
        store_root: Root of the store; need not be there.
    """
    packages = tuple(check_packages())
    return (
        check_python(),
        *packages,
        *check_imports(),
        *check_cpu(cpu_flags(), platform.machine()),
        check_memory(),
        *check_gpu(),
        *(
            Check(area="store", name=t.name, state=t.state, detail=t.detail, hint=t.hint)
            for t in examine_store(store_root)
        ),
        *check_targets(),
    )


def is_fit_for_cpu(checks: Iterable[Check]) -> bool:
    """Whether everything that CPU targets need is there."""
    return not any(check.state == "problem" for check in checks)


def check_python() -> Check:
    """Whether this Python is new enough."""
    version = platform.python_version()
    wanted = ".".join(map(str, OLDEST_PYTHON))
    is_fit = sys.version_info[:2] >= OLDEST_PYTHON
    return Check(
        area="python",
        name="Python",
        state="ok" if is_fit else "problem",
        detail=f"{version} at {sys.executable}, {platform_tag()}",
        hint="" if is_fit else f"install Python {wanted} or newer",
    )


# --- packages -------------------------------------------------------------------------------


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


# --- machine --------------------------------------------------------------------------------


def check_cpu(flags: str, machine: str) -> Iterator[Check]:
    """The CPU, and what its instructions mean for INT8.

    Args:
        flags: Instruction set extensions as Linux names them, separated by blanks.
        machine: Architecture, such as `x86_64`.

    Source: onnxruntime.ai/docs/performance/model-optimizations/quantization.html: without VNNI,
    pairs of uint8 x int8 products are added in 16 bits and may saturate; 7-bit weights avoid it.
    """
    yield Check(area="cpu", name="model", state="ok", detail=f"{cpu_model()}, {cores()} cores")
    have = set(flags.split())
    is_arm = machine in {"aarch64", "arm64"}
    wanted = ARM_FLAGS if is_arm else X86_FLAGS
    shown = ", ".join(f"{flag} {'yes' if flag in have else 'no'}" for flag in wanted)
    yield Check(area="cpu", name="instructions", state="ok", detail=shown)
    yield _int8_check(have, is_arm=is_arm)


def _int8_check(have: set[str], *, is_arm: bool) -> Check:
    state: State = "ok"
    hint = ""
    if is_arm:
        if have & {"asimddp", "i8mm"}:
            detail = "dot products of bytes: INT8 is exact and faster than fp32"
        else:
            state, detail = "note", "no dot products of bytes: INT8 saves memory, hardly any time"
    elif "amx_int8" in have:
        detail = "AMX and VNNI: INT8 sums are exact in 32 bits, large products are much faster"
    elif have & {"avx512_vnni", "avx_vnni"}:
        detail = "VNNI: INT8 sums are exact in 32 bits, and faster than fp32"
    elif have & {"avx2", "avx512f"}:
        state = "note"
        detail = (
            "no VNNI: uint8 x int8 sums may saturate in 16 bits, and less time is saved"
        )
        hint = (
            "set `quantization: {reduce_range: true}` (7-bit weights) if an INT8 gate fails here"
        )
    else:
        state, detail = "note", "no AVX2: INT8 saves memory, and is likely slower than fp32"
    return Check(area="cpu", name="INT8", state=state, detail=detail, hint=hint)


def check_memory() -> Check:
    """Memory of the machine, what is free of it, and a container's limit."""
    import psutil

    total, free = memory_mib(), psutil.virtual_memory().available >> 20
    limit = _container_limit_mib()
    capped = f", limited to {limit:,} MiB" if limit and limit < total else ""
    return Check(
        area="memory",
        name="memory",
        state="ok",
        detail=f"{total:,} MiB{capped}, {free:,} MiB available",
    )


def _container_limit_mib() -> int:
    """Limit of this container's memory (cgroup v2), MiB; 0 when there is none."""
    from pathlib import Path

    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return 0
    return int(text) >> 20 if text.isdigit() else 0


def check_gpu() -> Iterator[Check]:
    """The NVIDIA driver, and the GPUs that it knows."""
    driver = nvidia_driver_version()
    if not driver:
        yield Check(
            area="gpu",
            name="NVIDIA driver",
            state="note",
            detail="none: engines are built here, and not run",
        )
        return
    yield Check(area="gpu", name="NVIDIA driver", state="ok", detail=driver)
    for line in _nvidia_smi():
        yield Check(area="gpu", name="GPU", state="ok", detail=line)


def _nvidia_smi() -> list[str]:
    """Name, compute capability and memory of each GPU, as the driver's own tool says them."""
    command = ["nvidia-smi", "--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(  # noqa: S603 - fixed words
            command, capture_output=True, text=True, timeout=TOOL_TIME_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"nvidia-smi cannot be run: {error}"]
    if done.returncode != 0:
        return [f"nvidia-smi ended with status {done.returncode}: {done.stdout.strip()[:200]}"]
    return done.stdout.strip().splitlines()


# --- targets --------------------------------------------------------------------------------


def check_targets() -> Iterator[Check]:
    """For each runtime that a target may have: whether it is built and run here, or what it needs."""
    try:
        package = installed_onnxruntime()
        yield Check(
            area="targets",
            name="onnxruntime",
            state="ok",
            detail=f"fp32 and int8: built, compared and timed here, with {package} on the CPU",
        )
    except EnvironmentMissing as error:
        yield Check(
            area="targets",
            name="onnxruntime",
            state="problem",
            detail=error.message,
            hint=error.hint,
        )
    if find_package("tensorrt-rtx") is None:
        yield Check(
            area="targets",
            name="tensorrt-rtx",
            state="missing",
            detail="needs the package tensorrt-rtx, which is not installed; no GPU is needed",
            hint=f"pip install '{DISTRIBUTION}[rtx]'",
        )
        return
    run = "has a driver, but running engines is not part of this version"
    if not nvidia_driver_version():
        run = "cannot run them without an NVIDIA driver"
    yield Check(
        area="targets",
        name="tensorrt-rtx",
        state="ok",
        detail=f"engines are built here; this machine {run}: allow device_parity and speed not to run",
        hint="gates: {allow_not_run: [device_parity, speed]}",
    )
