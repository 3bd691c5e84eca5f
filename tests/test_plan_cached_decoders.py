"""Decoders that keep no keys and values are refused by the plan, before anything runs."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.build import BuildOptions, open_store, prepare_plan
from pipeline.digest_memory import DigestMemory
from pipeline.drafting.draft import choose_task
from pipeline.errors import RecipeError
from pipeline.recipe import load_recipe_file
from pipeline.source import cached_decoders, resolve_source, traced_decoders
from pipeline.source.cached_decoders import check_keeps_cache
from pipeline.tasks import find_task
from tests.decoders import build_tiny_llama
from tests.recipes import FP32, write_recipe
from tests.trained.lm import byte_tokenizer

TASK = find_task("text-generation")


def _checkpoint(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "checkpoint"
    byte_tokenizer().save_pretrained(path)
    build_tiny_llama(path, vocab_size=258)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))
    return path


def _recipe(tmp_path: Path, checkpoint: Path) -> Path:
    model = {"source": str(checkpoint), "task": "text-generation"}
    return write_recipe(tmp_path / "recipe.yaml", checkpoint, model=model, targets=[FP32])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mamba"}, "a `mamba` model has layers that keep a state"),
        ({"model_type": "openai-gpt"}, "a `openai-gpt` model takes no cache of keys and values"),
        ({"model_type": "bert"}, "config.json says no `is_decoder: true`"),
        ({"model_type": "bloom"}, "takes no `position_ids`"),
        (
            {"model_type": "lfm2", "layer_types": ["conv", "full_attention"]},
            "a `lfm2` model has layers that keep a state (`layer_types`: conv)",
        ),
        (
            {"model_type": "new", "text_config": {"layer_types": ["linear_attention"]}},
            "(`layer_types`: linear_attention)",
        ),
        (
            {"model_type": "mixtral", "num_local_experts": 8},
            "this `mixtral` model is a mixture of experts",
        ),
        (
            {
                "model_type": "gemma3",
                "text_config": {"rope_parameters": {"full_attention": {"rope_type": "dynamic"}}},
            },
            "rotary embeddings of type `dynamic` in some layers",
        ),
        ({"model_type": "falcon", "alibi": True}, "`alibi: true`"),
        ({"model_type": "gpt_neo"}, "a table of fixed size"),
    ],
    ids=lambda each: each.get("model_type") if isinstance(each, dict) else "",
)
def test_what_keeps_no_cache_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check_keeps_cache(changes, TASK)
    assert words in caught.value.message
    assert caught.value.hint
    check_keeps_cache(changes, find_task("feature-extraction"))  # it needs none


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama"},
        {"model_type": "bert", "is_decoder": True},
        {"model_type": "gemma3_text", "layer_types": ["sliding_attention", "full_attention"]},
        {"model_type": "granitemoehybrid", "layer_types": ["attention", "attention"]},
        {"model_type": "granitemoehybrid", "layer_types": ["attention"], "num_local_experts": 0},
        {"model_type": "gemma4_text", "num_experts": None},
        {"model_type": "falcon", "alibi": False},
        {"model_type": "llama", "rope_scaling": {"rope_type": "llama3", "factor": 4.0}},
        {"model_type": "llama", "rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
        {"model_type": "phi3", "rope_scaling": {"type": "longrope", "long_factor": [2.0]}},
        {"model_type": "llama", "rope_parameters": {"rope_type": "dynamic", "factor": 4.0}},
        {"model_type": "never-heard-of"},
        {},
    ],
)
def test_what_may_keep_one_is_tried(config: dict[str, Any]) -> None:
    check_keeps_cache(config, TASK)


def test_a_plan_refuses_it_at_its_line(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path, layer_types=["full_attention", "linear_attention"])
    recipe = load_recipe_file(_recipe(tmp_path, checkpoint))
    with pytest.raises(RecipeError, match="linear_attention") as caught:
        prepare_plan(recipe, open_store(BuildOptions(store=tmp_path / "store")))
    assert caught.value.where.endswith("model.source")
    assert "Mamba" in caught.value.hint


def test_no_recipe_is_drafted_for_it(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path, layer_types=["linear_attention"])
    source = resolve_source(
        str(checkpoint), recipe_directory=tmp_path, memory=DigestMemory(tmp_path / "digests.json")
    )
    with pytest.raises(RecipeError, match="linear_attention"):
        choose_task(source, "text-generation")
    with pytest.raises(RecipeError, match="linear_attention") as caught:
        choose_task(source, None)
    assert "--task feature-extraction" in caught.value.hint
    task, others = choose_task(source, "feature-extraction")
    assert "text-generation" not in {each.name for each in (task, *others)}


def test_a_mixture_of_experts_is_not_drafted_without_its_head_either(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path, model_type="mixtral", num_local_experts=4)
    source = resolve_source(
        str(checkpoint), recipe_directory=tmp_path, memory=DigestMemory(tmp_path / "digests.json")
    )
    with pytest.raises(RecipeError, match="mixture of experts") as caught:
        choose_task(source, None)
    assert "--task" not in caught.value.hint


def test_a_plain_one_is_planned(tmp_path: Path) -> None:
    recipe = load_recipe_file(_recipe(tmp_path, _checkpoint(tmp_path)))
    prepare_plan(recipe, open_store(BuildOptions(store=tmp_path / "store")))


@pytest.mark.slow
def test_the_tables_are_those_of_transformers() -> None:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    stateful, without_cache, without_positions, encoders = set(), set(), set(), set()
    experts = set()
    for kind, names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        for name in (names,) if isinstance(names, str) else names:
            model = getattr(transformers, name)
            takes = inspect.signature(model.forward).parameters
            if "use_experts_implementation" in Path(inspect.getfile(model)).read_text():
                experts.add(kind)
            if model._is_stateful:
                stateful.add(kind)
            elif "past_key_values" not in takes:
                without_cache.add(kind)
            elif "position_ids" not in takes:
                without_positions.add(kind)
            elif hasattr(model.config_class(), "is_decoder") and not kind.startswith("gpt_neox"):
                encoders.add(kind)
    assert stateful == cached_decoders.STATES
    assert without_cache == cached_decoders.NO_CACHE
    assert without_positions == cached_decoders.NO_POSITIONS
    assert encoders == cached_decoders.ENCODERS
    assert experts == traced_decoders.EXPERTS


@pytest.mark.parametrize(
    ("said", "positions"),
    [
        ({"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 16}, 16),
        ({"rope_scaling": {"rope_type": "su", "original_max_position_embeddings": 16}}, 16),
        ({"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 16}}, 64),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 64),
    ],
)
def test_positions_end_where_other_frequencies_begin(
    tmp_path: Path, said: dict[str, Any], positions: int
) -> None:
    checkpoint = _checkpoint(tmp_path, **said)
    source = resolve_source(
        str(checkpoint), recipe_directory=tmp_path, memory=DigestMemory(tmp_path / "digests.json")
    )
    assert source.max_positions == positions
