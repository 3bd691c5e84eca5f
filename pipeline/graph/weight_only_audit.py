"""Compares a graph with weights in 4 or 8 bits with the float graph, as `quantization_audit` does.

The rows are the same kinds; what is right differs for weights:

| kind            | method `rtn`                                  | method `clip`                      |
|-----------------|-----------------------------------------------|------------------------------------|
| `missing_layers`| layers whose weight is stored as floats       | the same                           |
| `wrong_formats` | type, block size, axis, number and type of scales, zero points, bits used | the same |
| `weight_error`  | distance of an integer from the float weight in steps: half a step | the same,     |
|                 |                                               | but for weights that are cut off   |
| `weight_step`   | step of a block over the smallest that reaches its values: 1 | error of a block    |
|                 |                                               | over that of `rtn`: 1 or less      |
| `changed_nodes` | also inputs that are rounded: activations stay float | the same                    |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.graph.blockwise import LARGEST, SMALLEST_STEP, STORED, stored_scale
from pipeline.graph.quantization_audit import Asked, Audit, Auditor, grid_faults
from pipeline.graph.weight_only import prepare, weight_only_reasons

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import onnx_ir as ir
    from numpy.typing import NDArray

    from pipeline.graph.unquantized import ActivationQuantizer, StoredConstant
    from pipeline.graph.weight_only import WeightOnlyRequest
    from pipeline.graph.weighted_layers import WeightedLayer

_ROWS: int = 1 << 20
"""Elements that are compared at a time, so that memory does not depend on the size of a weight."""

_NEGLIGIBLE = 1e-3
"""Of a step: errors so small are rounding of the scale, and their ratio says nothing."""


def audit_weight_only(
    original: ir.Model, quantized: ir.Model, request: WeightOnlyRequest
) -> Audit:
    """Compare what `quantize_weights` made; arguments as `quantization_audit.audit_dynamic`.

    Raises:
        QuantizationError: for a pattern in the request that matches no layer.
        StageError: when an operator would mean something else in the opset that is needed.
    """
    layers = prepare(original, request)
    asked = Asked(
        per_channel=True,
        weight_dtype="int8",
        bits=8,
        quantizes_embeddings=False,
        reasons=weight_only_reasons(layers, request),
    )
    return _WeightOnlyAuditor(original, quantized, layers, asked, request).audit()


class _WeightOnlyAuditor(Auditor):
    """Other rules for weights, and none of them for activations."""

    def __init__(
        self,
        original: ir.Model,
        quantized: ir.Model,
        layers: tuple[WeightedLayer, ...],
        asked: Asked,
        request: WeightOnlyRequest,
    ) -> None:
        super().__init__(original, quantized, layers, asked, None)
        self._request = request

    def _lacks(self, *, is_stored: bool, reads_integers: bool) -> str:
        del reads_integers  # a row of `_activation`
        return "" if is_stored else f"its weight is not in {self._request.bits} bits"

    def _activation(
        self,
        quantizer: ActivationQuantizer,
        classes: Mapping[ir.Value, frozenset[ir.Value]],
    ) -> None:
        del classes
        detail = f"`{quantizer.tensor.name}` is rounded, and was to stay float"
        self._row("changed_nodes", self._layer_of(quantizer), 1, detail)

    def _formats(
        self, layer: str, stored: StoredConstant, content: NDArray[Any], axis: int | None
    ) -> None:
        wrong = list(self._faults(stored, content, 1 if axis is None else axis))
        detail = f"its weight `{stored.name}` {', and '.join(wrong)}" if wrong else ""
        self._row("wrong_formats", layer, len(wrong), detail)

    def _faults(
        self, stored: StoredConstant, content: NDArray[Any], outputs: int
    ) -> Iterator[str]:
        """What is wrong with the form of a weight."""
        bits, size = self._request.bits, self._request.block_size
        if stored.values.dtype != STORED[bits]:
            yield f"is {stored.values.dtype}, not {STORED[bits]}"
        if stored.block_size != size:
            yield f"has blocks of {stored.block_size or 'all'}, not {size or 'all'}"
        axis = outputs if size is None else 1 - outputs
        if stored.axis != axis:
            yield f"has its scales along axis {stored.axis}, not {axis}"
        wanted = _scale_shape(content, outputs, size)
        if stored.scale.shape != wanted:
            yield f"has scales of shape {list(stored.scale.shape)}, not {list(wanted)}"
        if stored.scale.dtype != content.dtype:
            yield f"has scales of {stored.scale.dtype}, not {content.dtype}"
        integers = stored.values.astype(np.int16)
        least, most = int(integers.min(initial=0)), int(integers.max(initial=0))
        if max(most, -least) > LARGEST[bits]:
            yield f"has integers from {least} to {most}, not {-LARGEST[bits]} to {LARGEST[bits]}"
        yield from grid_faults(stored, is_symmetric=True)

    def _weight(
        self,
        layer: str,
        stored: StoredConstant,
        content: NDArray[Any],
        axis: int,
        least: NDArray[Any] | None,
    ) -> None:
        del least  # there are no biases in integers
        size = self._request.block_size
        name = f"its weight `{stored.name}`"
        if stored.values.shape != content.shape or stored.scale.shape != _scale_shape(
            content, axis, size
        ):
            self._row("weight_error", layer, np.inf, f"{name} has another shape")
            return
        rows = _Rows(stored, content, axis, size)
        worst, step = (0.0, ""), (0.0, "")
        may_clip = self._request.method == "clip"
        for start, blocks in rows.parts():
            worst = max(worst, blocks.error(start, may_clip=may_clip, largest=self._largest))
            step = max(step, blocks.step(start, may_clip=may_clip, largest=self._largest))
        self._row("weight_error", layer, worst[0], f"{name} {worst[1]}")
        self._row("weight_step", layer, step[0], f"{name} {step[1]}")

    @property
    def _largest(self) -> int:
        return LARGEST[self._request.bits]


def _scale_shape(content: NDArray[Any], outputs: int, size: int | None) -> tuple[int, ...]:
    """Of a weight of this shape, in whole blocks."""
    if size is None:
        return (content.shape[outputs],)
    shape = list(content.shape)
    shape[1 - outputs] = -(-shape[1 - outputs] // size)
    return tuple(shape)


class _Rows:
    """A weight with its outputs as rows, and each row divided into blocks."""

    def __init__(
        self, stored: StoredConstant, content: NDArray[Any], outputs: int, size: int | None
    ) -> None:
        self._content = np.moveaxis(content, outputs, 0)
        self._values = np.moveaxis(stored.values, outputs, 0)
        inputs = self._content.shape[1]
        self._size = inputs if size is None else size
        scale = stored.scale[:, None] if size is None else np.moveaxis(stored.scale, outputs, 0)
        self._scale = scale

    def parts(self) -> Iterator[tuple[int, _Blocks]]:
        """(First output, blocks), a bounded number of elements at a time."""
        outputs, inputs = self._content.shape
        count = max(1, _ROWS // max(inputs, 1))
        for start in range(0, outputs, count):
            part = slice(start, start + count)
            shape = (-1, inputs // self._size, self._size)
            yield (
                start,
                _Blocks(
                    self._content[part].reshape(shape),
                    self._values[part].reshape(shape),
                    self._scale[part],
                ),
            )


class _Blocks:
    """Blocks (outputs, blocks, size) of a weight, their integers, and (outputs, blocks) scales."""

    def __init__(self, content: NDArray[Any], values: NDArray[Any], scale: NDArray[Any]) -> None:
        self._dtype = content.dtype
        self._content = content.astype(np.float32)
        self._values = values.astype(np.float32)
        self._scale = scale.astype(np.float32)[..., None]

    def error(self, start: int, *, may_clip: bool, largest: int) -> tuple[float, str]:
        """Largest distance in steps, and where."""
        with np.errstate(all="ignore"):
            steps = self._content / self._scale
        if may_clip:
            steps = np.clip(steps, -largest, largest)
        distance = np.abs(steps - self._values)
        return _worst(distance, start, "at output {}, block {}, place {}")

    def step(self, start: int, *, may_clip: bool, largest: int) -> tuple[float, str]:
        """See the module: how much more coarsely a block is rounded than it needs to be."""
        needed = np.abs(self._content).max(axis=2) / np.float32(largest)
        is_used = needed >= SMALLEST_STEP
        plain = stored_scale(needed, self._dtype).astype(np.float32)
        if not may_clip:
            ratio = self._scale[..., 0] / plain
        else:
            integers = np.rint(self._content / plain[..., None])
            slack = np.square(plain * _NEGLIGIBLE) * self._content.shape[2]
            usual = _squares(self._content, integers, plain[..., None]) + slack
            ratio = np.sqrt((_squares(self._content, self._values, self._scale) + slack) / usual)
        return _worst(np.where(is_used, ratio, 0.0), start, "in output {}, block {}")


def _squares(
    content: NDArray[np.float32], values: NDArray[np.float32], scale: NDArray[np.float32]
) -> NDArray[np.float32]:
    result: NDArray[np.float32] = np.square(content - values * scale).sum(axis=2)
    return result


def _worst(sizes: NDArray[Any], start: int, where: str) -> tuple[float, str]:
    """The largest number, infinite for NaN, and its place in words."""
    at = int(np.argmax(sizes))  # of NaN, the first one
    place = [int(each) for each in np.unravel_index(at, sizes.shape)]
    place[0] += start
    value = float(sizes.reshape(-1)[at])
    return (value if np.isfinite(value) else np.inf), where.format(*place)
