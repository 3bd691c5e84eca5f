"""`convert doctor`: what it says is what is so, also where something is missing."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import get_args

import pytest

from pipeline import doctor, package_checks, store_trial
from pipeline.cli.main import cli
from pipeline.environment import find_package
from pipeline.package_checks import Requirement, check_packages, is_satisfied, own_requirements
from pipeline.store import files
from pipeline.targets import AnyTarget
from tests.cli.commands import run_convert


def test_this_machine_is_examined_and_nothing_is_left_behind(tmp_path: Path) -> None:
    done = run_convert("doctor", "--json", cwd=tmp_path)
    answer = json.loads(done.stdout)
    found = {(check["area"], check["name"]): check for check in answer["checks"]}
    problems = [check for check in answer["checks"] if check["state"] == "problem"]
    assert done.returncode == (4 if problems else 0)
    assert problems == []  # tests run where everything for CPU targets is installed
    torch = find_package("torch")
    assert torch is not None
    assert found["packages", "torch"]["detail"] == torch.version
    assert found["packages", "imports"]["state"] == "ok"
    assert found["store", "root"]["detail"].startswith(str(tmp_path / "store"))
    for name in ("write and fsync", "rename without replacing"):
        assert found["store", name] == {
            "area": "store", "name": name, "state": "ok", "detail": "works", "hint": "",
        }  # fmt: skip
    assert {name for area, name in found if area == "targets"} == set(doctor.RUNTIMES)
    # Importing onnxruntime leaves a directory in the user's cache; that is its own doing.
    assert {path.name for path in tmp_path.iterdir()} <= {".cache"}


def test_every_runtime_of_the_recipe_language_is_covered() -> None:
    union = get_args(AnyTarget)[0]
    runtimes = {
        get_args(target.model_fields["runtime"].annotation)[0] for target in get_args(union)
    }
    # What exists already needs nothing of its own.
    assert runtimes - {"existing"} == set(doctor.RUNTIMES)


def test_a_store_of_another_version_is_a_problem_and_exits_with_4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "check_imports", tuple)  # it takes seconds
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "VERSION").write_text("convert store 99\n")
    code = cli.main(["doctor", "--store", str(tmp_path)], standalone_mode=False)
    assert code == 4
    shown = capsys.readouterr().out
    assert "convert store 99" in shown
    assert "1 problem, marked with !" in shown


def test_both_distributions_of_onnx_runtime_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    fact = find_package("onnxruntime")
    monkeypatch.setattr("pipeline.environment.find_package", lambda _: fact)
    checks = {check.name: check for check in check_packages()}
    both = checks["onnxruntime / onnxruntime-gpu"]
    assert both.state == "problem"
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in both.hint
    targets = {check.name: check for check in doctor.check_targets()}
    assert targets["onnxruntime"].state == "problem"


def test_a_missing_package_names_the_command_that_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = {"scipy", "tensorrt-rtx"}
    for module in (package_checks, doctor):
        monkeypatch.setattr(
            module, "find_package", lambda name: None if name in missing else find_package(name)
        )
    checks = {check.name: check for check in check_packages()}
    assert (checks["scipy"].state, checks["scipy"].hint) == (
        "problem",
        "pip install 'convert-pipeline'",
    )
    # Engines are no CPU target: without them, this machine is still fit for those.
    assert checks["tensorrt-rtx"].state == "missing"
    assert checks["tensorrt-rtx"].hint == "pip install 'convert-pipeline[rtx]'"
    assert not doctor.is_fit_for_cpu(checks.values())
    del checks["scipy"]
    assert doctor.is_fit_for_cpu(checks.values())
    targets = {check.name: check for check in doctor.check_targets()}
    assert targets["tensorrt-rtx"].state == "missing"


def test_a_package_that_cannot_be_imported_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package_checks, "NATIVE_MODULES", ("no_such_library", "json"))
    monkeypatch.setattr(package_checks, "is_importable", lambda _: True)
    (check,) = package_checks.check_imports()
    assert (check.name, check.state) == ("import no_such_library", "problem")
    assert "ModuleNotFoundError" in check.detail


def test_our_requirements_can_all_be_read() -> None:
    requirements = own_requirements()
    assert {"torch", "onnxruntime", "tensorrt-rtx"} <= {item.name for item in requirements}
    assert all(item.minimum for item in requirements if item.name == "torch")


@pytest.mark.parametrize(
    ("version", "minimum", "is_exact", "is_fit"),
    [
        ("2.13.0+cpu", "2.10", False, True),
        ("2.9.1", "2.10", False, False),
        ("2.10", "2.10.0", False, True),
        ("5.0.3", "5", False, True),
        ("0.1.0", "0.1.0", True, True),
        ("0.2.0", "0.1.0", True, False),
    ],
)
def test_versions_compare_as_numbers(
    version: str, minimum: str, is_exact: bool, is_fit: bool
) -> None:
    requirement = Requirement(name="x", minimum=minimum, is_exact=is_exact, extra="")
    assert is_satisfied(requirement, version) is is_fit


@pytest.mark.parametrize(
    ("flags", "machine", "state", "words"),
    [
        ("avx2 avx512f avx512_vnni amx_int8", "x86_64", "ok", "AMX"),
        ("avx2 avx_vnni", "x86_64", "ok", "VNNI"),
        ("avx2 avx512f", "x86_64", "note", "saturate"),
        ("sse4_2", "x86_64", "note", "slower"),
        ("asimd asimddp", "aarch64", "ok", "dot products"),
        ("asimd", "aarch64", "note", "no dot products"),
    ],
)
def test_cpu_flags_are_told_as_what_they_mean_for_int8(
    flags: str, machine: str, state: str, words: str
) -> None:
    check = next(c for c in doctor.check_cpu(flags, machine) if c.name == "INT8")
    assert check.state == state
    assert words in check.detail


def _trials(root: Path) -> dict[str, store_trial.Trial]:
    return {trial.name: trial for trial in store_trial.examine_store(root)}


def test_a_rename_that_replaces_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replacing(source: Path, target: Path) -> None:
        if target.exists():
            (target / "file").unlink()
        source.rename(target)

    assert _trials(tmp_path)["rename without replacing"].state == "ok"
    monkeypatch.setattr(files, "rename_new", replacing)
    trial = _trials(tmp_path)["rename without replacing"]
    assert (trial.state, trial.detail) == (
        "problem",
        "a rename replaced a directory that was there",
    )
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_cannot_sync_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(path: Path) -> None:
        raise OSError(22, os.strerror(22))

    monkeypatch.setattr(files, "sync", refusing)
    trial = _trials(tmp_path)["write and fsync"]
    assert trial.state == "problem"
    assert "EINVAL" in trial.detail
    assert "CONVERT_STORE" in trial.hint


def test_locks_that_do_nothing_are_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    trial = _trials(tmp_path)["lock"]
    assert trial.state == "note"
    assert "two in at once" in trial.detail


def test_a_root_that_cannot_be_is_a_problem(tmp_path: Path) -> None:
    assert _trials(tmp_path / ("x" * 300))["root"].state == "problem"


def test_the_file_system_is_that_of_the_nearest_mount() -> None:
    mounts = "\n".join(
        (
            "overlay / overlay rw 0 0",
            "/dev/vdb /data ext4 rw 0 0",
            "server:/x /data/far\\040away nfs4 rw 0 0",
        )
    )
    assert store_trial.file_system_type(Path("/data/store"), mounts) == "ext4"
    assert store_trial.file_system_type(Path("/data/far away/store"), mounts) == "nfs4"
    assert store_trial.file_system_type(Path("/database"), mounts) == "overlay"
    assert store_trial.file_system_type(Path("/data"), "") == ""
