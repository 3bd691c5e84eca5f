"""Reads what the builder logs: the table of fused layers, and how much memory the engine takes.

With `ProfilingVerbosity.DETAILED` TensorRT logs one verbose record that starts with `Layers:`. It
is the only view of an engine's inside on a machine without a GPU, since the inspector wants the
engine deserialised. Formats as seen with TensorRT-RTX 1.7.1. Pure; imports no TensorRT.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from pipeline.errors import EngineBuildError
from pipeline.hashing import JSON, tagged_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

_LAYER = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<type>\w+), Inputs: (?P<inputs>.*?), "
    r"(?:Constants: (?P<constants>.*?), )?Outputs: (?P<outputs>.*?), "
    r"(?:TacticName: (?P<tactic>.*?)|ParameterType: .*?), "
    r"StreamId: (?P<stream>\d+), (?:EventId: \d+, )?Metadata: ?(?P<metadata>.*)"
)
"""A layer that only brings sizes to the GPU has parameters in place of constants and a tactic."""
_TENSOR = re.compile(
    r"\{ Name: (?P<name>.*?), Dimensions: \[(?P<dims>[^\]]*)\].*?"
    r"Datatype: (?P<dtype>\w+), Format: (?P<format>.*?) \}"
)
_PROFILE = re.compile(r"\[profile (\d+)\]")
_PROGRAM = re.compile(r"_myl(\d+)_\d+$")
_ONNX_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=\[ONNX Layer: |\[|$|\s)")
INDEX_DTYPES = frozenset({"Bool", "Int32", "Int64"})
_PRECISIONS = {
    "Float": "fp32",
    "Half": "fp16",
    "BFloat16": "bf16",
    "Int8": "int8",
    "FP8": "fp8",
    "Int4": "int4",
    "FP4": "fp4",
}
_CONVOLUTIONS = ("correlation", "convolution")
"""TensorRT-RTX's word, and how those of full TensorRT end (`CaskConvolution`)."""
_COPIES = ("copy", "reformat")
"""`copy` is TensorRT-RTX's; full TensorRT writes `Reformat`."""
_BITS = {"Int4": 4, "FP4": 4, "Int8": 8, "FP8": 8, "Half": 16, "BFloat16": 16, "Float": 32}


@dataclass(frozen=True, slots=True)
class TensorRow:
    """One tensor of a layer; -1 in `dims` is a dynamic axis."""

    dims: tuple[int, ...]
    dtype: str
    format: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """One layer of the engine: usually many nodes of the graph, fused.

    Attributes:
        name: TensorRT's; it holds counters that mean nothing.
        type: `gemm`, `kgen` (a generated kernel; fused attention is one), `runtime_fusion` (a
            matrix product specialised on the GPU), `shape_call`, `copy`, ...
        tactic: The kernel, or empty when it is chosen on the GPU.
        onnx_nodes: Names of the graph's nodes it computes, or takes part in.
        profile: Number of the optimization profile it works for: each has layers of its own.
    """

    name: str
    type: str
    inputs: tuple[TensorRow, ...]
    constants: tuple[TensorRow, ...]
    outputs: tuple[TensorRow, ...]
    tactic: str
    onnx_nodes: tuple[str, ...]
    profile: int = 0

    @property
    def weights(self) -> TensorRow | None:
        """The largest constant that is a matrix; biases and scales are smaller."""
        matrices = [c for c in self.constants if len(c.dims) >= 2 and min(c.dims[-2:]) > 1]
        if not matrices and self.type == "gemm":  # a matrix with one column is still weights
            matrices = [c for c in self.constants if len(c.dims) >= 2]
        return max(matrices, key=lambda c: prod(c.dims), default=None)

    @property
    def is_gemm(self) -> bool:
        """Whether it is a matrix product of its own: of activations with weights, or with others."""
        return self.type == "gemm" or (self.type == "runtime_fusion" and self.weights is not None)

    @property
    def is_product(self) -> bool:
        """Whether it multiplies: a matrix product of its own, or a convolution."""
        return self.is_gemm or self.type.lower().endswith(_CONVOLUTIONS)

    @property
    def widens_weights(self) -> bool:
        """Whether it writes weights out as wider floats, for a product that then reads no weights."""
        if self.inputs or self.is_gemm or self.weights is None:
            return False
        bits = _BITS.get(self.weights.dtype, 64)
        return any(_BITS.get(tensor.dtype, 0) > bits for tensor in self.outputs)

    @property
    def is_copy(self) -> bool:
        """Whether it only moves numbers: into another place, layout or type."""
        return self.type.lower() in _COPIES

    @property
    def precision(self) -> str:
        """What it computes in, as recipes write it (`fp16`, `int8`).

        Of a matrix product or a convolution the type of the numbers that are multiplied, which weights
        of fewer bits are widened to. Of all else the widest floating type that it reads or writes; where it
        handles indices alone, their type (`int64`, `bool`). Empty for a layer without tensors.
        """
        if self.is_product:
            return _PRECISIONS.get(self._multiplied, self._multiplied.lower())
        dtypes = [tensor.dtype for tensor in (*self.inputs, *self.outputs)]
        numbers = [dtype for dtype in dtypes if dtype in _BITS] or dtypes
        widest = max(numbers, key=lambda dtype: _BITS.get(dtype, 0), default="")
        return _PRECISIONS.get(widest, widest.lower())

    @property
    def _multiplied(self) -> str:
        """The type of the activations of a product."""
        operands = [t.dtype for t in self.inputs if t.dtype not in INDEX_DTYPES]
        # A residual that is added on the way out may be wider than what is multiplied.
        return min(operands, key=lambda dtype: _BITS.get(dtype, 64), default="?")

    @property
    def gemm_kind(self) -> str:
        """`Half x Half`: types of activations and weights; without weights, of both activations."""
        narrow = self._multiplied
        if self.weights is None:
            return f"{narrow} x {narrow} (activations)"
        return f"{narrow} x {self.weights.dtype}"


def parse_layers(record: str) -> tuple[LayerRow, ...]:
    """The table of fused layers, in order of execution.

    Args:
        record: The log record that starts with `Layers:`.

    Raises:
        EngineBuildError: when there is none, or a line of it has another form: a gate must not
            judge half a table.
    """
    head, _, _ = record.partition("\n\n")
    lines = head.splitlines()
    if len(lines) < 2 or lines[0] != "Layers:":
        raise EngineBuildError(
            "the builder logged no table of layers, so nothing can be said of it"
        )
    return assign_profiles([_parse_layer(line) for line in lines[1:]], lines[1:])


def assign_profiles(layers: Sequence[LayerRow], texts: Sequence[str]) -> tuple[LayerRow, ...]:
    """Say of every layer which optimization profile it is of.

    Names of the graph have `[profile 1]` behind them in the layers of profile 1, and none in those
    of profile 0. Names that TensorRT makes up have the number of their program instead (`_myl1_4`),
    and some layers have no others: those are of the profile of their program.

    Args:
        layers: The table.
        texts: Of each layer, all that was said of it.
    """
    marks = [_PROFILE.search(text) for text in texts]
    programs = [_PROGRAM.search(layer.name) for layer in layers]
    known = {
        program[1]: int(mark[1])
        for program, mark in zip(programs, marks, strict=True)
        if program and mark
    }
    return tuple(
        replace(
            layer, profile=int(mark[1]) if mark else known.get(program[1] if program else "", 0)
        )
        for layer, mark, program in zip(layers, marks, programs, strict=True)
    )


def _parse_layer(line: str) -> LayerRow:
    match = _LAYER.fullmatch(line)
    if match is None:
        raise EngineBuildError(
            f"a line of the builder's table of layers has an unknown form: {line[:200]}",
            hint="this version of TensorRT-RTX is newer than what this program knows",
        )
    return LayerRow(
        name=match["name"],
        type=match["type"],
        inputs=_parse_tensors(match["inputs"]),
        constants=_parse_tensors(match["constants"] or ""),
        outputs=_parse_tensors(match["outputs"]),
        tactic=match["tactic"] or "",
        onnx_nodes=find_onnx_nodes(match["metadata"]),
    )


def find_onnx_nodes(metadata: str) -> tuple[str, ...]:
    """Names of the graph's nodes in a layer's metadata."""
    return tuple(_ONNX_NODE.findall(metadata))


def _parse_tensors(text: str) -> tuple[TensorRow, ...]:
    return tuple(
        TensorRow(
            tuple(int(dim) for dim in match["dims"].split(",") if dim),
            match["dtype"],
            match["format"],
        )
        for match in _TENSOR.finditer(text)
    )


def layer_fingerprint(layers: tuple[LayerRow, ...]) -> str:
    """SHA-256 of the table without names, which hold counters.

    Engines of the same graph whose bytes differ in the order of a set still share it.
    """

    def tensors(rows: tuple[TensorRow, ...]) -> JSON:
        return [[list(row.dims), row.dtype, row.format] for row in rows]

    listing: JSON = [
        [
            layer.type,
            tensors(layer.inputs),
            tensors(layer.constants),
            tensors(layer.outputs),
            layer.tactic,
        ]
        for layer in layers
    ]
    return tagged_digest("convert/engine-layers/1", listing)


def count_layer_types(layers: tuple[LayerRow, ...]) -> dict[str, int]:
    """How many layers there are of each type, by name of the type."""
    return dict(sorted(Counter(layer.type for layer in layers).items()))


def count_gemm_kinds(layers: tuple[LayerRow, ...]) -> dict[str, int]:
    """How many matrix products there are of each `LayerRow.gemm_kind`."""
    return dict(sorted(Counter(row.gemm_kind for row in layers if row.is_gemm).items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMemory:
    """Memory the engine takes on the GPU, in bytes, at the largest shapes.

    Attributes:
        weights_bytes: Of all weights.
        activation_bytes: Of the profile that takes most.
        scratch_bytes: Of the profile that takes most.
        activations_by_profile: Of each profile, in their order.
    """

    weights_bytes: int
    activation_bytes: int
    scratch_bytes: int
    activations_by_profile: tuple[int, ...]


def parse_memory(messages: tuple[str, ...]) -> EngineMemory:
    """Find the builder's account of the engine's memory in its log: one of each profile.

    Raises:
        EngineBuildError: when a figure is not there.
    """
    text = "\n".join(messages)

    def figures(label: str) -> tuple[int, ...]:
        found = re.findall(rf"{label}: (\d+) bytes", text)
        if not found:
            raise EngineBuildError(f"the builder's log does not give `{label}`")
        return tuple(int(number) for number in found)

    activations = figures("Total Activation Memory")
    return EngineMemory(
        weights_bytes=max(figures("Total Weights Memory")),
        activation_bytes=max(activations),
        scratch_bytes=max(figures("Max Scratch Memory")),
        activations_by_profile=activations,
    )
