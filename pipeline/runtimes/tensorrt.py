"""TensorRT engines as a runner: on the GPU, or not at all.

One module for `tensorrt` and `tensorrt_rtx`; where they differ, the attribute decides that is
there, never a version. An engine holds code, so it is given to TensorRT only when its digest is the
one that a manifest, or the stage that made it, vouches for. Device memory is taken once, for the
largest shapes of the profiles that are used, and pinned memory likewise.
"""

from __future__ import annotations

import importlib
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

import numpy as np

from pipeline.engines.facts_file import facts_path, read_engine_facts
from pipeline.engines.header import read_engine_header
from pipeline.engines.preflight import (
    MODULES,
    VERSION_COMPATIBLE,
    describe_diagnostics,
    require_loadable,
)
from pipeline.errors import EnvironmentMissing, StageError
from pipeline.gpu import this_machine
from pipeline.runtimes.base import FeedError, LoadedRunner, ModelTensor, check_feeds
from pipeline.runtimes.cuda_memory import Cuda, DeviceBuffer, Event, PinnedBuffer, Stream

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    from pipeline.engines.facts_file import EngineFacts
    from pipeline.runtimes.base import Array
    from pipeline.runtimes.cuda_memory import CapturedGraph

Shape: TypeAlias = tuple[int, ...]

_DTYPES: Final = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}
"""TensorRT's element types that numpy, with ml_dtypes, can hold."""
_ERRORS: Final = frozenset({"ERROR", "INTERNAL_ERROR"})
_MOST_REASONS: Final = 5


@dataclass(frozen=True, slots=True)
class CallTimes:
    """One call, measured by CUDA events and, for `enqueue_ms`, the host's clock; milliseconds.

    Attributes:
        h2d_ms: Copies of the inputs to the GPU.
        compute_ms: The engine's own work on the GPU.
        d2h_ms: Copies of the outputs back.
        enqueue_ms: How long the host takes to hand the engine's work to the GPU.
    """

    h2d_ms: float
    compute_ms: float
    d2h_ms: float
    enqueue_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One optimization profile: input name -> its smallest and its largest shape."""

    index: int
    smallest: Mapping[str, Shape]
    largest: Mapping[str, Shape]

    def fits(self, shapes: Mapping[str, Shape]) -> bool:
        """Whether it takes inputs of these shapes."""
        return all(
            len(shape) == len(self.smallest[name])
            and all(
                low <= size <= high
                for low, size, high in zip(
                    self.smallest[name], shape, self.largest[name], strict=True
                )
            )
            for name, shape in shapes.items()
        )

    @property
    def volume(self) -> int:
        """Elements of all inputs at their largest."""
        return sum(prod(shape) for shape in self.largest.values())

    def __str__(self) -> str:
        ranges = ", ".join(
            f"{name} {list(low)} to {list(self.largest[name])}"
            for name, low in self.smallest.items()
        )
        return f"profile {self.index}: {ranges}"


class TensorRTRunner(LoadedRunner):
    """An engine, deserialised on this machine's GPU.

    Args:
        engine: The file. Its facts, where they lie beside it, give its axes their names.
        sha256: The digest that is vouched for; of another file nothing is loaded.
        uses_cuda_graph: Hand the work to the GPU as one captured graph. A graph is made for the
            shapes that are run, after one ordinary run of them, and made again for other shapes:
            it holds the state of the execution context.
        device: Number of the GPU among those that the driver shows.
    """

    def __init__(
        self, engine: Path, *, sha256: str, uses_cuda_graph: bool = False, device: int = 0
    ) -> None:
        super().__init__()
        self._path = engine
        self._sha256 = sha256
        self._uses_cuda_graph = uses_cuda_graph
        self._device = device
        self._profiles: tuple[Profile, ...] = ()
        self._session = ""
        self._resources: ExitStack | None = None
        self._facts: EngineFacts | None = None
        self._module: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._state: _State | None = None
        self._graph: CapturedGraph | None = None
        self._captures_itself = False

    def __enter__(self) -> Self:
        """Check the file, load it, and make ready to run.

        Raises:
            DigestMismatch: it is not the file that is vouched for.
            ArtifactError: it is damaged, or of another kind.
            EnvironmentMissing: it cannot be loaded here; the message says why.
            StageError: TensorRT refuses it; with its own reasons.
        """
        started = time.perf_counter()
        plan = require_loadable(self._path, sha256=self._sha256)
        kind = read_engine_header(self._path).kind
        path = facts_path(self._path)
        self._facts = read_engine_facts(path) if path.is_file() else None
        with ExitStack() as resources:
            # Let go of in reverse: what hangs on the context first, all before the process ends.
            resources.callback(self._drop)
            self._cuda = Cuda(self._device)
            self._module = importlib.import_module(MODULES[kind].import_name)
            self._log = _logger_of(self._module)
            self._log.records.clear()
            self._engine = self._deserialise(plan)
            del plan
            self._context = self._make_context()
            self._stream = Stream(self._cuda)
            resources.callback(self._stream.close)
            self._host, self._on_device = _Buffers(), _Buffers()
            resources.callback(self._host.close)
            resources.callback(self._on_device.close)
            resources.callback(self._drop_graph)
            self._read_interface()
            self._resources = resources.pop_all()
        self._session = self._describe(MODULES[kind].distribution)
        self._load_time_ms = (time.perf_counter() - started) * 1e3
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give all memory back."""
        if self._resources is not None:
            resources, self._resources = self._resources, None
            resources.close()

    def _drop(self) -> None:
        self._state = None
        self._context = None
        self._engine = None

    def _drop_graph(self) -> None:
        if self._graph is not None:
            graph, self._graph = self._graph, None
            graph.close()

    # --- loading ----------------------------------------------------------------------------

    def _deserialise(self, plan: bytes) -> Any:
        runtime = self._module.Runtime(self._log)
        if self._facts is not None and VERSION_COMPATIBLE in self._facts.compatibility:
            # It has a runtime of its own in it, and none is loaded unless this is said. Its digest is
            # vouched for.
            runtime.engine_host_code_allowed = True
        if hasattr(runtime, "get_engine_validity"):
            validity, bits = runtime.get_engine_validity(plan)
            if validity == self._module.EngineValidity.INVALID:
                why = describe_diagnostics(int(bits)) or "it does not say why"
                raise EnvironmentMissing(
                    f"TensorRT cannot run this engine here: {why}{self._reasons()}",
                    where=self._path.name,
                    hint="build the target on, or for, this machine",
                )
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise StageError(
                f"TensorRT cannot load the engine{self._reasons()}", where=self._path.name
            )
        return engine

    def _make_context(self) -> Any:
        """TensorRT-RTX captures graphs itself, and compiles kernels for shapes as they are met."""
        made = None
        if hasattr(self._module, "CudaGraphStrategy"):
            config = self._engine.create_runtime_config()
            # Otherwise the first calls run slower stand-ins, until a thread has compiled the rest.
            config.dynamic_shapes_kernel_specialization_strategy = (
                self._module.DynamicShapesKernelSpecializationStrategy.EAGER
            )
            if self._uses_cuda_graph:
                config.cuda_graph_strategy = self._module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            made = self._engine.create_execution_context(config)
        else:
            self._captures_itself = self._uses_cuda_graph
            made = self._engine.create_execution_context()
        if made is None:
            raise StageError(
                f"TensorRT cannot make an execution context{self._reasons()}",
                where=self._path.name,
            )
        return made

    def _read_interface(self) -> None:
        engine, modes = self._engine, self._module.TensorIOMode
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        by_mode: dict[bool, list[ModelTensor]] = {True: [], False: []}
        axes = self._axis_names()
        for name in names:
            shape = tuple(engine.get_tensor_shape(name))
            named = axes.get(name, (None,) * len(shape))
            by_mode[engine.get_tensor_mode(name) == modes.INPUT].append(
                ModelTensor(
                    name=name,
                    dtype=self._dtype(name),
                    shape=tuple(
                        (axis if isinstance(axis, str) else None) if size < 0 else size
                        for size, axis in zip(shape, named, strict=True)
                    ),
                )
            )
        self._inputs, self._outputs = tuple(by_mode[True]), tuple(by_mode[False])
        self._profiles = tuple(
            self._read_profile(index) for index in range(engine.num_optimization_profiles)
        )

    def _axis_names(self) -> dict[str, tuple[int | str | None, ...]]:
        facts = self._facts
        if facts is None:
            return {}
        return {tensor.name: tensor.dims for tensor in (*facts.inputs, *facts.outputs)}

    def _dtype(self, name: str) -> str:
        raw = self._engine.get_tensor_dtype(name).name
        if raw not in _DTYPES:
            raise StageError(
                f"`{name}` of the engine is {raw}, which cannot be fed or read from here",
                where=self._path.name,
            )
        return _DTYPES[raw]

    def _read_profile(self, index: int) -> Profile:
        ranges = {
            spec.name: self._engine.get_tensor_profile_shape(spec.name, index)
            for spec in self._inputs
        }
        return Profile(
            index=index,
            smallest={name: tuple(shapes[0]) for name, shapes in ranges.items()},
            largest={name: tuple(shapes[2]) for name, shapes in ranges.items()},
        )

    def _describe(self, distribution: str) -> str:
        machine = this_machine()
        gpu = machine.gpu.name if machine.gpu else "an unknown GPU"
        graph = ", CUDA graph" if self._uses_cuda_graph else ""
        return (
            f"{distribution} {self._module.__version__} on {gpu}, driver {machine.driver or '?'}"
            f"{graph}"
        )

    def _reasons(self) -> str:
        """What the log holds of errors, to stand behind a sentence."""
        return "".join(f"\n  {message}" for message in dict.fromkeys(self._log.records))

    # --- the contract of a runner -----------------------------------------------------------

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """What shapes the engine takes: those that fit into one of these."""
        return self._profiles

    @property
    def session(self) -> str:
        """Such as `tensorrt-rtx 1.7.1.116 on NVIDIA L4, driver 580.65`."""
        return self._session

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name; fresh arrays that belong to the caller.

        Raises:
            FeedError: when a name, a dtype or a shape does not fit; nothing was run then.
            StageError: with TensorRT's or CUDA's reason, when the run fails.
        """
        bound = self.bind(feeds)
        bound.run()
        return bound.read()

    def bind(self, feeds: Mapping[str, Array]) -> BoundFeeds:
        """Feeds in pinned memory, ready to be run many times.

        All feeds share the buffers of this runner: what was bound last is what is in them, and a
        call to something bound before brings its own feeds back.

        Raises:
            FeedError: when a name, a dtype or a shape does not fit.
        """
        if self._resources is None:
            raise RuntimeError("TensorRTRunner outside of its `with` block")
        check_feeds(self._inputs, feeds, self._path.name)
        shapes = {spec.name: tuple(feeds[spec.name].shape) for spec in self._inputs}
        profile = self._choose(shapes)
        arrays = {name: np.ascontiguousarray(feeds[name]) for name in shapes}
        return BoundFeeds(self, profile, shapes, arrays)

    def _choose(self, shapes: Mapping[str, Shape]) -> Profile:
        """The smallest profile that all shapes fit into."""
        fitting = [profile for profile in self._profiles if profile.fits(shapes)]
        if not fitting:
            asked = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            raise FeedError(
                f"no profile of the engine takes {asked}; it has "
                + "; ".join(map(str, self._profiles)),
                where=self._path.name,
            )
        return min(fitting, key=lambda profile: (profile.volume, profile.index))

    # --- running ----------------------------------------------------------------------------

    def _prepare(self, bound: BoundFeeds) -> _State:
        """Make the execution context ready for these shapes, and bring these feeds into the buffers."""
        state = self._state
        if state is not None and state.bound is bound:
            return state
        key = (bound.profile.index, tuple(bound.shapes.values()))
        if state is None or state.key != key:
            self._state = None  # until all of it holds again
            state = self._reshape(bound, key)
        for name, array in bound.arrays.items():
            np.copyto(state.host[name], array)
        state.bound = bound
        self._state = state
        return state

    def _reshape(self, bound: BoundFeeds, key: tuple[int, tuple[Shape, ...]]) -> _State:
        self._drop_graph()
        context, profile = self._context, bound.profile
        if context.active_optimization_profile != profile.index:
            if not context.set_optimization_profile_async(profile.index, self._stream.handle):
                raise self._failed(f"take up profile {profile.index}")
            self._stream.synchronize()
        for name, shape in bound.shapes.items():
            if not context.set_input_shape(name, shape):
                raise self._failed(f"take `{name}` of shape {list(shape)}")
        if missing := context.infer_shapes():
            raise self._failed(f"tell its shapes: {', '.join(missing)} are not given")
        shapes = dict(bound.shapes)
        for spec in self._outputs:
            shapes[spec.name] = tuple(context.get_tensor_shape(spec.name))
            if min(shapes[spec.name], default=1) < 0:
                raise self._failed(
                    f"say how large `{spec.name}` is before it has run: its size hangs on values"
                )
        host: dict[str, Array] = {}
        for spec in (*self._inputs, *self._outputs):
            dtype, shape = _numpy_dtype(spec.dtype), shapes[spec.name]
            needed = self._largest_bytes(spec, profile, dtype, shape)
            on_device = self._on_device.get(
                spec.name, needed, lambda size: DeviceBuffer(self._cuda, size)
            )
            pinned = self._host.get(spec.name, needed, lambda size: PinnedBuffer(self._cuda, size))
            host[spec.name] = pinned.view(dtype, shape)
            if not context.set_tensor_address(spec.name, on_device.address):
                raise self._failed(f"take memory for `{spec.name}`")
        return _State(key=key, host=host)

    def _largest_bytes(
        self, spec: ModelTensor, profile: Profile, dtype: np.dtype[Any], shape: Shape
    ) -> int:
        """What a tensor takes at the profile's largest shapes."""
        now = prod(shape) * dtype.itemsize
        if spec.name in profile.largest:
            return max(now, prod(profile.largest[spec.name]) * dtype.itemsize)
        return max(now, int(self._context.get_max_output_size(spec.name)))

    def _call(self, bound: BoundFeeds, events: _Events | None = None) -> float:
        """Copy in, compute, copy out, wait; milliseconds that handing over the work took."""
        state = self._prepare(bound)
        if self._captures_itself and self._graph is None:
            self._capture(bound)
        if events is not None:
            self._stream.record(events.start)
        for spec in self._inputs:
            buffer = self._on_device[spec.name]
            self._stream.copy_in(buffer, self._host[spec.name], state.host[spec.name].nbytes)
        if events is not None:
            self._stream.record(events.copied_in)
        started = time.perf_counter_ns()
        if self._graph is None:
            self._enqueue()
        else:
            self._graph.launch()
        enqueued = time.perf_counter_ns()
        if events is not None:
            self._stream.record(events.computed)
        for spec in self._outputs:
            buffer = self._on_device[spec.name]
            self._stream.copy_out(self._host[spec.name], buffer, state.host[spec.name].nbytes)
        if events is not None:
            self._stream.record(events.copied_out)
        self._stream.synchronize()
        return (enqueued - started) / 1e6

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise self._failed("run the engine")

    def _capture(self, bound: BoundFeeds) -> None:
        """One ordinary run first: what TensorRT does once for new shapes must not be captured."""
        state = self._prepare(bound)
        for spec in self._inputs:
            buffer = self._on_device[spec.name]
            self._stream.copy_in(buffer, self._host[spec.name], state.host[spec.name].nbytes)
        self._enqueue()
        self._stream.synchronize()
        self._graph = self._stream.capture(self._enqueue)

    def _timed(self, bound: BoundFeeds) -> CallTimes:
        with _Events(self._cuda) as events:
            enqueue_ms = self._call(bound, events)
            return CallTimes(
                h2d_ms=events.copied_in.ms_since(events.start),
                compute_ms=events.computed.ms_since(events.copied_in),
                d2h_ms=events.copied_out.ms_since(events.computed),
                enqueue_ms=enqueue_ms,
            )

    def _read(self, bound: BoundFeeds) -> dict[str, Array]:
        if self._state is None or self._state.bound is not bound:
            raise RuntimeError("these feeds have not been run, or others since")
        return {spec.name: self._state.host[spec.name].copy() for spec in self._outputs}

    def _failed(self, what: str) -> StageError:
        reasons = self._reasons()
        self._log.records.clear()
        return StageError(f"TensorRT cannot {what}{reasons}", where=self._path.name)


class BoundFeeds:
    """Feeds of one shape, bound to a runner; see `TensorRTRunner.bind`."""

    def __init__(
        self,
        runner: TensorRTRunner,
        profile: Profile,
        shapes: Mapping[str, Shape],
        arrays: Mapping[str, Array],
    ) -> None:
        self._runner = runner
        self.profile = profile
        self.shapes = shapes
        self.arrays = arrays

    def run(self) -> None:
        """Copy in, compute, copy out, and wait for it.

        Raises:
            StageError: with TensorRT's or CUDA's reason.
        """
        self._runner._call(self)  # noqa: SLF001 - two halves of one thing

    def run_timed(self) -> CallTimes:
        """As `run`, with the time of each part; the events make it a little slower.

        Raises:
            StageError: with TensorRT's or CUDA's reason.
        """
        return self._runner._timed(self)  # noqa: SLF001

    def read(self) -> dict[str, Array]:
        """The outputs of the last run; fresh arrays."""
        return self._runner._read(self)  # noqa: SLF001


@dataclass(slots=True, kw_only=True)
class _State:
    """What the execution context is set to: the shapes, the views of them, whose feeds are there."""

    key: tuple[int, tuple[Shape, ...]]
    host: dict[str, Array]
    bound: BoundFeeds | None = None


class _Buffers:
    """Buffers by tensor; one that is too small is replaced."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        return self._made[name]

    def get(self, name: str, size_bytes: int, make: Any) -> Any:
        found = self._made.get(name)
        if found is None or found.size_bytes < size_bytes:
            if found is not None:
                del self._made[name]
                found.close()
            self._made[name] = found = make(size_bytes)
        return found

    def close(self) -> None:
        while self._made:
            self._made.popitem()[1].close()


class _Events:
    """The four events of one timed call."""

    def __init__(self, cuda: Cuda) -> None:
        self._made = [Event(cuda) for _ in range(4)]
        self.start, self.copied_in, self.computed, self.copied_out = self._made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for event in self._made:
            event.close()


_LOGGERS: dict[str, Any] = {}


def _logger_of(module: Any) -> Any:
    """The one logger of the process: TensorRT ignores every later one."""
    name = module.__name__
    if name not in _LOGGERS:

        class RecordingLogger(module.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                module.ILogger.__init__(self)
                # The last few: what warns at every call must not fill the memory.
                self.records: deque[str] = deque(maxlen=_MOST_REASONS)

            def log(self, severity: Any, message: str) -> None:  # TensorRT calls it by this name
                if severity.name in _ERRORS:
                    self.records.append(message)

        _LOGGERS[name] = RecordingLogger()
    return _LOGGERS[name]


def _numpy_dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        # As onnx and TensorRT's own bindings do; few engines have inputs or outputs of this type.
        narrow: np.dtype[Any] = np.dtype(importlib.import_module("ml_dtypes").bfloat16)
        return narrow
    return np.dtype(name)
