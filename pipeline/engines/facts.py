"""What is said of an engine: its layers, its memory, and how much of it is what was asked for."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pipeline.engines.builder_log import count_gemm_kinds, count_layer_types, layer_fingerprint
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
    """The share of matrix products with weights that are of a row of `FORMS`; None without any."""
    kinds = Counter(layer.gemm_kind for layer in layers if layer.is_gemm and layer.weights)
    if not kinds:
        return None
    return sum(kinds[kind] for kind in _KINDS[form]) / kinds.total()


def layer_facts(
    layers: tuple[LayerRow, ...],
    attentions: Sequence[tuple[str, ...]],
    precision: str,
    *,
    activation_bytes: int,
    is_weight_only: bool = False,
) -> dict[str, JSON]:
    """Counts, coverage and fingerprint of the engine's table.

    Coverage, which recipes limit in `gates.coverage`: `fused_attention` and `{precision}_gemms` are
    shares, `activation_memory_mib` is MiB at the largest shapes, `copy_layers` is a count.

    Args:
        layers: The engine's table.
        attentions: Names of the nodes of each attention of the graph.
        precision: What was asked for.
        activation_bytes: What activations take at the largest shapes.
        is_weight_only: Of int8: the weights alone have 8 bits.

    Raises:
        EngineBuildError: when not one matrix product has the precision that was asked for: the
            graph is another one than the recipe means.
    """
    form = WEIGHT_ONLY.get(precision, precision) if is_weight_only else precision
    share = gemm_share(layers, form)
    kinds = count_gemm_kinds(layers)
    if share == 0:
        what = f"{precision} weights were" if is_weight_only else f"precision {precision} was"
        raise EngineBuildError(
            f"{what} asked for, and no matrix product of the engine has it: "
            + ", ".join(f"{count} {kind}" for kind, count in kinds.items()),
            hint=f"the graph that was given to the builder is not {precision}",
        )
    fused = fused_attentions(layers, attentions)
    copies = sum(layer.is_copy for layer in layers)
    coverage: dict[str, JSON] = {
        "activation_memory_mib": round(activation_bytes / _MIB, 3),
        "copy_layers": copies,
    }
    if attentions:
        coverage["fused_attention"] = fused / len(attentions)
    if share is not None:
        coverage[f"{precision}_gemms"] = share
    return {
        "layers": len(layers),
        "layer_types": count_layer_types(layers),
        "copy_layers": copies,
        "gemm_kinds": kinds,
        "attention_blocks": len(attentions),
        "fused_attention": fused,
        "layer_fingerprint": layer_fingerprint(layers),
        "coverage": coverage,
    }


def short_row(layer: LayerRow) -> JSON:
    """One layer as a row of `layers.json`, and of `layer_rows` in the facts.

    `name`, `type`, `precision` (see `LayerRow.precision`), `inputs` and `outputs` (types of the
    tensors), `weights` (type, or null), `tactic` (the kernel) and `onnx_nodes`.
    """
    return {
        "name": layer.name,
        "type": layer.type,
        "precision": layer.precision,
        "inputs": [row.dtype for row in layer.inputs],
        "weights": layer.weights.dtype if layer.weights else None,
        "outputs": [row.dtype for row in layer.outputs],
        "tactic": layer.tactic,
        "onnx_nodes": list(layer.onnx_nodes),
    }
