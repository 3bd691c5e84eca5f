"""The README is true: its recipe is the quickstart's, its commands and codes are the real ones."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli.main import INTERRUPTED
from pipeline.errors import ExitCode
from tests.cli.commands import run_convert

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_recipe_that_is_explained_is_the_quickstart() -> None:
    recipe = (ROOT / "recipes/quickstart.yaml").read_text(encoding="utf-8")
    assert recipe in _blocks("yaml")


def test_every_exit_code_is_listed() -> None:
    listed = {int(code) for code in re.findall(r"^\| (\d+) \| ", README, flags=re.MULTILINE)}
    assert listed == {int(code) for code in ExitCode} | {INTERRUPTED}


@pytest.mark.parametrize("script", ["scripts/convert", "scripts/test", "scripts/check"])
def test_the_scripts_it_names_are_there_and_can_be_run(script: str) -> None:
    assert script in README
    path = ROOT / script
    assert path.stat().st_mode & 0o111
    subprocess.run(["sh", "-n", str(path)], check=True)


def test_the_files_it_names_are_there() -> None:
    for name in re.findall(r"`((?:docs|benchmarks|recipes)/[\w./-]*)`", README):
        assert (ROOT / name).exists(), name


def test_the_plan_command_works_on_the_quickstart(tmp_path: Path) -> None:
    done = run_convert("plan", ROOT / "recipes/quickstart.yaml", "--explain", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for node in ("export", "quantize_dynamic", "engine@rtx-fp16-sm120"):
        assert node in done.stdout


def test_the_python_example_names_what_exists() -> None:
    (example,) = _blocks("python")
    compiled = compile(example, "README.md", "exec")
    assert "pipeline" in compiled.co_names
    for name in ("convert", "target"):
        assert name in compiled.co_names
    code = "import pipeline; pipeline.convert; pipeline.Artifact.target"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_the_quickstart_works_from_an_empty_directory(tmp_path: Path) -> None:
    """`.ci/run` does this as well, with an environment that it makes itself."""
    done = run_convert(ROOT / "recipes/quickstart.yaml", cwd=tmp_path, timeout_s=900)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "artifacts/minilm/latest/report.html").is_file()
