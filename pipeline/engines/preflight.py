"""Why an engine cannot be loaded here, said before TensorRT is asked, which says it worse.

Two questions. Of a *plan*: can this machine run any engine of a target, and which one
(`choose_engine`). Of a *file*: is it whole, is it the file that is meant, and do version, GPU and
driver fit (`loading_problem`, `require_loadable`). Light: no TensorRT and no CUDA is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pipeline.engines.facts_file import facts_path, read_engine_facts
from pipeline.engines.header import read_engine_header
from pipeline.engines.module import TENSORRT, TENSORRT_RTX, EngineModule, installed_version
from pipeline.engines.targets import COMPUTE_CAPABILITIES
from pipeline.environment import is_importable
from pipeline.errors import ArtifactError, DigestMismatch, EnvironmentMissing
from pipeline.gpu import this_machine
from pipeline.hashing import sha256_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.engines.facts_file import EngineFacts
    from pipeline.engines.header import EngineHeader
    from pipeline.gpu import Gpu, Machine

MODULES: Final = {"tensorrt-rtx": TENSORRT_RTX, "tensorrt": TENSORRT}
"""Runtime, as recipes and facts name it -> the package that reads its engines."""
VERSION_COMPATIBLE: Final = "version_compatible"
AMPERE_PLUS: Final = "ampere_plus"
NO_DRIVER: Final = "this machine has no NVIDIA driver"
PORTABLE: Final = "portable"
CUDA_EXTRA: Final = "cuda"
CUDA_DISTRIBUTION: Final = "cuda-bindings"
_CUDA_PACKAGE: Final = "cuda"
_NEWEST: Final = (12, 1)
"""The newest compute capability with a name; bit 6 of a header's mask stands for later ones."""
_LATER_BIT: Final = 6

_DIAGNOSTICS: Final = {
    1: "another version of TensorRT built it",
    2: "it was not built for the compute capability of this GPU",
    4: "the NVIDIA driver is older than the engine needs",
    8: "the CUDA runtime is older than the engine needs",
    16: "the GPU has too little memory for it",
    32: "the file is damaged",
    64: "CUDA reports an error",
}
"""Bits of `EngineInvalidityDiagnostics`, TensorRT-RTX 1.7."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChoice:
    """Which engine of a target runs here.

    Attributes:
        target: Such as `sm89` or `portable`; empty when none does.
        reason: Why none does; empty when one does.
    """

    target: str = ""
    reason: str = ""


def choose_engine(
    module: EngineModule, targets: Sequence[str], *, machine: Machine | None = None
) -> EngineChoice:
    """Which of a target's engines this machine can run, or why it cannot run any.

    Args:
        module: The package that runs them.
        targets: What engines are built for, such as `("sm89", "portable")`; for full TensorRT, which
            builds for the GPU that is there, that GPU's `sm..`.
        machine: Whose GPU; None: this one.
    """
    machine = machine or this_machine()
    if not machine.driver:
        return EngineChoice(reason=NO_DRIVER)
    gpu = machine.gpu
    if gpu is None:
        return EngineChoice(reason=_no_gpu(machine))
    if reason := _unsupported(module, gpu) or _missing_package(module):
        return EngineChoice(reason=reason)
    if gpu.target in targets:
        return EngineChoice(target=gpu.target)
    if PORTABLE in targets and _is_portable_to(gpu):
        return EngineChoice(target=PORTABLE)
    return EngineChoice(
        reason=f"no engine is built for this machine's GPU ({_describe(gpu)}), only for "
        f"{', '.join(targets)}"
    )


def loading_problem(
    engine: Path, facts: EngineFacts | None = None, *, machine: Machine | None = None
) -> str:
    """Why this machine cannot load an engine, in one line; empty when nothing speaks against it.

    The digest is not looked at: see `require_loadable`.

    Args:
        engine: The file.
        facts: What lies beside it; None: it is read when it is there.
        machine: Whose GPU; None: this one.

    Raises:
        ArtifactError: the file, or its facts, cannot be read or are damaged.
    """
    if facts is None and facts_path(engine).is_file():
        facts = read_engine_facts(facts_path(engine))
    header = read_engine_header(engine)
    module = MODULES[header.kind]
    installed = installed_version(module)
    if installed is None:
        return f"package {module.distribution} is not installed"
    if reason := _other_version(module, header.version, installed, facts):
        return reason
    machine = machine or this_machine()
    if not machine.driver or machine.gpu is None:
        return NO_DRIVER if not machine.driver else _no_gpu(machine)
    return _wrong_gpu(module, machine.gpu, header, facts) or _missing_package(module)


def require_loadable(engine: Path, *, sha256: str, machine: Machine | None = None) -> bytes:
    """Hold a file against the digest that a manifest states, then against this machine.

    TensorRT runs code that is in an engine, so one whose digest nobody vouches for is never given
    to it.

    Args:
        engine: The file.
        sha256: Its digest, from a manifest that verifies or from the stage that has just made it.
        machine: Whose GPU; None: this one.

    Returns:
        The file's content: what is loaded must be what was checked, whatever becomes of the file.

    Raises:
        DigestMismatch: it is another file.
        ArtifactError: it is damaged, or of another kind.
        EnvironmentMissing: it cannot be loaded here; the message says why.
    """
    try:
        content = engine.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"the engine cannot be read: {error.strerror}", where=engine.name
        ) from error
    digest = sha256_bytes(content)
    if digest != sha256:
        raise DigestMismatch(
            f"the engine's digest is {digest}, and {sha256 or 'none'} is vouched for: it is not "
            "loaded",
            where=engine.name,
            hint="convert verify ARTIFACT says which files were changed",
        )
    if reason := loading_problem(engine, machine=machine):
        raise EnvironmentMissing(
            f"the engine cannot be loaded here: {reason}",
            where=engine.name,
            hint=_hint(reason),
        )
    return content


def describe_diagnostics(bits: int) -> str:
    """The bits that `Runtime.get_engine_validity` returns, in words; empty for none."""
    words = [text for bit, text in _DIAGNOSTICS.items() if bits & bit]
    unknown = bits & ~sum(_DIAGNOSTICS)
    if unknown:
        words.append(f"for a reason this program does not know (bits {unknown:#x})")
    return "; ".join(words)


# --- the reasons ----------------------------------------------------------------------------


def _describe(gpu: Gpu) -> str:
    return f"{gpu.target}, {gpu.name}"


def _no_gpu(machine: Machine) -> str:
    return (
        f"this machine has the NVIDIA driver {machine.driver} and no GPU that can be used: "
        f"{machine.trouble or 'it shows no GPU'}"
    )


def _mask_bit(gpu: Gpu) -> int:
    """The bit of a header's mask that this GPU needs; 0 when it can have none."""
    known = COMPUTE_CAPABILITIES.get(gpu.target)
    if known is not None:
        return 1 << known.mask_bit
    return 1 << _LATER_BIT if (gpu.major, gpu.minor) > _NEWEST else 0


def _is_portable_to(gpu: Gpu) -> bool:
    """Portable engines are for Ampere and later."""
    return gpu.major >= 8 and _mask_bit(gpu) != 0


def _unsupported(module: EngineModule, gpu: Gpu) -> str:
    """TensorRT-RTX is for GPUs of PCs: of data centre GPUs it has Turing, Ampere and Ada alone."""
    if module != TENSORRT_RTX or _mask_bit(gpu):
        return ""
    return (
        f"TensorRT-RTX does not support the compute capability of this machine's GPU "
        f"({_describe(gpu)}), so no engine of it can run here; it supports "
        f"{', '.join(COMPUTE_CAPABILITIES)}"
    )


def _wrong_gpu(
    module: EngineModule, gpu: Gpu, header: EngineHeader, facts: EngineFacts | None
) -> str:
    if reason := _unsupported(module, gpu):
        return reason
    what = f"and this machine's GPU is {_describe(gpu)}"
    if module == TENSORRT_RTX:
        if header.capability_mask & _mask_bit(gpu):
            return ""
        built = ", ".join(header.compute_capabilities) or hex(header.capability_mask)
        return f"it was built for {built}, {what}"
    # The header of full TensorRT does not say it, and without facts TensorRT alone knows.
    if facts is None or facts.target == gpu.target:
        return ""
    if AMPERE_PLUS in facts.compatibility and gpu.major >= 8:
        return ""
    return f"it was built on a GPU of {facts.target}, {what}"


def _missing_package(module: EngineModule) -> str:
    if installed_version(module) is None:
        return (
            f"package {module.distribution} is not installed "
            f"(pip install 'convert-pipeline[{module.extra}]')"
        )
    if not is_importable(_CUDA_PACKAGE):
        return (
            f"package {CUDA_DISTRIBUTION} is not installed "
            f"(pip install 'convert-pipeline[{CUDA_EXTRA}]')"
        )
    return ""


def _other_version(
    module: EngineModule, built: str, installed: str, facts: EngineFacts | None
) -> str:
    """Engines are read by the version that built them, unless they were built to be compatible."""
    if _parts(built) == _parts(installed):
        return ""
    if facts is not None and VERSION_COMPATIBLE in facts.compatibility:
        is_newer = _parts(built) <= _parts(installed)
        if _parts(built)[:1] == _parts(installed)[:1] and is_newer:
            return ""
    return f"{module.distribution} {built} built it, and {installed} is installed"


def _parts(version: str) -> tuple[int, ...]:
    parts = [int(part) for part in version.split(".") if part.isdigit()]
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def _hint(reason: str) -> str:
    if "is not installed" in reason:
        return "install what is missing"
    if " built it, and " in reason:
        return "install the version that built it, or build the target again"
    if reason == NO_DRIVER:
        return "an engine runs on a machine with an NVIDIA GPU and its driver"
    return "build the target for this GPU, or take the artifact to one that it was built for"
