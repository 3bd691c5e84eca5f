"""What is said of an engine: its layers, its memory, and how much of it is what was asked for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.engines.builder_log import (
    INDEX_DTYPES,
    count_gemm_kinds,
    count_layer_types,
    layer_fingerprint,
)
from pipeline.engines.targets import WEIGHT_ONLY
from pipeline.errors import EngineBuildError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.engines.builder_log import LayerRow
    from pipeline.hashing import JSON

_KINDS = {
    "fp32": ("Float x Float",),
    "fp16": ("Half x Half",),
    "bf16": ("BFloat16 x BFloat16",),
    "int8": ("Int8 x Int8",),
    "int8-weights": ("Half x Int8", "BFloat16 x Int8"),  # computed with in fp16
    "fp8": ("FP8 x FP8",),
    "int4": ("Half x Int4", "BFloat16 x Int4"),
}
"""Row of `targets.FORMS` -> kinds of its products."""

_MIB = 1 << 20


def fused_attentions(layers: Sequence[LayerRow], attentions: Sequence[tuple[str, ...]]) -> int:
    """How many attention blocks of the graph are one kernel.

    A block of three nodes is fused when one layer, not a plain matrix product, computes all of
    them: where it is not, each of the two products is a layer of its own. A single `Attention` node
    is fused when no plain matrix product works for it. The names of kernels are not looked at.

    Args:
        layers: The engine's table.
        attentions: Names of the nodes of each block.
    """
    generated = [set(layer.onnx_nodes) for layer in layers if layer.type != "gemm"]
    products = {node for layer in layers if layer.type == "gemm" for node in layer.onnx_nodes}

    def is_fused(block: tuple[str, ...]) -> bool:
        if len(block) == 1 and block[0] in products:
            return False
        return any(nodes.issuperset(block) for nodes in generated)

    return sum(is_fused(block) for block in attentions)


def gemm_share(layers: Sequence[LayerRow], form: str) -> float | None:
    """The share of matrix products with weights that are of a row of `FORMS`; None without any.

    A product whose weights are widened by a layer of their own reads none, and its own layer may be
    no plain product either: it counts by the layer that widens, as one that is not of the row.
    """
    kinds = Counter(layer.gemm_kind for layer in layers if layer.is_gemm and layer.weights)
    total = kinds.total() + sum(layer.widens_weights for layer in layers)
    if not total:
        return None
    return sum(kinds[kind] for kind in _KINDS[form]) / total


@dataclass(frozen=True, slots=True, kw_only=True)
class _ProfileCounts:
    """What is counted in the layers of one optimization profile."""

    layers: tuple[LayerRow, ...]
    fused: int
    copies: int
    widened: int
    share: float | None

    def to_json(self) -> dict[str, JSON]:
        """As it stands in the facts."""
        return {
            "layers": len(self.layers),
            "layer_types": count_layer_types(self.layers),
            "gemm_kinds": count_gemm_kinds(self.layers),
            "fused_attention": self.fused,
            "copy_layers": self.copies,
            "widened_weights": self.widened,
        }


def layer_facts(
    layers: tuple[LayerRow, ...],
    attentions: Sequence[tuple[str, ...]],
    precision: str,
    *,
    memory: Sequence[int],
    is_weight_only: bool = False,
) -> dict[str, JSON]:
    """Counts, coverage and fingerprint of the engine's table.

    An engine holds the graph once for each optimization profile. Counts are those of the first
    profile; with several, `by_profile` has those of each. Coverage, which recipes limit in
    `gates.coverage`, is the worst of all profiles: `fused_attention` and `{precision}_gemms` are
    shares, `activation_memory_mib` is MiB at the largest shapes, `copy_layers` is a count.
    `widened_weights` counts weights that a layer of their own writes out as floats at every run.

    Args:
        layers: The engine's table.
        attentions: Names of the nodes of each attention of the graph.
        precision: What was asked for.
        memory: What activations take at the largest shapes of each profile, bytes.
        is_weight_only: Of int8: the weights alone have 8 bits.

    Raises:
        EngineBuildError: when not one matrix product has the precision that was asked for: the
            graph is another one than the recipe means; when a profile has no layers.
    """
    form = WEIGHT_ONLY.get(precision, precision) if is_weight_only else precision
    profiles = [
        _count([layer for layer in layers if layer.profile == number], attentions, form)
        for number in range(len(memory))
    ]
    if not all(profile.layers for profile in profiles):
        raise EngineBuildError(
            f"the builder's table does not say which layers belong to which of {len(memory)} "
            "profiles",
            hint="this version of TensorRT is newer than what this program knows",
        )
    _require_precision(profiles, precision, is_weight_only=is_weight_only)
    coverage: dict[str, JSON] = {
        "activation_memory_mib": round(max(memory) / _MIB, 3),
        "copy_layers": max(profile.copies for profile in profiles),
    }
    if attentions:
        coverage["fused_attention"] = min(p.fused for p in profiles) / len(attentions)
    shares = [profile.share for profile in profiles if profile.share is not None]
    if shares:
        coverage[f"{precision}_gemms"] = min(shares)
    facts = {
        **profiles[0].to_json(),
        "attention_blocks": len(attentions),
        "layer_fingerprint": layer_fingerprint(layers),
        "coverage": coverage,
    }
    if len(profiles) > 1:
        facts["by_profile"] = [
            {**profile.to_json(), "activation_memory_bytes": size}
            for profile, size in zip(profiles, memory, strict=True)
        ]
    return facts


def _count(
    layers: Sequence[LayerRow], attentions: Sequence[tuple[str, ...]], form: str
) -> _ProfileCounts:
    return _ProfileCounts(
        layers=tuple(layers),
        fused=fused_attentions(layers, attentions),
        copies=sum(layer.is_copy for layer in layers),
        widened=sum(layer.widens_weights for layer in layers),
        share=gemm_share(layers, form),
    )


def _require_precision(
    profiles: Sequence[_ProfileCounts], precision: str, *, is_weight_only: bool
) -> None:
    for profile in profiles:
        if profile.share != 0:
            continue
        what = f"{precision} weights were" if is_weight_only else f"precision {precision} was"
        kinds = count_gemm_kinds(profile.layers)
        hint = f"the graph that was given to the builder is not {precision}"
        if profile.widened:
            kinds["weights that are written out as floats"] = profile.widened
            hint = "take fp16, which multiplies the same numbers, or smaller blocks of weights"
        raise EngineBuildError(
            f"{what} asked for, and no matrix product of the engine has it: "
            + ", ".join(f"{count} {kind}" for kind, count in kinds.items()),
            hint=hint,
        )


def layer_role(layer: LayerRow, attentions: Sequence[tuple[str, ...]]) -> str:
    """What a layer is for: `attention` (all of one), `product`, `copy` or `other`."""
    nodes = set(layer.onnx_nodes)
    operands = sum(row.dtype not in INDEX_DTYPES for row in layer.inputs)
    # What only moves heads about for an `Attention` node bears its name too, but reads one of the
    # three; of a block of three nodes only the kernel itself has them all.
    if layer.type != "gemm" and any(
        nodes.issuperset(block) and (len(block) > 1 or operands >= len("qkv"))
        for block in attentions
    ):
        return "attention"
    if layer.is_product:
        return "product"
    return "copy" if layer.is_copy else "other"


def short_row(layer: LayerRow, attentions: Sequence[tuple[str, ...]]) -> JSON:
    """One layer as a row of `layers.json`, and of `layer_rows` in the facts.

    `profile` (its number), `name`, `type`, `role` (see `layer_role`), `precision` (see
    `LayerRow.precision`), `inputs` and `outputs` (types of the tensors), `weights` (type, or null),
    `tactic` (the kernel) and `onnx_nodes`.

    Args:
        layer: The layer.
        attentions: Names of the nodes of each attention of the graph.
    """
    return {
        "profile": layer.profile,
        "name": layer.name,
        "type": layer.type,
        "role": layer_role(layer, attentions),
        "precision": layer.precision,
        "inputs": [row.dtype for row in layer.inputs],
        "weights": layer.weights.dtype if layer.weights else None,
        "outputs": [row.dtype for row in layer.outputs],
        "tactic": layer.tactic,
        "onnx_nodes": list(layer.onnx_nodes),
    }
