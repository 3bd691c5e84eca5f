"""The NVIDIA GPU of this machine, asked of its driver; imports no CUDA package.

The driver is asked in a process of its own, a small one: `cuInit` leaves threads and a context
behind, and a process that has called it must not fork (CUDA C programming guide, section on
interprocess communication), while a plan is made in the process that starts all others.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Final

from pipeline.environment import nvidia_driver_version

_SECONDS: Final = 60
_PROGRAM: Final = """
import ctypes, json, sys
def call(name, *args):
    if code := getattr(cuda, name)(*args):
        sys.exit(f"{name} answers {code}")
try:
    cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
except OSError as error:
    sys.exit(str(error))
number, device, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
name = ctypes.create_string_buffer(256)
call("cuInit", 0)
call("cuDriverGetVersion", ctypes.byref(number))
version = number.value
call("cuDeviceGetCount", ctypes.byref(number))
found = []
for place in range(number.value):
    call("cuDeviceGet", ctypes.byref(device), place)
    call("cuDeviceGetName", name, 256, device)
    call("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    numbers = []
    for attribute in (75, 76):
        call("cuDeviceGetAttribute", ctypes.byref(number), attribute, device)
        numbers.append(number.value)
    found.append([name.value.decode("utf-8", "replace"), *numbers, memory.value])
print(json.dumps({"cuda": version, "gpus": found}))
"""
"""75 and 76 are CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR (cuda.h)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU.

    Attributes:
        name: The driver's, such as `NVIDIA H200`.
        major: Of the compute capability, such as 9.
        minor: Of the compute capability, such as 0.
        memory_bytes: All of its memory.
        cuda: The newest version of CUDA that the driver serves, such as `13.0`.
    """

    name: str
    major: int
    minor: int
    memory_bytes: int
    cuda: str

    @property
    def target(self) -> str:
        """The compute capability as targets write it: `sm90`, `sm120`."""
        return f"sm{self.major}{self.minor}"

    @property
    def compute_capability(self) -> str:
        """As NVIDIA writes it: `9.0`."""
        return f"{self.major}.{self.minor}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What decides whether engines run here.

    Attributes:
        driver: Version of the NVIDIA kernel driver; empty when there is none.
        gpu: The first one that the driver shows (`CUDA_VISIBLE_DEVICES` says which); None when
            it shows none.
        others: Those that it shows behind the first one, in its order.
        trouble: Why there is no GPU although there is a driver, in the driver's words.
    """

    driver: str
    gpu: Gpu | None = None
    others: tuple[Gpu, ...] = ()
    trouble: str = ""

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """All that the driver shows; their places are the numbers that CUDA knows them by."""
        return () if self.gpu is None else (self.gpu, *self.others)


@functools.cache
def this_machine() -> Machine:
    """This one. Without a driver nothing is started, so it costs nothing."""
    driver = nvidia_driver_version()
    if not driver:
        return Machine(driver="")
    try:
        done = subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-I", "-S", "-c", _PROGRAM],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Machine(driver=driver, trouble=str(error))
    if done.returncode:
        said = done.stderr.strip() or f"the query ended with {done.returncode}"
        return Machine(driver=driver, trouble=said.splitlines()[-1])
    return _read_answer(driver, done.stdout)


def _read_answer(driver: str, text: str) -> Machine:
    answer = json.loads(text)
    if not answer["gpus"]:
        return Machine(driver=driver, trouble="it shows no GPU")
    version = int(answer["cuda"])  # 13000 is 13.0
    cuda = f"{version // 1000}.{version % 1000 // 10}"
    first, *others = (
        Gpu(name=name, major=major, minor=minor, memory_bytes=memory, cuda=cuda)
        for name, major, minor, memory in answer["gpus"]
    )
    return Machine(driver=driver, gpu=first, others=tuple(others))


def gpu_target(number: int = 0) -> str:
    """For keys: the compute capability of a GPU of this machine, such as `sm90`; empty without it."""
    gpus = this_machine().gpus
    return gpus[number].target if number < len(gpus) else ""


def gpu_name(number: int = 0) -> str:
    """For keys: the name of a GPU of this machine; empty without it."""
    gpus = this_machine().gpus
    return gpus[number].name if number < len(gpus) else ""
