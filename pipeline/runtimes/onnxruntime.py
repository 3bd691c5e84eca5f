"""ONNX Runtime as a runner: one explicit execution provider, and no fallback to another."""

from __future__ import annotations

import contextlib
import io
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as native

from pipeline.errors import EnvironmentMissing, StageError
from pipeline.runtimes.base import LoadedRunner, ModelTensor, check_feeds
from pipeline.runtimes.ort_providers import BEHIND, NAMES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from pipeline.runtimes.base import Array

CPU = NAMES["cpu"]
Optimizations: TypeAlias = Literal["disabled", "basic", "extended", "all"]

_LEVELS = {
    "disabled": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}

ERRORS = (
    native.EPFail,
    native.EngineError,
    native.Fail,
    native.InvalidArgument,
    native.InvalidGraph,
    native.InvalidProtobuf,
    native.ModelRequiresCompilation,
    native.NoModel,
    native.NoSuchFile,
    native.NotFound,
    native.NotImplemented,
    native.RuntimeException,
)
"""Everything that ONNX Runtime 1.31 raises for a model or a run; they have no base of their own."""

_DTYPES = {
    "tensor(bool)": "bool",
    "tensor(double)": "float64",
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
} | {
    f"tensor({kind}{bits})": f"{kind}{bits}"
    for kind in ("int", "uint")
    for bits in (8, 16, 32, 64)
}

_SOURCE_PLACE = re.compile(r"^/\S+\.cc:\d+ .*?\) (?=[A-Z])")
"""`/onnxruntime_src/.../state.cc:729 void f(A&, const B&) ` before a sentence."""
_NO_FOLDING = ("optimization.disable_specified_optimizers", "ConstantFolding")
"""Weights in 16 bits with a `Cast` behind each would become float32 in memory, all at once."""
_QUIET = 3  # ORT's severities: 0 verbose, 1 info, 2 warning, 3 error, 4 fatal


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignedNode:
    """A node of a graph, and ONNX Runtime's name of the provider that runs it."""

    provider: str
    name: str
    op_type: str


class OnnxRuntimeRunner(LoadedRunner):
    """An ONNX graph in an ONNX Runtime session.

    Args:
        model: The graph's file; its external data lies beside it. Nothing is written there.
        provider: The one execution provider that is asked for. ONNX Runtime always adds its CPU
            provider behind it for nodes that the first one cannot run; it never replaces it here.
            For every provider but the CPU's, inputs are kept in its own memory, bound once for
            each shape, and outputs are made there.
        optimizations: ONNX Runtime's own graph optimisations: `disabled` runs the graph as it is
            written, `all` is what a user of ONNX Runtime gets by default.
        threads: Threads inside an operator; None leaves it to ONNX Runtime (all cores).
        spins: Idle threads wait in a loop, ONNX Runtime's default: quicker where nothing else runs.
            Where cores are shared they take the time of those that work: comparing MiniLM beside
            other stages took half as much CPU time again.
        provider_options: For the provider, as strings; see `ort_providers.ProviderPlan`.
        is_frugal: Run each node as soon as its inputs are there. ONNX Runtime 1.31 runs side branches
            last otherwise, and keeps all values that they read until then.
    """

    def __init__(
        self,
        model: Path,
        *,
        provider: str = "CPUExecutionProvider",
        optimizations: Optimizations = "all",
        threads: int | None = None,
        spins: bool = True,
        is_frugal: bool = False,
        provider_options: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self._model = model
        self._provider = provider
        self._optimizations = optimizations
        self._threads = threads
        self._spins = spins
        self._is_frugal = is_frugal
        self._leaves_weights = False
        self._records_assignment = False
        self._provider_options = dict(provider_options or {})
        self._binds = provider != CPU
        self._bound: _Bound | None = None
        self._session: onnxruntime.InferenceSession | None = None

    def __enter__(self) -> Self:
        """Load the graph.

        Raises:
            EnvironmentMissing: when this build of ONNX Runtime lacks the provider, or the provider
                does not start on this machine.
            StageError: when ONNX Runtime refuses the graph.
        """
        available = onnxruntime.get_available_providers()
        if self._provider not in available:
            raise EnvironmentMissing(
                f"this ONNX Runtime {onnxruntime.__version__} has no {self._provider}, "
                f"only {', '.join(available)}",
                where=self._model.name,
            )
        started = time.perf_counter()
        session = self._load()
        self._load_time_ms = (time.perf_counter() - started) * 1e3
        active = session.get_providers()
        if not active or active[0] != self._provider:
            raise EnvironmentMissing(
                f"{self._provider} did not start here; ONNX Runtime offers {', '.join(active)} "
                "in its place, which nobody asked for",
                where=self._model.name,
            )
        self._inputs = tuple(_spec(argument) for argument in session.get_inputs())
        self._outputs = tuple(_spec(argument) for argument in session.get_outputs())
        self._session = session
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let go of the session and its memory."""
        self._bound = None
        self._session = None

    def _load(self) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = _LEVELS[self._optimizations]
        options.log_severity_level = _QUIET
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        if not self._spins:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if self._records_assignment:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if self._is_frugal:
            options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        if self._leaves_weights:
            options.enable_cpu_mem_arena = False
            options.enable_mem_pattern = False
            options.add_session_config_entry("session.disable_prepacking", "1")
            options.add_session_config_entry(*_NO_FOLDING)
        try:
            # Without `enable_fallback=0`, a provider that does not start is replaced.
            session = onnxruntime.InferenceSession(
                str(self._model),
                sess_options=options,
                providers=self._providers(),
                enable_fallback=0,
            )
        except (RuntimeError, ValueError) as err:
            if self._provider == CPU:
                raise
            raise EnvironmentMissing(
                f"{self._provider} did not start here: {error_reason(err)}", where=self._model.name
            ) from err
        except ERRORS as err:
            raise StageError(
                f"ONNX Runtime {onnxruntime.__version__} cannot load the graph: {error_reason(err)}",
                where=self._model.name,
            ) from err
        # Without this, a failing run is repeated on other providers.
        session.disable_fallback()
        return session

    def _providers(self) -> list[tuple[str, dict[str, str]]]:
        if self._provider != CPU:
            # Finds CUDA's libraries where pip put them; what it does not find is told by the session.
            with contextlib.redirect_stdout(io.StringIO()):
                onnxruntime.preload_dlls()
        wanted = [(self._provider, self._provider_options)]
        if behind := BEHIND.get(self._provider):
            device = self._provider_options.get("device_id", "0")
            wanted.append((behind, {"device_id": device}))
        return wanted

    @property
    def session(self) -> str:
        """Such as `onnxruntime 1.31.1 CPUExecutionProvider, optimizations all`."""
        behind = BEHIND.get(self._provider)
        return (
            f"onnxruntime {onnxruntime.__version__} {self._provider}"
            f"{f' with {behind} behind it' if behind else ''}, "
            f"optimizations {self._optimizations}"
            f"{', weights used where they are mapped' if self._leaves_weights else ''}"
        )

    def recording(self) -> Self:
        """Itself, before the graph is loaded: `assignment` will have an answer."""
        self._records_assignment = True
        return self

    def leaving_weights(self, *, is_wanted: bool = True) -> Self:
        """Itself, before the graph is loaded: weights will be used where they are mapped from a file.

        Nothing is folded or packed, and memory is given back at once: a graph of floats whose weights
        lie beside its file takes hardly more than the largest of them, and its runs are slower.
        """
        self._leaves_weights = is_wanted
        return self

    def assignment(self) -> tuple[AssignedNode, ...]:
        """Every node with the provider that runs it; only of a runner that was `recording`.

        As the graph is after ONNX Runtime's basic optimisations, before those of a provider.
        """
        if self._session is None or not self._records_assignment:
            raise RuntimeError("OnnxRuntimeRunner.assignment was not asked for in time")
        return tuple(
            AssignedNode(provider=part.ep_name, name=node.name, op_type=node.op_type)
            for part in self._session.get_provider_graph_assignment_info()
            for node in part.get_nodes()
        )

    def run(
        self, feeds: Mapping[str, Array], names: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Outputs by name; fresh arrays that belong to the caller.

        Args:
            feeds: All inputs.
            names: Which outputs; None: all of them.

        Raises:
            FeedError: when a name, a dtype or a fixed axis does not fit; nothing was run then.
            StageError: with ONNX Runtime's reason, when the run fails.
        """
        if self._session is None:
            raise RuntimeError("OnnxRuntimeRunner.run outside of its `with` block")
        check_feeds(self._inputs, feeds, self._model.name)
        names = [spec.name for spec in self._outputs] if names is None else list(names)
        try:
            if self._binds:
                arrays = self._run_bound(self._session, feeds, names)
            else:
                arrays = self._session.run(names, dict(feeds))
        except (*ERRORS, RuntimeError) as err:  # bound runs raise the plain one
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise StageError(
                f"ONNX Runtime cannot run the graph on {shapes}: {error_reason(err)}",
                where=self._model.name,
            ) from err
        return dict(zip(names, arrays, strict=True))

    def _run_bound(
        self, session: onnxruntime.InferenceSession, feeds: Mapping[str, Array], names: list[str]
    ) -> list[Array]:
        key = (tuple((name, array.shape) for name, array in feeds.items()), tuple(names))
        if self._bound is None or self._bound.key != key:
            self._bound = None  # gives the memory of the other shapes back first
            self._bound = self._bind(session, feeds, key)
        for name, value in self._bound.values.items():
            value.update_inplace(np.ascontiguousarray(feeds[name]))
        binding = self._bound.binding
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        arrays: list[Array] = binding.copy_outputs_to_cpu()
        # On the CPU these share memory that the next run may use again.
        return [array.copy() for array in arrays] if self._device()[0] == "cpu" else arrays

    def _bind(
        self,
        session: onnxruntime.InferenceSession,
        feeds: Mapping[str, Array],
        key: tuple[object, tuple[str, ...]],
    ) -> _Bound:
        binding, (kind, number) = session.io_binding(), self._device()
        values = {
            name: onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                array.shape, array.dtype, kind, number
            )
            for name, array in feeds.items()
        }
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for name in key[1]:
            binding.bind_output(name, kind, number)
        return _Bound(key=key, binding=binding, values=values)

    def _device(self) -> tuple[str, int]:
        if self._provider == CPU:
            return "cpu", 0
        return "cuda", int(self._provider_options.get("device_id", "0"))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bound:
    """Buffers of one set of shapes: `values` are the inputs in the provider's memory."""

    key: tuple[object, tuple[str, ...]]
    binding: onnxruntime.IOBinding
    values: Mapping[str, onnxruntime.OrtValue]


def _spec(argument: onnxruntime.NodeArg) -> ModelTensor:
    # ONNX Runtime says [] both for a scalar and for an output whose rank nobody declared; the
    # latter is what exporters leave behind, and it makes every rank acceptable.
    shape = tuple(argument.shape) if argument.shape else None
    return ModelTensor(
        name=argument.name, dtype=_DTYPES.get(argument.type, argument.type), shape=shape
    )


def error_reason(error: Exception) -> str:
    """ONNX Runtime's sentence in one line, without its code prefix or the place in its source."""
    text = " ".join(str(error).split())
    text = text.partition(" : ")[2].partition(" : ")[2] or text
    return _SOURCE_PLACE.sub("", text)
