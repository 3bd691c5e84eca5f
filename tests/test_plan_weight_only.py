"""Plans of weight-only quantisation for ONNX Runtime: the chain, what is checked, and no calibration."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.data_source import resolve_data
from pipeline.digest_memory import DigestMemory
from pipeline.errors import RecipeError
from pipeline.planning import build_plan
from pipeline.recipe import load_recipe_file
from pipeline.source import resolve_source
from pipeline.stages.check_quantization import CheckQuantizationConfig
from pipeline.stages.quantize_weights import QuantizeWeightsConfig
from pipeline.targets import onnxruntime
from pipeline.targets.base import NodeRef
from tests.recipes import FP32, write_recipe

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.planning import Plan


def _plan(
    tmp_path: Path,
    checkpoint: Path,
    *targets: dict[str, Any],
    uses: tuple[str, ...] = ("evaluation",),
    gates: dict[str, Any] | None = None,
    **target: Any,
) -> Plan:
    whole = [{**FP32, **each} for each in targets or (target,)]
    source = "builtin:stdlib-docstrings"
    data = {use: {"source": source, "samples": 8, "seed": seed} for seed, use in enumerate(uses)}
    written = write_recipe(
        tmp_path / "recipe.yaml",
        checkpoint,
        targets=whole,
        data=data,
        **({"gates": gates} if gates else {}),
    )
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


def _int4(method: str, **target: Any) -> dict[str, Any]:
    quantization = {"mode": "weight_only", "method": method}
    return {"name": method, "precision": "int4", "quantization": quantization} | target


def test_targets_share_what_is_seen_of_their_products(
    tmp_path: Path, sentence_encoder: Path
) -> None:
    uses = ("evaluation", "calibration")
    targets = [_int4(method) for method in ("gptq", "awq", "clip")]
    plan = _plan(tmp_path, sentence_encoder, *targets, uses=uses)
    names = [node.stage.name for node in plan.nodes]
    assert names.count("observe_products") == names.count("scale_channels") == 1
    chains = []
    for target in plan.targets:
        (links,) = target.chain.models.values()
        chains.append([plan.nodes[link.node.node] for link in links])
    stages = [[node.stage.name for node in chain] for chain in chains]
    plain = ["export", "simplify", "fuse", "quantize_weights"]
    assert stages == [plain, ["export", "simplify", "scale_channels", "fuse", plain[-1]], plain]
    gptq, awq, clip = (chain[-1] for chain in chains)
    assert gptq.config == QuantizeWeightsConfig(method="gptq")
    assert awq.config == clip.config == QuantizeWeightsConfig(method="clip")
    seen = next(
        number for number, node in enumerate(plan.nodes) if node.stage.name == "observe_products"
    )
    assert gptq.inputs["moments"] == NodeRef(seen)
    assert set(clip.inputs) == {"model"}
    audits = [node for node in plan.nodes if node.stage.name == "check_quantization"]
    assert ["moments" in node.inputs for node in audits] == [True, False, False]


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_calibrated_method_needs_calibration_data(
    tmp_path: Path, sentence_encoder: Path, method: str
) -> None:
    with pytest.raises(RecipeError, match=f"method {method} rounds weights by what goes into"):
        _plan(tmp_path, sentence_encoder, _int4(method))


def test_mixed_bits_are_chosen_for_the_graph_that_is_quantised(
    tmp_path: Path, sentence_encoder: Path
) -> None:
    mixed = {"mode": "weight_only", "method": "gptq", "mixed": {"bits_budget": 4.5}}
    targets = [_int4("gptq"), _int4("mixed", quantization=mixed)]
    plan = _plan(tmp_path, sentence_encoder, *targets, uses=("evaluation", "calibration"))
    (choice,) = [node for node in plan.nodes if node.stage.name == "choose_bits"]
    quantized = [node for node in plan.nodes if node.stage.name == "quantize_weights"]
    assert len(quantized) == 2
    assert quantized[0].inputs["model"] == choice.inputs["model"]
    assert choice.config.quantizer == quantized[1].config
    assert set(quantized[1].inputs) == {"model", "moments", "bits"}
    assert [node.stage.name for node in plan.nodes].count("observe_products") == 1
    with pytest.raises(RecipeError, match="bits are chosen by what goes into their products"):
        _plan(tmp_path, sentence_encoder, _int4("m", quantization=mixed | {"method": "rtn"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 8, "mixed": {"bits_budget": 4.5}}, "`mixed` is for bits 4"),
        ({"method": "awq", "mixed": {"bits_budget": 4.5}}, "not for method awq"),
        ({"mixed": {"bits_budget": 4}}, "bits_budget"),
        ({"mixed": {}}, "needs one of"),
    ],
)
def test_bits_that_cannot_be_mixed_are_refused(
    tmp_path: Path, sentence_encoder: Path, changes: dict[str, Any], message: str
) -> None:
    quantization = {"mode": "weight_only"} | changes
    precision = f"int{changes.get('bits', 4)}"
    with pytest.raises(RecipeError, match=message):
        _plan(tmp_path, sentence_encoder, precision=precision, quantization=quantization)


@pytest.mark.parametrize(
    ("asked", "signs"),
    [
        ({"form": "matmul_nbits"}, True),
        ({"form": "matmul_nbits", "symmetric": False}, False),
        ({"form": "qdq"}, False),
        ({}, False),
    ],
)
def test_scales_may_be_negative_in_onnx_runtimes_own_operator_alone(
    tmp_path: Path, sentence_encoder: Path, asked: dict[str, Any], signs: bool
) -> None:
    options = {"mode": "weight_only", **asked}
    plan = _plan(tmp_path, sentence_encoder, precision="int4", quantization=options)
    (made,) = [node for node in plan.nodes if node.stage.name == "quantize_weights"]
    assert isinstance(made.config, QuantizeWeightsConfig)
    assert made.config.signed_scales is signs


def test_normal_floats_are_an_operator_at_once(tmp_path: Path, sentence_encoder: Path) -> None:
    quantization = {"mode": "weight_only", "numbers": "nf4", "form": "matmul_bnb4"}
    plan = _plan(tmp_path, sentence_encoder, precision="int4", quantization=quantization)
    names = [node.stage.name for node in plan.nodes]
    assert "pack_weights" not in names
    (made,) = [node for node in plan.nodes if node.stage.name == "quantize_weights"]
    assert made.config == QuantizeWeightsConfig(numbers="nf4")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"numbers": "nf4", "form": "qdq"}, "form qdq has integers.*leave `form` out"),
        ({"numbers": "nf4", "form": "matmul_nbits"}, "written as ONNX Runtime's MatMulBnb4"),
        ({"numbers": "nf4", "bits": 8}, "has 4 bits: take `bits: 4`"),
        ({"numbers": "nf4", "symmetric": False}, "no zero points: leave `symmetric` out"),
        ({"numbers": "nf4", "block_size": None}, "needs a `block_size`"),
        (
            {"numbers": "nf4", "method": "gptq"},
            "takes method rtn or clip: gptq rounds to integers",
        ),
        ({"numbers": "nf4", "lm_head": "int8"}, "take `lm_head: float`"),
        ({"numbers": "nf4", "accuracy_level": 0}, "takes no `accuracy_level`"),
        ({"numbers": "nf4", "mixed": {"bits_budget": 4.5}}, "leave `numbers` and `symmetric` out"),
        ({"form": "matmul_bnb4"}, "is for `numbers: nf4`"),
        ({"symmetric": False, "bits": 8}, "is for bits 4"),
        ({"symmetric": False, "method": "k_quant"}, "takes method rtn, clip or hqq: k_quant"),
        (
            {"symmetric": False, "mixed": {"max_noise": 0.05}},
            "leave `numbers` and `symmetric` out",
        ),
    ],
    ids=str,
)
def test_forms_that_cannot_be_are_refused(
    tmp_path: Path, sentence_encoder: Path, changes: dict[str, Any], message: str
) -> None:
    quantization = {"mode": "weight_only"} | changes
    precision = f"int{changes.get('bits', 4)}"
    with pytest.raises(RecipeError, match=message):
        _plan(tmp_path, sentence_encoder, precision=precision, quantization=quantization)


@pytest.mark.parametrize("changes", [{"numbers": "nf4"}, {"symmetric": False}], ids=str)
def test_tensorrt_takes_neither(
    tmp_path: Path, sentence_encoder: Path, changes: dict[str, Any]
) -> None:
    target = {
        "name": "rtx",
        "runtime": "tensorrt-rtx",
        "precision": "int4",
        "quantization": {"mode": "weight_only"} | changes,
    }
    with pytest.raises(RecipeError, match="are for ONNX Runtime: TensorRT multiplies"):
        _plan(tmp_path, sentence_encoder, target)


def _stages(plan: Plan) -> set[str]:
    return {node.stage.name for node in plan.nodes}


def test_of_a_large_model_what_nothing_else_reads_is_not_written(
    tmp_path: Path, sentence_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`simplify` is a stage of its own where methods observe what goes through its graph."""
    quantized = {"precision": "int4", "quantization": {"mode": "weight_only", "block_size": 16}}
    assert {"simplify", "fuse"} <= _stages(_plan(tmp_path, sentence_encoder, **quantized))
    monkeypatch.setattr(onnxruntime, "INLINE_LIMIT_BYTES", 1000)
    for target in ({}, quantized):
        plan = _plan(tmp_path, sentence_encoder, **target)
        assert "simplify_and_fuse" in _stages(plan)
        assert not {"simplify", "fuse"} & _stages(plan)
        (links,) = plan.targets[0].chain.models.values()
        names = [plan.nodes[link.node.node].stage.name for link in links]
        assert names == ["export", "simplify_and_fuse", *(["quantize_weights"] if target else [])]
    for changes in ({"method": "gptq"}, {"method": "awq"}, {"mixed": {"bits_budget": 5}}):
        observed = {**quantized, "quantization": {**quantized["quantization"], **changes}}
        plan = _plan(tmp_path, sentence_encoder, uses=("evaluation", "calibration"), **observed)
        assert {"simplify", "fuse"} <= _stages(plan)
        assert "simplify_and_fuse" not in _stages(plan)


@pytest.mark.parametrize(("dtype", "factor"), [("float32", 1), ("bfloat16", 2)])
def test_how_large_weights_are_is_said_by_files_and_config(
    tmp_path: Path, sentence_encoder: Path, dtype: str, factor: int
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(sentence_encoder, checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "dtype": dtype}))
    memory = DigestMemory(tmp_path / "memory.json")
    source = resolve_source(str(checkpoint), recipe_directory=tmp_path, memory=memory)
    stored = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    assert source.float32_bytes == factor * stored


UNSEEN: dict[str, Any] = {
    "parity": {"cosine_similarity": {"min": 0.9}},
    "stages": {"simplify_and_fuse": None},
    "checks": {"layers": None, "quantization": None},
}


@pytest.mark.parametrize(
    ("gates", "is_one"),
    [
        (UNSEEN, True),
        ({**UNSEEN, "stages": {}}, False),
        ({**UNSEEN, "checks": {"layers": None}}, False),
        ({**UNSEEN, "checks": {"quantization": None}}, False),
    ],
    ids=["unseen", "compared", "audited", "by layer"],
)
def test_a_float_graph_that_nothing_looks_at_is_not_written(
    tmp_path: Path,
    sentence_encoder: Path,
    monkeypatch: pytest.MonkeyPatch,
    gates: dict[str, Any],
    is_one: bool,
) -> None:
    monkeypatch.setattr(onnxruntime, "INLINE_LIMIT_BYTES", 1000)
    options = {"mode": "weight_only", "block_size": 16, "form": "matmul_nbits"}
    target = {"precision": "int4", "quantization": options}
    plan = _plan(tmp_path, sentence_encoder, gates=gates, **target)
    (links,) = plan.targets[0].chain.models.values()
    names = [plan.nodes[link.node.node].stage.name for link in links]
    separate = ["simplify_and_fuse", "quantize_weights"]
    assert names == ["export", *(["fuse_and_quantize"] if is_one else separate), "pack_weights"]
    # What is left out of the checks stands on the plan all the same.
    left_out = {name for name, value in gates["checks"].items() if value is None}
    assert set(plan.targets[0].left_out_checks) == left_out


def test_one_stage_for_all_is_taken_for_no_other_target(
    tmp_path: Path, sentence_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who delivers the float graph has it compared; who observes it needs it."""
    monkeypatch.setattr(onnxruntime, "INLINE_LIMIT_BYTES", 1000)
    with pytest.raises(RecipeError, match="makes what `cpu-fp32` delivers"):
        _plan(tmp_path, sentence_encoder, gates=UNSEEN)
    gptq = {"mode": "weight_only", "block_size": 16, "method": "gptq"}
    target = {"precision": "int4", "quantization": gptq}
    uses = ("evaluation", "calibration")
    plan = _plan(tmp_path, sentence_encoder, gates=UNSEEN, uses=uses, **target)
    assert {"simplify", "fuse", "quantize_weights"} <= _stages(plan)
