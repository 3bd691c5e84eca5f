"""Why engines are not loaded here: every reason, from files and machines that have the fault."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from pipeline.engines import preflight
from pipeline.engines.facts_file import read_engine_facts
from pipeline.engines.header import HEADER_BYTES
from pipeline.engines.module import TENSORRT, TENSORRT_RTX
from pipeline.engines.preflight import (
    choose_engine,
    describe_diagnostics,
    loading_problem,
    require_loadable,
)
from pipeline.errors import ArtifactError, DigestMismatch, EnvironmentMissing, ExitCode
from pipeline.gpu import Gpu, Machine
from pipeline.hashing import sha256_file

if TYPE_CHECKING:
    from pathlib import Path

VERSION = "1.7.1.116"
BARE = Machine(driver="")


def _machine(major: int, minor: int, name: str = "a GPU") -> Machine:
    gpu = Gpu(name=name, major=major, minor=minor, memory_bytes=1 << 30, cuda="13.0")
    return Machine(driver="580.65.06", gpu=gpu)


L4 = _machine(8, 9, "NVIDIA L4")


@pytest.fixture(autouse=True)
def _packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all packages were here, so that the rest can be asked."""
    monkeypatch.setattr(preflight, "installed_version", lambda _module: VERSION)
    monkeypatch.setattr(preflight, "is_importable", lambda _name: True)


def _write(
    tmp_path: Path, *, mask: int = 0b1000, version: str = VERSION, magic: bytes = b"vtrt"
) -> Path:
    numbers = map(int, version.split("."))
    head = struct.pack("<4sIQQ4B4sQQQQ", magic, 0, 2, 200, *numbers, magic, mask, 0, 0, 100)
    path = tmp_path / "model.engine"
    path.write_bytes(head + bytes(200 - HEADER_BYTES))
    return path


def test_an_engine_that_fits_has_no_problem(tmp_path: Path) -> None:
    path = _write(tmp_path)
    assert loading_problem(path, machine=L4) == ""
    require_loadable(path, sha256=sha256_file(path), machine=L4)


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        (BARE, "this machine has no NVIDIA driver"),
        (
            Machine(driver="580.65", trouble="cuInit answers 802"),
            "this machine has the NVIDIA driver 580.65 and no GPU that can be used: cuInit answers",
        ),
        (_machine(8, 6), "it was built for sm89, and this machine's GPU is sm86, a GPU"),
        (_machine(12, 0), "it was built for sm89, and this machine's GPU is sm120"),
        (
            _machine(9, 0, "NVIDIA H200"),
            (
                "TensorRT-RTX does not support the compute capability of this machine's GPU (sm90, "
                "NVIDIA H200), so no engine of it can run here; it supports sm75, sm80, sm86, sm89"
            ),
        ),
        (_machine(7, 0), "does not support the compute capability of this machine's GPU (sm70"),
        (_machine(10, 0), "does not support the compute capability of this machine's GPU (sm100"),
    ],
)
def test_a_machine_that_cannot_run_it_is_named(
    tmp_path: Path, machine: Machine, reason: str
) -> None:
    path = _write(tmp_path)
    assert reason in loading_problem(path, machine=machine)
    with pytest.raises(EnvironmentMissing) as caught:
        require_loadable(path, sha256=sha256_file(path), machine=machine)
    assert reason in caught.value.message
    assert caught.value.where == "model.engine"
    assert caught.value.hint
    assert caught.value.exit_code is ExitCode.ENVIRONMENT_MISSING


def test_portable_engines_are_for_ampere_and_what_comes_after_it(tmp_path: Path) -> None:
    path = _write(tmp_path, mask=0x7E)
    for capability in ((8, 0), (8, 6), (8, 9), (12, 0), (12, 1), (13, 0)):
        assert loading_problem(path, machine=_machine(*capability)) == ""
    for capability in ((7, 5), (8, 7), (9, 0), (10, 0), (11, 0)):
        assert loading_problem(path, machine=_machine(*capability))


@pytest.mark.parametrize("version", ["1.7.2.0", "1.6.0.0", "2.0.0.0"])
def test_another_version_is_said_even_without_a_driver(tmp_path: Path, version: str) -> None:
    path = _write(tmp_path, version=version)
    expected = f"tensorrt-rtx {version} built it, and {VERSION} is installed"
    assert loading_problem(path, machine=BARE) == expected


def test_a_package_that_is_missing_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(tmp_path)
    monkeypatch.setattr(preflight, "is_importable", lambda _name: False)
    assert "package cuda-bindings is not installed" in loading_problem(path, machine=L4)
    monkeypatch.setattr(preflight, "installed_version", lambda _module: None)
    assert loading_problem(path, machine=L4) == "package tensorrt-rtx is not installed"


def test_a_damaged_file_is_an_error_of_the_file(tmp_path: Path) -> None:
    path = _write(tmp_path)
    content = path.read_bytes()
    for damaged in (b"", content[:40], content[:-1], b"PK" + content[2:]):
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError):
            loading_problem(path, machine=L4)
    path.write_bytes(content[:-1] + b"x")  # a header cannot tell
    with pytest.raises(DigestMismatch, match="is vouched for: it is not loaded"):
        require_loadable(path, sha256="0" * 64, machine=L4)
    with pytest.raises(DigestMismatch, match="and none is vouched for"):
        require_loadable(path, sha256="", machine=L4)
    path.unlink()
    with pytest.raises(ArtifactError, match="No such file"):
        require_loadable(path, sha256="0" * 64, machine=L4)


@pytest.mark.parametrize("bits", range(7))
def test_every_flipped_bit_of_magic_size_version_and_targets_is_noticed(
    tmp_path: Path, bits: int
) -> None:
    path = _write(tmp_path)
    content = path.read_bytes()
    for place in (*range(4), *range(16, 33)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << bits
        path.write_bytes(flipped)
        try:
            assert loading_problem(path, machine=L4) or flipped[32] & 0b1000
        except ArtifactError:
            continue


# --- full TensorRT --------------------------------------------------------------------------


def _full(tmp_path: Path, *compatibility: str, version: str = VERSION) -> str:
    from tests.parity.graphs import write_graph
    from tests.runtimes.fake_tensorrt import write_engine

    graph = write_graph(tmp_path / "graph") / "model.onnx"
    ranges = {"batch": (1, 1, 1), "sequence": (1, 8, 8)}
    write_engine(tmp_path, graph, [ranges], magic=b"ftrt")
    facts = read_engine_facts(tmp_path / "engine.json")
    facts = facts.model_copy(update={"compatibility": compatibility})
    (tmp_path / "engine.json").write_text(facts.model_dump_json(), encoding="utf-8")
    machine = L4 if version == VERSION else _machine(9, 0)
    return loading_problem(tmp_path / "model.engine", machine=machine)


def test_full_tensorrt_runs_where_it_was_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _full(tmp_path) == ""
    assert "was built on a GPU of sm89" in _full(tmp_path, version="other GPU")
    assert _full(tmp_path, "ampere_plus", version="other GPU") == ""
    for installed, is_loaded in (("1.8.0.0", True), ("1.6.0.0", False), ("2.0.0.0", False)):
        monkeypatch.setattr(preflight, "installed_version", lambda _module, v=installed: v)
        assert _full(tmp_path) == f"tensorrt {VERSION} built it, and {installed} is installed"
        assert (_full(tmp_path, "version_compatible") == "") is is_loaded


# --- which of a target's engines ------------------------------------------------------------


def test_the_engine_for_this_gpu_comes_before_the_portable_one() -> None:
    built = ("sm86", "sm89", "portable")
    assert choose_engine(TENSORRT_RTX, built, machine=L4).target == "sm89"
    assert choose_engine(TENSORRT_RTX, built, machine=_machine(12, 0)).target == "portable"
    turing = choose_engine(TENSORRT_RTX, built, machine=_machine(7, 5))
    assert turing.target == ""
    assert turing.reason.startswith(
        "no engine is built for this machine's GPU (sm75, a GPU), only"
    )


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        (BARE, "this machine has no NVIDIA driver"),
        (Machine(driver="580.65"), "and no GPU that can be used: it shows no GPU"),
        (_machine(9, 0), "TensorRT-RTX does not support the compute capability"),
    ],
)
def test_why_no_engine_runs_here(machine: Machine, reason: str) -> None:
    choice = choose_engine(TENSORRT_RTX, ("sm89", "portable"), machine=machine)
    assert reason in choice.reason
    assert choice.target == ""


def test_full_tensorrt_is_for_every_gpu_that_is_there() -> None:
    assert choose_engine(TENSORRT, ("sm90",), machine=_machine(9, 0)).target == "sm90"


def test_packages_that_are_missing_are_a_reason_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "is_importable", lambda _name: False)
    choice = choose_engine(TENSORRT_RTX, ("sm89",), machine=L4)
    assert choice.reason == (
        "package cuda-bindings is not installed (pip install 'convert-pipeline[cuda]')"
    )


# --- the real module ------------------------------------------------------------------------


def test_every_diagnostic_of_the_real_module_has_words() -> None:
    real = pytest.importorskip("tensorrt_rtx")
    for name, member in real.EngineInvalidityDiagnostics.__members__.items():
        assert describe_diagnostics(int(member)), name
        assert "does not know" not in describe_diagnostics(int(member)), name
    assert describe_diagnostics(0) == ""
    assert describe_diagnostics(1 | 2).count("; ") == 1
    assert (
        describe_diagnostics(1 << 20) == "for a reason this program does not know (bits 0x100000)"
    )
