"""Weights of very large checkpoints stay in 16 bits between stages, and every stage sees float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import torch
from safetensors.torch import load_file

from benchmarks.large_llama import SIZES, write_large_llama
from pipeline.graph.files import (
    load_graph_only,
    load_ir_model,
    save_ir_model,
    structure_of,
)
from pipeline.graph.narrow_weights import NarrowWeight
from pipeline.graph.stored_weights import use_stored_weights
from pipeline.stages.base import EXTERNAL_DATA_FILE, MODEL_FILE
from pipeline.stages.catalogue import STAGES
from tests.graph.models import run
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from pathlib import Path

    import pytest
    from numpy.typing import NDArray

CHAIN = (
    ("simplify", {}),
    ("fuse", {}),
    ("quantize_weights", {"bits": 4, "block_size": 32, "method": "rtn"}),
)


def run_stage(name: str, port: str, source: Path, config: dict[str, object], root: Path) -> Path:
    stage = next(stage for stage in STAGES if stage.name == name)
    output = root / name
    output.mkdir(parents=True)
    given = stage.config_type.model_validate(config)
    stage.run(given, {port: source}, output, RecordingContext(root))
    return output


def run_chain(exported: Path, root: Path) -> list[Path]:
    found = [exported]
    for name, config in CHAIN:
        found.append(run_stage(name, "model", found[-1], config, root))
    return found


def weights(folder: Path) -> dict[str, NDArray[np.generic]]:
    model = load_ir_model(folder / MODEL_FILE)
    return {
        name: np.array(value.const_value.numpy())
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }


def casts(folder: Path) -> list[str]:
    graph = load_graph_only(folder / MODEL_FILE).graph
    return [node.name for node in graph.node if node.name.startswith("widen_")]


def widened(exported: Path, output: Path) -> Path:
    """The same graph as one of float32 weights."""
    model = load_ir_model(exported / MODEL_FILE)
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        value.const_value = ir.tensor(np.array(value.const_value.numpy()), name=value.name)
    output.mkdir()
    save_ir_model(model, output)
    return output


def test_stages_write_16_bits_and_mean_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every graph of a chain, against that of one whose weights were widened at once."""
    monkeypatch.setitem(use_stored_weights.__kwdefaults__, "limit", 0)
    monkeypatch.setitem(save_ir_model.__kwdefaults__, "inline_limit_bytes", 0)
    checkpoint = write_large_llama(tmp_path / "llama", SIZES["tiny"], dtype="bfloat16")
    config: dict[str, object] = {"task": "text-generation", "component": "model"}
    exported = run_stage("export", "checkpoint", checkpoint, config, tmp_path / "narrow")
    made = run_chain(exported, tmp_path / "narrow")
    expected = run_chain(widened(exported, tmp_path / "export"), tmp_path / "wide")
    stored = load_file(checkpoint / "model.safetensors")
    table = weights(exported)["model.model.embed_tokens.weight"]
    assert torch.equal(torch.from_numpy(table), stored["model.embed_tokens.weight"].float())
    for ours, theirs in zip(made, expected, strict=True):
        assert casts(ours)
        assert not casts(theirs)
        found, meant = weights(ours), weights(theirs)
        assert found.keys() == meant.keys()
        for name, array in meant.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array, err_msg=name)
    # The table and the head are large enough to stay narrow.
    sizes = [
        sum((folder / EXTERNAL_DATA_FILE).stat().st_size for folder in (chain[0], chain[1]))
        for chain in (made, expected)
    ]
    assert sizes[1] - sizes[0] >= 2 * (2 * 320 * 64 * 2)
    feeds = empty_past(made[-1] / MODEL_FILE)
    for ours, theirs in zip(
        run(made[-1] / MODEL_FILE, feeds), run(expected[-1] / MODEL_FILE, feeds), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def empty_past(path: Path) -> dict[str, NDArray[np.generic]]:
    """Four tokens and nothing before them."""
    feeds: dict[str, NDArray[np.generic]] = {
        "input_ids": np.array([[5, 6, 7, 8]]),
        "attention_mask": np.ones((1, 4), np.int64),
        "position_ids": np.arange(4)[None],
    }
    for value in load_graph_only(path).graph.input:
        if value.name not in feeds:
            feeds[value.name] = np.zeros((1, 2, 0, 16), np.float32)
    return feeds


def test_the_structure_of_a_graph_is_had_without_any_number(tmp_path: Path) -> None:
    absent = ir.ExternalTensor(
        "absent", 0, 2 << 20, ir.DataType.BFLOAT16, shape=ir.Shape((1 << 10, 1 << 10)), name="w",
        base_dir=tmp_path,
    )  # fmt: skip
    weight = ir.Value(name="w", const_value=NarrowWeight(absent, "w"))
    x = ir.Value(name="x", shape=ir.Shape(("n", 1 << 10)), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.Node("", "MatMul", [x, weight])
    graph = ir.Graph(
        [x], node.outputs, nodes=[node], initializers=[weight], opset_imports={"": 20}, name="g"
    )
    model = ir.Model(graph, ir_version=10)
    found = structure_of(model)
    assert [each.name for each in found.graph.initializer] == ["w"]
    assert found.ByteSize() < 1000
    assert isinstance(weight.const_value, NarrowWeight)  # as it was
