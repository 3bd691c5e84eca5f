"""TensorRT's runtime without a GPU: exactly the attributes that `pipeline.runtimes.tensorrt` uses.

An engine is the real header and the path of an ONNX graph, which ONNX Runtime computes when its turn
on the fake stream comes, from and to the memory whose addresses were set. `full` is the module
`tensorrt`, without what only TensorRT-RTX has.
"""

from __future__ import annotations

import enum
import json
import struct
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from pipeline.engines.facts_file import EngineFacts, ProfileFacts, TensorFacts, write_engine_facts
from pipeline.engines.header import HEADER_BYTES
from pipeline.hashing import sha256_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

    from tests.runtimes.fake_cuda import FakeCuda

VERSION = (1, 7, 1, 116)
COMPUTE_MS = 2.0
ORT_TYPES = {
    "tensor(int64)": ("INT64", np.int64),
    "tensor(int32)": ("INT32", np.int32),
    "tensor(float)": ("FLOAT", np.float32),
    "tensor(float16)": ("HALF", np.float16),
}
Profile = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


def engine_bytes(
    graph: Path, profiles: Sequence[Profile], *, mask: int = 0b1000, magic: bytes = b"vtrt"
) -> bytes:
    """A file whose header is that of a real engine."""
    body = json.dumps({"graph": str(graph), "profiles": list(profiles)}).encode()
    size = HEADER_BYTES + len(body)
    head = struct.pack("<4sIQQ4B4sQQQQ", magic, 0, 2, size, *VERSION, magic, mask, 0, 0, 100)
    return head + body


def write_engine(
    folder: Path,
    graph: Path,
    axes: Sequence[dict[str, tuple[int, int, int]]],
    *,
    mask: int = 0b1000,
    magic: bytes = b"vtrt",
) -> str:
    """`model.engine` and `engine.json`, with one profile for each of `axes`; the engine's digest."""
    folder.mkdir(parents=True, exist_ok=True)
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])

    def tensors(arguments: Any) -> tuple[TensorFacts, ...]:
        return tuple(
            TensorFacts(name=a.name, dtype=a.type[7:-1], dims=tuple(a.shape)) for a in arguments
        )

    inputs = tensors(session.get_inputs())
    profiles = [
        {
            tensor.name: tuple(
                tuple(
                    dim if isinstance(dim, int) else ranges[str(dim)][place] for dim in tensor.dims
                )
                for place in range(3)
            )
            for tensor in inputs
        }
        for ranges in axes
    ]
    content = engine_bytes(graph, profiles, mask=mask, magic=magic)
    (folder / "model.engine").write_bytes(content)
    digest = sha256_bytes(content)
    facts = EngineFacts(
        runtime="tensorrt-rtx" if magic == b"vtrt" else "tensorrt",
        version=".".join(map(str, VERSION)),
        target="sm89",
        precision="fp32",
        profiles=tuple(
            ProfileFacts(axes=dict(ranges), inputs=dict(profile))
            for ranges, profile in zip(axes, profiles, strict=True)
        ),
        inputs=inputs,
        outputs=tensors(session.get_outputs()),
        layer_fingerprint="0" * 64,
        size_bytes=len(content),
        sha256=digest,
    )
    write_engine_facts(facts, folder / "engine.json")
    return digest


class Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    def __init__(self) -> None:
        pass


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT32 = 3
    INT64 = 8
    FP8 = 6


class EngineValidity(enum.Enum):
    VALID = 0
    SUBOPTIMAL = 1
    INVALID = 2


class CudaGraphStrategy(enum.Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class IRuntimeConfig:
    def __init__(self) -> None:
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.dynamic_shapes_kernel_specialization_strategy = (
            DynamicShapesKernelSpecializationStrategy.LAZY
        )


class FakeTensorRT(types.ModuleType):
    """The module. `_diagnostics` and `_refuses` make the runtime refuse; `_breaks` what is run.

    `_plan` stands for what is in the engine, so that a real one can be "loaded".

    Attributes:
        configs: Of TensorRT-RTX: those that execution contexts were made with.
        selected: Profiles in the order in which they were taken up.
    """

    def __init__(self, cuda: FakeCuda, *, full: bool = False) -> None:
        super().__init__("tensorrt" if full else "tensorrt_rtx")
        self.__spec__ = ModuleSpec(self.__name__, None)
        self.__version__ = ".".join(map(str, VERSION))
        self._cuda = cuda
        self._diagnostics = 0
        self._refuses = ""
        self._has_host_code = False
        self._breaks = ""
        self._plan: dict[str, Any] | None = None
        self._configs: list[IRuntimeConfig] = []
        self._selected: list[int] = []
        self._runs = 0
        self._captured_runs = 0
        self.ILogger = ILogger
        self.TensorIOMode = TensorIOMode
        self.Runtime = lambda logger: Runtime(self, logger) if full else RTXRuntime(self, logger)
        if not full:
            self.EngineValidity = EngineValidity
            self.CudaGraphStrategy = CudaGraphStrategy
            self.DynamicShapesKernelSpecializationStrategy = (
                DynamicShapesKernelSpecializationStrategy
            )

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
        monkeypatch.setitem(sys.modules, self.__name__, self)
        return self


class Runtime:
    engine_host_code_allowed = False

    def __init__(self, module: FakeTensorRT, logger: Any) -> None:
        self._module = module
        self._logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> ICudaEngine | None:
        if self._module._refuses:
            self._logger.log(Severity.ERROR, self._module._refuses)
            return None
        if self._module._has_host_code and not self.engine_host_code_allowed:
            self._logger.log(Severity.ERROR, "engines with host code are not allowed")
            return None
        kind = ICudaEngine if not isinstance(self, RTXRuntime) else RTXEngine
        return kind(
            self._module, self._logger, self._module._plan or json.loads(plan[HEADER_BYTES:])
        )


class RTXRuntime(Runtime):
    def get_engine_validity(self, plan: bytes) -> tuple[EngineValidity, int]:
        assert plan[:4] == b"vtrt"
        bits = self._module._diagnostics
        return (EngineValidity.INVALID if bits else EngineValidity.VALID), bits


class ICudaEngine:
    def __init__(self, module: FakeTensorRT, logger: Any, plan: dict[str, Any]) -> None:
        self._module = module
        self._logger = logger
        self._profiles: list[Profile] = plan["profiles"]
        self._graph = onnxruntime.InferenceSession(
            plan["graph"], providers=["CPUExecutionProvider"]
        )
        self._inputs = {a.name: a for a in self._graph.get_inputs()}
        self._outputs = {a.name: a for a in self._graph.get_outputs()}
        self._all = self._inputs | self._outputs
        self.num_io_tensors = len(self._all)
        self.num_optimization_profiles = len(self._profiles)

    def get_tensor_name(self, index: int) -> str:
        return list(self._all)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        if self._module._breaks == "dtype":
            return DataType.FP8
        return DataType[ORT_TYPES[self._all[name].type][0]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(dim if isinstance(dim, int) else -1 for dim in self._all[name].shape)

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self._profiles[index][name]]

    def create_execution_context(self) -> IExecutionContext:
        return IExecutionContext(self)


class RTXEngine(ICudaEngine):
    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, config: IRuntimeConfig | None = None) -> IExecutionContext:
        assert config is not None
        self._module._configs.append(config)
        return IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._module = engine._module
        self._cuda = engine._module._cuda
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._ran_with: object = None
        self.active_optimization_profile = 0

    def _say(self, message: str) -> bool:
        self._engine._logger.log(Severity.ERROR, message)
        return False

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        def select() -> None:
            self.active_optimization_profile = index
            self._shapes = {}
            self._module._selected.append(index)

        self._cuda.streams[stream].add(select)
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self._engine._profiles[self.active_optimization_profile][name]
        fits = all(a <= s <= b for a, s, b in zip(low, shape, high, strict=True))
        if not fits or self._module._breaks == "shape":
            return self._say(f"{name} {shape} is outside of the profile")
        self._shapes[name] = shape
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in self._engine._inputs if name not in self._shapes]

    def _sizes(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
        named: dict[str, int] = {}
        for name, argument in self._engine._inputs.items():
            named |= {
                axis: size
                for axis, size in zip(argument.shape, shapes[name], strict=True)
                if isinstance(axis, str)
            }
        return named

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if self._module._breaks == "data-dependent":
            return (-1, 8)
        sizes = self._sizes(self._shapes)
        dims = self._engine._all[name].shape
        return tuple(dim if isinstance(dim, int) else sizes[dim] for dim in dims)

    def get_max_output_size(self, name: str) -> int:
        profile = self._engine._profiles[self.active_optimization_profile]
        sizes = self._sizes({key: tuple(shapes[2]) for key, shapes in profile.items()})
        argument = self._engine._all[name]
        dims = [dim if isinstance(dim, int) else sizes[dim] for dim in argument.shape]
        return int(np.prod(dims)) * np.dtype(ORT_TYPES[argument.type][1]).itemsize

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if self._module._breaks == "run":
            return self._say("the kernel failed")
        queue = self._cuda.streams[stream]
        state = (dict(self._shapes), dict(self._addresses))
        if queue.captured is not None and self._ran_with != state:
            return self._say("captured before it ran once with these shapes")
        self._ran_with = state
        # What a graph has captured is computed with what was set then.
        queue.add(lambda: self._compute(*state))
        return True

    def _compute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        def memory(name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
            dtype = np.dtype(ORT_TYPES[self._engine._all[name].type][1])
            size = int(np.prod(shape)) * dtype.itemsize
            return self._cuda.read(addresses[name], size).view(dtype).reshape(shape)

        feeds = {name: memory(name, shape) for name, shape in shapes.items()}
        outputs = self._engine._graph.run(None, feeds)
        for name, array in zip(self._engine._outputs, outputs, strict=True):
            np.copyto(memory(name, array.shape), array)
        self._cuda.now_ms += COMPUTE_MS
        self._module._runs += 1
