"""Finds, for each product of a graph, the moments of what goes into it.

Moments are of the simplified float graph; the graph that is quantised was fused or cast since. So names
are looked up by class of values, as ranges are (`pipeline.graph.weighted_layers.value_classes`), and
through operators that only leave rows out: one graph may have such an operator where the other has none.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from pipeline.errors import QuantizationError
from pipeline.graph.files import load_graph_only
from pipeline.graph.fusions.matching import is_standard
from pipeline.graph.weight_methods.compensation import factor_of
from pipeline.graph.weighted_layers import needed_tensors, value_classes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.calibration.moments import Moments
    from pipeline.graph.weight_methods.compensation import Factor
    from pipeline.graph.weighted_layers import NeededTensor, WeightedLayer

PRODUCTS: Final = ("MatMul", "Gemm")

_ROWS: Final = ("Gather", "GatherND", "Slice")
"""Operators that may choose rows of an activation, such as those of the last tokens."""


class Factors:
    """Factors of the products of one graph; the last one is kept, because neighbours share it.

    Args:
        graph: As it is before anything is quantised.
        moments: Of its float graph.

    Raises:
        QuantizationError: when there are none.
    """

    def __init__(self, graph: ir.Graph, moments: Moments | None) -> None:
        if moments is None:
            raise QuantizationError(
                "this method rounds weights by what goes into them, and there are no moments of it",
                hint="a recipe needs `data.calibration` for it",
            )
        self._moments = moments
        self._classes = value_classes(graph)
        self._last: tuple[int, Factor] | None = None

    def of(self, layer: WeightedLayer) -> Factor:
        """The factor of what a layer reads.

        Raises:
            QuantizationError: when calibration did not see it, or with another number of inputs.
        """
        place = self._found(layer)
        if self._last is None or self._last[0] != place:
            self._last = None  # not two at a time
            self._last = (place, factor_of(self._moments.products(place)))
        return self._last[1]

    def products(self, layer: WeightedLayer) -> NDArray[np.float32]:
        """The moments themselves; errors as `of`."""
        return self._moments.products(self._found(layer))

    def _found(self, layer: WeightedLayer) -> int:
        place = self._place(layer.activation)
        if place is None:
            raise QuantizationError(
                f"calibration did not see what goes into `{layer.name}`",
                hint="name it in `exclude_nodes`, or take another `method`",
            )
        inputs = (
            0
            if layer.weight is None or layer.weight.shape is None
            else int(layer.weight.shape.numpy()[1 - layer.axis])
        )
        seen = self._moments.index.tensors[place].inputs
        if inputs != seen:
            raise QuantizationError(f"`{layer.name}` has {inputs} inputs, calibration saw {seen}")
        return place

    def _place(self, value: ir.Value | None) -> int | None:
        for names in () if value is None else _names_and_sources(value, self._classes):
            for name in names:
                place = self._moments.place(name)
                if place is not None:
                    return place
        return None


def product_inputs(model: Path) -> tuple[NeededTensor, ...]:
    """What the products with constant weights of a model file read, one entry for each class of values.

    Where only some rows are read, the names of what they are chosen from come behind their own, unless
    another product reads that.

    Args:
        model: The file; weights in external data are not read.

    Raises:
        ArtifactError: when the file is no model.
    """
    loaded = ir.serde.deserialize_model(load_graph_only(model))
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(loaded)
    needed = needed_tensors(loaded.graph, PRODUCTS)
    classes = value_classes(loaded.graph)
    by_name = {value.name: value for value in classes}
    taken = {name for tensor in needed for name in tensor.names}
    found = []
    for tensor in needed:
        _, *sources = _names_and_sources(by_name[tensor.name], classes)
        more = [name for names in sources for name in names if name not in taken]
        taken.update(more)
        found.append(replace(tensor, names=(*tensor.names, *more)))
    del loaded, by_name, classes
    gc.collect()  # a graph is full of cycles, and would keep its weights for long
    return tuple(found)


def _names_and_sources(
    value: ir.Value, classes: Mapping[ir.Value, frozenset[ir.Value]]
) -> Iterator[list[str]]:
    """The names of a value, then of what its rows are chosen from, and so on."""
    while True:
        members = classes.get(value, frozenset({value}))
        yield sorted(each.name or "" for each in members)
        choosers = [each.producer() for each in members if is_standard(each.producer(), *_ROWS)]
        source = choosers[0].inputs[0] if choosers and choosers[0] is not None else None
        if source is None or source.const_value is not None or source not in classes:
            return
        value = source
