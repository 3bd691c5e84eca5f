from __future__ import annotations

import pytest

from pipeline.errors import ExportError
from pipeline.graph.dataflow import data_dead_inputs, require_live_inputs
from tests.graph.models import embedding_model, parse, random


def test_a_graph_whose_inputs_all_matter_passes() -> None:
    require_live_inputs(embedding_model())


def test_an_input_that_was_merged_into_another_is_found() -> None:
    # As torch 2.13 exported it when both inputs were one tensor: the embeddings are looked up with
    # the mask, and input_ids lives on in the shape of the positions only.
    merged = parse(
        """
        encoder (int64[batch, sequence] input_ids, int64[batch, sequence] attention_mask)
            => (float[batch, sequence, 4] last_hidden_state)
        {
            words = Gather(table, attention_mask)
            shape = Shape(input_ids)
            one = Constant<value = int64 {1}>()
            length = Gather(shape, one)
            zero = Constant<value = int64 {0}>()
            positions = Range(zero, length, one)
            places = Gather(table, positions)
            last_hidden_state = Add(words, places)
        }
        """,
        {"table": random(8, 4)},
    )
    assert data_dead_inputs(merged) == ("input_ids",)
    with pytest.raises(ExportError, match="no output depends on the data of input `input_ids`"):
        require_live_inputs(merged)


def test_an_input_that_nothing_reads_is_found() -> None:
    unused = parse("g (float[n] x, float[n] y) => (float[n] z) { z = Relu(x) }")
    assert data_dead_inputs(unused) == ("y",)


def test_reading_only_the_type_of_an_input_is_not_reading_it() -> None:
    cast = parse("g (float[n] x, int64[n] y) => (int64[n] z) { z = CastLike(x, y) }")
    assert data_dead_inputs(cast) == ("y",)


def test_an_input_that_only_a_subgraph_reads_is_alive() -> None:
    branch = parse(
        """
        g (bool choose, float[n] x, float[n] y) => (float[n] z)
        {
            z = If(choose)<
                then_branch = yes () => (float[n] a) { a = Relu(x) },
                else_branch = no () => (float[n] b) { b = Neg(y) }
            >
        }
        """
    )
    assert data_dead_inputs(branch) == ()


def test_weights_that_are_listed_as_inputs_are_not_inputs() -> None:
    model = parse("g (float[2] x, float[2] w) => (float[2] y) { y = Relu(x) }", {"w": random(2)})
    assert data_dead_inputs(model) == ()
