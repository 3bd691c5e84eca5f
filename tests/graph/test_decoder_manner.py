"""What a decoder's graph can be asked is read from the graph: a cache, and where padding may stand."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from pipeline.candidates import AdoptedCache, AdoptedInput, AdoptedOutput, Interface
from pipeline.data.decoder_inputs import is_prefix
from pipeline.graph.adoption import adopt_model
from pipeline.graph.decoder_manner import counts_its_mask, keeps_cache
from tests.graph.models import parse


@pytest.mark.parametrize(
    ("inputs", "counts"),
    [
        ("hidden, , , past0, , lengths, total", True),
        ("hidden, , , past0, , lengths, total, , , , bias", False),
        ("hidden, , , past0, , lengths, total, , , positions, ", True),
    ],
)
def test_attention_without_a_bias_counts_its_mask(inputs: str, counts: bool) -> None:
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node(
                    "GroupQueryAttention",
                    [name.strip() for name in inputs.split(",")],
                    ["y"],
                    domain="com.microsoft",
                )
            ],
            "g",
            [helper.make_tensor_value_info("past_key_values.0.key", TensorProto.FLOAT, None)],
            [],
        )
    )
    assert counts_its_mask(model) == counts
    assert keeps_cache(model)


def test_graphs_with_a_mask_of_their_own_can_be_asked_everything() -> None:
    model = parse("g (float[n, 3] x) => (float[n, 3] y) { y = Relu(x) }")
    assert not counts_its_mask(model)
    assert not keeps_cache(model)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([1, 1, 1], True),
        ([1, 1, 0], True),
        ([0, 1, 1], False),
        ([1, 0, 1], False),
        ([0, 0], False),
    ],
)
def test_a_length_says_all_of_a_mask_with_padding_behind(mask: list[int], expected: bool) -> None:
    assert is_prefix(np.array(mask)) == expected


def test_what_comes_out_of_a_cache_keeps_its_own_length() -> None:
    """ONNX Runtime took it for as long as the past otherwise, and wrote it into the same memory."""
    text = """
g (int64[n, s] ids, float16[n, 2, p, 4] past) => (float[n, s, 8] logits, float16[n, 2, t, 4] present)
{
    f = Cast<to = 1>(ids)
    two = Constant<value = int64[1] {2}>()
    column = Unsqueeze(f, two)
    logits = Expand(column, eight)
    present = Concat<axis = 2>(past, past)
}
"""
    model = parse(text, {"eight": np.array([1, 1, 8])})
    interface = Interface(
        inputs=(
            AdoptedInput(
                name="input_ids",
                given="ids",
                fed="int64",
                dtype="int64",
                axes=("batch", "sequence"),
            ),
        ),
        supplied=(),
        outputs=(
            AdoptedOutput(
                name="logits", given="logits", dtype="float", axes=("batch", "sequence")
            ),
        ),
        fixed={},
        missing=(),
        notes=(),
        caches=(
            AdoptedCache(
                name="past_key_values.0.key",
                present="present.0.key",
                given="past",
                given_present="present",
                dtype="float16",
                heads=2,
                width=4,
            ),
        ),
    )
    adopt_model(model, interface)
    (inner,) = [value for value in model.graph.value_info if value.name.endswith("present.0.key")]
    dims = [dim.dim_param or dim.dim_value for dim in inner.type.tensor_type.shape.dim]
    assert dims == ["batch", 2, "total_sequence", 4]
    kinds = {
        v.name: v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)
    }
    assert kinds["past_key_values.0.key"] == kinds["present.0.key"] == TensorProto.FLOAT
