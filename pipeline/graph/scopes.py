"""Which module of the checkpoint each value of an exported graph was computed by.

The exporter says so in each node's metadata, which is stripped from the graph because it also holds
paths. So it is kept in a small file beside the graph: the names of values stay the same through all
later stages, and the file serves all of them.
"""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import onnx_ir as ir

SCOPES_FILE: Final = "scopes.json"
_SCOPES_KEY: Final = "pkg.torch.onnx.name_scopes"
_MODEL: Final = "model"
"""Attribute of `pipeline.runtimes.torch_model.NamedOutputs` that holds the checkpoint's own model."""
_IDLE: Final = frozenset({"Constant", "Shape"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleCall:
    """One call of a module.

    Attributes:
        module: Its path in the module that was exported.
        call: How many calls of it came before.
    """

    module: str
    call: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scopes:
    """What the exporter said.

    Attributes:
        layers: Value -> path of the innermost module in the checkpoint's own model, such as
            `encoder.layer.0.output.dense`.
        results: Value -> the innermost call of a module that returned it.
        calls: Module -> how many calls of it could be told apart. Two calls one right after the
            other look like one.
    """

    layers: Mapping[str, str]
    results: Mapping[str, ModuleCall]
    calls: Mapping[str, int]


NO_SCOPES: Final = Scopes(layers={}, results={}, calls={})


def find_scopes(model: ir.Model) -> Scopes:
    """Read the exporter's metadata of a graph whose nodes are in the order of the program."""
    layers: dict[str, str] = {}
    last: dict[ModuleCall, str] = {}
    calls: dict[str, int] = {}
    before: tuple[str, ...] = ()
    for node in model.graph:
        modules = _modules(node)
        value = node.outputs[0].name
        if modules is None or not value:
            continue
        for module in modules:
            if module not in before:
                calls[module] = calls.get(module, -1) + 1
        before = modules
        if modules:
            layers[value] = layer_name(modules[-1])
        if node.op_type in _IDLE:
            continue
        for module in modules:
            last[_call(module, calls[module])] = value
    results: dict[str, ModuleCall] = {}
    for call, value in last.items():
        known = results.get(value)
        if known is None or len(call.module) > len(known.module):
            results[value] = call
    counts: dict[str, int] = {}
    for call in last:
        counts[call.module] = counts.get(call.module, 0) + 1
    named = {value: layer for value, layer in layers.items() if layer}
    return Scopes(layers=named, results=results, calls=counts)


def _modules(node: ir.Node) -> tuple[str, ...] | None:
    """Paths of the modules around a node, outermost first; None when nothing is known."""
    text = node.metadata_props.get(_SCOPES_KEY)
    if text is None:
        return None
    try:
        names = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return None
    # The last is the operation itself; the empty one is the module that was exported; names that
    # start with `_` were made up by torch.
    return tuple(str(name) for name in names[:-1] if name and not str(name).startswith("_"))


def _call(module: str, before: int) -> ModuleCall:
    """Torch writes a repeated call of a module as `path@1`."""
    path, mark, number = module.partition("@")
    if mark and number.isdigit():
        return ModuleCall(module=path, call=int(number))
    return ModuleCall(module=path, call=before)


def layer_name(module: str) -> str:
    """A module's path as the checkpoint has it; empty for the model as a whole."""
    path = module.partition("@")[0]
    return "" if path == _MODEL else path.removeprefix(f"{_MODEL}.")


def save_scopes(scopes: Scopes, directory: Path) -> None:
    """Write `scopes.json`."""
    document = {
        "layers": dict(scopes.layers),
        "calls": dict(scopes.calls),
        "results": {
            value: [call.module, call.call] for value, call in scopes.results.items()
        },
    }  # fmt: skip
    text = json.dumps(document, indent=0, sort_keys=True)
    (directory / SCOPES_FILE).write_text(f"{text}\n", encoding="utf-8")


def load_scopes(directory: Path) -> Scopes:
    """Read `scopes.json`; nothing is known of a graph from elsewhere, which has none."""
    path = directory / SCOPES_FILE
    if not path.is_file():
        return NO_SCOPES
    document = json.loads(path.read_text(encoding="utf-8"))
    return Scopes(
        layers=document["layers"],
        results=dict(_calls(document["results"])),
        calls=document["calls"],
    )


def _calls(results: Mapping[str, list[str | int]]) -> Iterator[tuple[str, ModuleCall]]:
    for value, (module, call) in results.items():
        yield value, ModuleCall(module=str(module), call=int(call))
