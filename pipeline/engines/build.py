"""Builds one engine in a process of its own, and turns whatever went wrong into one clear error.

See `builder_program.py` for why the process is needed and what it does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from pipeline.engines import builder_program as program
from pipeline.engines.diagnosis import (
    build_failure,
    lossy_constants,
    notable_warnings,
    parser_failure,
    process_failure,
    require_no_wrong_engine_warning,
)
from pipeline.engines.module import TENSORRT_RTX, search_path

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from pipeline.engines.module import EngineModule
    from pipeline.engines.profiles import InputProfile

_LOG_FILE = "builder.log"
_OLD_TIMING_CACHE = "old-timing.cache"
_PROGRAM = Path(program.__file__)
_KEPT_VARIABLES = ("LD_LIBRARY_PATH",)
"""What the loader may need; everything else would only move addresses."""
_DEVICE_VARIABLES = (*_KEPT_VARIABLES, "CUDA_VISIBLE_DEVICES")
"""Full TensorRT builds on a GPU, and no two of its builds are the same anyhow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """One engine to build.

    Attributes:
        module: The package that builds it.
        model: The graph, in a directory that is not written to.
        compute_capabilities: Names such as `sm89`; one engine serves all of them. None: TensorRT-RTX
            builds for everything from Ampere on, full TensorRT for the GPU that is there.
        profiles: Optimization profiles, each input name -> shapes.
        workspace_bytes: Limit of the scratch memory that a layer may ask for; None: the GPU's.
        flags: Name of a `BuilderFlag` -> whether it is set or cleared; others are left alone.
        hardware_compatibility: Name of a `HardwareCompatibilityLevel`; full TensorRT only.
        keeps_timing_cache: Whether the build leaves its timings; full TensorRT only.
        timing_cache: Timings of an earlier build to start from.
        is_attention_decomposable: Whether an `Attention` without a kernel may fall apart.
    """

    module: EngineModule
    model: Path
    compute_capabilities: tuple[str, ...]
    profiles: tuple[Mapping[str, InputProfile], ...]
    workspace_bytes: int | None = None
    flags: Mapping[str, bool] = field(default_factory=dict)
    hardware_compatibility: str | None = None
    keeps_timing_cache: bool = False
    timing_cache: Path | None = None
    is_attention_decomposable: bool = False


class ParserError(BaseModel):
    """What the parser says of one node."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    code: str
    description: str
    node: str
    operator: str


class BuilderResult(BaseModel):
    """`result.json`: what the builder's process leaves behind.

    Attributes:
        version: Of the TensorRT package.
        refused: Why the config was refused before the build; empty when it was not.
        records: The log without its verbose records: (severity, message).
        layers: The record with the table of fused layers; see `builder_log.parse_layers`.
        inspection: The inspector's JSON, where a package logs no such record; see `inspector`.
        addresses_are_fixed: Whether the process ran without address space randomisation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str
    parser_errors: tuple[ParserError, ...]
    refused: str
    is_built: bool
    records: tuple[tuple[str, str], ...]
    layers: str
    inspection: str
    addresses_are_fixed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltEngine:
    """A finished build.

    Attributes:
        path: The engine, in the scratch directory; to be moved by the caller.
        result: What the builder said.
        warnings: What deserves a reader: warnings of the log and of the parser, each once.
        timing_cache: The build's timings, in the scratch directory; None when they are not kept.
    """

    path: Path
    result: BuilderResult
    warnings: tuple[str, ...]
    timing_cache: Path | None = None


class EngineBuilder:
    """One builder's process, which imports TensorRT while its caller looks at the graph.

    A context manager: a process that was not told to build anything is ended with it.

    Args:
        module: The package that builds.
        scratch: An empty private directory for the process.
    """

    def __init__(self, module: EngineModule, scratch: Path) -> None:
        self._module = module
        self._scratch = scratch
        self._process = _start_program(module, scratch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def build(self, request: EngineRequest) -> BuiltEngine:
        """Build, once; takes seconds to minutes.

        Args:
            request: What to build, with the package that was started.

        Raises:
            EngineBuildError: when the graph, the target or a profile is refused, when the build
                fails, when the builder warns of something that makes the engine wrong, or when its
                process is killed or dies.
        """
        assert request.module == self._module
        _write_request(request, self._scratch)
        lines = _finish_program(self._process, self._scratch)
        return _read_result(request, self._scratch, lines)


def build_engine(request: EngineRequest, scratch: Path) -> BuiltEngine:
    """Start a builder's process and build; see `EngineBuilder.build`.

    Args:
        request: What to build.
        scratch: An empty private directory for the builder's process.

    Raises:
        EngineBuildError: see `EngineBuilder.build`.
    """
    with EngineBuilder(request.module, scratch) as builder:
        return builder.build(request)


def _read_result(request: EngineRequest, scratch: Path, lines: list[str]) -> BuiltEngine:
    text = (scratch / program.RESULT_FILE).read_text(encoding="utf-8")
    result = BuilderResult.model_validate_json(text)
    if result.parser_errors:
        raise parser_failure(
            [(e.node, e.operator, e.code, e.description) for e in result.parser_errors]
        )
    if result.refused or not result.is_built:
        raise build_failure(result.refused, result.records, request.workspace_bytes)
    require_no_wrong_engine_warning(result.records)
    warnings = (*notable_warnings(result.records), *lossy_constants(lines))
    cache = scratch / program.TIMING_CACHE_FILE if request.keeps_timing_cache else None
    return BuiltEngine(
        path=scratch / program.ENGINE_FILE, result=result, warnings=warnings, timing_cache=cache
    )


def _write_request(request: EngineRequest, scratch: Path) -> None:
    # A link, so that the path the builder sees has the same length wherever the store is.
    (scratch / program.MODEL_DIRECTORY).symlink_to(
        request.model.parent.resolve(), target_is_directory=True
    )
    document = {
        "model": f"{program.MODEL_DIRECTORY}/{request.model.name}",
        "compute_capabilities": request.compute_capabilities,
        "profiles": [dict(profile) for profile in request.profiles],
        "workspace_bytes": request.workspace_bytes,
        "flags": dict(request.flags),
        "hardware_compatibility": request.hardware_compatibility,
        "keeps_timing_cache": request.keeps_timing_cache,
        "timing_cache": None,
        "decomposable_attention": request.is_attention_decomposable,
    }
    if request.timing_cache is not None:
        (scratch / _OLD_TIMING_CACHE).symlink_to(request.timing_cache.resolve())
        document["timing_cache"] = _OLD_TIMING_CACHE
    (scratch / program.REQUEST_FILE).write_text(json.dumps(document), encoding="utf-8")


def _start_program(module: EngineModule, scratch: Path) -> subprocess.Popen[bytes]:
    package = {"module": module.import_name, "search_path": search_path(module)}
    (scratch / program.PACKAGE_FILE).write_text(json.dumps(package), encoding="utf-8")
    variables = _KEPT_VARIABLES if module == TENSORRT_RTX else _DEVICE_VARIABLES
    environment = {name: os.environ[name] for name in variables if name in os.environ}
    environment["PYTHONHASHSEED"] = "0"
    with (scratch / _LOG_FILE).open("wb") as file:
        return subprocess.Popen(  # noqa: S603 - our own program, by its path
            [sys.executable, "-s", "-S", "-P", str(_PROGRAM)],
            cwd=scratch,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def _finish_program(process: subprocess.Popen[bytes], scratch: Path) -> list[str]:
    """Let it build, to its end; the lines that it, or a library below it, printed."""
    process.communicate(b"1")  # where it has died already, its exit code and its log say why
    code = process.returncode
    lines = (scratch / _LOG_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    if code == 0:
        return lines
    raise process_failure(code, _signal_name(code), lines)


def _signal_name(code: int) -> str:
    if code >= 0:
        return ""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
