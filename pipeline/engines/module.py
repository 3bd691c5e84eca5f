"""Which package builds engines, and whether it is installed here. Imports neither.

TensorRT-RTX (`tensorrt_rtx`) builds for a named compute capability on any machine. Full TensorRT
(`tensorrt`) shares the API but for a few attributes; `builder_program.py` looks at those attributes
and never at a version, so that one program can serve both.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import EnvironmentMissing


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineModule:
    """One package that builds engines.

    Attributes:
        import_name: What Python imports.
        distribution: What pip installs; its version is the builder's.
        extra: The extra of `convert-pipeline` that installs it.
    """

    import_name: str
    distribution: str
    extra: str


TENSORRT_RTX = EngineModule(import_name="tensorrt_rtx", distribution="tensorrt-rtx", extra="rtx")
TENSORRT = EngineModule(import_name="tensorrt", distribution="tensorrt", extra="gpu")


def installed_version(module: EngineModule) -> str | None:
    """The version of the installed distribution, such as `1.7.1.116`, or None; imports nothing."""
    if importlib.util.find_spec(module.import_name) is None:
        return None
    try:
        return importlib.metadata.version(module.distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def search_path(module: EngineModule) -> list[str]:
    """Where Python finds the package and the parts it is split into, in a fixed order."""
    parts = (module.import_name, f"{module.import_name}_bindings", f"{module.import_name}_libs")
    specs = [importlib.util.find_spec(part) for part in parts]
    places = [
        str(Path(location).parent)
        for spec in specs
        if spec is not None
        for location in spec.submodule_search_locations or ()
    ]
    return list(dict.fromkeys(places))


def require_module(module: EngineModule) -> str:
    """The installed version; see `installed_version`.

    Raises:
        EnvironmentMissing: when it is not installed, naming the extra.
    """
    version = installed_version(module)
    if version is None:
        raise EnvironmentMissing(
            f"package {module.distribution} is not installed, and without it no engine can be built",
            hint=f"pip install 'convert-pipeline[{module.extra}]'",
        )
    return version
