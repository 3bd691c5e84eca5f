"""A copy of a model file that returns some of its inner values too, for calibration.

The file is not parsed to be written: protobuf messages that are concatenated are merged, repeated
fields joined (protobuf's encoding guide, "Last One Wins"). So the copy is the old file with the new
outputs behind it, and costs no memory however large the weights are.
"""

from __future__ import annotations

import gc
import shutil
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir
from onnx import TensorProto, helper
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from pipeline.graph.files import load_graph_only
from pipeline.graph.weighted_layers import NeededTensor, needed_tensors
from pipeline.stages.base import EXTERNAL_DATA_FILE, MODEL_FILE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def read_needed_tensors(model: Path) -> tuple[NeededTensor, ...]:
    """`needed_tensors` of a model file; weights in external data are not read.

    Raises:
        ArtifactError: when the file is no model.
    """
    loaded = ir.serde.deserialize_model(load_graph_only(model))
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(loaded)
    needed = needed_tensors(loaded.graph)
    del loaded
    gc.collect()  # a graph is full of cycles, and would keep its weights for long
    return needed


def write_observed_model(
    source: Path, names: Sequence[str], directory: Path, *, is_float32: bool = True
) -> Path:
    """Copy a model with more outputs.

    Args:
        source: Directory of the model; it is not written to.
        names: Values computed by nodes of the main graph, none of them an output already.
        directory: An empty directory.
        is_float32: All of them are float32; otherwise their types are left to ONNX Runtime.

    Returns:
        The path of the copy.
    """
    path = directory / MODEL_FILE
    shutil.copyfile(source / MODEL_FILE, path)
    if (source / EXTERNAL_DATA_FILE).exists():
        # Not a link: ONNX Runtime takes plain files only, and a file system may have no hard ones.
        shutil.copyfile(source / EXTERNAL_DATA_FILE, directory / EXTERNAL_DATA_FILE)
    extra = onnx.ModelProto()
    extra.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        if is_float32
        else onnx.ValueInfoProto(name=name)
        for name in names
    )
    with path.open("ab") as file:
        file.write(extra.SerializeToString(deterministic=True))
    return path
