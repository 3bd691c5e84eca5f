"""A decoder from elsewhere: which names are known, and what is refused before anything runs."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.candidates import Interface, match_interface, precision_of
from pipeline.errors import RecipeError
from pipeline.graph.model_facts import ModelFacts, TensorFacts
from pipeline.tasks import find_task

CONFIG = {
    "vocab_size": 97,
    "hidden_size": 32,
    "head_dim": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TOKENS = ("input_ids", "attention_mask", "position_ids")


def tensor(name: str, *shape: int | str, dtype: str = "int64") -> TensorFacts:
    return TensorFacts(name=name, dtype=dtype, shape=shape or ("batch_size", "sequence_length"))


def caches(
    name: str, tokens: str | int, *, layers: int = 2, heads: int | str = 2, **changes: Any
) -> list[TensorFacts]:
    shape = (changes.get("batch", "batch_size"), heads, tokens, changes.get("width", 8))
    return [
        tensor(f"{name}.{layer}.{kind}", *shape, dtype=changes.get("dtype", "float"))
        for layer in range(layers)
        for kind in ("key", "value")
    ]


def facts(
    tokens: tuple[TensorFacts, ...] = tuple(map(tensor, TOKENS)),
    *,
    words: int | str = 97,
    **changes: Any,
) -> ModelFacts:
    past = changes.pop("past", None)
    present = changes.pop("present", None)
    if past is None:
        past = caches("past_key_values", "past", **changes)
    return ModelFacts(
        opset=17,
        domains={"ai.onnx": 17},
        ir_version=8,
        producer="pytorch",
        inputs=(*tokens, *past),
        outputs=(
            tensor("logits", "batch_size", "sequence_length", words, dtype="float"),
            *(caches("present", "total", **changes) if present is None else present),
        ),
        op_counts={"MatMul": 1},
        parameters=1,
        weight_bytes={"float": 4},
        layers=(),
        external_files=(),
        size_bytes=1,
    )


def match(found: ModelFacts, renames: dict[str, str] | None = None, **config: Any) -> Interface:
    return match_interface(
        found,
        find_task("text-generation"),
        fed=TOKENS,
        has_sentence=False,
        renames=renames or {},
        config=CONFIG | config,
    )


def test_names_as_optimum_writes_them_need_no_word() -> None:
    interface = match(facts())
    assert [each.name for each in interface.inputs] == list(TOKENS)
    assert [cache.present for cache in interface.caches] == [
        *("present.0.key", "present.0.value", "present.1.key", "present.1.value")
    ]
    assert {(cache.heads, cache.width) for cache in interface.caches} == {(2, 8)}
    assert interface.notes == interface.unused == interface.missing == ()


def test_genai_leaves_positions_to_the_graph_and_the_width_to_the_checkpoint() -> None:
    interface = match(facts(tuple(map(tensor, TOKENS[:2])), width="kv_cache_dim"))
    assert interface.unused == ("position_ids",)
    assert interface.caches[0].width == 8
    assert any("position_ids" in note for note in interface.notes)


def test_a_mask_that_is_not_taken_is_missing_and_fails_later() -> None:
    assert match(facts((tensor("input_ids"),))).missing == ("attention_mask",)


def test_transformers_js_is_asked_for_all_logits() -> None:
    keep = tensor("num_logits_to_keep", dtype="int64").model_copy(update={"shape": ()})
    interface = match(facts((*map(tensor, TOKENS), keep)))
    (supplied,) = interface.supplied
    assert (supplied.rule, supplied.rank) == ("zero", 0)


def test_a_graph_without_a_cache_is_a_decoder_too() -> None:
    interface = match(facts(past=(), present=()))
    assert interface.caches == ()
    assert any("keeps no keys and values" in note for note in interface.notes)


def test_other_names_are_told_with_rename() -> None:
    past = [tensor(f"p{at}", "b", 2, "past", 8, dtype="float") for at in range(2)]
    present = [tensor(f"q{at}", "b", 2, "total", 8, dtype="float") for at in range(2)]
    with pytest.raises(RecipeError, match=r"`p0`, `p1`") as caught:
        match(facts(past=past, present=present), num_hidden_layers=1)
    assert "past_key_values.N.key" in caught.value.hint
    renames = {
        "p0": "past_key_values.0.key",
        "p1": "past_key_values.0.value",
        "q0": "present.0.key",
        "q1": "present.0.value",
    }
    interface = match(facts(past=past, present=present), renames, num_hidden_layers=1)
    assert [cache.given_present for cache in interface.caches] == ["q0", "q1"]


def test_a_cache_in_float16_is_no_exact_one() -> None:
    assert precision_of(facts(dtype="float16")).arithmetic == "float16"
    assert precision_of(facts()).arithmetic == "float32"


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (facts((*map(tensor, TOKENS), tensor("use_cache_branch", 1, dtype="bool"))), "is merged"),
        (facts((*map(tensor, TOKENS), tensor("encoder_hidden_states"))), "behind an encoder"),
        (facts(layers=3), "3 layers, and the checkpoint has 2"),
        (facts(heads=4), "4 heads of 8 numbers.* have 2 of 8"),
        (facts(width=16), "2 heads of 16 numbers"),
        (facts(words=98), "98 tokens, .* has 97"),
        (facts(present=[]), "do not go round"),
        (facts(past=[], present=caches("present", "t")), None),
        (facts(past=caches("past_key_values", "p")[:3]), "do not go round"),
        (
            facts(past=caches("past_key_values", "p")[:1], present=caches("present", "t")[:1]),
            "layers 0: one is left out",
        ),
        (facts(past=caches("past_key_values", 64)), "batch_size and 64 tokens before"),
        (facts(dtype="uint8"), "as uint8"),
        (facts(past=caches("past_key_values", "p", dtype="float16")), "cannot go in again"),
        (facts((tensor("input_ids", "batch", 1), *map(tensor, TOKENS[1:]))), r"\(batch, 1\) only"),
        (facts((tensor("inputs_embeds", "b", "s", 32, dtype="float"),)), "takes no tokens"),
        (facts((*map(tensor, TOKENS), tensor("extra"))), "`extra`"),
    ],
)
def test_what_is_no_decoder_of_the_checkpoint_is_refused(
    found: ModelFacts, message: str | None
) -> None:
    """The one without a message is a prompt's half: it gives keys and takes none, and is read whole."""
    if message is None:
        assert match(found).caches == ()
        return
    with pytest.raises(RecipeError, match=message) as caught:
        match(found)
    assert caught.value.hint


def test_what_is_not_said_is_left_to_the_run() -> None:
    """Values that are a family's default need not be in config.json."""
    found = facts(heads=1, width=16)
    unsaid: dict[str, Any] = {"num_key_value_heads": None, "head_dim": None}
    assert match(found, **unsaid).caches[0].heads == 1
    with pytest.raises(RecipeError, match="have 4 of 8"):
        match(found, **unsaid, model_type="gpt2")
    assert match(found, global_head_dim=16).caches[0].width == 16
    assert len(match(facts(layers=1), num_kv_shared_layers=1).caches) == 2
