from __future__ import annotations

from onnx import helper

from pipeline.graph.attention_blocks import find_attention_blocks
from tests.engines.graphs import encoder, product


def test_each_layer_of_an_encoder_has_one_block() -> None:
    assert len(find_attention_blocks(encoder(3).graph)) == 3


def test_a_guard_between_softmax_and_values_does_not_hide_the_block() -> None:
    graph = encoder().graph
    context = next(node for node in graph.node if node.name == "context_0")
    context.input[0] = "guarded"
    graph.node.insert(
        list(graph.node).index(context),
        helper.make_node("Where", ["m0", "softmax_0", "minus"], ["guarded"]),
    )
    assert find_attention_blocks(graph)[0].nodes == ("scores_0", "softmax_0", "context_0")


def test_a_softmax_over_logits_is_no_attention() -> None:
    graph = product().graph
    graph.node[1].op_type = "Softmax"
    assert find_attention_blocks(graph) == ()


def test_an_attention_node_is_a_block_and_a_foreign_one_is_not() -> None:
    graph = product().graph
    graph.node.append(helper.make_node("Attention", ["q", "k", "v"], ["a"], name="mine"))
    graph.node.append(
        helper.make_node("Attention", ["q"], ["b"], name="theirs", domain="com.microsoft")
    )
    assert [block.nodes for block in find_attention_blocks(graph)] == [("mine",)]


def test_products_with_weights_around_a_softmax_are_no_attention() -> None:
    graph = encoder().graph
    next(node for node in graph.node if node.name == "context_0").input[1] = "wq_0"
    assert find_attention_blocks(graph) == ()
