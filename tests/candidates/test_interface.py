"""What a candidate takes and gives is found by names that tools write, and never by a guess."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.candidates import match_interface
from pipeline.errors import RecipeError
from pipeline.graph.model_facts import ModelFacts, TensorFacts
from pipeline.tasks import find_task

TEXT = ("input_ids", "attention_mask", "token_type_ids")
BS = ("batch_size", "sequence_length")


def tensor(name: str, shape: tuple[int | str, ...] = BS, dtype: str = "int64") -> TensorFacts:
    return TensorFacts(name=name, dtype=dtype, shape=shape)


def facts(inputs: list[TensorFacts], outputs: list[TensorFacts], **changes: Any) -> ModelFacts:
    values: dict[str, Any] = {
        "opset": 17,
        "domains": {"ai.onnx": 17},
        "ir_version": 8,
        "producer": "pytorch",
        "inputs": tuple(inputs),
        "outputs": tuple(outputs),
        "op_counts": {"MatMul": 1},
        "parameters": 1,
        "weight_bytes": {"float": 4},
        "layers": (),
        "external_files": (),
        "size_bytes": 1,
    }
    return ModelFacts(**(values | changes))


def logits(name: str = "logits") -> TensorFacts:
    return tensor(name, ("batch_size", 3), "float")


def hidden(name: str) -> TensorFacts:
    return tensor(name, (*BS, 8), "float")


def match(found: ModelFacts, task: str = "text-classification", **changes: Any) -> Any:
    options: dict[str, Any] = {"fed": TEXT, "has_sentence": False, "renames": {}} | changes
    return match_interface(found, find_task(task), **options)


def test_names_as_optimum_writes_them_need_no_word() -> None:
    interface = match(facts([tensor(name) for name in TEXT], [logits()]))
    assert [each.name for each in interface.inputs] == list(TEXT)
    assert interface.notes == ()
    assert interface.fixed == {}


def test_sentence_transformers_call_the_tokens_token_embeddings() -> None:
    outputs = [hidden("token_embeddings"), tensor("sentence_embedding", ("b", 8), "float")]
    interface = match(
        facts([tensor(name) for name in TEXT], outputs), "feature-extraction", has_sentence=True
    )
    assert {each.given: each.name for each in interface.outputs} == {
        "token_embeddings": "last_hidden_state",
        "sentence_embedding": "sentence_embedding",
    }
    assert interface.notes == ("its output `token_embeddings` is taken for `last_hidden_state`",)


def test_either_output_of_an_encoder_will_do_and_the_other_is_named() -> None:
    interface = match(
        facts([tensor(name) for name in TEXT], [hidden("last_hidden_state")]),
        "feature-extraction",
        has_sentence=True,
    )
    assert [each.name for each in interface.outputs] == ["last_hidden_state"]
    assert interface.notes == ("it does not give `sentence_embedding`, so that is not compared",)


def test_an_answer_of_which_half_is_missing_is_refused() -> None:
    start = tensor("start_logits", BS, "float")
    with pytest.raises(RecipeError, match="end_logits"):
        match(facts([tensor(name) for name in TEXT], [start]), "question-answering")


def test_the_pooler_of_bert_is_no_sentence_embedding() -> None:
    outputs = [hidden("last_hidden_state"), tensor("pooler_output", ("batch_size", 8), "float")]
    interface = match(
        facts([tensor(name) for name in TEXT], outputs), "feature-extraction", has_sentence=True
    )
    assert [each.name for each in interface.outputs] == ["last_hidden_state"]
    assert "its output `pooler_output` is not looked at" in interface.notes


def test_a_single_tensor_on_both_sides_is_paired_and_said() -> None:
    pixels = tensor("input.1", (1, 3, 8, 8), "float")
    interface = match(
        facts([pixels], [logits("268")]), "image-classification", fed=("pixel_values",)
    )
    assert interface.inputs[0].given == "input.1"
    assert interface.outputs[0].given == "268"
    assert interface.fixed == {"batch": 1}


def test_several_unknown_tensors_are_not_guessed() -> None:
    found = facts([tensor("a"), tensor("b"), tensor("c")], [logits()])
    with pytest.raises(RecipeError, match="`a`, `b`, `c`") as caught:
        match(found)
    assert "--rename" in caught.value.hint
    interface = match(found, renames=dict(zip("abc", TEXT, strict=True)))
    assert [each.given for each in interface.inputs] == ["a", "b", "c"]


def test_a_rename_of_what_is_not_there_is_an_error() -> None:
    with pytest.raises(RecipeError, match="no input or output `x`"):
        match(facts([tensor(name) for name in TEXT], [logits()]), renames={"x": "logits"})


def test_positions_and_types_that_nobody_feeds_are_supplied() -> None:
    inputs = [tensor("input_ids"), tensor("attention_mask"), tensor("position_ids")]
    interface = match(
        facts([*inputs, tensor("token_type_ids", dtype="int32")], [logits()]), fed=TEXT[:2]
    )
    assert {each.given: each.rule for each in interface.supplied} == {
        "position_ids": "positions",
        "token_type_ids": "zeros",
    }
    assert len(interface.notes) == 2


def test_token_types_that_are_dropped_are_named_and_left_to_the_comparison() -> None:
    interface = match(facts([tensor("input_ids"), tensor("attention_mask")], [logits()]))
    assert interface.missing == ("token_type_ids",)


def test_a_decoder_with_a_cache_is_refused_for_what_it_is() -> None:
    cache = tensor("past_key_values.0.key", ("b", 2, "p", 4), "float")
    with pytest.raises(RecipeError, match=r"past_key_values\.0\.key") as caught:
        match(facts([*map(tensor, TEXT), cache], [logits()]))
    assert "text-generation" in caught.value.hint


def test_operators_of_a_library_from_elsewhere_are_refused_and_own_functions_are_not() -> None:
    inputs, ops = [*map(tensor, TEXT)], {"evil::Run": 1, "com.microsoft::Gelu": 1}
    with pytest.raises(RecipeError, match="evil::Run"):
        match(facts(inputs, [logits()], op_counts=ops))
    assert match(facts(inputs, [logits()], op_counts=ops, functions=("evil::Run",)))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([tensor(name, dtype="string") for name in TEXT], "string"),
        ([tensor(name, (*BS, 2)) for name in TEXT], "3 axes"),
        ([tensor("input_ids", (1, 8)), *map(tensor, TEXT[1:])], ""),
        ([tensor("input_ids", (1, 8)), tensor("attention_mask", (2, 8))], "do not agree on batch"),
        ([tensor("input_ids", (0, 8)), tensor("attention_mask", (0, 8))], "has batch 0"),
    ],
)
def test_inputs_that_cannot_be_fed_are_refused(tensors: list[TensorFacts], message: str) -> None:
    found = facts(tensors, [logits()])
    if not message:
        assert match(found).fixed == {"batch": 1, "sequence": 8}
        return
    with pytest.raises(RecipeError, match=message):
        match(found)


def test_integers_for_logits_are_refused() -> None:
    with pytest.raises(RecipeError, match="int64"):
        match(facts([*map(tensor, TEXT)], [tensor("logits", ("b", 3))]))
