"""CUDA's runtime API without a GPU: exactly the names that `pipeline.runtimes.cuda_memory` uses.

It is as strict as the real one is, or stricter: addresses of the GPU cannot be read by the host, new
memory holds rubbish, copies need pinned memory, and nothing that is queued on a stream happens before
somebody waits for the stream. So a wrong address, a wrong size or a forgotten wait shows in the numbers.
Time is counted, not measured: a copied byte takes 1 us, a computation what it says.
"""

from __future__ import annotations

import ctypes
import enum
import sys
import types
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.runtimes.cuda_memory import API

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

RUBBISH = 0xA5
MS_PER_BYTE = 1e-3


class Error(enum.IntEnum):
    cudaSuccess = 0  # noqa: N815 - CUDA's names
    cudaErrorInvalidValue = 1  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorInsufficientDriver = 35  # noqa: N815
    cudaErrorIllegalAddress = 700  # noqa: N815
    cudaErrorStreamCaptureUnsupported = 900  # noqa: N815


class MemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1  # noqa: N815
    cudaMemcpyDeviceToHost = 2  # noqa: N815


class CaptureMode(enum.IntEnum):
    cudaStreamCaptureModeThreadLocal = 1  # noqa: N815


class IllegalAddressError(Exception):
    """Work on the GPU met memory that is not there."""


@dataclass(eq=False)
class Stream:
    number: int
    queue: list[Callable[[], None]] = field(default_factory=list)
    captured: list[Callable[[], None]] | None = None

    def __int__(self) -> int:
        return self.number

    def add(self, work: Callable[[], None]) -> None:
        (self.queue if self.captured is None else self.captured).append(work)


@dataclass(eq=False)
class Event:
    at_ms: float | None = None


@dataclass(eq=False)
class Graph:
    work: list[Callable[[], None]]


class FakeCuda(types.ModuleType):
    """The module; also what the fake TensorRT asks for its memory."""

    cudaError_t = Error  # noqa: N815
    cudaMemcpyKind = MemcpyKind  # noqa: N815
    cudaStreamCaptureMode = CaptureMode  # noqa: N815
    cudaStreamNonBlocking = 1  # noqa: N815

    def __init__(self, *, gpus: int = 1, memory_bytes: int = 1 << 30) -> None:
        super().__init__(API)
        self.gpus = gpus
        self.memory_bytes = memory_bytes
        self.on_device: dict[int, np.ndarray[Any, Any]] = {}
        self.pinned: dict[int, np.ndarray[Any, Any]] = {}
        self.streams: dict[int, Stream] = {}
        self.events: list[Event] = []
        self.graphs: list[Graph] = []
        self.now_ms = 0.0
        self.captures = 0
        self.launches = 0
        self.allocations = 0
        self._next = 0x7F00_0000_0000

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
        monkeypatch.setitem(sys.modules, API, self)
        return self

    def left(self) -> list[object]:
        """Everything that was made and not given back."""
        return [*self.on_device, *self.pinned, *self.streams, *self.events, *self.graphs]

    def read(self, address: int, size: int) -> np.ndarray[Any, Any]:
        """`size` bytes of the GPU's memory, writable; only work that is on the GPU may ask."""
        for start, memory in self.on_device.items():
            if start <= address and address + size <= start + len(memory):
                return memory[address - start : address - start + size]
        raise IllegalAddressError

    def _is_pinned(self, address: int, size: int) -> bool:
        return any(
            start <= address and address + size <= start + len(memory)
            for start, memory in self.pinned.items()
        )

    # --- the API, each function as cuda.bindings 13 has it --------------------------------------

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:  # noqa: N802
        if not self.gpus:
            return Error.cudaErrorInsufficientDriver, None
        return Error.cudaSuccess, self.gpus

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:  # noqa: N802
        return (Error.cudaSuccess if device < self.gpus else Error.cudaErrorInvalidValue,)

    def cudaGetErrorString(self, code: Error) -> tuple[Any, ...]:  # noqa: N802
        return Error.cudaSuccess, {700: b"an illegal address", 2: b"out of memory"}.get(
            code, code.name.encode()
        )

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:  # noqa: N802
        if sum(map(len, self.on_device.values())) + size > self.memory_bytes:
            return Error.cudaErrorMemoryAllocation, None
        self._next += 1 << 32
        self.allocations += 1
        self.on_device[self._next] = np.full(size, RUBBISH, np.uint8)
        return Error.cudaSuccess, self._next

    def cudaFree(self, address: int) -> tuple[Any, ...]:  # noqa: N802
        del self.on_device[address]
        return (Error.cudaSuccess,)

    def cudaMallocHost(self, size: int) -> tuple[Any, ...]:  # noqa: N802
        memory = np.full(size, RUBBISH, np.uint8)
        self.allocations += 1
        self.pinned[memory.ctypes.data] = memory
        return Error.cudaSuccess, memory.ctypes.data

    def cudaFreeHost(self, address: int) -> tuple[Any, ...]:  # noqa: N802
        self.pinned.pop(address).fill(RUBBISH)  # who still looks at it sees rubbish
        return (Error.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:  # noqa: N802
        assert flags == self.cudaStreamNonBlocking
        self._next += 1
        self.streams[self._next] = Stream(self._next)
        return Error.cudaSuccess, self.streams[self._next]

    def cudaStreamDestroy(self, stream: Stream) -> tuple[Any, ...]:  # noqa: N802
        del self.streams[int(stream)]
        return (Error.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: Stream) -> tuple[Any, ...]:  # noqa: N802
        if stream.captured is not None:
            return (Error.cudaErrorStreamCaptureUnsupported,)
        queue, stream.queue = stream.queue, []
        try:
            for work in queue:
                work()
        except IllegalAddressError:
            return (Error.cudaErrorIllegalAddress,)
        return (Error.cudaSuccess,)

    def cudaMemcpyAsync(  # noqa: N802
        self, to: int, source: int, size: int, kind: MemcpyKind, stream: Stream
    ) -> tuple[Any, ...]:
        is_in = kind is MemcpyKind.cudaMemcpyHostToDevice
        host, device = (source, to) if is_in else (to, source)
        if not self._is_pinned(host, size):
            return (Error.cudaErrorInvalidValue,)

        def copy() -> None:
            there = self.read(device, size)
            here = np.frombuffer((ctypes.c_ubyte * size).from_address(host), np.uint8)
            np.copyto(there, here) if is_in else np.copyto(here, there)
            self.now_ms += size * MS_PER_BYTE

        stream.add(copy)
        return (Error.cudaSuccess,)

    def cudaEventCreate(self) -> tuple[Any, ...]:  # noqa: N802
        self.events.append(Event())
        return Error.cudaSuccess, self.events[-1]

    def cudaEventDestroy(self, event: Event) -> tuple[Any, ...]:  # noqa: N802
        self.events.remove(event)
        return (Error.cudaSuccess,)

    def cudaEventRecord(self, event: Event, stream: Stream) -> tuple[Any, ...]:  # noqa: N802
        def record() -> None:
            event.at_ms = self.now_ms

        stream.add(record)
        return (Error.cudaSuccess,)

    def cudaEventElapsedTime(self, start: Event, end: Event) -> tuple[Any, ...]:  # noqa: N802
        if start.at_ms is None or end.at_ms is None:
            return Error.cudaErrorInvalidValue, None
        return Error.cudaSuccess, end.at_ms - start.at_ms

    def cudaStreamBeginCapture(self, stream: Stream, mode: CaptureMode) -> tuple[Any, ...]:  # noqa: N802
        assert isinstance(mode, CaptureMode)
        stream.captured = []
        return (Error.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: Stream) -> tuple[Any, ...]:  # noqa: N802
        assert stream.captured is not None
        graph = Graph(stream.captured)
        stream.captured = None
        self.graphs.append(graph)
        self.captures += 1
        return Error.cudaSuccess, graph

    def cudaGraphInstantiate(self, graph: Graph, flags: int) -> tuple[Any, ...]:  # noqa: N802
        assert flags == 0
        self.graphs.append(Graph(list(graph.work)))
        return Error.cudaSuccess, self.graphs[-1]

    def cudaGraphDestroy(self, graph: Graph) -> tuple[Any, ...]:  # noqa: N802
        self.graphs.remove(graph)
        return (Error.cudaSuccess,)

    def cudaGraphExecDestroy(self, graph: Graph) -> tuple[Any, ...]:  # noqa: N802
        self.graphs.remove(graph)
        return (Error.cudaSuccess,)

    def cudaGraphLaunch(self, graph: Graph, stream: Stream) -> tuple[Any, ...]:  # noqa: N802
        assert graph in self.graphs
        self.launches += 1
        for work in graph.work:
            stream.add(work)
        return (Error.cudaSuccess,)
