"""How many last tokens get logits, said as transformers.js wants it: a scalar that must be fed.

Our graphs have an optional input for it (`pipeline.graph.decoder_fusions.last_logits`), which transformers.js
does not see. Source: `setNumLogitsToKeep` in `src/models/modeling_utils.js` of transformers.js 4.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import onnx

from pipeline.graph.decoder_fusions.last_logits import INPUT

if TYPE_CHECKING:
    from pathlib import Path

_LIST: Final = f"{INPUT}_list"


def can_keep_few(path: Path) -> bool:
    """Whether a graph has the optional input."""
    model = onnx.load(path, load_external_data=False)
    return any(value.name == INPUT for value in model.graph.input)


def ask_how_many(path: Path) -> bool:
    """Let a graph be told how many by a scalar that must be fed; its file is written anew.

    Returns:
        Whether it has the input for it; otherwise the file stays as it is.
    """
    model = onnx.load(path, load_external_data=False)
    asked = [value for value in model.graph.input if value.name == INPUT]
    default = [tensor for tensor in model.graph.initializer if tensor.name == INPUT]
    if not asked or not default:
        return False
    model.graph.initializer.remove(default[0])
    asked[0].CopyFrom(onnx.helper.make_tensor_value_info(INPUT, onnx.TensorProto.INT64, []))
    for node in model.graph.node:
        node.input[:] = [_LIST if name == INPUT else name for name in node.input]
    one = onnx.numpy_helper.from_array(np.ones(1, np.int64), f"{_LIST}_shape")
    model.graph.initializer.append(one)
    node = onnx.helper.make_node("Reshape", [INPUT, one.name], [_LIST], name=_LIST)
    model.graph.node.insert(0, node)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return True
