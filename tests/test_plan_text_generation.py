"""Plans for text generation: what is planned, and what is refused before anything runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.build import BuildOptions, open_store, prepare_plan
from pipeline.errors import RecipeError
from pipeline.recipe import load_recipe_file
from pipeline.targets.base import NodeRef
from tests.decoders import build_tiny_llama
from tests.recipes import FP32, INT8, write_recipe
from tests.trained.lm import byte_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.planning import Plan

INT4 = {
    "name": "cpu-int4",
    "runtime": "onnxruntime",
    "precision": "int4",
    "quantization": {"mode": "weight_only"},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("decoder") / "checkpoint"
    byte_tokenizer().save_pretrained(path)
    return build_tiny_llama(path, vocab_size=258)


def _plan(tmp_path: Path, source: Path, **changes: Any) -> Plan:
    changes.setdefault("model", {"source": str(source), "task": "text-generation"})
    path = write_recipe(tmp_path / "recipe.yaml", source, **changes)
    return prepare_plan(load_recipe_file(path), open_store(BuildOptions(store=tmp_path / "store")))


def test_checks_that_know_nothing_of_caches_are_not_planned(
    tmp_path: Path, checkpoint: Path
) -> None:
    plan = _plan(tmp_path, checkpoint, targets=[FP32, INT4, INT8])
    stages = {node.stage.name for node in plan.nodes}
    assert stages >= {"export", "quantize_weights", "quantize_dynamic", "validate", "noise_floor"}
    assert "check_generation" in stages
    assert "invariance" not in stages


def test_weights_in_few_bits_are_packed_for_the_kernel_unless_qdq_is_wanted(
    tmp_path: Path, checkpoint: Path
) -> None:
    """What is delivered is the packed graph; the one before it is still compared."""
    plan = _plan(tmp_path, checkpoint, targets=[FP32, INT4])
    packed = [node for node in plan.nodes if node.stage.name == "pack_weights"]
    assert [node.config.model_dump() for node in packed] == [{"accuracy_level": 4}]
    (check,) = [node for node in plan.nodes if node.stage.name == "check_packing"]
    assert check.config.model_dump() == {"accuracy_level": 4}
    assert check.inputs == {"model": NodeRef(packed[0].index), "plain": packed[0].inputs["model"]}
    quantization: dict[str, Any] = {"mode": "weight_only", "form": "qdq"}
    plan = _plan(tmp_path, checkpoint, targets=[FP32, INT4 | {"quantization": quantization}])
    assert not {"pack_weights", "check_packing"} & {node.stage.name for node in plan.nodes}
    quantization["accuracy_level"] = 4
    with pytest.raises(RecipeError, match="form qdq takes no `accuracy_level`"):
        _plan(tmp_path, checkpoint, targets=[FP32, INT4 | {"quantization": quantization}])


def test_a_static_cache_is_the_last_step_of_its_target(tmp_path: Path, checkpoint: Path) -> None:
    """Behind it are the checks of generation; all before it is shared with targets that have none."""
    static = INT4 | {"name": "cpu-int4-static", "static_cache": {"length": 32}}
    plan = _plan(tmp_path, checkpoint, targets=[FP32, INT4, static])
    (node,) = [node for node in plan.nodes if node.stage.name == "static_cache"]
    packed = [node for node in plan.nodes if node.stage.name == "pack_weights"]
    assert [NodeRef(each.index) for each in packed] == [node.inputs["model"]]
    target = next(target for target in plan.targets if target.name == "cpu-int4-static")
    (link, *others) = reversed(target.chain.models["model"])
    assert link.node == NodeRef(node.index)
    assert link.arithmetic == others[0].arithmetic == "quantized"
    assert {check.check for check in target.checks if check.of == link.node} >= {"generation"}


@pytest.mark.parametrize(
    ("length", "gates", "message", "hint"),
    [
        (15, {}, "15 tokens is shorter than the texts of 16 tokens", "16 or more"),
        (65, {}, "65 tokens is longer than the 64 positions", "64 or less"),
        (
            16,
            {"tokens": 9},
            r"shorter than what `generation_speed` times: prompts of 8 .* 9 new",
            "17",
        ),
    ],
)
def test_a_static_cache_holds_prompt_and_new_tokens(
    tmp_path: Path, checkpoint: Path, length: int, gates: dict[str, int], message: str, hint: str
) -> None:
    target = FP32 | {"name": "static", "static_cache": {"length": length}}
    changes: dict[str, Any] = {"targets": [FP32, target]}
    if gates:
        parity = {"cosine_similarity": {"min": 0.8}}
        changes["gates"] = {"parity": parity, "checks": {"generation_speed": gates}}
    with pytest.raises(RecipeError, match=message) as caught:
        _plan(tmp_path, checkpoint, **changes)
    assert hint in caught.value.hint
    assert "recipe.yaml:" in caught.value.where


def test_only_decoders_on_the_cpu_have_a_static_cache(
    tmp_path: Path, checkpoint: Path, sentence_encoder: Path
) -> None:
    target = FP32 | {"name": "static", "static_cache": {"length": 32}}
    with pytest.raises(RecipeError, match="`feature-extraction` has no `static_cache`"):
        _plan(
            tmp_path,
            sentence_encoder,
            model={"source": str(sentence_encoder), "task": "feature-extraction"},
            targets=[FP32, target],
        )
    with pytest.raises(RecipeError, match="provider `cuda` has no `static_cache`"):
        _plan(tmp_path, checkpoint, targets=[FP32, target | {"provider": "cuda"}])


def test_the_past_is_no_axis_of_a_recipe(tmp_path: Path, checkpoint: Path) -> None:
    assert _plan(tmp_path, checkpoint).task.axes == ("batch", "sequence")


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_providers_for_gpus_are_refused_with_the_reason(
    tmp_path: Path, checkpoint: Path, provider: str
) -> None:
    target = FP32 | {"name": "gpu", "precision": "fp16", "provider": provider}
    with pytest.raises(RecipeError, match="the cache has none yet") as caught:
        _plan(tmp_path, checkpoint, targets=[FP32, target])
    assert "recipe.yaml:" in caught.value.where


def test_a_checkpoint_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    bare = build_tiny_llama(tmp_path / "bare")
    with pytest.raises(RecipeError, match="has no tokenizer"):
        _plan(tmp_path, bare)


def test_sequences_beyond_the_positions_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    shapes = {
        "batch": {"min": 1, "opt": 2, "max": 4},
        "sequence": {"min": 2, "opt": 8, "max": 65},
    }
    with pytest.raises(RecipeError, match=r"65 tokens are asked for, .* has 64 positions"):
        _plan(tmp_path, checkpoint, shapes=shapes)


def test_positions_are_found_under_the_name_that_gpt2_gives_them(
    tmp_path: Path, checkpoint: Path
) -> None:
    copy = tmp_path / "gpt2"
    copy.mkdir()
    for path in checkpoint.iterdir():
        if path.name != "tokenizer_config.json":  # it says a length as well
            (copy / path.name).write_bytes(path.read_bytes())
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 258}
    (copy / "config.json").write_text(json.dumps(config | {"n_positions": 12}))
    with pytest.raises(RecipeError, match=r"16 tokens are asked for, .* has 12 positions"):
        _plan(tmp_path, copy)


def test_an_encoder_is_no_model_that_generates(tmp_path: Path, sentence_encoder: Path) -> None:
    with pytest.raises(RecipeError, match=r"saved as \.\.\.ForCausalLM or \.\.\.LMHeadModel"):
        _plan(tmp_path, sentence_encoder)
