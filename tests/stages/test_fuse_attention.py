"""Attention as an operator of ONNX on real exports: the same numbers, and a kernel of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from pipeline.engines.build import EngineRequest, build_engine
from pipeline.engines.builder_log import parse_layers
from pipeline.engines.facts import fused_attentions
from pipeline.engines.module import TENSORRT_RTX
from pipeline.graph.engine_checks import read_engine_graph
from pipeline.parity.tolerances import TOLERANCES
from pipeline.stages.cast import CAST, CastConfig
from pipeline.stages.export import EXPORT, ExportConfig
from pipeline.stages.fuse_attention import FUSE_ATTENTION, FuseAttentionConfig
from pipeline.stages.simplify import SIMPLIFY, SimplifyConfig
from tests.checkpoints import bert_config, save_model, vocabulary
from tests.graph.fusions.graphs import SPELLINGS, attention_model
from tests.stages.test_quantize_static import Workbench

if TYPE_CHECKING:
    from pathlib import Path

LAYERS = 2


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """An encoder whose heads have a size that TensorRT has a kernel for."""
    from transformers import BertModel

    root = tmp_path_factory.mktemp("attention")
    config = bert_config(hidden_size=64, num_attention_heads=2, num_hidden_layers=LAYERS)
    checkpoint = save_model(BertModel, config, root / "checkpoint", 0)
    bench = Workbench(root)
    export = ExportConfig(task="feature-extraction", component="model")
    bench.run(EXPORT, export, "export", checkpoint=checkpoint)
    bench.run(SIMPLIFY, SimplifyConfig(), "simplify", model="export")
    bench.run(FUSE_ATTENTION, FuseAttentionConfig(), "attention", model="simplify")
    return bench


def _run(path: Path) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    ids = np.random.default_rng(3).integers(5, len(vocabulary()), (4, 9))
    mask = np.ones_like(ids)
    mask[1, 4:] = 0
    mask[2, 1:] = 0
    mask[3] = 0
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    names = [item.name for item in session.get_inputs()]
    results: list[np.ndarray] = session.run(None, {name: feeds[name] for name in names})
    return results


def test_a_real_export_has_one_operator_for_each_layer_and_the_same_numbers(
    bench: Workbench, tmp_path: Path
) -> None:
    facts = Workbench(tmp_path).run(
        FUSE_ATTENTION, FuseAttentionConfig(), "again", model=bench.root / "simplify"
    )
    assert facts["attention_layers"] == {"found": LAYERS, "fused": LAYERS}
    assert facts["attention"] == {"fired": LAYERS, "refused": []}
    assert facts["coverage"] == {"standard_attention": 1.0}
    for old, new in zip(
        _run(bench.model("simplify")), _run(bench.model("attention")), strict=True
    ):
        noise = float(np.sqrt(np.square(old - new).mean() / np.square(old).mean()))
        assert noise <= TOLERANCES["float32"].limit(0.0)


def test_the_same_graph_gives_the_same_bytes(bench: Workbench, tmp_path: Path) -> None:
    Workbench(tmp_path).run(
        FUSE_ATTENTION, FuseAttentionConfig(), "again", model=bench.root / "simplify"
    )
    again = (tmp_path / "again" / "model.onnx").read_bytes()
    assert again == bench.model("attention").read_bytes()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_attention_of_the_engine_is_one_kernel(
    bench: Workbench, tmp_path: Path, precision: Any
) -> None:
    pytest.importorskip("tensorrt_rtx")
    cast = Workbench(tmp_path)
    config = CastConfig(precision=precision)
    facts = cast.run(CAST, config, "cast", model=bench.root / "attention")
    assert not any(each["op"] == "Attention" for each in facts["kept_in_fp32"])
    path = cast.model("cast")
    graph = read_engine_graph(path)
    assert graph.problems == ()
    profile = {each.name: ((1, 2), (2, 8), (4, 16)) for each in graph.inputs}
    request = EngineRequest(
        module=TENSORRT_RTX, model=path, compute_capabilities=("sm89",), profiles=(profile,)
    )
    (tmp_path / "scratch").mkdir()
    layers = parse_layers(build_engine(request, tmp_path / "scratch").result.layers)
    blocks = [block.nodes for block in graph.attentions]
    assert [len(block) for block in blocks] == [1] * LAYERS
    assert fused_attentions(layers, blocks) == LAYERS


def test_rotary_positions_stand_before_the_operator(tmp_path: Path) -> None:
    """Which the operator of ONNX Runtime's own cannot follow: it splits the heads itself."""
    from transformers import ModernBertConfig, ModernBertModel

    config = ModernBertConfig(
        vocab_size=len(vocabulary()),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        local_attention=8,
        global_attn_every_n_layers=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
    )
    checkpoint = save_model(ModernBertModel, config, tmp_path / "checkpoint", 0)
    made = Workbench(tmp_path)
    export = ExportConfig(task="feature-extraction", component="model")
    made.run(EXPORT, export, "export", checkpoint=checkpoint)
    made.run(SIMPLIFY, SimplifyConfig(), "simplify", model="export")
    facts = made.run(FUSE_ATTENTION, FuseAttentionConfig(), "attention", model="simplify")
    assert facts["attention_layers"] == {"found": 2, "fused": 2}
    for old, new in zip(_run(made.model("simplify")), _run(made.model("attention")), strict=True):
        np.testing.assert_allclose(new[:3], old[:3], rtol=1e-4, atol=1e-5)


def test_what_is_not_attention_stays_with_a_reason(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    onnx.save(attention_model(SPELLINGS["three_axes"]), folder / "model.onnx")
    facts = Workbench(tmp_path).run(FUSE_ATTENTION, FuseAttentionConfig(), "made", model="model")
    assert facts["coverage"] == {"standard_attention": 0.0}
    (refused,) = facts["attention"]["refused"]
    assert refused["reason"] == "the query has 3 axes, not 4"
