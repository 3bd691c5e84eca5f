"""Compares a quantised graph with the float graph it was made from: number by number, node by node.

Nothing is run here, so nothing is hidden by rounding. Each `AuditRow` is one comparison of one kind:

| kind                | what is compared                                             | right               |
|---------------------|--------------------------------------------------------------|---------------------|
| `missing_layers`    | layers that were asked for and compute with floats           | none                |
| `wrong_formats`     | types, numbers of scales, their axis, zero points, bits used | none                |
| `weight_error`      | a weight's integers with the float weight, in steps          | half a step         |
| `weight_step`       | a weight's step over the smallest one that reaches its values| 1                   |
| `bias_error`        | a bias's integers with the float bias, in steps              | half a step         |
| `changed_constants` | numbers that are not quantised, bit by bit                   | none                |
| `changed_nodes`     | all other nodes: operator, attributes, what they read        | none                |
| `activation_scales` | scales and zero points with the ranges of the calibration    | 0                   |

The two graphs are matched by the names of the values that nodes write: the stages of this package keep
them. Where a stage first rewrites the float graph (outliers of dynamic quantisation), the same is done
here to a copy; that it computes the same is for a run to say, see `pipeline.stages.check_quantization`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass

from pipeline.graph.audit_errors import (
    LIMITS,
    distances,
    grid_faults,
    kind_of,
    largest_error,
    short_name,
    step_ratio,
    table_faults,
)
from pipeline.graph.audit_records import (
    Asked,
    Audit,
    AuditedActivation,
    AuditRow,
    Kind,
    StaticRequest,
)
from pipeline.graph.fusions.matching import (
    consumers,
    input_of,
    int_attribute,
    is_standard,
    node_name,
)
from pipeline.graph.graph_comparison import GraphComparison
from pipeline.graph.kept_float import find_kept_float
from pipeline.graph.outlier_channels import damp_outlier_channels
from pipeline.graph.outlier_neurons import split_outlier_neurons
from pipeline.graph.qdq import (
    LARGEST_BIAS,
    SMALLEST_NORMAL,
    activation_scale,
    static_reasons,
)
from pipeline.graph.quantization import QuantizationOptions, dynamic_reasons
from pipeline.graph.quantized_embeddings import embedding_lookups
from pipeline.graph.weighted_layers import find_weighted_layers, gemm_obstacle, value_classes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    from pipeline.graph.unquantized import ActivationQuantizer, StoredConstant
    from pipeline.graph.weighted_layers import WeightedLayer


__all__ = [
    "Asked",
    "Audit",
    "AuditRow",
    "AuditedActivation",
    "Auditor",
    "Kind",
    "StaticRequest",
    "audit_dynamic",
    "audit_static",
    "grid_faults",
    "largest_error",
]


def audit_dynamic(original: ir.Model, quantized: ir.Model, options: QuantizationOptions) -> Audit:
    """Compare what `quantize_dynamic` made.

    Args:
        original: The float graph; edited in place.
        quantized: The other; it becomes its skeleton, see `pipeline.graph.unquantized`, with the
            float graph's own weights.
        options: What was asked for.

    Raises:
        QuantizationError: for a name or a pattern in the options that matches no layer.
    """
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(original)
    named = find_kept_float(
        find_weighted_layers(original.graph), options.exclude_nodes, options.given_back
    )
    kept = {layer.name: reason for layer, reason in named.items()}
    floats: dict[ir.Node, str] = {}
    if options.treat_outliers:
        for part in split_outlier_neurons(original.graph, kept_float=kept):
            floats |= dict.fromkeys(part.nodes, f"neurons of `{part.layer}` that are outliers")
        RemoveUnusedNodesPass()(original)
        damp_outlier_channels(original.graph)
        RemoveUnusedNodesPass()(original)
    layers = find_weighted_layers(original.graph)
    reasons = dynamic_reasons(layers, kept)
    reasons |= {layer: floats[layer.node] for layer in layers if layer.node in floats}
    asked = Asked(
        per_channel=options.per_channel,
        weight_dtype=options.weight_dtype,
        bits=7 if options.reduce_range else 8,
        quantizes_embeddings=options.quantize_embeddings,
        reasons=reasons,
        parts=floats,
    )
    return Auditor(original, quantized, layers, asked, None).audit()


def audit_static(original: ir.Model, quantized: ir.Model, request: StaticRequest) -> Audit:
    """Compare what `quantize_static` made; arguments as `audit_dynamic`."""
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(original)
    options = request.options
    layers = find_weighted_layers(original.graph)
    asked = Asked(
        per_channel=options.per_channel,
        weight_dtype=options.weight_dtype,
        bits=7 if options.reduce_range else 8,
        quantizes_embeddings=options.quantize_embeddings,
        reasons=static_reasons(layers, request.placement, options),
    )
    if options.weight_dtype == "float8":
        from pipeline.graph.float8_audit import Float8Auditor

        return Float8Auditor(original, quantized, layers, asked, request).audit()
    return Auditor(original, quantized, layers, asked, request).audit()


class Auditor(GraphComparison):
    """Compares two graphs; used once.

    `pipeline.graph.weight_only_audit` and `pipeline.graph.float8_audit` have other rules for weights.
    """

    def __init__(
        self,
        original: ir.Model,
        quantized: ir.Model,
        layers: tuple[WeightedLayer, ...],
        asked: Asked,
        static: StaticRequest | None,
    ) -> None:
        super().__init__(original, quantized)
        self._asked = asked
        self._static = static
        self._layers = layers
        self._results = _quantized_results(layers, asked, static)

    def audit(self) -> Audit:
        """All rows."""
        classes = None if self._static is None else value_classes(self._original.graph)
        pairs = [(layer, self._counterpart(layer)) for layer in self._layers]
        # Weights are filled in before the graphs are compared with each other.
        for layer, node in pairs:
            self._layer(layer, node)
        self._embeddings()
        self._coverage(pairs)
        for quantizer in self._skeleton.activations:
            self._activation(quantizer, classes or {})
        for value, stored in self._skeleton.constants.items():
            if value.const_value is None:
                self._unmatched(value, stored)
        self._compare_graphs()
        return self._found

    # --- layers -----------------------------------------------------------------------------

    def _counterpart(self, layer: WeightedLayer) -> ir.Node | None:
        """The node of the skeleton that does a layer's work; a Gemm is split where it was split."""
        node = layer.node
        name = node.outputs[0].name
        found = self._mine.get(name)
        if found is None or node.op_type != "Gemm" or found.op_type == "Gemm":
            return found
        product = next(
            (
                maker
                for value in found.inputs
                if value is not None
                and (maker := value.producer()) in self._skeleton.rebuilt
                and maker is not None
            ),
            found if found in self._skeleton.rebuilt else None,
        )
        if product is None or gemm_obstacle(node):
            return found
        return product

    def _layer(self, layer: WeightedLayer, node: ir.Node | None) -> None:
        """The weight and the bias of one layer, when they are stored in fewer bits."""
        weight = None if node is None else input_of(node, 1)
        stored = None if weight is None else self._skeleton.constants.get(weight)
        if node is None or stored is None or weight is None or layer.weight is None:
            return
        if layer.weight.const_value is None:
            return
        content = layer.weight.const_value.numpy()
        axis = layer.axis
        is_turned = node in self._skeleton.rebuilt and bool(int_attribute(layer.node, "transB", 0))
        if is_turned:
            content, axis = content.T, 1
        least: NDArray[Any] | None = None
        scale_of_input = self._input_scale(node)
        bias = input_of(node, 2)
        stored_bias = None if bias is None else self._skeleton.constants.get(bias)
        original_bias = input_of(layer.node, 2)
        if bias is not None and stored_bias is not None:
            numbers = (
                None
                if original_bias is None or original_bias.const_value is None
                else original_bias.const_value.numpy()
            )
            if numbers is None:
                self._row("bias_error", layer.name, np.inf, "the float layer has no such bias")
            else:
                if scale_of_input is not None:
                    least = np.abs(numbers.astype(np.float64)) / LARGEST_BIAS / scale_of_input
                self._bias(layer, stored, stored_bias, numbers, scale_of_input)
                if bias.const_value is None:
                    self._skeleton.fill(bias, numbers)
        self._formats(layer.name, stored, content, axis if self._asked.per_channel else None)
        self._weight(layer.name, stored, content, axis, least)
        if weight.const_value is None:
            self._skeleton.fill(weight, content)

    def _input_scale(self, node: ir.Node) -> float | None:
        for quantizer in self._skeleton.activations:
            if node.inputs[0] is quantizer.tensor and node in quantizer.readers:
                return float(quantizer.scale.reshape(-1)[0])
        return None

    def _formats(
        self, layer: str, stored: StoredConstant, content: NDArray[Any], axis: int | None
    ) -> None:
        """Type, scales and zero points of a weight."""
        wrong = []
        dtype = short_name(stored.values.dtype)
        if dtype != self._asked.weight_dtype:
            wrong.append(f"is {dtype}, not {self._asked.weight_dtype}")
        wanted = 1 if axis is None else content.shape[axis]
        if stored.scale.size != wanted:
            wrong.append(f"has {stored.scale.size} scales, not {wanted}")
        elif axis is not None and stored.axis != axis and wanted > 1:
            wrong.append(f"has its scales along axis {stored.axis}, not {axis}")
        wrong += self._integers(stored)
        self._row(
            "wrong_formats",
            layer,
            len(wrong),
            f"its weight `{stored.name}` {', and '.join(wrong)}" if wrong else "",
        )

    def _integers(self, stored: StoredConstant) -> Iterator[str]:
        """What is wrong with the integers, for their type and the bits that were asked for."""
        dtype = stored.values.dtype.name
        low, high = LIMITS.get((dtype, self._asked.bits), (0, 0))
        least, most = int(stored.values.min(initial=0)), int(stored.values.max(initial=0))
        if least < low or most > high:
            yield f"has integers from {least} to {most}, not {low} to {high}"
        yield from grid_faults(stored, is_symmetric=dtype == "int8")

    def _weight(
        self,
        layer: str,
        stored: StoredConstant,
        content: NDArray[Any],
        axis: int,
        least: NDArray[Any] | None,
    ) -> None:
        """Integers against the float weight, and scales against what the weight needs."""
        error, where = self._error(stored, content)
        self._row("weight_error", layer, error, f"its weight `{stored.name}` at {list(where)}")
        along = axis if stored.scale.size > 1 or self._asked.per_channel else None
        ratio, channel = self._ratio(stored, content, along, least)
        self._row(
            "weight_step",
            layer,
            ratio,
            f"its weight `{stored.name}`" + (f", output {channel}" if along is not None else ""),
        )

    def _error(
        self, stored: StoredConstant, content: NDArray[Any]
    ) -> tuple[float, tuple[int, ...]]:
        """The largest distance of a number from the float weight, in steps, and where."""
        return largest_error(stored, content, distances)

    def _ratio(
        self,
        stored: StoredConstant,
        content: NDArray[Any],
        axis: int | None,
        least: NDArray[Any] | None,
    ) -> tuple[float, int]:
        """The scale farthest from what its weights need, as a factor, and of which channel."""
        return step_ratio(stored, content, axis, self._asked.bits, least)

    def _bias(
        self,
        layer: WeightedLayer,
        weight: StoredConstant,
        stored: StoredConstant,
        numbers: NDArray[Any],
        scale_of_input: float | None,
    ) -> None:
        """A bias in int32, by its own scale and by that of the product that kernels add it to."""
        integers = stored.values.astype(np.float64)
        own = stored.scale.astype(np.float64)
        wanted = numbers.astype(np.float64)
        steps = [own]
        if scale_of_input is not None:
            product = scale_of_input * weight.scale.astype(np.float64)
            steps.append(np.maximum(np.broadcast_to(product, wanted.shape), SMALLEST_NORMAL))
        if integers.shape != wanted.shape:
            self._row("bias_error", layer.name, np.inf, f"`{stored.name}` has another shape")
            return
        worst, place = 0.0, 0
        for step in steps:
            # What the scales lose in float32 grows with the integers.
            slack = np.abs(integers) * 2.0**-20
            errors = np.abs(wanted / step - integers) - slack
            at = int(np.argmax(errors)) if np.isfinite(errors).all() else 0
            value = float(errors[at]) if np.isfinite(errors).all() else np.inf
            if value > worst:
                worst, place = value, at
        self._row("bias_error", layer.name, worst, f"its bias `{stored.name}` at [{place}]")

    def _embeddings(self) -> None:
        """Token tables: one scale a row."""
        wanted = {node.outputs[0].name: node for node in self._lookups()}
        for node in self._original.graph:
            if not is_standard(node, "Gather"):
                continue
            name = node.outputs[0].name
            mine = self._mine.get(name)
            table = None if mine is None else mine.inputs[0]
            stored = None if table is None else self._skeleton.constants.get(table)
            source = node.inputs[0]
            if stored is None or table is None or source is None or source.const_value is None:
                if name in wanted:
                    detail = "its table was to be stored in few bits"
                    self._row("missing_layers", node_name(node), 1, detail)
                continue
            content = source.const_value.numpy()
            self._table(node_name(node), stored, content)
            if table.const_value is None:
                self._skeleton.fill(table, content)

    def _lookups(self) -> list[ir.Node]:
        """The lookups whose tables are to be stored in few bits."""
        return embedding_lookups(self._original.graph) if self._asked.quantizes_embeddings else []

    def _table(self, name: str, stored: StoredConstant, content: NDArray[Any]) -> None:
        """One table of embeddings, with one scale a row."""
        wrong = list(table_faults(stored, content))
        detail = f"its table `{stored.name}` {', and '.join(wrong)}" if wrong else ""
        self._row("wrong_formats", name, len(wrong), detail)
        error, where = largest_error(stored, content, distances)
        self._row("weight_error", name, error, f"its table `{stored.name}` at {list(where)}")
        ratio, row = step_ratio(stored, content, 0, 8, None)
        self._row("weight_step", name, ratio, f"row {row} of `{stored.name}`")

    def _coverage(self, pairs: list[tuple[WeightedLayer, ir.Node | None]]) -> None:
        """Which layers compute with integers, and whether those that do not have a reason."""
        kept: set[ir.Value] = set()
        sizes: dict[ir.Value, int] = {}
        with_weight = 0
        for layer, node in pairs:
            weight = layer.weight
            if weight is not None and weight.const_value is not None:
                sizes[weight] = weight.const_value.nbytes
                with_weight += layer.node not in self._asked.parts
            mine = None if node is None else input_of(node, 1)
            is_stored = mine is not None and mine in self._skeleton.constants
            reads_integers = node is not None and node in self._skeleton.integer_inputs
            reason = self._asked.reasons.get(layer, "")
            lacks = self._lacks(is_stored=is_stored, reads_integers=reads_integers)
            if not lacks:
                self._found.quantized.append(layer.name)
                self._row("missing_layers", layer.name, 0)
                continue
            if weight is not None:
                kept.add(weight)
            if reason:
                self._found.kept_float.append((layer.name, reason))
                continue
            self._row("missing_layers", layer.name, 1, lacks)
        total = sum(sizes.values())
        done = sum(size for weight, size in sizes.items() if weight not in kept)
        self._found.weight_share = done / total if total else 0.0
        self._found.layer_share = len(self._found.quantized) / with_weight if with_weight else 0.0

    def _lacks(self, *, is_stored: bool, reads_integers: bool) -> str:
        """What of a layer should be in integers and is not; empty when it is quantised."""
        if is_stored and reads_integers:
            return ""
        if is_stored:
            return "its input is not in 8 bits"
        lacks = "its weight is not" if reads_integers else "neither its weight nor its input is"
        return f"{lacks} in 8 bits"

    # --- activations ------------------------------------------------------------------------

    def _activation(
        self,
        quantizer: ActivationQuantizer,
        classes: Mapping[ir.Value, frozenset[ir.Value]],
    ) -> None:
        name = quantizer.tensor.name or ""
        layer = self._layer_of(quantizer)
        zero = quantizer.zero_point
        dtype = kind_of(zero)
        wrong = []
        if quantizer.scale.size != 1 or (zero is not None and zero.size != 1):
            wrong.append(f"`{name}` has {quantizer.scale.size} scales")
        if zero is not None and short_name(zero.dtype) not in {"int8", "uint8", "float8"}:
            wrong.append(f"`{name}` is {zero.dtype.name}")
        if quantizer.halves_differ:
            wrong.append(f"`{name}` is dequantised with another scale or zero point")
        scale = float(quantizer.scale.reshape(-1)[0])
        zero_point = 0 if zero is None else int(zero.reshape(-1)[0])
        options = None if self._static is None else self._static.options
        written_by = self._results.get(name)
        is_rectified = written_by is not None and written_by.node.outputs[0].name != name
        if options is not None:
            if dtype != options.activation_dtype:
                wrong.append(f"`{name}` is {dtype}, not {options.activation_dtype}")
            if dtype != "uint8" and zero_point and not (dtype == "int8" and is_rectified):
                wrong.append(f"`{name}` has the zero point {zero_point}")
        if not scale > 0 or not np.isfinite(scale):
            wrong.append(f"`{name}` has the scale {scale:g}")
        self._row("wrong_formats", layer, len(wrong), ", and ".join(wrong))
        self._found.activations.append(
            AuditedActivation(
                layer=layer,
                tensor=name,
                scale=scale,
                zero_point=zero_point,
                dtype=dtype,
                is_rectified=is_rectified,
            )
        )
        if self._static is not None:
            self._scale(quantizer, self._found.activations[-1], classes)

    def _scale(
        self,
        quantizer: ActivationQuantizer,
        found: AuditedActivation,
        classes: Mapping[ir.Value, frozenset[ir.Value]],
    ) -> None:
        """Scale and zero point against the range that the calibration gave this very tensor."""
        assert self._static is not None
        ranges = self._static.ranges
        value = next((each for each in classes if each.name == found.tensor), None)
        others = sorted(each.name or "" for each in classes.get(value, ())) if value else []
        name = next((each for each in (found.tensor, *others) if each in ranges), None)
        if name is None:
            detail = f"`{found.tensor}` was not calibrated"
            self._row("activation_scales", found.layer, np.inf, detail)
            return
        scale, zero_point = activation_scale(
            ranges[name], found.dtype, quantizer.scale.dtype, is_rectified=found.is_rectified
        )
        gap = abs(found.scale / float(scale) - 1) + abs(found.zero_point - int(zero_point))
        detail = (
            f"`{found.tensor}` has the scale {found.scale:.4g} and the zero point "
            f"{found.zero_point}, its range gives {float(scale):.4g} and {int(zero_point)}"
        )
        self._row("activation_scales", found.layer, gap, detail)

    def _layer_of(self, quantizer: ActivationQuantizer) -> str:
        written_by = self._results.get(quantizer.tensor.name or "")
        if written_by is not None:
            return written_by.name
        names = {layer.node.outputs[0].name: layer.name for layer in self._layers}
        for reader in quantizer.readers:
            if reader.outputs[0].name in names:
                return names[reader.outputs[0].name]
        return node_name(quantizer.readers[0]) if quantizer.readers else quantizer.name

    # --- everything else --------------------------------------------------------------------

    def _unmatched(self, value: ir.Value, stored: StoredConstant) -> None:
        """A quantised constant where the float graph has no layer: kept as what it says."""
        readers = consumers(value)
        name = node_name(readers[0]) if readers else stored.name
        try:
            content = stored.dequantized()
        except ValueError as err:
            self._row("changed_nodes", name, 1, str(err))
            return
        self._skeleton.fill(value, content)
        detail = f"reads `{stored.name}`, which is quantised and belongs to no layer"
        self._row("changed_nodes", name, 1, detail)


def _quantized_results(
    layers: Sequence[WeightedLayer], asked: Asked, static: StaticRequest | None
) -> dict[str, WeightedLayer]:
    """Name of a tensor -> the layer behind which it is rounded, for all that read it."""
    if static is None:
        return {}
    return {
        layer.result.name or "": layer
        for layer in layers
        if layer not in asked.reasons
        and static.placement.operators[layer.node.op_type].quantizes_result
    }
