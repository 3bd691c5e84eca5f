"""The package that `fake_tensorrt.install` copies; `facts.json` beside it says which version it is.

Not imported by the tests: the builder's process does so.
"""

# ruff: noqa: ARG002, G004

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

_FACTS = json.loads(Path(__file__).with_name("facts.json").read_text(encoding="utf-8"))
_TABLE = _FACTS["table"]
_IS_RTX = "ComputeCapability" in _TABLE[""]
_FLAGS: set[str] = set()

__version__ = _FACTS["version"]


def _note(*call: object) -> None:
    with Path(_FACTS["calls"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(call) + "\n")


class _Member:
    def __init__(self, name: str, value: int) -> None:
        self.name, self.value = name, value

    def __int__(self) -> int:
        return self.value


class _Strict:
    """Only attributes of the table can be set, and every setting is written down."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            kind = type(self).__name__.lstrip("_")
            if name not in _TABLE.get(kind, ()):
                raise AttributeError(f"{kind} has no attribute {name}")
            _note(kind, name, getattr(value, "name", value))
        object.__setattr__(self, name, value)


class _ILogger:
    def __init__(self) -> None: ...


class _Profile:
    def __init__(self) -> None:
        self.is_ordered = True

    def set_shape(self, name: str, smallest: Any, usual: Any, largest: Any) -> None:
        _note("profile", name, list(smallest), list(usual), list(largest))
        shapes = zip(smallest, usual, largest, strict=True)
        self.is_ordered &= all(low <= mid <= high for low, mid, high in shapes)


class _TimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content + b"+timed"


class _Kind:
    name = "ATTENTION_OUTPUT"


class _Layer:
    type = _Kind


class _IAttention(_Strict): ...


class _IAttentionOutputLayer(_Layer):
    attention = _IAttention()


class _Network:
    num_layers = 1

    def get_layer(self, index: int) -> _Layer:
        assert index == 0
        return _Layer()


class _IBuilderConfig(_Strict):
    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        _note("workspace", pool.name, size)

    def set_compute_capability(self, capability: Any, index: int) -> bool:
        _note("capability", capability.name, index)
        return True

    def set_flag(self, flag: Any) -> None:
        _note("set_flag", flag.name)
        _FLAGS.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        _note("clear_flag", flag.name)

    def create_timing_cache(self, content: bytes) -> _TimingCache | None:
        _note("timing_cache", content.decode())
        return None if content == b"damaged" else _TimingCache(content)

    def set_timing_cache(self, cache: _TimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self._cache = cache
        return cache.content != b"of another GPU"

    def get_timing_cache(self) -> _TimingCache:
        return self._cache

    def add_optimization_profile(self, profile: _Profile) -> int:
        return 0 if profile.is_ordered else -1


class _OnnxParser:
    def __init__(self, network: Any, logger: Any) -> None:
        self.num_errors = 0

    def parse_from_file(self, path: str) -> bool:
        return Path(path).is_file()


_TENSOR = "{ Name: t, Dimensions: [-1,64], Datatype: Half, Format: linear }"
_LAYERS = (
    f"Layers:\nName: p, LayerType: gemm, Inputs: {_TENSOR}, Constants: "
    "{ Name: w, Dimensions: [64,64], Datatype: Half, Format: linear }, "
    f"Outputs: {_TENSOR}, TacticName: t, StreamId: 0, Metadata: [ONNX Layer: product]\n\n"
)


class _Builder(_Strict):
    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def create_network(self, flags: int) -> _Network:
        _note("create_network", flags)
        return _Network()

    def create_builder_config(self) -> _IBuilderConfig:
        return _IBuilderConfig()

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, network: Any, config: Any) -> bytes:
        for label in ("Total Weights Memory", "Total Activation Memory", "Max Scratch Memory"):
            self._logger.log(_Member("INFO", 3), f"{label}: 4096 bytes")
        if _IS_RTX:
            self._logger.log(_Member("VERBOSE", 4), _LAYERS)
        magic = b"vtrt" if _IS_RTX else b"ftrt"
        version = [int(part) for part in __version__.split(".")]
        mask = 8 if _IS_RTX else 0
        return struct.pack("<4sIQQ4B4sQQQQ", magic, 0, 2, 64, *version, magic, mask, 0, 0, 0)


class _Inspector:
    def get_engine_information(self, kind: Any) -> str:
        assert kind.name == "JSON"
        row: dict[str, object] = {"Name": "t", "Dimensions": [-1, 64]}
        if __version__.startswith("10."):
            row["Format/Datatype"] = "Row major linear FP16 format"
        else:
            row |= {"Format": "Row major linear format (kLINEAR)", "Datatype": "Half"}
        tensors = {"Inputs": [row], "Outputs": [row]}
        copy = {"LayerType": "Reformat", "Name": "Reformatting CopyNode", "Metadata": ""}
        product = {
            "LayerType": "gemm",
            "Name": "product",
            "Weights": {"Type": "Half", "Count": 4096},
            "TacticName": "sm80_xmma_gemm",
            "Metadata": "[ONNX Layer: product]\x1e[ONNX Layer: relu]",
        }
        return json.dumps({"Layers": [{**copy, **tensors}, {**product, **tensors}]})


class _Engine:
    def create_engine_inspector(self) -> _Inspector:
        return _Inspector()


class _Runtime(_Strict):
    engine_host_code_allowed = False

    def __init__(self, logger: Any) -> None: ...

    def deserialize_cuda_engine(self, plan: bytes) -> _Engine | None:
        assert plan
        has_host_code = "VERSION_COMPATIBLE" in _FLAGS
        return _Engine() if self.engine_host_code_allowed or not has_host_code else None


def _show() -> None:
    """Show what is in the table, and take away all else."""
    for kind in (_Builder, _IBuilderConfig, _IAttention):
        for name in [name for name in vars(kind) if not name.startswith("_")]:
            if name not in _TABLE.get(kind.__name__.lstrip("_"), ()):
                delattr(kind, name)
    for name in _TABLE[""]:
        if f"_{name}" in globals():
            globals()[name] = globals()[f"_{name}"]
        else:
            members = {m: _Member(m, value) for value, m in enumerate(_TABLE[name])}
            globals()[name] = type(name, (), members)


_show()
