"""Finds, for each product of a graph, the moments of what goes into it.

Moments are of the simplified float graph; the graph that is quantised was fused or cast since. So names
are looked up by class of values, as ranges are (`pipeline.graph.weighted_layers.value_classes`), and
through operators that only leave rows out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pipeline.errors import QuantizationError
from pipeline.graph.fusions.matching import is_standard
from pipeline.graph.weight_methods.compensation import factor_of
from pipeline.graph.weighted_layers import value_classes

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from pipeline.calibration.moments import Moments
    from pipeline.graph.weight_methods.compensation import Factor
    from pipeline.graph.weighted_layers import WeightedLayer

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
        while value is not None:
            for each in sorted(
                self._classes.get(value, {value}), key=lambda each: each.name or ""
            ):
                place = self._moments.place(each.name or "")
                if place is not None:
                    return place
            source = next(
                (
                    producer
                    for each in self._classes.get(value, {value})
                    if is_standard(producer := each.producer(), *_ROWS)
                ),
                None,
            )
            value = None if source is None else source.inputs[0]
        return None
