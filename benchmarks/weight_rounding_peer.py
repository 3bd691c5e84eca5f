"""Stores the weights of a decoder in 4 bits as another tool does; `weight_rounding.py` calls it.

    PYTHON benchmarks/weight_rounding_peer.py TOOL MODEL.onnx CALIBRATION.npz RESULT.onnx

TOOL is `onnxruntime-` with `rtn`, `zero-points`, `hqq`, `k-quant` or `gptq`, or `nncf-` with `rtn`, `zero-points`,
`scales` (estimated on the calibration texts), `awq` or `gptq`, in a Python that has it. Prints JSON: seconds of the
tool's own call, and the largest resident memory of the process.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx  # noqa: TID251  (a script for other environments too)

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 32


def _feeds(model: onnx.ModelProto, calibration: str) -> list[dict[str, np.ndarray]]:
    """Each text as inputs of the graph, with an empty past."""
    with np.load(calibration) as held:
        texts = [held[name] for name in held.files]
    pasts = {
        each.name: [axis.dim_value for axis in each.type.tensor_type.shape.dim]
        for each in model.graph.input
        if each.name.startswith("past_key_values.")
    }
    empty = {n: np.zeros((1, dims[1], 0, dims[3]), np.float32) for n, dims in pasts.items()}
    return [
        {
            **empty,
            "input_ids": tokens,
            "attention_mask": np.ones_like(tokens),
            "position_ids": np.arange(tokens.shape[1])[None],
        }
        for tokens in texts
    ]


class _Reader:
    """What ONNX Runtime reads calibration texts from."""

    def __init__(self, feeds: list[dict[str, np.ndarray]]) -> None:
        self._feeds = feeds
        self.rewind()

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return iter(self._feeds)

    def rewind(self) -> None:
        """Begin anew."""
        self._left = iter(self._feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next text, or None."""
        return next(self._left, None)


def _onnxruntime(model: onnx.ModelProto, how: str, calibration: str) -> onnx.ModelProto:
    from onnxruntime.quantization import matmul_nbits_quantizer as tool

    is_symmetric = how != "zero-points"
    config: Any = {
        "rtn": lambda: tool.DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=True),
        "zero-points": lambda: tool.DefaultWeightOnlyQuantConfig(
            block_size=BLOCK, is_symmetric=False
        ),
        "hqq": lambda: tool.HQQWeightOnlyQuantConfig(block_size=BLOCK),
        "k-quant": tool.KQuantWeightOnlyQuantConfig,
        "gptq": lambda: tool.GPTQWeightOnlyQuantConfig(
            calibration_data_reader=_Reader(_feeds(model, calibration)), block_size=BLOCK
        ),
    }[how]()
    quantizer = tool.MatMulNBitsQuantizer(
        model, block_size=BLOCK, is_symmetric=is_symmetric, algo_config=config
    )
    quantizer.process()
    found: onnx.ModelProto = quantizer.model.model
    return found


def _nncf(model: onnx.ModelProto, how: str, calibration: str) -> onnx.ModelProto:
    import nncf

    options: dict[str, Any] = {"scales": {"scale_estimation": True}}.get(how, {how: True})
    if how in {"rtn", "zero-points"}:
        options = {}
    else:
        options["dataset"] = nncf.Dataset(_feeds(model, calibration))
    modes = nncf.CompressWeightsMode
    found: onnx.ModelProto = nncf.compress_weights(
        model,
        mode=modes.INT4_ASYM if how == "zero-points" else modes.INT4_SYM,
        group_size=BLOCK,
        all_layers=True,
        ignored_scope=nncf.IgnoredScope(types=["Gather"]),  # with tables its graph is not valid
        **options,
    )
    return found


def main() -> None:
    """Quantise, save, and say what it took."""
    tool, source, calibration, result = sys.argv[1:]
    name, how = tool.split("-", 1)
    model = onnx.load(source)
    started = time.perf_counter()
    made = {"onnxruntime": _onnxruntime, "nncf": _nncf}[name](model, how, calibration)
    seconds = time.perf_counter() - started
    onnx.save(made, result)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak_bytes": peak}))


if __name__ == "__main__":
    main()
