"""What a quantisation did to a graph: the facts that both kinds of it report."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import QuantizationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir

    from pipeline.graph.outlier_channels import DampedChannels
    from pipeline.graph.outlier_neurons import FloatNeurons
    from pipeline.graph.weighted_layers import WeightedLayer
    from pipeline.hashing import JSON


_STATIC_HINT = "static quantisation also covers convolutions: `quantization: {mode: static}`"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationResult:
    """What was quantised.

    Attributes:
        quantized: Names of the layers that now compute with 8-bit integers.
        embeddings: Names of the lookups whose table is now 8 bits wide.
        kept_float: (name, reason) of every other matrix product and convolution of the graph.
        float_neurons: Parts of quantised layers that stay float.
        damped_channels: What is made smaller before it is quantised.
        weight_coverage: Share of the bytes of all layers' weights that was quantised, a shared
            weight counted once; embeddings are no layers. Zero without any.
        layer_coverage: Share of the layers (products with a weight) that was quantised.
        bits_per_weight: Mean over the quantised weights, scales not counted.
    """

    quantized: tuple[str, ...]
    embeddings: tuple[str, ...]
    kept_float: tuple[tuple[str, str], ...]
    float_neurons: tuple[FloatNeurons, ...]
    damped_channels: tuple[DampedChannels, ...]
    weight_coverage: float
    layer_coverage: float
    bits_per_weight: float = 8.0

    def require_any(self, hint: str = _STATIC_HINT) -> None:
        """Refuse a quantisation that left every layer float: it is not what was asked for.

        Args:
            hint: What to do.

        Raises:
            QuantizationError: with the reason that most layers have.
        """
        if self.quantized or self.embeddings:
            return
        reasons = Counter(reason for _, reason in self.kept_float)
        why = "; ".join(f"{count} times: {reason}" for reason, count in reasons.most_common(3))
        raise QuantizationError(
            "no layer of this model could be quantised" + (f" ({why})" if why else ""),
            hint=hint,
        )

    def as_json(self, size_ratio: float) -> dict[str, JSON]:
        """The facts of the stage.

        Args:
            size_ratio: Bytes of the model after, over before.
        """
        return {
            "quantized": list(self.quantized),
            "quantized_embeddings": list(self.embeddings),
            "kept_float": [{"node": node, "reason": reason} for node, reason in self.kept_float],
            "float_neurons": {each.layer: list(each.neurons) for each in self.float_neurons},
            "damped_channels": {each.norm: list(each.channels) for each in self.damped_channels},
            "coverage": {
                "quantized_weights": self.weight_coverage,
                "quantized_matmuls": self.layer_coverage,
                "size_ratio": size_ratio,
            },
        }


class LayerRecord:
    """Names and weights of layers, taken before the graph is edited and their nodes are gone.

    Args:
        layers: All of the graph.
        reasons: Layer -> why it stays float; those that are not in it will be quantised.
    """

    def __init__(
        self, layers: Sequence[WeightedLayer], reasons: Mapping[WeightedLayer, str]
    ) -> None:
        self._entries = [(layer.name, layer.weight, reasons.get(layer, "")) for layer in layers]
        self._sizes = {
            layer.weight: _size_bytes(layer.weight) for layer in layers if layer.weight is not None
        }

    def result(
        self,
        embeddings: tuple[str, ...],
        float_neurons: tuple[FloatNeurons, ...] = (),
        damped_channels: tuple[DampedChannels, ...] = (),
    ) -> QuantizationResult:
        """What was done."""
        kept = {weight for _, weight, reason in self._entries if reason}
        done = sum(size for weight, size in self._sizes.items() if weight not in kept)
        done -= sum(each.weight_bytes for each in float_neurons)
        total = sum(self._sizes.values())
        with_weight = sum(weight is not None for _, weight, _ in self._entries)
        quantized = tuple(name for name, _, reason in self._entries if not reason)
        return QuantizationResult(
            quantized=quantized,
            embeddings=embeddings,
            float_neurons=float_neurons,
            damped_channels=damped_channels,
            kept_float=tuple((name, reason) for name, _, reason in self._entries if reason),
            # Outliers may have been split off a layer that stays float as a whole.
            weight_coverage=max(0, done) / total if total else 0.0,
            layer_coverage=len(quantized) / with_weight if with_weight else 0.0,
        )


def _size_bytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes
