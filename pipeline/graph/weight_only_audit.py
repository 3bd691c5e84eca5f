"""Compares a graph with weights in 4 or 8 bits with the float graph, as `quantization_audit` does.

The rows are the same kinds; what is right differs for weights, by method:

| kind            | `rtn`                           | `clip`, `hqq`, `k_quant`      | `gptq`               |
|-----------------|---------------------------------|-------------------------------|----------------------|
| `missing_layers`| layers whose weight is floats   | the same                      | the same             |
| `wrong_formats` | type, block size, axis, number and type of scales, zero points, bits used | the same | the same |
| `weight_error`  | distance of an integer from the | the same, but for weights     | from the weight with |
|                 | float weight: half a step       | that are cut off              | what it takes over   |
| `weight_step`   | step of a block over the        | loss of a block, as the       | see                  |
|                 | smallest that reaches its       | method counts it, over that   | `calibrated_audit`   |
|                 | values: 1                       | of `rtn`: 1 or less           |                      |
| `changed_nodes` | also inputs that are rounded: activations stay float | the same | the same             |

Of weights with zero points and of NF4 the same is asked, see `grid_audit`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.graph.blockwise import STORED
from pipeline.graph.calibrated_audit import CompensatedRows
from pipeline.graph.fusions.matching import is_standard, node_name
from pipeline.graph.grid_audit import (
    Judged,
    NormalFloatBlocks,
    ZeroPointBlocks,
    loss_ratio,
    worst,
)
from pipeline.graph.product_moments import Factors
from pipeline.graph.quantization_audit import Asked, Audit, Auditor, grid_faults
from pipeline.graph.vocabulary import form_of, lookups_in_bits
from pipeline.graph.weight_methods.base import (
    LARGEST,
    SMALLEST,
    SMALLEST_STEP,
    loss_of,
    signs_of,
    stored_scale,
    whole_steps,
)
from pipeline.graph.weight_methods.catalogue import METHODS
from pipeline.graph.weight_only import prepare, table_forms, weight_only_reasons
from pipeline.graph.zero_points import STORED_UNSIGNED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import onnx_ir as ir
    from numpy.typing import NDArray

    from pipeline.calibration.moments import Moments
    from pipeline.graph.quantization_audit import Kind
    from pipeline.graph.unquantized import ActivationQuantizer, StoredConstant
    from pipeline.graph.weight_methods.base import Bits, WeightMethod
    from pipeline.graph.weight_methods.compensation import Factor
    from pipeline.graph.weight_only import WeightOnlyRequest
    from pipeline.graph.weighted_layers import WeightedLayer

_ROWS: int = 1 << 20
"""Elements that are compared at a time, so that memory does not depend on the size of a weight."""


def audit_weight_only(
    original: ir.Model,
    quantized: ir.Model,
    request: WeightOnlyRequest,
    moments: Moments | None = None,
) -> Audit:
    """Compare what `quantize_weights` made; arguments as `quantization_audit.audit_dynamic`.

    Args:
        original: The float graph; edited in place.
        quantized: The other; it becomes its skeleton.
        request: What was asked for.
        moments: What a calibrated method was given.

    Raises:
        QuantizationError: for a pattern in the request that matches no layer, and when moments are
            needed and missing.
        StageError: when an operator would mean something else in the opset that is needed.
    """
    layers = prepare(original, request)
    asked = Asked(
        per_channel=True,
        weight_dtype="int8",
        bits=8,
        quantizes_embeddings=request.embeddings != "float",
        reasons=weight_only_reasons(layers, request),
    )
    factors = None
    if METHODS[request.method].is_calibrated:
        factors = Factors(original.graph, moments)
    return _WeightOnlyAuditor(original, quantized, layers, asked, request, factors).audit()


class _WeightOnlyAuditor(Auditor):
    """Other rules for weights, and none of them for activations."""

    def __init__(
        self,
        original: ir.Model,
        quantized: ir.Model,
        layers: tuple[WeightedLayer, ...],
        asked: Asked,
        request: WeightOnlyRequest,
        factors: Factors | None,
    ) -> None:
        super().__init__(original, quantized, layers, asked, None)
        self._request = request
        self._method = METHODS[request.method]
        self._factors = factors
        self._by_name = {layer.name: layer for layer in layers}
        self._widths = {layer.name: request.bits_of(layer) for layer in layers}
        widths = {each: request.bits_of(each) for each in layers if each not in asked.reasons}
        self._forms = table_forms(original.graph, widths, request)
        self._form_of = {
            node_name(node): form_of(node, self._forms)
            for node in original.graph
            if is_standard(node, "Gather")
        }

    def _lacks(self, *, is_stored: bool, reads_integers: bool) -> str:
        del reads_integers  # a row of `_activation`
        return "" if is_stored else "its weight is not in few bits"

    def _activation(
        self,
        quantizer: ActivationQuantizer,
        classes: Mapping[ir.Value, frozenset[ir.Value]],
    ) -> None:
        del classes
        detail = f"`{quantizer.tensor.name}` is rounded, and was to stay float"
        self._row("changed_nodes", self._layer_of(quantizer), 1, detail)

    def _lookups(self) -> list[ir.Node]:
        return lookups_in_bits(self._original.graph, self._request.embeddings, self._forms)

    def _table(self, name: str, stored: StoredConstant, content: NDArray[Any]) -> None:
        if self._request.embeddings != "int4":
            super()._table(name, stored, content)
            return
        form = self._form_of[name]
        kind, size = "zero_points" if form.has_zero_points else "integers", form.block_size
        signs = form.has_signs
        wrong = list(self._faults(stored, content, 0, 4, size, kind, has_signs=signs))
        detail = f"its table `{stored.name}` {', and '.join(wrong)}" if wrong else ""
        self._row("wrong_formats", name, len(wrong), detail)
        if not _fits(stored, content, 0, size):
            self._row("weight_error", name, np.inf, f"its table `{stored.name}` has another shape")
            return
        rows = _Rows(stored, content, 0, size)
        judge = _judge(kind, 4, form.method, has_signs=signs)
        for row, (value, where) in _plainly(rows, judge).items():
            self._row(row, name, value, f"its table `{stored.name}` {where}")

    def _formats(
        self, layer: str, stored: StoredConstant, content: NDArray[Any], axis: int | None
    ) -> None:
        bits, size = self._bits(layer), self._request.block_size
        outputs, kind = 1 if axis is None else axis, self._kind(bits)
        signs = self._request.has_signs(bits)
        wrong = list(self._faults(stored, content, outputs, bits, size, kind, has_signs=signs))
        detail = f"its weight `{stored.name}` {', and '.join(wrong)}" if wrong else ""
        self._row("wrong_formats", layer, len(wrong), detail)

    def _faults(
        self,
        stored: StoredConstant,
        content: NDArray[Any],
        outputs: int,
        bits: Bits,
        size: int | None,
        kind: str,
        *,
        has_signs: bool,
    ) -> Iterator[str]:
        """What is wrong with the form of a weight."""
        found = str(stored.values.dtype) if stored.codebook is None else "nf4"
        wanted_type = {"nf4": "nf4", "zero_points": str(STORED_UNSIGNED)}.get(
            kind, str(STORED[bits])
        )
        if found != wanted_type:
            yield f"is {found}, not {wanted_type}"
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
        if kind != "integers":
            zero = stored.zero_point
            if kind == "zero_points" and (zero is None or zero.shape != wanted):
                yield "has no zero point for each scale"
            yield from grid_faults(stored, is_symmetric=kind == "nf4")
            return
        integers = stored.values.astype(np.int16)
        least, most = int(integers.min(initial=0)), int(integers.max(initial=0))
        if most > LARGEST[bits] or least < SMALLEST[bits]:
            yield f"has integers from {least} to {most}, not {SMALLEST[bits]} to {LARGEST[bits]}"
        yield from grid_faults(stored, is_symmetric=True, has_signs=has_signs)

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
        if not _fits(stored, content, axis, size):
            self._row("weight_error", layer, np.inf, f"{name} has another shape")
            return
        rows = _Rows(stored, content, axis, size)
        if self._factors is None:
            bits = self._bits(layer)
            signs = self._request.has_signs(bits)
            judge = _judge(self._kind(bits), bits, self._request.method, has_signs=signs)
            found = _plainly(rows, judge)
        else:
            found = self._calibrated(rows, layer)
        for kind, (value, where) in found.items():
            self._row(kind, layer, value, f"{name} {where}")

    def _bits(self, layer: str) -> Bits:
        return self._widths[layer]

    def _kind(self, bits: Bits) -> str:
        if self._request.numbers == "nf4":
            return "nf4"
        return "zero_points" if self._request.has_zero_points(bits) else "integers"

    def _calibrated(self, rows: _Rows, layer: str) -> dict[Kind, tuple[float, str]]:
        worst, step = (0.0, ""), (0.0, "")
        if self._factors is None:
            raise ValueError("the method is not calibrated")
        factor = self._factors.of(self._by_name[layer])
        moments = self._factors.products(self._by_name[layer])
        for start, part in rows.parts():
            bits = self._bits(layer)
            blocks = _Blocks(part, bits, self._method, has_signs=self._request.has_signs(bits))
            these = blocks.compensated(factor, moments)
            value, (row, column) = these.distance()
            worst = max(worst, (value, f"at output {start + row}, input {column}"))
            value, row = these.coarseness()
            step = max(step, (value, f"in output {start + row}"))
        return {"weight_error": worst, "weight_step": step}


def _judge(kind: str, bits: Bits, method: str, *, has_signs: bool) -> Callable[[_Part], Judged]:
    """Who says what is right of blocks of a kind: `integers`, `zero_points` or `nf4`."""

    def judge(part: _Part) -> Judged:
        content, values, scale, zero = part
        if kind == "nf4":
            return NormalFloatBlocks(content, values, scale, method)
        if kind == "zero_points" and zero is not None:
            return ZeroPointBlocks(content, values, scale, zero, method)
        return _Blocks(part, bits, METHODS[method], has_signs=has_signs)

    return judge


def _plainly(rows: _Rows, judge: Callable[[_Part], Judged]) -> dict[Kind, tuple[float, str]]:
    """Of a method that looks at weights alone: error and step of the worst block."""
    error, step = (0.0, ""), (0.0, "")
    for start, part in rows.parts():
        blocks = judge(part)
        error = max(error, blocks.error(start))
        step = max(step, blocks.step(start))
    return {"weight_error": error, "weight_step": step}


def _scale_shape(content: NDArray[Any], outputs: int, size: int | None) -> tuple[int, ...]:
    """Of a weight of this shape, in whole blocks."""
    if size is None:
        return (content.shape[outputs],)
    shape = list(content.shape)
    shape[1 - outputs] = -(-shape[1 - outputs] // size)
    return tuple(shape)


def _fits(stored: StoredConstant, content: NDArray[Any], outputs: int, size: int | None) -> bool:
    """Whether integers, scales and zero points have the shapes of such a weight."""
    wanted, zero = _scale_shape(content, outputs, size), stored.zero_point
    has_zeros = zero is None or zero.shape == wanted
    return stored.values.shape == content.shape and stored.scale.shape == wanted and has_zeros


class _Part(NamedTuple):
    """Some outputs: blocks (outputs, blocks, size), and of each block what was stored for it."""

    content: NDArray[Any]
    values: NDArray[Any]
    scale: NDArray[Any]
    zero: NDArray[Any] | None


class _Rows:
    """A weight with its outputs as rows, and each row divided into blocks."""

    def __init__(
        self, stored: StoredConstant, content: NDArray[Any], outputs: int, size: int | None
    ) -> None:
        self._content = np.moveaxis(content, outputs, 0)
        self._values = np.moveaxis(stored.values, outputs, 0)
        inputs = self._content.shape[1]
        self._size = inputs if size is None else size

        def of_blocks(each: NDArray[Any]) -> NDArray[Any]:
            return each[:, None] if size is None else np.moveaxis(each, outputs, 0)

        self._scale = of_blocks(stored.scale)
        self._zero = None if stored.zero_point is None else of_blocks(stored.zero_point)

    def parts(self) -> Iterator[tuple[int, _Part]]:
        """(First output, blocks), a bounded number of elements at a time."""
        outputs, inputs = self._content.shape
        count = max(1, _ROWS // max(inputs, 1))
        for start in range(0, outputs, count):
            part = slice(start, start + count)
            shape = (-1, inputs // self._size, self._size)
            yield (
                start,
                _Part(
                    self._content[part].reshape(shape),
                    self._values[part].reshape(shape),
                    self._scale[part],
                    None if self._zero is None else self._zero[part],
                ),
            )


class _Blocks:
    """Blocks (outputs, blocks, size) of a weight, their integers, and (outputs, blocks) scales.

    Scales with signs are held against those that `signs_of` the block asks for.
    """

    def __init__(self, part: _Part, bits: Bits, method: WeightMethod, *, has_signs: bool) -> None:
        self._dtype = part.content.dtype
        self._content = part.content.astype(np.float32)
        self._values = part.values.astype(np.float32)
        self._scale = part.scale.astype(np.float32)[..., None]
        self._bits = bits
        self._loss = method.loss
        self._signs = signs_of(self._content) if has_signs else np.float32(1)

    def error(self, start: int) -> tuple[float, str]:
        """Largest distance in steps, and where."""
        with np.errstate(all="ignore"):
            steps = self._content / self._scale
        if self._loss is not None:
            steps = np.clip(steps, SMALLEST[self._bits], LARGEST[self._bits])
        distance = np.abs(steps - self._values)
        return worst(distance, start, "at output {}, block {}, place {}")

    def step(self, start: int) -> tuple[float, str]:
        """See the module: how much more coarsely a block is rounded than it needs to be."""
        needed = self._needed()
        is_used = needed >= SMALLEST_STEP
        steps = stored_scale(needed, self._dtype).astype(np.float32)
        if self._loss is None:
            # A scale of the wrong sign is infinitely too coarse: it is no step of this block.
            ratio = self._scale[..., 0] * self._signs / steps
            ratio = np.where(ratio > 0, ratio, np.inf)
        else:
            usual = loss_of(self._content, steps * self._signs, self._bits, self._loss)
            lost = self._content - self._values * self._scale
            ratio = loss_ratio(lost, usual, steps, self._content, self._loss)
        return worst(np.where(is_used, ratio, 0.0), start, "in output {}, block {}")

    def _needed(self) -> NDArray[np.float32]:
        """The smallest steps that reach all weights of each block; positive."""
        turned = self._content * np.asarray(self._signs)[..., None]
        return whole_steps(turned, self._bits)

    def compensated(self, factor: Factor, moments: NDArray[np.float32]) -> CompensatedRows:
        """The same blocks, for a calibrated method."""
        needed = stored_scale(self._needed(), self._dtype) * self._signs
        ends = (SMALLEST[self._bits], LARGEST[self._bits])
        is_used = self._needed() >= SMALLEST_STEP
        content = self._content.astype(self._dtype)
        whole = np.where(is_used, needed, np.float32(0))
        return CompensatedRows(
            content, self._values, self._scale[..., 0], factor, moments, whole, ends
        )
