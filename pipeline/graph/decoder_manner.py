"""What can be asked of a decoder's graph: whether it keeps a cache, and where padding may stand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pipeline.data.decoder_inputs import is_cache
from pipeline.graph.inspect import iter_nodes

if TYPE_CHECKING:
    import onnx

_SHARED: Final = "GroupQueryAttention"
_BIAS: Final = 10
"""Place of its `attention_bias`, which may be a mask. Source: ContribOperators.md, ONNX Runtime 1.31."""


def keeps_cache(model: onnx.ModelProto) -> bool:
    """Whether keys and values go in."""
    return any(is_cache(value.name) for value in model.graph.input)


def counts_its_mask(model: onnx.ModelProto) -> bool:
    """Whether attention is told how many tokens a row has, and not which ones.

    `com.microsoft.GroupQueryAttention` takes lengths, counted from the front: what is masked must
    stand behind. Graphs of ONNX Runtime GenAI are made so.
    """
    return any(
        node.op_type == _SHARED and not (len(node.input) > _BIAS and node.input[_BIAS])
        for node in iter_nodes(model.graph.node)
    )
