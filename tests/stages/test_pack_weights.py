"""What the stage says of a tied table: stored once, or why not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
import pytest

from pipeline.stages.pack_weights import PACK_WEIGHTS, PackWeightsConfig
from pipeline.stages.quantize_weights import QUANTIZE_WEIGHTS, QuantizeWeightsConfig
from tests.graph.models import parse, write
from tests.graph.test_shared_table import MODEL, WEIGHTS
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from pathlib import Path


def _packed(root: Path, **asked: Any) -> tuple[Any, RecordingContext, Path]:
    context = RecordingContext(root)
    write(root / "float", parse(MODEL, WEIGHTS))
    config: Any = QuantizeWeightsConfig(embeddings="int4", **asked)
    for stage, given, source, made in (
        (QUANTIZE_WEIGHTS, config, "float", "few"),
        (PACK_WEIGHTS, PackWeightsConfig(), "few", "packed"),
    ):
        (root / made).mkdir()
        facts = stage.run(given, {"model": root / source}, root / made, context)
    return facts, context, root / "packed" / "model.onnx"


@pytest.mark.parametrize(
    "asked",
    [{}, {"method": "rtn", "block_size": 64}, {"method": "hqq", "symmetric": False}],
    ids=str,
)
def test_a_tied_table_follows_its_head_and_is_stored_once(
    tmp_path: Path, asked: dict[str, Any]
) -> None:
    facts, context, path = _packed(tmp_path, **asked)
    (table,) = facts["tables"]
    assert table["is_shared"]
    assert not [line for line in context.lines if "keeps its own table" in line]
    large = [t for t in onnx.load(path).graph.initializer if len(t.raw_data) >= 512 * 64 // 2]
    assert len(large) == 1


def test_why_there_are_two_is_said(tmp_path: Path) -> None:
    facts, context, _ = _packed(tmp_path, lm_head="int8", method="rtn")
    (table,) = facts["tables"]
    assert (table["is_shared"], table["reason"]) == (False, "the product has 8 bits, the table 4")
    assert (
        "embedding_rows keeps its own table: the product has 8 bits, the table 4" in context.lines
    )
