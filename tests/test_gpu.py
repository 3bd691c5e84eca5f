"""What the driver is asked, against a libcuda of our own that answers as the real one does."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from pipeline import gpu
from pipeline.environment import MACHINE_FACTS, machine_facts, nvidia_driver_version

if TYPE_CHECKING:
    from pathlib import Path

LIBCUDA = r"""
#include <string.h>
int cuInit(unsigned flags) { return %(init)d; }
int cuDriverGetVersion(int *v) { *v = 13010; return 0; }
int cuDeviceGetCount(int *n) { *n = %(count)d; return 0; }
int cuDeviceGet(int *device, int place) { *device = place + 7; return 0; }
int cuDeviceGetName(char *name, int size, int device) {
    strncpy(name, device == 7 ? "NVIDIA H200" : "NVIDIA L4", size); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 150ULL << 30; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    if (attribute == 75) *value = 9; else if (attribute == 76) *value = 0; else return 1;
    return 0; }
"""


def _answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, init: int = 0, count: int = 2
) -> gpu.Machine:
    compiler = shutil.which("cc") or pytest.skip("there is no C compiler")
    source = tmp_path / "cuda.c"
    source.write_text(LIBCUDA % {"init": init, "count": count}, encoding="ascii")
    library = tmp_path / "libcuda.so.1"
    command = [compiler, "-shared", "-fPIC", "-o", str(library), str(source)]
    subprocess.run(command, check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setattr(gpu, "nvidia_driver_version", lambda: "580.65.06")
    return gpu.this_machine.__wrapped__()


def test_the_first_gpu_is_described_as_the_driver_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = _answer(tmp_path, monkeypatch)
    assert machine.driver == "580.65.06"
    assert machine.gpu == gpu.Gpu(
        name="NVIDIA H200", major=9, minor=0, memory_bytes=150 << 30, cuda="13.1"
    )
    assert (machine.gpu.target, machine.gpu.compute_capability) == ("sm90", "9.0")


def test_gpus_behind_the_first_one_have_the_numbers_that_cuda_gives_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = _answer(tmp_path, monkeypatch)
    assert [one.name for one in machine.gpus] == ["NVIDIA H200", "NVIDIA L4"]
    monkeypatch.setattr(gpu, "this_machine", lambda: machine)
    names = [machine_facts(["gpu_name"], gpu=number)["gpu_name"] for number in range(3)]
    assert names == ["NVIDIA H200", "NVIDIA L4", ""]


def test_a_driver_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = _answer(tmp_path, monkeypatch, init=802)
    assert machine.gpu is None
    assert machine.trouble == "cuInit answers 802"


def test_a_driver_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = _answer(tmp_path, monkeypatch, count=0)
    assert (machine.gpu, machine.trouble) == (None, "it shows no GPU")


def test_a_driver_without_its_library_is_a_trouble_and_no_crash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if nvidia_driver_version():
        pytest.skip("this machine has a driver")
    monkeypatch.setattr(gpu, "nvidia_driver_version", lambda: "580.65.06")
    machine = gpu.this_machine.__wrapped__()
    assert machine.gpu is None
    assert "libcuda.so.1" in machine.trouble


def test_without_a_driver_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "nvidia_driver_version", lambda: "")
    monkeypatch.setattr(gpu, "subprocess", None)
    assert gpu.this_machine.__wrapped__() == gpu.Machine(driver="")


def test_facts_for_keys_are_there_with_and_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = _answer(tmp_path, monkeypatch)
    for found, wanted in ((machine, ("NVIDIA H200", "sm90")), (gpu.Machine(driver=""), ("", ""))):
        monkeypatch.setattr(gpu, "this_machine", lambda found=found: found)
        assert (MACHINE_FACTS["gpu_name"](), MACHINE_FACTS["gpu_target"]()) == wanted


@pytest.mark.gpu
def test_the_real_driver_answers() -> None:
    machine = gpu.this_machine()
    assert machine.gpu is not None, machine.trouble
    assert machine.gpu.memory_bytes > 1 << 30
