"""A machine with a GPU, as far as this program can tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.engines import preflight
from pipeline.gpu import Gpu, Machine
from pipeline.runtimes import tensorrt as runner_module
from tests.runtimes.fake_cuda import FakeCuda
from tests.runtimes.fake_tensorrt import VERSION, FakeTensorRT

if TYPE_CHECKING:
    import pytest


def gpu(major: int = 8, minor: int = 9, name: str = "NVIDIA L4") -> Gpu:
    return Gpu(name=name, major=major, minor=minor, memory_bytes=24 << 30, cuda="13.0")


L4 = Machine(driver="580.65.06", gpu=gpu())
H200 = Machine(driver="580.65.06", gpu=gpu(9, 0, "NVIDIA H200"))
BOTH = Machine(driver="580.65.06", gpu=gpu(), others=(gpu(9, 0, "NVIDIA H200"),))
BARE = Machine(driver="")


def install_device(
    monkeypatch: pytest.MonkeyPatch, *, full: bool = False, machine: Machine = L4
) -> tuple[FakeCuda, FakeTensorRT]:
    """Fakes of CUDA and of TensorRT in place of the packages, and a driver that shows a GPU."""
    cuda = FakeCuda().install(monkeypatch)
    trt = FakeTensorRT(cuda, full=full).install(monkeypatch)
    version = ".".join(map(str, VERSION))
    monkeypatch.setattr(preflight, "installed_version", lambda _module: version)
    monkeypatch.setattr(preflight, "is_importable", lambda _name: True)
    for module in (preflight, runner_module):
        monkeypatch.setattr(module, "this_machine", lambda: machine)
    monkeypatch.setattr(runner_module, "_LOGGERS", {})
    return cuda, trt
