"""Quantises a graph as other tools do by default; runs in an environment that has ModelOpt.

    PEER/bin/python benchmarks/placements_peer.py TOOL MODEL.onnx CALIBRATION.npz RESULT.onnx

TOOL is `modelopt`, `onnxruntime` (its defaults) or `onnxruntime-symmetric` (its defaults, but for what
TensorRT refuses otherwise: symmetric int8 without an int32 bias, of matrix products only). `placements.py` calls it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)


class _Reader(CalibrationDataReader):
    """One sample after the other; all have one length."""

    def __init__(self, samples: dict[str, np.ndarray]) -> None:
        self._samples = samples
        self.rewind()

    def rewind(self) -> None:
        """Begin anew."""
        count = len(next(iter(self._samples.values())))
        self._feeds = iter(
            [
                {name: array[i : i + 1] for name, array in self._samples.items()}
                for i in range(count)
            ]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next sample, or None."""
        return next(self._feeds, None)


def _onnxruntime(model: str, samples: dict[str, np.ndarray], result: str, **options: Any) -> None:
    quantize_static(model, result, _Reader(samples), quant_format=QuantFormat.QDQ, **options)


def _modelopt(model: str, samples: dict[str, np.ndarray], result: str) -> None:
    from modelopt.onnx.quantization import quantize

    quantize(
        model,
        quantize_mode="int8",
        calibration_data=samples,
        calibration_eps=["cpu"],
        output_path=result,
        log_level="ERROR",
    )


def main(tool: str, model: str, calibration: str, result: str) -> None:
    """Quantise."""
    with np.load(calibration) as archive:
        samples = dict(archive)
    if tool == "modelopt":
        _modelopt(model, samples, result)
    elif tool == "onnxruntime":
        _onnxruntime(model, samples, result)
    else:
        _onnxruntime(
            model,
            samples,
            result,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
            },
        )
    if not Path(result).is_file():
        raise SystemExit(f"{tool} wrote nothing")


if __name__ == "__main__":
    main(*sys.argv[1:5])
