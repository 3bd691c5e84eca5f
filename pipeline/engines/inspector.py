"""Reads the JSON of full TensorRT's engine inspector into the table that `builder_log` has.

TensorRT-RTX logs its table while it builds. Full TensorRT may not; there the GPU that built the
engine can also load it, and the inspector describes it. TensorRT 10 writes one string
`Format/Datatype` for each tensor, 11 writes `Format` and `Datatype` apart.
Source: docs.nvidia.com/deeplearning/tensorrt, "Engine inspector", and the migration notes from 10
to 11.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from pipeline.engines.builder_log import (
    LayerRow,
    TensorRow,
    assign_profiles,
    find_onnx_nodes,
    parse_layers,
)
from pipeline.errors import EngineBuildError

if TYPE_CHECKING:
    from collections.abc import Mapping

_DTYPES = {
    "fp32": "Float",
    "float": "Float",
    "fp16": "Half",
    "half": "Half",
    "bf16": "BFloat16",
    "bfloat16": "BFloat16",
    "int8": "Int8",
    "fp8": "FP8",
    "int4": "Int4",
    "fp4": "FP4",
    "int32": "Int32",
    "int64": "Int64",
    "bool": "Bool",
}
"""Words of the inspector, in lower case -> those of the builder's table."""
_SEPARATORS = re.compile(r"[\x1e\x1f]")
_NO_WORD = re.compile(r"\W+")
_PRODUCTS = frozenset({"gemm", "matrixmultiply", "matrix_multiply", "fullyconnected"})


def engine_layers(record: str, inspection: str) -> tuple[LayerRow, ...]:
    """The engine's table, from whichever of the two there is.

    Args:
        record: The builder's record; see `builder_log.parse_layers`.
        inspection: The inspector's JSON.

    Raises:
        EngineBuildError: when there is neither, or it has an unknown form.
    """
    if record or not inspection:
        return parse_layers(record)
    return parse_inspection(inspection)


def parse_inspection(text: str) -> tuple[LayerRow, ...]:
    """The table that the inspector's JSON describes, in order of execution.

    Raises:
        EngineBuildError: when it has another form, or was built without details.
    """
    try:
        document = json.loads(text)
        layers = document["Layers"]
        texts = [json.dumps(layer) for layer in layers]
        return assign_profiles([_layer(layer) for layer in layers], texts)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineBuildError(
            f"what the engine inspector says has an unknown form: {text[:200]}",
            hint="this version of TensorRT is newer than what this program knows",
        ) from error


def _layer(layer: Mapping[str, Any]) -> LayerRow:
    kind = str(layer["LayerType"])
    weights = layer.get("Weights") or {}
    constants = [_tensor(row) for row in layer.get("Constants", ())]
    if isinstance(weights, dict) and weights.get("Count"):
        # It gives their type and their number, not their shape.
        constants.append(TensorRow((int(weights["Count"]), 2), _word(weights["Type"]), ""))
    return LayerRow(
        name=str(layer["Name"]),
        type="gemm" if kind.lower() in _PRODUCTS else kind,
        inputs=tuple(_tensor(row) for row in layer["Inputs"]),
        constants=tuple(constants),
        outputs=tuple(_tensor(row) for row in layer["Outputs"]),
        tactic=str(layer.get("TacticName", "")),
        onnx_nodes=find_onnx_nodes(_SEPARATORS.sub("", str(layer.get("Metadata", "")))),
    )


def _tensor(row: Mapping[str, Any]) -> TensorRow:
    dims = tuple(int(dim) for dim in row.get("Dimensions", ()))
    for key in ("Datatype", "DataType"):
        if key in row:
            return TensorRow(dims, _word(row[key]), str(row.get("Format", "")))
    both = str(row["Format/Datatype"])
    words = _NO_WORD.split(both)
    known = [_DTYPES[word.lower()] for word in words if word.lower() in _DTYPES]
    return TensorRow(dims, known[-1] if known else both, both)


def _word(dtype: str) -> str:
    return _DTYPES.get(dtype.lower(), dtype)
