"""One graph quantised again and again, each time with other layers in float; and what layers weigh.

Nothing of a variant stays in memory: the float graph is read anew for each one (from the page cache,
0.1 s for MiniLM), and weights are streamed to external data, so that no variant is in memory twice.
"""

from __future__ import annotations

import gc
import math
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from pipeline.errors import QuantizationError
from pipeline.graph.files import load_ir_model, save_ir_model
from pipeline.graph.weighted_layers import find_weighted_layers
from pipeline.stages.base import MODEL_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import onnx_ir as ir

    from pipeline.graph.quantization_result import QuantizationResult

Quantize: TypeAlias = "Callable[[ir.Model, frozenset[str], bool], QuantizationResult]"
"""Quantises a model in place: the names of the layers that stay float, and whether tables of
embeddings are quantised as the options say (False: they stay float)."""

_LEVELS_EACH_SIDE = 127


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedLayer:
    """A layer that the quantisation turns into 8 bits.

    Attributes:
        name: Its name.
        operator: `MatMul`, `Gemm` or `Conv`.
        result: Name of what it computes.
        weight_elements: Numbers of its weight.
        outputs: How many of them lie along the axis of outputs.
        coarseness: About how large the steps are beside what they hold, from the weights (and the
            ranges, when they are known) alone: the order in which layers are looked at.
    """

    name: str
    operator: str
    result: str
    weight_elements: int
    outputs: int
    coarseness: float

    def products(self, result_elements: int) -> int:
        """Multiplications for a result of so many elements."""
        return result_elements * (self.weight_elements // max(1, self.outputs))


class Variants:
    """Writes variants of one graph.

    Args:
        source: Directory of the float graph; it is not written to.
        quantize: How to quantise it.
        coarse_activations: Name of a value -> about how large its steps are beside its usual
            magnitude; empty when ranges are taken at run time.
    """

    def __init__(
        self, source: Path, quantize: Quantize, coarse_activations: Mapping[str, float]
    ) -> None:
        self._source = source
        self._quantize = quantize
        self._coarse_activations = coarse_activations

    def layers(self) -> tuple[QuantizedLayer, ...]:
        """The layers that are quantised when none is given back, coarsest first.

        Raises:
            ArtifactError: when the source is no model.
            QuantizationError: when no layer can be quantised.
        """
        model = load_ir_model(self._source / MODEL_FILE)
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        known = {
            layer.name: self._describe(layer.node, layer.weight, layer.axis)
            for layer in find_weighted_layers(model.graph)
            if layer.weight is not None
        }
        result = self._quantize(model, frozenset(), True)
        del model
        gc.collect()  # a graph is full of cycles, and would keep its weights for long
        if not result.quantized:
            raise QuantizationError("no layer of this model could be quantised")
        found = [known[name] for name in result.quantized]
        return tuple(sorted(found, key=lambda layer: (-layer.coarseness, layer.name)))

    def _describe(self, node: ir.Node, weight: ir.Value, axis: int) -> QuantizedLayer:
        if weight.const_value is None:
            raise ValueError(f"`{weight.name}` is not constant")
        array = weight.const_value.numpy()
        source = node.inputs[0]
        activation = self._coarse_activations.get((source.name if source else "") or "", 0.0)
        return QuantizedLayer(
            name=node.name or node.outputs[0].name or node.op_type,
            operator=node.op_type,
            result=node.outputs[0].name or "",
            weight_elements=array.size,
            outputs=array.shape[axis],
            coarseness=math.hypot(_coarseness(np.moveaxis(array, axis, 0)), activation),
        )

    def write(
        self, given_back: frozenset[str], directory: Path, *, has_tables: bool = True
    ) -> tuple[Path, int]:
        """Write the graph with some layers in float.

        Args:
            given_back: Names of layers.
            directory: Anything in it is deleted first.
            has_tables: Quantise tables of embeddings where the options say so.

        Returns:
            The model's path, and the bytes of model and weights together.

        Raises:
            QuantizationError: when a name is that of no layer.
            StoreError: when it cannot be written.
        """
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        model = load_ir_model(self._source / MODEL_FILE)
        self._quantize(model, given_back, has_tables)
        path = save_ir_model(model, directory, inline_limit_bytes=0)
        del model
        gc.collect()
        return path, sum(file.stat().st_size for file in directory.iterdir())


def _coarseness(weight: np.ndarray) -> float:
    """RMS of the rounding of a weight (outputs, ...) to 8 bits, one scale an output, over its own.

    Rounding to steps of `s` has a root mean square of `s / sqrt(12)`.
    """
    rows = weight.reshape(len(weight), -1).astype(np.float32)
    steps = np.abs(rows).max(axis=1, initial=0) / _LEVELS_EACH_SIDE
    size = float(np.sqrt(np.square(rows).mean()))
    return float(np.sqrt(np.square(steps).mean() / 12)) / size if size else 0.0
