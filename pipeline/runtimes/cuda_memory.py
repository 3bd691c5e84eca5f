"""The little of CUDA that running an engine needs: memory, a stream, events, graphs.

Through `cuda.bindings.runtime` (package cuda-bindings), whose functions return an error code and
then what C returns by pointer; here every code but success is an exception. Nothing falls back to
the host: without a driver nothing of this can be made.
Source: CUDA runtime API reference, https://docs.nvidia.com/cuda/cuda-runtime-api/
"""

from __future__ import annotations

import ctypes
import importlib
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.errors import EnvironmentMissing, StageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.runtimes.base import Array

API: Final = "cuda.bindings.runtime"
_NOT_HERE: Final = frozenset({"cudaErrorInsufficientDriver", "cudaErrorNoDevice"})


class Cuda:
    """One device, through CUDA's runtime API.

    Args:
        device: Number of the GPU among those that the driver shows.

    Raises:
        EnvironmentMissing: cuda-bindings is not installed, or there is no driver or no such GPU.
    """

    def __init__(self, device: int = 0) -> None:
        try:
            self.api: Any = importlib.import_module(API)
        except ImportError as error:
            raise EnvironmentMissing(
                f"package cuda-bindings cannot be imported: {error}",
                hint="pip install 'convert-pipeline[cuda]'",
            ) from error
        count = self.call("cudaGetDeviceCount", doing="count the GPUs")
        if device >= count:
            raise EnvironmentMissing(f"there is no GPU {device}: the driver shows {count}")
        self.call("cudaSetDevice", device, doing=f"use GPU {device}")

    def call(self, name: str, *arguments: object, doing: str) -> Any:
        """Call a function of the API; what it returns behind the error code, if anything.

        Raises:
            EnvironmentMissing: there is no driver, or no GPU.
            StageError: it fails; with CUDA's own name and sentence.
        """
        code, *values = getattr(self.api, name)(*arguments)
        if code != self.api.cudaError_t.cudaSuccess:
            _, text = self.api.cudaGetErrorString(code)
            what = text.decode() if isinstance(text, bytes) else str(text)
            message = f"CUDA cannot {doing}: {what} ({code.name})"
            if code.name in _NOT_HERE:
                raise EnvironmentMissing(message, hint="it takes an NVIDIA GPU and its driver")
            raise StageError(message)
        return values[0] if values else None


class DeviceBuffer:
    """Memory of the GPU.

    Attributes:
        address: Where it begins, on the GPU.
        size_bytes: How much it is.
    """

    def __init__(self, cuda: Cuda, size_bytes: int) -> None:
        self._cuda = cuda
        self.size_bytes = size_bytes
        doing = f"take {size_bytes / (1 << 20):.1f} MiB of the GPU's memory"
        self.address = int(cuda.call("cudaMalloc", max(size_bytes, 1), doing=doing))

    def close(self) -> None:
        """Give it back; twice does no harm."""
        if self.address:
            address, self.address = self.address, 0
            self._cuda.call("cudaFree", address, doing="give memory of the GPU back")


class PinnedBuffer:
    """Memory of the host that the GPU copies from and to while the host goes on.

    Attributes:
        address: Where it begins.
        size_bytes: How much it is.
    """

    def __init__(self, cuda: Cuda, size_bytes: int) -> None:
        self._cuda = cuda
        self.size_bytes = size_bytes
        doing = f"pin {size_bytes / (1 << 20):.1f} MiB of the host's memory"
        self.address = int(cuda.call("cudaMallocHost", max(size_bytes, 1), doing=doing))

    def view(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """The beginning of it as an array, which shares its memory: copy before `close`."""
        count = int(np.prod(shape, dtype=np.int64))
        size = count * dtype.itemsize
        if size > self.size_bytes:
            raise ValueError(f"{size} bytes do not fit into a buffer of {self.size_bytes}")
        raw = memoryview((ctypes.c_byte * size).from_address(self.address))
        return np.frombuffer(raw, dtype=dtype, count=count).reshape(shape)

    def close(self) -> None:
        """Give it back; twice does no harm."""
        if self.address:
            address, self.address = self.address, 0
            self._cuda.call("cudaFreeHost", address, doing="give pinned memory back")


class Stream:
    """A queue of work for the GPU; not the default one, which waits for all others."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        flags = cuda.api.cudaStreamNonBlocking
        self._raw = cuda.call("cudaStreamCreateWithFlags", flags, doing="make a stream")

    @property
    def handle(self) -> int:
        """What TensorRT takes."""
        return int(self._raw)

    def copy_in(self, to: DeviceBuffer, source: PinnedBuffer, size_bytes: int) -> None:
        """Queue a copy to the GPU."""
        kind = self._cuda.api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(to.address, source.address, size_bytes, kind)

    def copy_out(self, to: PinnedBuffer, source: DeviceBuffer, size_bytes: int) -> None:
        """Queue a copy from the GPU; it is there after `synchronize`."""
        kind = self._cuda.api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(to.address, source.address, size_bytes, kind)

    def _copy(self, to: int, source: int, size_bytes: int, kind: object) -> None:
        doing = f"copy {size_bytes} bytes"
        self._cuda.call("cudaMemcpyAsync", to, source, size_bytes, kind, self._raw, doing=doing)

    def record(self, event: Event) -> None:
        """Queue the event: its time is when all work before it is done."""
        self._cuda.call("cudaEventRecord", event.raw, self._raw, doing="record an event")

    def synchronize(self) -> None:
        """Wait until all queued work is done.

        Raises:
            StageError: some of it failed.
        """
        self._cuda.call("cudaStreamSynchronize", self._raw, doing="finish its work")

    def capture(self, work: Callable[[], None]) -> CapturedGraph:
        """What `work` queues, as a graph that is launched at once; nothing is computed now.

        Raises:
            StageError: something in it cannot be captured.
        """
        api, raw = self._cuda.api, self._raw
        # Only this thread's own calls must be safe to capture.
        mode = api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._cuda.call("cudaStreamBeginCapture", raw, mode, doing="begin a CUDA graph")
        try:
            work()
        except BaseException:
            code, graph = api.cudaStreamEndCapture(raw)  # the stream must be usable again
            if code == api.cudaError_t.cudaSuccess:
                api.cudaGraphDestroy(graph)
            raise
        graph = self._cuda.call("cudaStreamEndCapture", raw, doing="capture a CUDA graph")
        try:
            made = self._cuda.call("cudaGraphInstantiate", graph, 0, doing="make a CUDA graph")
        finally:
            self._cuda.call("cudaGraphDestroy", graph, doing="drop a CUDA graph")
        return CapturedGraph(self._cuda, made, raw)

    def close(self) -> None:
        """Let go of it; twice does no harm."""
        if self._raw is not None:
            raw, self._raw = self._raw, None
            self._cuda.call("cudaStreamDestroy", raw, doing="drop a stream")


class CapturedGraph:
    """Work that was captured on a stream, to be launched there."""

    def __init__(self, cuda: Cuda, raw: object, stream: object) -> None:
        self._cuda = cuda
        self._raw: object | None = raw
        self._stream = stream

    def launch(self) -> None:
        """Queue all of it."""
        self._cuda.call("cudaGraphLaunch", self._raw, self._stream, doing="launch a CUDA graph")

    def close(self) -> None:
        """Let go of it; twice does no harm."""
        if self._raw is not None:
            raw, self._raw = self._raw, None
            self._cuda.call("cudaGraphExecDestroy", raw, doing="drop a CUDA graph")


class Event:
    """A point in a stream's work, with the time when it was reached."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.raw = cuda.call("cudaEventCreate", doing="make an event")

    def ms_since(self, earlier: Event) -> float:
        """Milliseconds between two events that were reached; 0.5 us is the resolution."""
        doing = "tell the time between two events"
        return float(self._cuda.call("cudaEventElapsedTime", earlier.raw, self.raw, doing=doing))

    def close(self) -> None:
        """Let go of it; twice does no harm."""
        if self.raw is not None:
            raw, self.raw = self.raw, None
            self._cuda.call("cudaEventDestroy", raw, doing="drop an event")
