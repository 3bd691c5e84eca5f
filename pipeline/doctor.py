"""What is here and what is missing: Python, packages, CPU, memory, GPU, store, targets.

What can be tried is tried: packages with native code are imported, each in a process of its own, and
the store's calls are made in a temporary directory on its file system, which is deleted afterwards.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from typing import TYPE_CHECKING

from pipeline.environment import (
    DISTRIBUTION,
    cores,
    cpu_flags,
    cpu_model,
    find_package,
    installed_onnxruntime,
    memory_mib,
    nvidia_driver_version,
    platform_tag,
)
from pipeline.errors import EnvironmentMissing
from pipeline.package_checks import Check, State, check_imports, check_packages
from pipeline.source import HubSettings
from pipeline.store_trial import examine_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

OLDEST_PYTHON = (3, 11)
TOOL_TIME_S = 20.0

RUNTIMES = ("onnxruntime", "tensorrt-rtx", "tensorrt")
"""All runtimes that a target may have; a test holds this against the recipe's schema."""

X86_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")
ARM_FLAGS = ("asimd", "asimddp", "i8mm", "sve")
"""Instructions that matter for INT8, as Linux names them."""


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
        check_hub(),
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
        detail = "no VNNI: uint8 x int8 sums may saturate in 16 bits, and less time is saved"
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


def check_hub() -> Check:
    """Where checkpoints of hubs come from; the hub itself is not asked."""
    try:
        settings = HubSettings.from_environment()
    except EnvironmentMissing as error:
        return Check(
            area="hub", name="hub", state="missing", detail=error.message, hint=error.hint
        )
    asked = "never asked (HF_HUB_OFFLINE)" if settings.is_offline else "asked when needed"
    token = "with a token" if settings.has_token else "without a token: public checkpoints only"
    return Check(
        area="hub",
        name="hub",
        state="ok",
        detail=f"{settings.endpoint}, {asked}, {token}; cache {settings.cache}",
    )


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
    yield _check_rtx()
    yield _check_tensorrt()


def _check_rtx() -> Check:
    """TensorRT-RTX builds anywhere, and runs on the GPUs that it supports."""
    if find_package("tensorrt-rtx") is None:
        return Check(
            area="targets",
            name="tensorrt-rtx",
            state="missing",
            detail="needs the package tensorrt-rtx, which is not installed; no GPU is needed",
            hint=f"pip install '{DISTRIBUTION}[rtx]'",
        )
    reason = _why_engines_do_not_run()
    if not reason:
        detail = "engines are built here; those for this machine's GPU are compared and timed too"
        return Check(area="targets", name="tensorrt-rtx", state="ok", detail=detail)
    return Check(
        area="targets",
        name="tensorrt-rtx",
        state="ok",
        detail=f"engines are built here; this machine cannot run them{reason}: allow device_parity "
        "and speed not to run",
        hint="gates: {allow_not_run: [device_parity, speed]}",
    )


def _check_tensorrt() -> Check:
    """Full TensorRT builds and runs on a GPU alone."""
    area, name = "targets", "tensorrt"
    if not nvidia_driver_version():
        detail = "builds and runs on a GPU only, and this machine has no NVIDIA driver"
        return Check(area=area, name=name, state="note", detail=detail)
    if find_package("tensorrt") is None:
        return Check(
            area=area,
            name=name,
            state="missing",
            detail="needs the package tensorrt, which is not installed",
            hint=f"pip install '{DISTRIBUTION}[gpu,cuda]'",
        )
    detail = "engines are built, compared and timed on this machine's GPU"
    return Check(area=area, name=name, state="ok", detail=detail)


def _why_engines_do_not_run() -> str:
    """Behind `cannot run them`; empty when they run."""
    if not nvidia_driver_version():
        return " without an NVIDIA driver"
    from pipeline.engines.module import TENSORRT_RTX
    from pipeline.engines.preflight import PORTABLE, choose_engine
    from pipeline.engines.targets import COMPUTE_CAPABILITIES

    reason = choose_engine(TENSORRT_RTX, (*COMPUTE_CAPABILITIES, PORTABLE)).reason
    return f", because {reason}" if reason else ""
