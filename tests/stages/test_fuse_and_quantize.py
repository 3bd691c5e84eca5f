"""From an exported graph to weights in few bits in one stage: the same as by three, and checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pipeline.errors import ExportError
from pipeline.graph import simplification
from pipeline.graph.files import load_ir_model, save_ir_model
from pipeline.stages.fuse_and_quantize import FUSE_AND_QUANTIZE, FuseAndQuantizeConfig
from pipeline.stages.quantize_weights import QUANTIZE_WEIGHTS, QuantizeWeightsConfig
from pipeline.stages.simplify_and_fuse import SIMPLIFY_AND_FUSE, SimplifyAndFuseConfig
from tests.decoders import make_decoder
from tests.stages.context import RecordingContext
from tests.stages.test_simplify_and_fuse import mask_lost

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS: dict[str, Any] = {"bits": 4, "block_size": 32, "method": "clip", "symmetric": False}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny decoder with its weights in a file of their own."""
    root = tmp_path_factory.mktemp("exported") / "decoder"
    root.mkdir()
    model = load_ir_model(make_decoder(root).ports()["model"] / "model.onnx")
    (root / "outside").mkdir()
    save_ir_model(model, root / "outside", inline_limit_bytes=0)
    return root / "outside"


def _run(stage: Any, config: Any, source: Path, output: Path) -> dict[str, Any]:
    output.mkdir()
    return dict(stage.run(config, {"model": source}, output, RecordingContext(output.parent)))


def test_it_makes_what_the_stages_make(tmp_path: Path, exported: Path) -> None:
    fused = _run(SIMPLIFY_AND_FUSE, SimplifyAndFuseConfig(), exported, tmp_path / "fused")
    config = QuantizeWeightsConfig(**OPTIONS)
    facts = _run(QUANTIZE_WEIGHTS, config, tmp_path / "fused", tmp_path / "quantized")
    whole = FuseAndQuantizeConfig(**OPTIONS)
    found = _run(FUSE_AND_QUANTIZE, whole, exported, tmp_path / "whole")
    made = [(tmp_path / name / "model.onnx").read_bytes() for name in ("quantized", "whole")]
    assert made[0] == made[1]
    assert not (tmp_path / "whole" / "model.onnx_data").exists()
    expected, coverage = {**fused, **facts}, {**fused["coverage"], **facts["coverage"]}
    # How small it is is said of what the stage was given, which has other nodes and the same weights.
    ratios = [each.pop("size_ratio") for each in (coverage, found["coverage"])]
    assert ratios[0] == pytest.approx(ratios[1], rel=0.5)
    assert found == {**expected, "coverage": coverage}
    assert set(found["coverage"]) | {"size_ratio"} == set(FUSE_AND_QUANTIZE.coverage)


def test_a_tool_that_loses_the_mask_is_found_out(
    tmp_path: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = simplification.simplify_model

    def broken(model: Any, tool: Any) -> Any:
        made = sound(model, tool)
        mask_lost(made)
        return made

    monkeypatch.setattr(simplification, "simplify_model", broken)
    with pytest.raises(ExportError, match="attention_mask"):
        _run(FUSE_AND_QUANTIZE, FuseAndQuantizeConfig(**OPTIONS), exported, tmp_path / "whole")
