"""A traced torch program as an ONNX graph.

Two routes to the same graph: *direct* translation of the program as it was traced, and *decomposed*
by `torch.onnx.export`, for programs that hold something only a second trace can take apart.
`pipeline.graph.torch_lowering` decides which one a program needs. The direct route uses parts of
`torch.onnx` that have no public name (as of torch 2.13); all such names are in this file.
"""

# ruff: noqa: SLF001 - see above

from __future__ import annotations

import logging
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import torch
from onnxscript import optimizer, version_converter
from torch.onnx._internal.exporter import _core, _ir_passes, _registration
from torch.onnx._internal.exporter._torchlib import _torchlib_registry
from torch.onnx._internal.fx.passes.type_promotion import (
    TypePromotionTable,
    get_type_promotion_rule,
)

from pipeline.errors import ExportError
from pipeline.graph.torch_lowering import (
    is_functional,
    is_promotion_free,
    lower_program,
    used_operators,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir
    from torch.fx import Node

Route = Literal["direct", "decomposed"]

_OPERATOR: Final = re.compile(r"\[target=torch\.ops\.([\w.]+)\]")
"""How torch names the operator in its listing of a node that it cannot translate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Translation:
    """A translated program.

    Attributes:
        model: The graph, with the tensors of the program as its weights.
        route: How it was made.
        is_folded: Whether constants may have been computed from weights.
    """

    model: ir.Model
    route: Route
    is_folded: bool


def translate_program(
    program: torch.export.ExportedProgram,
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    opset: int,
) -> Translation:
    """Translate a program; the program itself is changed.

    Args:
        program: As `torch.export.export` made it.
        input_names: New names of the inputs, in order.
        output_names: New names of the outputs, in order.
        opset: Version of the standard operators to write.

    Raises:
        ExportError: when an operator has no translation.
    """
    lower_program(program)
    registry = _partial_registry(used_operators(program), opset)
    route: Route = "direct" if _is_direct(program, registry) else "decomposed"
    try:
        if route == "direct":
            model = _core._exported_program_to_onnx_program(program, registry=registry).model
        else:
            model = _decompose_and_translate(program, opset)
    except (torch.onnx.OnnxExporterError, RuntimeError, ValueError, TypeError) as err:
        raise ExportError(f"torch.onnx cannot translate the model: {_reason(err)}") from err
    is_folded = _finish(model, opset)
    _ir_passes.rename_inputs(model, tuple(input_names))
    _ir_passes.rename_outputs(model, tuple(output_names))
    return Translation(model=model, route=route, is_folded=is_folded)


def _reason(err: BaseException) -> str:
    """The operator that has no translation, and the first error of all, without the node's listing."""
    operator, first = "", err
    while True:
        found = _OPERATOR.search(str(first))
        operator = f"`{found[1]}`: " if found else operator
        if first.__cause__ is None:
            break
        first = first.__cause__
    said = str(first).strip()
    return operator + (said.splitlines()[0] if said else type(first).__name__)


def _finish(model: ir.Model, opset: int) -> bool:
    """Bring the graph to the opset asked for, without functions and without sequences of tensors.

    Returns whether constants were folded for it.

    torchlib writes opset 18 and newer operators where it needs them; a split it writes as a
    sequence, which no engine takes and which the folding pass turns into plain outputs.
    """
    version_converter.convert_version(model, opset)
    has_sequences = any("Sequence" in node.op_type for node in model.graph.all_nodes())
    if has_sequences:
        optimizer.optimize(model)
    if model.opset_imports.get("") != opset or model.functions:
        raise ExportError(
            f"the graph cannot be written in opset {opset}: it stays at "
            f"{model.opset_imports.get('')}",
            hint="choose another opset under `export` in the recipe",
        )
    return has_sequences


def _is_direct(
    program: torch.export.ExportedProgram, registry: _registration.ONNXRegistry
) -> bool:
    table = TypePromotionTable()

    def promotes(node: Node) -> bool:
        return get_type_promotion_rule(node, table) is not None

    return (
        all(
            name.startswith("_operator::") or name in registry.functions
            for name in used_operators(program)
        )
        and is_functional(program)
        and is_promotion_free(program, promotes)
    )


def _partial_registry(operators: frozenset[str], opset: int) -> _registration.ONNXRegistry:
    """Torch's own translations, and of torchlib's those of these operators alone.

    Registering all of torchlib parses the source of a thousand functions, of which a model needs
    some forty.
    """
    from onnxscript.function_libs.torch_lib import ops, registration

    del ops  # importing it fills the registry
    registry = _registration.ONNXRegistry()
    registry._opset_version = opset
    for meta in _torchlib_registry.get_torchlib_ops():
        registry._register(meta.fx_target, meta)
    for name in sorted(operators):
        if name not in registration.default_registry:
            continue  # torch's own, such as those on sizes: `torch.sym_min`
        overload = _registration._get_overload(name)
        if overload is None:
            continue
        for function in registration.default_registry[name].overloads:
            registry._register(
                overload,
                _registration.OnnxDecompMeta(
                    onnx_function=function, fx_target=overload, signature=None
                ),
            )
    registry._cleanup_registry_based_on_opset_version()
    return registry


def _decompose_and_translate(program: torch.export.ExportedProgram, opset: int) -> ir.Model:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = torch.onnx.export(
            program,
            (),
            opset_version=opset,
            dynamo=True,
            optimize=False,
            verify=False,
            verbose=False,
        )
    assert result is not None
    return result.model
