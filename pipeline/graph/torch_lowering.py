"""A traced torch program made ready for translation, without tracing it again where possible.

`torch.onnx.export` traces the program a second and a third time, to decompose operators and to make
type promotion explicit. For MiniLM that is more than half of the whole export (see
`docs/decisions/0001-export-route.md`), and changes nothing: every operator that such an encoder
uses has a translation of its own, and none mixes types. So the program is looked at first. What
does nothing in evaluation mode is dropped, aliases are replaced by the operators they stand for,
and the second trace is left out when nothing is left that needs it.
"""

# ruff: noqa: SLF001 - schemas of operators have no public name in torch 2.13

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch.fx import Node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_aten = torch.ops.aten

_BITWISE: Final = {
    "aten::__and__": "bitwise_and",
    "aten::__or__": "bitwise_or",
    "aten::__xor__": "bitwise_xor",
}
"""Python's operators -> the operators they stand for; overloads have the same names."""

_CONVERSIONS: Final = frozenset({"aten::to", "aten::type_as"})
_IDENTITIES: Final = frozenset(
    {"aten::contiguous", "aten::detach", "aten::detach_", "aten::alias", "aten::lift"}
)
"""`detach_` writes nothing: it takes a tensor out of autograd, which is not traced."""
_ACCUMULATIONS: Final = frozenset({"aten::cumsum", "aten::sum", "aten::prod", "aten::cumprod"})
_CATEGORIES: Final = (bool, int, float)


def lower_program(program: torch.export.ExportedProgram) -> None:
    """Drop what does nothing, and replace aliases, in place. The result computes the same."""
    graph = program.graph
    for node in list(graph.nodes):
        if isinstance(node.target, torch._ops.OpOverload):
            _lower_node(node, node.target)
    graph.eliminate_dead_code()
    graph.lint()
    program.graph_module.recompile()


def _lower_node(node: Node, target: torch._ops.OpOverload) -> None:
    name = target._schema.name
    if not target._schema.returns and not node.users:
        node.graph.erase_node(node)
    elif name in _BITWISE:
        packet = getattr(_aten, _BITWISE[name])
        node.target = getattr(packet, target._overloadname)
    elif name in _IDENTITIES | _CONVERSIONS or _is_idle_dropout(node, name):
        _replace_by_copy(node)
    elif name in _ACCUMULATIONS:
        _promote_first_argument(node)
    elif target == _aten.view.default:
        # A view needs its source laid out in a certain way, and copies that saw to it are dropped
        # here: the second trace refuses it then. In ONNX both are `Reshape`.
        node.target = _aten.reshape.default


def _is_idle_dropout(node: Node, name: str) -> bool:
    return name == "aten::dropout" and node.args[2:3] == (False,)


def _replace_by_copy(node: Node) -> None:
    """Make the node a conversion to its own type, or drop it when it has that type already."""
    source = node.args[0]
    assert isinstance(source, Node)
    if _dtype(source) != _dtype(node):
        node.target, node.args, node.kwargs = (
            _aten._to_copy.default,
            (source,),
            {"dtype": _dtype(node)},
        )
    elif any(user.op == "output" for user in node.users):
        node.target, node.args, node.kwargs = _aten.clone.default, (source,), {}
    else:
        node.replace_all_uses_with(source)
        node.graph.erase_node(node)


def _promote_first_argument(node: Node) -> None:
    """Convert what is summed to the type of the sum: torch sums small integers in int64."""
    source = node.args[0]
    assert isinstance(source, Node)
    dtype = _dtype(node)
    if dtype is None or dtype == _dtype(source):
        return
    with node.graph.inserting_before(node):
        copy = node.graph.call_function(_aten._to_copy.default, (source,), {"dtype": dtype})
    copy.meta = {**node.meta, "val": source.meta["val"].to(dtype)}
    node.update_arg(0, copy)


def used_operators(program: torch.export.ExportedProgram) -> frozenset[str]:
    """Qualified names (`aten::add.Tensor`) of all operators that the program calls."""
    return frozenset(_operator_name(node) for node in _calls(program))


def is_functional(program: torch.export.ExportedProgram) -> bool:
    """Whether nothing in the program writes into a tensor, and it is one plain graph."""
    signature = program.graph_signature
    if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
        return False
    if sum(1 for _ in program.graph_module.modules()) > 1:
        return False  # branches or loops
    return not any(
        isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
        for node in _calls(program)
    )


def is_promotion_free(
    program: torch.export.ExportedProgram, promotes: Callable[[Node], bool]
) -> bool:
    """Whether no operator relies on torch to bring its arguments to a common type.

    Args:
        program: The program.
        promotes: Whether torch would promote the arguments of this node if they differed.
    """
    return all(_has_one_type(node) for node in _calls(program) if promotes(node))


def _has_one_type(node: Node) -> bool:
    arguments = node.all_input_nodes
    if _operator_name(node).startswith("aten::where"):  # the condition is not promoted
        arguments = [argument for argument in arguments if argument is not node.args[0]]
    dtypes = {dtype for argument in arguments if (dtype := _dtype(argument)) is not None}
    if not dtypes:
        return True
    if len(dtypes) > 1:
        return False
    dtype = dtypes.pop()
    if any(_is_size(argument) for argument in arguments) and dtype != torch.int64:
        return False  # a size is written as int64, where torch takes it for a mere number
    if _dtype(node) not in {dtype, torch.bool}:
        return False  # the result is promoted, as the quotient of two integers is
    category = 2 if dtype.is_floating_point else 0 if dtype == torch.bool else 1
    return all(
        _CATEGORIES.index(type(scalar)) <= category
        for scalar in (*node.args, *node.kwargs.values())
        if type(scalar) in _CATEGORIES
    )


def _calls(program: torch.export.ExportedProgram) -> Iterator[Node]:
    return (node for node in program.graph.nodes if node.op == "call_function")


def _operator_name(node: Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target.name())  # type: ignore[no-untyped-call]
    return f"_operator::{getattr(node.target, '__name__', node.target)}"


def _is_size(node: Node) -> bool:
    return isinstance(node.meta.get("val"), torch.SymInt)


def _dtype(node: Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, torch.Tensor) else None
