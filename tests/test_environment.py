"""Package facts, code digests and machine facts."""

from __future__ import annotations

import ast
import functools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline
from pipeline.build import JUDGE
from pipeline.environment import (
    MACHINE_FACTS,
    _dist_info,
    code_digest,
    code_files,
    find_package,
    installed_onnxruntime,
    platform_tag,
    require_packages,
)
from pipeline.errors import EnvironmentMissing
from pipeline.judging import judged
from pipeline.stages.base import Stage, StageConfig
from pipeline.stages.catalogue import STAGES


def _stage(**changes: object) -> Stage[StageConfig]:
    return Stage(
        name="made-up",
        version=1,
        config_type=StageConfig,
        run=lambda *_: {},
        **changes,  # type: ignore[arg-type]
    )


def test_a_package_has_a_version_and_a_digest_of_its_files() -> None:
    fact = find_package("click")
    assert fact is not None
    assert fact.version
    assert len(fact.record_sha256) == 64


def test_a_missing_package_names_the_extra_that_brings_it() -> None:
    with pytest.raises(EnvironmentMissing, match="no-such-package") as caught:
        require_packages(_stage(packages=("no-such-package",), extra="rtx"))
    assert caught.value.hint == "pip install 'convert-pipeline[rtx]'"


def _fake_distribution(site: Path, name: str) -> None:
    folder = site / f"{name.replace('-', '_')}-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")


def test_both_onnxruntimes_together_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert installed_onnxruntime() == "onnxruntime"
    _fake_distribution(tmp_path, "onnxruntime-gpu")
    monkeypatch.syspath_prepend(str(tmp_path))
    find_package.cache_clear()
    _dist_info.cache_clear()
    try:
        with pytest.raises(EnvironmentMissing, match="both installed"):
            installed_onnxruntime()
    finally:
        find_package.cache_clear()
        _dist_info.cache_clear()


def _digest_in_copy(root: Path, module: str) -> str:
    code = f"from pipeline.environment import code_digest; print(code_digest({module!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_the_code_digest_follows_what_a_stage_uses_and_nothing_else(tmp_path: Path) -> None:
    source = Path(pipeline.__file__).parent
    shutil.copytree(source, tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    before = _digest_in_copy(tmp_path, "pipeline.stages.simplify")
    assert before == code_digest("pipeline.stages.simplify")
    report = tmp_path / "pipeline/report/schema.py"
    report.write_text(report.read_text() + "\n# changed\n")
    assert _digest_in_copy(tmp_path, "pipeline.stages.simplify") == before
    used = tmp_path / "pipeline/graph/files.py"
    used.write_text(used.read_text() + "\n# changed\n")
    assert _digest_in_copy(tmp_path, "pipeline.stages.simplify") != before


@functools.cache
def _imported(path: Path) -> frozenset[str]:
    """Modules of ours that a source imports, as Python's own parser sees it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return frozenset(name for name in found if name.startswith("pipeline."))


def test_the_code_digest_misses_no_import_of_a_stage() -> None:
    root = Path(pipeline.__file__).parent
    for stage in STAGES:
        files = code_files(stage.run.__module__)
        queue, seen = [stage.run.__module__], {stage.run.__module__}
        while queue:
            stem = root.joinpath(*queue.pop().split(".")[1:])
            for path in (stem.with_suffix(".py"), stem / "__init__.py"):
                if path.is_file():
                    assert path.relative_to(root).as_posix() in files, stage.name
                    fresh = _imported(path) - seen
                    seen |= fresh
                    queue += fresh


def test_the_digest_of_a_build_follows_all_that_comes_to_its_verdict() -> None:
    assert judged.__module__ == JUDGE
    assert {"judging.py", "parity/gates.py", "parity/types.py"} <= set(code_files(JUDGE))


FORMATS = {"google", "huggingface_hub", "pydantic", "safetensors", "threadpoolctl"}
"""Packages that compute no numbers: they write down those of others, say with how many threads, or have
the errors that transformers raises."""


class _RunTimeImports(ast.NodeVisitor):
    """Modules that a source imports when it runs, not for its types alone."""

    def __init__(self) -> None:
        self.found: set[str] = set()

    def visit_If(self, node: ast.If) -> None:
        if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.found |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.module is not None
        self.found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}


@functools.cache
def _imported_at_run_time(path: Path) -> frozenset[str]:
    imports = _RunTimeImports()
    imports.visit(ast.parse(path.read_text(encoding="utf-8")))
    return frozenset(imports.found)


def test_a_stage_names_every_package_that_its_code_computes_with() -> None:
    root = Path(pipeline.__file__).parent
    for stage in STAGES:
        declared = {name.replace("-", "_") for name in (*stage.packages, *stage.optional_packages)}
        declared |= {"PIL"} if "pillow" in declared else set()
        queue, seen = [stage.run.__module__], {stage.run.__module__}
        while queue:
            stem = root.joinpath(*queue.pop().split(".")[1:])
            for path in (stem.with_suffix(".py"), stem / "__init__.py"):
                if not path.is_file():
                    continue
                imported = _imported_at_run_time(path)
                ours = {name for name in imported if name.startswith("pipeline.")}
                queue += ours - seen
                seen |= ours
                packages = {name.partition(".")[0] for name in imported - ours}
                packages -= {*sys.stdlib_module_names, *FORMATS, "pipeline"}
                assert packages <= declared, (stage.name, path.name)


def test_machine_facts_are_plain_values() -> None:
    for read in MACHINE_FACTS.values():
        assert isinstance(read(), str | int)
    assert platform_tag().startswith(sys.platform)
