"""Facts about this installation and this machine: package versions, code digests, CPU.

Everything a key may depend on beside a stage's inputs is read here, cheaply: nothing heavy is
imported, packages are asked for their metadata only.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import EnvironmentMissing
from pipeline.hashing import sha256_bytes, tagged_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pipeline.hashing import JSON
    from pipeline.stages.base import AnyStage

DISTRIBUTION = "convert-pipeline"
ONNXRUNTIME_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")


@dataclass(frozen=True, slots=True)
class PackageFact:
    """An installed distribution: its version, and the digest of its RECORD (all its files)."""

    version: str
    record_sha256: str

    def to_json(self) -> dict[str, str]:
        """As it stands in a key's preimage."""
        return {"version": self.version, "record_sha256": self.record_sha256}


@functools.cache
def find_package(distribution: str) -> PackageFact | None:
    """The installed version of a distribution, or None. Imports nothing.

    Reads the `*.dist-info` directories itself: `importlib.metadata` imports the e-mail package, which
    alone would be a tenth of a run that has nothing to do. The digest of RECORD tells two builds of
    one version apart (`+cpu` and CUDA wheels of torch).
    Source: https://packaging.python.org/specifications/recording-installed-packages/
    """
    for entry in sys.path:
        folder = _dist_info(entry or ".").get(_normalised(distribution))
        if folder is None:
            continue
        path = Path(entry or ".", folder)
        record = path / "RECORD"
        content = record.read_bytes() if record.is_file() else b""
        version = folder.removesuffix(".dist-info").rpartition("-")[2]
        return PackageFact(version=version, record_sha256=sha256_bytes(content))
    return None


def _normalised(distribution: str) -> str:
    """One spelling of a distribution's name (PEP 503, with `_`)."""
    return re.sub(r"[-_.]+", "_", distribution).lower()


@functools.cache
def _dist_info(directory: str) -> dict[str, str]:
    """Normalised name -> `*.dist-info` directory, of everything installed in a directory."""
    try:
        names = os.listdir(directory)  # noqa: PTH208 - names only, and a zip file has none
    except OSError:
        return {}
    return {
        _normalised(name.removesuffix(".dist-info").rpartition("-")[0]): name
        for name in names
        if name.endswith(".dist-info")
    }


def installed_onnxruntime() -> str:
    """Which of the two distributions of ONNX Runtime is installed.

    Raises:
        EnvironmentMissing: when none is, or both are: they install the same module, and then which
            one runs depends on the order in which pip unpacked them.
    """
    found = [name for name in ONNXRUNTIME_DISTRIBUTIONS if find_package(name) is not None]
    if len(found) == 1:
        return found[0]
    if found:
        raise EnvironmentMissing(
            "onnxruntime and onnxruntime-gpu are both installed, and share one module",
            hint="pip uninstall -y onnxruntime onnxruntime-gpu, "
            f"then pip install '{DISTRIBUTION}[cpu]' or '{DISTRIBUTION}[gpu]'",
        )
    raise EnvironmentMissing(
        "ONNX Runtime is not installed",
        hint=f"pip install '{DISTRIBUTION}[cpu]', or '{DISTRIBUTION}[gpu]' on a machine with a GPU",
    )


def require_packages(stage: AnyStage) -> dict[str, PackageFact]:
    """The packages whose versions are part of a stage's key.

    Raises:
        EnvironmentMissing: when one is not installed, naming the extra that installs it.
    """
    facts: dict[str, PackageFact] = {}
    for name in stage.packages:
        actual = installed_onnxruntime() if name == "onnxruntime" else name
        fact = find_package(actual)
        if fact is None:
            wanted = f"{DISTRIBUTION}[{stage.extra}]" if stage.extra else DISTRIBUTION
            raise EnvironmentMissing(
                f"stage `{stage.name}` needs the package `{name}`, which is not installed",
                hint=f"pip install '{wanted}'",
            )
        facts[actual] = fact
    optional = {name: find_package(name) for name in stage.optional_packages}
    return facts | {name: fact for name, fact in optional.items() if fact is not None}


# --- code -----------------------------------------------------------------------------------

PACKAGE_ROOT = Path(__file__).resolve().parent
_MODULE_NAME = re.compile(r"\bpipeline(?:\.[a-z_][a-z0-9_]*)+")
_FROM_IMPORT = re.compile(
    r"^[ \t]*from (pipeline(?:\.[a-z_][a-z0-9_]*)*) import (\([^)]*\)|.*)", re.MULTILINE
)


@functools.cache
def _module_source(module: str) -> tuple[str, bytes, frozenset[str]] | None:
    """(relative path, source, modules of ours it names) of one of our modules; None if not one."""
    stem = PACKAGE_ROOT.joinpath(*module.split(".")[1:])
    for path in (stem.with_suffix(".py"), stem / "__init__.py"):
        if path.is_file():
            source = path.read_bytes()
            return (
                path.relative_to(PACKAGE_ROOT).as_posix(),
                source,
                _named_modules(source.decode()),
            )
    return None


def _named_modules(text: str) -> frozenset[str]:
    """Modules of ours that a source names; some of the names may be of what is in a module."""
    named = set(_MODULE_NAME.findall(text))
    for package, imported in _FROM_IMPORT.findall(text):
        # `from pipeline.graph.fusions import attention` names a module in two pieces.
        if PACKAGE_ROOT.joinpath(*package.split(".")[1:]).is_dir():
            pieces = re.sub(r"#.*", "", imported).strip("()").split(",")
            named |= {f"{package}.{piece.split()[0]}" for piece in pieces if piece.strip()}
    return frozenset(named)


@functools.cache
def code_digest(module: str) -> str:
    """Digest of the source of a module of ours and of all modules of ours that it names.

    Names are found in the text, so an import inside a function and a `-m pipeline.x` count as well.
    Part of every stage key: an edit to a stage's code can never be answered from the store.
    """
    return tagged_digest("convert/code/1", code_files(module))


def code_files(module: str) -> dict[str, JSON]:
    """Relative path -> SHA-256 of the files that `code_digest` is of."""
    found: dict[str, JSON] = {}
    queue, seen = [module], {module}
    while queue:
        name = queue.pop()
        source = _module_source(name)
        if source is None:
            # `pipeline.graph.files.load_model`: the name goes one level past the module.
            parent = name.rpartition(".")[0]
            if "." in parent and parent not in seen:
                seen.add(parent)
                queue.append(parent)
            continue
        path, text, named = source
        found[path] = sha256_bytes(text)
        fresh = named - seen
        seen |= fresh
        queue.extend(sorted(fresh))
    return found


# --- machine --------------------------------------------------------------------------------


@functools.cache
def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    facts: dict[str, str] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            name, colon, value = line.partition(":")
            if not colon:
                break
            facts[name.strip()] = value.strip()
    return facts


def cpu_model() -> str:
    """The CPU's own name."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def cpu_flags() -> str:
    """The CPU's instruction set extensions, sorted, separated by blanks."""
    return " ".join(sorted(_cpuinfo().get("flags", _cpuinfo().get("Features", "")).split()))


def cores() -> int:
    """How many cores this process may use."""
    return (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )


def _gpu_name(number: int = 0) -> str:
    from pipeline.gpu import gpu_name

    return gpu_name(number)


def _gpu_target(number: int = 0) -> str:
    from pipeline.gpu import gpu_target

    return gpu_target(number)


def _nvidia_driver() -> str:
    return nvidia_driver_version()


MACHINE_FACTS: Mapping[str, Callable[..., str | int]] = {
    "cpu_model": cpu_model,
    "cpu_flags": cpu_flags,
    "cores": cores,
    "python_version": platform.python_version,
    "gpu_name": _gpu_name,
    "gpu_target": _gpu_target,
    "nvidia_driver": _nvidia_driver,
}
"""Facts about the machine that a stage's output may depend on, by name (`Stage.machine`).

Those of a GPU take its number; the first one's is 0.
"""
_OF_ONE_GPU = frozenset({"gpu_name", "gpu_target"})


def machine_facts(names: Iterable[str], *, gpu: int = 0) -> dict[str, str | int]:
    """Fact of `MACHINE_FACTS` -> its value here, those of a GPU of the one with this number."""
    return {
        name: MACHINE_FACTS[name](gpu) if name in _OF_ONE_GPU else MACHINE_FACTS[name]()
        for name in names
    }


@functools.cache
def platform_tag() -> str:
    """Operating system, architecture and C library, such as `linux-x86_64-glibc2.36`."""
    libc = "".join(platform.libc_ver())
    return "-".join(filter(None, (sys.platform, platform.machine(), libc)))


def python_tag() -> str:
    """Python's minor version, such as `3.11`."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def memory_mib() -> int:
    """Physical memory of the machine, MiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (1 << 20)


def available_memory_bytes() -> int:
    """Memory that new processes can have: of the machine, or of the container when that is less.

    `MemAvailable` is Linux's own estimate (proc(5)); the limit of a container stands in cgroup v2's
    `memory.max`, or v1's `memory.limit_in_bytes`, and page cache within it can be given back.
    """
    available = memory_mib() << 20
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text("ascii"), re.MULTILINE)
        available = int(found.group(1)) << 10 if found else available
    for limit, used, cache in _CGROUPS:
        try:
            free = int(limit.read_text("ascii")) - int(used.read_text("ascii"))
            found = re.search(
                r"^(?:total_)?inactive_file (\d+)", cache.read_text("ascii"), re.MULTILINE
            )
        except (OSError, ValueError):  # another version, or `max`
            continue
        available = min(available, free + (int(found.group(1)) if found else 0))
    return available


_CGROUP = Path("/sys/fs/cgroup")
_CGROUPS = (
    (_CGROUP / "memory.max", _CGROUP / "memory.current", _CGROUP / "memory.stat"),
    (
        _CGROUP / "memory/memory.limit_in_bytes",
        _CGROUP / "memory/memory.usage_in_bytes",
        _CGROUP / "memory/memory.stat",
    ),
)


def describe_environment(packages: tuple[str, ...]) -> dict[str, JSON]:
    """What a report says of the machine and of the packages that were used."""
    versions = {
        name: fact.version for name in sorted(packages) if (fact := find_package(name)) is not None
    }
    return {
        "python": platform.python_version(),
        "platform": platform_tag(),
        "cpu_model": cpu_model(),
        "cores": cores(),
        "memory_mib": memory_mib(),
        "packages": versions,
        "nvidia_driver": nvidia_driver_version(),
    }


def nvidia_driver_version() -> str:
    """Version of the NVIDIA kernel driver, or empty when there is none."""
    path = Path("/proc/driver/nvidia/version")
    if not path.is_file():
        return ""
    found = re.search(r"\b\d{3}\.\d+(?:\.\d+)?\b", path.read_text(encoding="utf-8"))
    return found.group() if found else "unknown"


def is_importable(module: str) -> bool:
    """Whether a top-level module could be imported; nothing is imported."""
    return importlib.util.find_spec(module) is not None
