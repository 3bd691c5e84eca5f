"""Plans of weight-only quantisation for ONNX Runtime: the chain, what is checked, and no calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pipeline.data_source import resolve_data
from pipeline.digest_memory import DigestMemory
from pipeline.planning import build_plan
from pipeline.recipe import load_recipe_file
from pipeline.source import resolve_source
from pipeline.stages.check_quantization import CheckQuantizationConfig
from pipeline.stages.quantize_weights import QuantizeWeightsConfig
from tests.recipes import FP32, write_recipe

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.planning import Plan


def _plan(tmp_path: Path, checkpoint: Path, **target: Any) -> Plan:
    targets = [{**FP32, **target}]
    written = write_recipe(tmp_path / "recipe.yaml", checkpoint, targets=targets)
    loaded = load_recipe_file(written)
    memory = DigestMemory(tmp_path / "memory.json")
    source = resolve_source(loaded.recipe.model.source, recipe_directory=tmp_path, memory=memory)
    data = {
        use: resolve_data(spec, directory=tmp_path, memory=memory)
        for use, spec in loaded.recipe.data.specs().items()
    }
    return build_plan(loaded.recipe, source, data, loaded.where)


@pytest.mark.parametrize(
    ("precision", "quantization", "config"),
    [
        ("int4", {}, QuantizeWeightsConfig(block_size=32)),
        ("int4", {"block_size": 128, "method": "rtn"}, QuantizeWeightsConfig(block_size=128, method="rtn")),
        ("int4", {"block_size": None}, QuantizeWeightsConfig(block_size=None)),
        ("int8", {"bits": 8}, QuantizeWeightsConfig(bits=8)),
    ],
)  # fmt: skip
def test_the_fused_graph_is_quantised_and_checked(
    tmp_path: Path,
    sentence_encoder: Path,
    precision: str,
    quantization: dict[str, Any],
    config: QuantizeWeightsConfig,
) -> None:
    plan = _plan(
        tmp_path,
        sentence_encoder,
        precision=precision,
        quantization={"mode": "weight_only"} | quantization,
    )
    (links,) = plan.targets[0].chain.models.values()
    chain = [plan.nodes[link.node.node] for link in links]
    assert [node.stage.name for node in chain] == [
        "export", "simplify", "fuse", "quantize_weights",
    ]  # fmt: skip
    assert [link.arithmetic for link in links] == ["float32"] * 3 + ["quantized"]
    assert chain[-1].config == config
    (check,) = [node for node in plan.nodes if node.stage.name == "check_quantization"]
    assert check.config == CheckQuantizationConfig(weight_only=config)
    assert not {node.stage.name for node in plan.nodes} & {"calibrate", "sensitivity", "repair"}
