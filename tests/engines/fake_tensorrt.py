"""A TensorRT that exposes exactly the attributes a version has, and writes down what it is told.

`install` makes a package of it that a builder's process can import. Anything else that is touched
is an AttributeError, as it is with the real package: `fake_package.py` shows what is in the table of
its version. Attributes as found in the real binaries of 10.13.3, 11.4.0 and
TensorRT-RTX 1.7.1; only those that matter to a build are listed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

SHARED = {
    "": {
        "Builder",
        "BuilderFlag",
        "HardwareCompatibilityLevel",
        "ILogger",
        "LayerInformationFormat",
        "MemoryPoolType",
        "NetworkDefinitionCreationFlag",
        "OnnxParser",
        "ProfilingVerbosity",
        "Runtime",
    },
    "NetworkDefinitionCreationFlag": {"STRONGLY_TYPED"},
    "ProfilingVerbosity": {"DETAILED"},
    "MemoryPoolType": {"WORKSPACE"},
    "LayerInformationFormat": {"JSON"},
    "BuilderFlag": {"TF32", "REFIT", "REFIT_IDENTICAL", "STRIP_PLAN", "VERSION_COMPATIBLE"},
    "HardwareCompatibilityLevel": {"NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"},
    "Builder": {
        "build_serialized_network",
        "create_builder_config",
        "create_network",
        "create_optimization_profile",
        "max_threads",
    },
    "IBuilderConfig": {
        "add_optimization_profile",
        "clear_flag",
        "create_timing_cache",
        "get_timing_cache",
        "hardware_compatibility_level",
        "profiling_verbosity",
        "set_flag",
        "set_memory_pool_limit",
        "set_timing_cache",
    },
    "Runtime": {"deserialize_cuda_engine", "engine_host_code_allowed"},
}
"""Class (empty: the module) -> attributes that all three have."""

OWN: dict[str, dict[str, set[str]]] = {
    "10.13.3": {
        "Builder": {"build_engine_with_config", "platform_has_fast_fp16"},
        "BuilderFlag": {"FP16", "INT8"},
        "IBuilderConfig": {"int8_calibrator"},
        "NetworkDefinitionCreationFlag": {"EXPLICIT_BATCH"},
    },
    "11.4.0": {
        "": {"IAttentionOutputLayer"},
        "Builder": {"build_engine_with_config"},
        "IAttention": {"decomposable"},
    },
    "rtx": {
        "": {"ComputeCapability", "IAttentionOutputLayer"},
        "ComputeCapability": {"SM75", "SM80", "SM86", "SM89", "SM120", "SM121"},
        "IAttention": {"decomposable"},
        "IBuilderConfig": {"num_compute_capabilities", "set_compute_capability"},
    },
}
"""Version -> attributes that it has beside `SHARED`, and at least one of the others has not."""

CALLS_FILE = "calls.json"


def attributes(version: str) -> dict[str, set[str]]:
    """Class -> the attributes that a version exposes."""
    own = OWN[version]
    return {
        name: SHARED.get(name, set()) | own.get(name, set()) for name in {*SHARED, *own} | {""}
    }


def install(version: str, directory: Path, *, name: str = "tensorrt") -> Path:
    """Write a package of that version; the file in which it writes down its calls, one a line."""
    package = directory / name
    package.mkdir(parents=True)
    number = "1.7.1.116" if version == "rtx" else f"{version}.9"
    table = {key: sorted(value) for key, value in sorted(attributes(version).items())}
    calls = directory / CALLS_FILE
    facts = {"version": number, "table": table, "calls": str(calls)}
    (package / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    shutil.copyfile(Path(__file__).with_name("fake_package.py"), package / "__init__.py")
    distribution = directory / f"{name}-{number}.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n", encoding="utf-8"
    )
    return calls
