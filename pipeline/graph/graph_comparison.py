"""A float graph beside the skeleton of its quantised twin: node by node, and every number bit by bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.graph.audit_errors import attributes_of, differing
from pipeline.graph.audit_records import Audit, AuditRow
from pipeline.graph.fusions.matching import input_of, is_standard, node_name
from pipeline.graph.unquantized import unquantize

if TYPE_CHECKING:
    import onnx_ir as ir

    from pipeline.graph.audit_records import Kind


class GraphComparison:
    """Two graphs, matched by the names of the values that nodes write.

    Args:
        original: The float graph.
        quantized: What was made of it; its skeleton is the same graph without the integers.
    """

    def __init__(self, original: ir.Model, quantized: ir.Model) -> None:
        self._original = original
        self._versions = dict(quantized.graph.opset_imports)
        self._skeleton = unquantize(quantized)
        self._found = Audit(
            outputs=tuple(value.name or "" for value in original.graph.outputs),
            computed=frozenset(v.name or "" for node in original.graph for v in node.outputs),
        )
        self._mine = {v.name: n for n in self._skeleton.model.graph for v in n.outputs}
        self._equal: dict[tuple[ir.Value, ir.Value], int] = {}

    def _row(self, kind: Kind, layer: str, value: float, detail: str = "") -> None:
        finite = float(value) if np.isfinite(value) else None
        self._found.rows.append(AuditRow(kind=kind, layer=layer, value=finite, detail=detail))

    def _compare_graphs(self) -> None:
        """Every node that is not a quantised layer, and what all of them read."""
        mine = self._skeleton.model.graph
        for ours, theirs in zip(
            (self._original.graph.inputs, self._original.graph.outputs),
            (mine.inputs, mine.outputs),
            strict=True,
        ):
            if [value.name for value in ours] != [value.name for value in theirs]:
                names = ", ".join(f"`{value.name}`" for value in theirs)
                self._row("changed_nodes", "graph", 1, f"its inputs or outputs are {names}")
        for domain, version in self._original.graph.opset_imports.items():
            found = self._versions.get(domain)
            if found != version and not (domain and found is None):
                detail = f"opset {found} of `{domain or 'ai.onnx'}` in place of {version}"
                self._row("changed_nodes", "graph", 1, detail)
        for node in self._original.graph:
            before = len(self._found.rows)
            self._compare_node(node)
            if all(row.kind != "changed_nodes" for row in self._found.rows[before:]):
                self._row("changed_nodes", node_name(node), 0)

    def _compare_node(self, node: ir.Node) -> None:
        layer = node_name(node)
        name = next((value.name for value in node.outputs if value.name), "")
        found = self._mine.get(name)
        if found is None:
            self._row("changed_nodes", layer, 1, f"nothing computes `{name}`")
            return
        if node.op_type == "Gemm" and found.op_type != "Gemm":
            self._compare_split(node, found)
            return
        if (found.op_type, found.domain or "ai.onnx") != (node.op_type, node.domain or "ai.onnx"):
            detail = f"{found.op_type} in place of {node.op_type}"
            self._row("changed_nodes", layer, 1, detail)
            return
        if found not in self._skeleton.rebuilt and attributes_of(found) != attributes_of(node):
            self._row("changed_nodes", layer, 1, "its attributes differ")
        ours, theirs = [list(each.inputs) for each in (node, found)]
        for inputs in (ours, theirs):
            while inputs and inputs[-1] is None:
                inputs.pop()
        if len(ours) != len(theirs):
            self._row("changed_nodes", layer, 1, f"reads {len(theirs)} values, not {len(ours)}")
            return
        for value, other in zip(ours, theirs, strict=True):
            self._compare_input(layer, value, other)

    def _compare_split(self, node: ir.Node, found: ir.Node) -> None:
        """A Gemm that became a product and the addition of its bias."""
        layer = node_name(node)
        bias = input_of(node, 2)
        product: ir.Node | None = found
        if bias is not None:
            if not is_standard(found, "Add") or len(found.inputs) != 2:
                detail = f"{found.op_type} in place of the addition of its bias"
                self._row("changed_nodes", layer, 1, detail)
                return
            products = [v for v in found.inputs if v and v.producer() in self._skeleton.rebuilt]
            product = products[0].producer() if products else None
            others = [v for v in found.inputs if not products or v is not products[0]]
            self._compare_input(layer, bias, others[0] if others else None)
        if product is None or product not in self._skeleton.rebuilt:
            self._row("changed_nodes", layer, 1, "there is no product in its place")
            return
        self._compare_input(layer, node.inputs[0], product.inputs[0])

    def _compare_input(self, layer: str, value: ir.Value | None, other: ir.Value | None) -> None:
        """One input of a node: the same value by name, or a constant with the same bits."""
        if value is None or other is None:
            if value is not other:
                self._row("changed_nodes", layer, 1, "an input is left out in one of the graphs")
            return
        is_constant = [
            each.const_value is not None and not each.is_graph_input() and each.producer() is None
            for each in (value, other)
        ]
        if is_constant == [True, True]:
            if (value, other) not in self._equal:
                self._equal[value, other] = differing(value, other)
            count = self._equal[value, other]
            self._row("changed_constants", layer, count, f"of `{value.name}`")
        elif any(is_constant) or value.name != other.name:
            self._row(
                "changed_nodes", layer, 1, f"reads `{other.name}` in place of `{value.name}`"
            )
