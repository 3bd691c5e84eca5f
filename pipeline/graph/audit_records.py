"""What a comparison of a quantised graph with its float graph was asked, and what it found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import onnx_ir as ir

    from pipeline.calibration.methods import Range
    from pipeline.graph.qdq import (
        QdqOptions,
    )
    from pipeline.graph.qdq_placements import EightBits, Placement
    from pipeline.graph.weighted_layers import WeightedLayer


Kind: TypeAlias = Literal[
    "missing_layers",
    "wrong_formats",
    "weight_error",
    "weight_step",
    "bias_error",
    "changed_constants",
    "changed_nodes",
    "activation_scales",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """One comparison.

    Attributes:
        kind: See the module; the stage adds those that take a run.
        layer: The layer (or other node of the float graph) that it is about.
        value: Smaller is better; None when it is no finite number.
        detail: What was found, in words.
    """

    kind: str
    layer: str
    value: float | None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedActivation:
    """A tensor that is rounded with a scale that was found beforehand.

    Attributes:
        layer: The first layer that reads it, or the one that writes it when all read it rounded.
        tensor: Its name in the float graph.
        scale, zero_point: As stored.
        dtype: Of its integers.
        is_rectified: It has no negative numbers, because a Relu or Clip stands before it.
    """

    layer: str
    tensor: str
    scale: float
    zero_point: int
    dtype: EightBits
    is_rectified: bool


@dataclass(slots=True, kw_only=True)
class Audit:
    """What the comparison found.

    Attributes:
        rows: Every comparison.
        activations: Every quantiser of an activation.
        quantized: Layers that compute with integers.
        kept_float: (layer, reason) of those that were not asked for or cannot.
        weight_share: Share of the bytes of all layers' weights that is quantised.
        layer_share: Share of the layers that have a weight.
        outputs: Names of the graph's outputs.
        computed: Names of everything that the float graph computes.
    """

    rows: list[AuditRow] = field(default_factory=list)
    activations: list[AuditedActivation] = field(default_factory=list)
    quantized: list[str] = field(default_factory=list)
    kept_float: list[tuple[str, str]] = field(default_factory=list)
    weight_share: float = 0.0
    layer_share: float = 0.0
    outputs: tuple[str, ...] = ()
    computed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticRequest:
    """What was asked of a static quantisation."""

    options: QdqOptions
    placement: Placement
    ranges: Mapping[str, Range]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was asked of the weights."""

    per_channel: bool
    weight_dtype: EightBits
    bits: Literal[7, 8]
    quantizes_embeddings: bool
    reasons: Mapping[WeightedLayer, str]
    parts: Collection[ir.Node] = ()
    """Nodes that are parts of a layer, and no layers of their own."""
