"""What is said of an engine: its layers, its memory, and how much of it is what was asked for."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pipeline.engines.builder_log import count_gemm_kinds, count_layer_types, layer_fingerprint
from pipeline.errors import EngineBuildError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.engines.builder_log import LayerRow
    from pipeline.hashing import JSON

_KINDS = {
    "fp32": ("Float x Float",),
    "fp16": ("Half x Half",),
    "bf16": ("BFloat16 x BFloat16",),
    "int8": ("Int8 x Int8",),  # weights alone in int8 are computed with in fp16
    "fp8": ("FP8 x FP8",),
    "int4": ("Half x Int4",),
}


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


def gemm_share(layers: Sequence[LayerRow], precision: str) -> float | None:
    """The share of matrix products with weights that run in a precision; None without any."""
    kinds = Counter(layer.gemm_kind for layer in layers if layer.is_gemm and layer.weights)
    if not kinds:
        return None
    return sum(kinds[kind] for kind in _KINDS[precision]) / kinds.total()


def layer_facts(
    layers: tuple[LayerRow, ...], attentions: Sequence[tuple[str, ...]], precision: str
) -> dict[str, JSON]:
    """Counts, coverage and fingerprint of the engine's table.

    Raises:
        EngineBuildError: when not one matrix product has the precision that was asked for: the
            graph is another one than the recipe means.
    """
    share = gemm_share(layers, precision)
    kinds = count_gemm_kinds(layers)
    if share == 0:
        raise EngineBuildError(
            f"precision {precision} was asked for, and no matrix product of the engine has it: "
            + ", ".join(f"{count} {kind}" for kind, count in kinds.items()),
            hint=f"the graph that was given to the builder is not {precision}",
        )
    fused = fused_attentions(layers, attentions)
    coverage: dict[str, JSON] = {}
    if attentions:
        coverage["fused_attention"] = fused / len(attentions)
    if share is not None:
        coverage[f"{precision}_gemms"] = share
    return {
        "layers": len(layers),
        "layer_types": count_layer_types(layers),
        "gemm_kinds": kinds,
        "attention_blocks": len(attentions),
        "fused_attention": fused,
        "layer_fingerprint": layer_fingerprint(layers),
        "coverage": coverage,
    }


def short_row(layer: LayerRow) -> JSON:
    """One layer as a row of `layers.json`."""
    return {
        "name": layer.name,
        "type": layer.type,
        "inputs": [row.dtype for row in layer.inputs],
        "weights": layer.weights.dtype if layer.weights else None,
        "outputs": [row.dtype for row in layer.outputs],
        "tactic": layer.tactic,
        "onnx_nodes": list(layer.onnx_nodes),
    }
