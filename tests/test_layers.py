"""Imports point downwards only, and nothing heavy is imported by the light layers."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline

ROOT = Path(pipeline.__file__).parent

# From the top down; a package may import those of its own row and of the rows below it.
LAYERS = (
    ("cli", "__main__"),
    ("__init__", "api"),
    ("build",),
    ("assemble",),
    ("bundle", "rejudging", "diffing"),
    ("doctor", "drafting", "inspection", "stored_reports", "verification"),
    ("listing", "package_checks", "store_trial"),
    ("publish", "run", "forecast", "resolving", "foreign_models"),
    ("judging", "planning"),
    ("attribution",),
    ("recipe",),
    ("checks",),
    ("targets",),
    ("stages",),
    ("bench", "candidates", "report"),
    ("parity",),
    ("calibration", "candidates", "data", "graph", "runtimes", "store", "source", "data_source"),
    ("engines",),
    ("stages.base",),
    (
        "tasks",
        "manifest",
        "directory_files",
        "source_checks",
        "digest_memory",
        "environment",
        "gpu",
    ),
    ("errors", "file_names", "forked", "hashing", "records"),
)
ROW = {name: row for row, names in enumerate(LAYERS) for name in names}
HEAVY = {"onnx", "onnx_ir", "onnxscript"}
LIGHT_MODULES = ("pipeline", "pipeline.cli.main", "pipeline.build", "pipeline.run.local")
NEVER_IMPORTED = ("torch", "transformers", "onnxruntime", "onnx", "numpy", "scipy", "tensorrt_rtx")


def _modules() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py"))


def _name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0]


def _imports(path: Path) -> list[tuple[str, bool]]:
    """(module, is only for type checking) of every import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        found += [(name, id(node) in typing_only) for name in names]
    return found


@pytest.mark.parametrize("path", _modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_downwards_only(path: Path) -> None:
    own = _name_of(path)
    assert own in ROW, f"{own} has no place in LAYERS"
    for module, is_typing_only in _imports(path):
        if not module.startswith("pipeline.") or is_typing_only:
            continue
        inner = module.removeprefix("pipeline.")
        other = inner if inner in ROW else inner.split(".")[0]  # the contract of stages lies low
        assert ROW[own] <= ROW[other], f"{path.name} imports {module}, which is above it"


@pytest.mark.parametrize("path", _modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_only_the_graph_package_imports_onnx(path: Path) -> None:
    if _name_of(path) == "graph":
        return
    found = {
        module.split(".")[0] for module, is_typing_only in _imports(path) if not is_typing_only
    }
    assert not found & HEAVY


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_light_modules_import_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {NEVER_IMPORTED!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_the_public_surface_is_exact() -> None:
    assert sorted(pipeline.__all__) == list(pipeline.__all__)
    public = {
        name
        for name, value in vars(pipeline).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("pipeline.")
    }
    assert public == set(pipeline.__all__)
