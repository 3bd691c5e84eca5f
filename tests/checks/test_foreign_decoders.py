"""Decoders as other tools write them, taken in and read like our own: right ones pass, faults fail."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pipeline.candidates import match_interface, precision_of
from pipeline.checks.base import Measured
from pipeline.checks.generation import GENERATION, GenerationLimits
from pipeline.graph.read_foreign import read_facts
from pipeline.stages.adopt import ADOPT, CANDIDATE_PORT, AdoptConfig
from pipeline.stages.check_generation import CHECK_GENERATION, CheckGenerationConfig
from pipeline.tasks import find_task
from tests.decoders import POSITIONS, TASK
from tests.mutants.faults import decoding
from tests.mutants.surgery import Graph
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.parity.types import GateResult
    from tests.decoders import TinyDecoder

FED = ("input_ids", "attention_mask", "position_ids")


def rename_axes(graph: Graph) -> None:
    """As Optimum calls them."""
    names = {
        "batch": "batch_size",
        "sequence": "sequence_length",
        "past_sequence": "past_sequence_length",
        "total_sequence": "past_sequence_length + sequence_length",
    }
    own = graph.model.graph
    for value in (*own.input, *own.output, *own.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = names.get(dim.dim_param, dim.dim_param)


def _drop(graph: Graph, *parts: str) -> None:
    own = graph.model.graph
    for values in (own.input, own.output):
        kept = [value for value in values if not value.name.startswith(parts)]
        del values[:]
        values.extend(kept)


def count_positions(graph: Graph) -> None:
    """No `position_ids`: they are counted from the mask, from the first new token on."""
    put = graph.put
    sums = graph.insert("CumSum", ["attention_mask", put("axis", np.array(1, np.int64))])
    places = graph.insert("Sub", [sums, put("one", np.array(1, np.int64))])
    whole = graph.insert("Max", [places, put("least", np.array(0, np.int64))])
    past = graph.insert("Shape", ["past_key_values.0.key"], start=2, end=3)
    ends = [put("end", np.array([2**40])), put("places", np.array([1]))]
    found = graph.insert("Slice", [whole, past, *ends])
    graph.redirect("position_ids", found)
    _drop(graph, "position_ids")


def keep_halves(graph: Graph) -> None:
    """Keys and values go in and come out as float16."""
    own = graph.model.graph
    for value in own.input:
        if value.name.startswith("past_key_values."):
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
            wide = graph.insert("Cast", [value.name], to=TensorProto.FLOAT)
            graph.redirect(value.name, wide, but=[graph.maker(wide)])  # type: ignore[list-item]
    for value in own.output:
        if value.name.startswith("present."):
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
            inner = graph.before_output(value.name)
            graph.insert("Cast", [inner], to=TensorProto.FLOAT16, output=value.name)


def forget(graph: Graph) -> None:
    """No cache: an empty past is made inside."""
    own = graph.model.graph
    batch = graph.insert("Shape", ["input_ids"], start=0, end=1)
    for value in [value for value in own.input if value.name.startswith("past_key_values.")]:
        dims = value.type.tensor_type.shape.dim
        rest = graph.put(f"{value.name}_size", np.array([dims[1].dim_value, 0, dims[3].dim_value]))
        shape = graph.insert("Concat", [batch, rest], axis=0)
        graph.redirect(value.name, graph.insert("ConstantOfShape", [shape]))
    _drop(graph, "past_key_values.", "present.")


def keep_some(graph: Graph) -> None:
    """transformers.js says how many last logits it wants; 0 for all."""
    keep = helper.make_tensor_value_info("num_logits_to_keep", TensorProto.INT64, [])
    graph.model.graph.input.append(keep)
    inner = graph.before_output("logits")
    zero = graph.put("nothing", np.array(0, np.int64))
    start = graph.insert(
        "Unsqueeze", [graph.insert("Sub", [zero, keep.name]), graph.put("a", np.array([0]))]
    )
    ends = [graph.put("far", np.array([2**40])), graph.put("tokens", np.array([1]))]
    graph.insert("Slice", [inner, start, *ends], output="logits")


def take_in(
    decoder: TinyDecoder, folder: Path, change: Callable[[Graph], Any]
) -> tuple[dict[str, Any], tuple[GateResult, ...]]:
    """Facts and gates of a graph that was made from our export, checked as one from elsewhere."""
    graph = Graph.read(decoder.root / "export")
    change(graph)
    (folder / "in").mkdir(parents=True)
    graph.write(folder / "in")
    found = read_facts(folder / "in/model.onnx")
    config = json.loads((decoder.root / "checkpoint/config.json").read_text())
    interface = match_interface(
        found, find_task(TASK), fed=FED, has_sentence=False, renames={}, config=config
    )
    (folder / "out").mkdir()
    context = RecordingContext(folder, threads=2)
    config = AdoptConfig(file="model.onnx", interface=interface)
    ADOPT.run(config, {CANDIDATE_PORT: folder / "in"}, folder / "out", context)
    onnx.checker.check_model(folder / "out/model.onnx")
    checked = CheckGenerationConfig(
        task=TASK,
        component="model",
        optimizations="all",
        longest=POSITIONS,
        texts=4,
        read=12,
        outputs=("logits",),
    )
    facts = dict(CHECK_GENERATION.run(checked, decoder.ports(folder / "out"), folder, context))
    measured = Measured(
        target="candidate",
        component="model",
        stage="adopt",
        node="adopt",
        arithmetic=precision_of(found).arithmetic,
        is_proxy=False,
        facts=facts,
        floors={},
    )
    return facts, GENERATION.judge(measured, GenerationLimits())


def names(results: tuple[GateResult, ...], verdict: str) -> set[str]:
    return {r.metric.removeprefix("adopt.") for r in results if r.verdict == verdict}


@pytest.mark.parametrize("change", [count_positions, keep_halves, keep_some])
def test_a_right_decoder_passes_every_case(
    tiny_decoder: TinyDecoder, tmp_path: Path, change: Callable[[Graph], None]
) -> None:
    _, results = take_in(tiny_decoder, tmp_path, change)
    assert names(results, "failed") == names(results, "not_run") == set()
    assert {
        *("logits.prefill", "logits.token_by_token.itself", "logits.chunked.itself"),
        *("logits.left_padded.itself", "cache.left_padded.itself", "logits.reordered.itself"),
        *("logits.longest.checkpoint", "greedy.checkpoint", "kl", "perplexity"),
    } <= names(results, "passed")


def test_a_graph_without_a_cache_says_what_cannot_be_asked(
    tiny_decoder: TinyDecoder, tmp_path: Path
) -> None:
    facts, results = take_in(tiny_decoder, tmp_path, forget)
    assert names(results, "failed") == set()
    assert names(results, "not_run") == {"logits.chunked.itself", "logits.reordered.itself"}
    passed = names(results, "passed")
    assert {"logits.prefill", "logits.token_by_token.itself", "greedy.checkpoint"} <= passed
    assert "logits.left_padded.itself" in passed
    assert not any(name.startswith("cache") for name in passed)
    assert facts["cache_bytes_per_token"] == 0


def test_a_graph_without_a_cache_that_looks_ahead_fails(
    tiny_decoder: TinyDecoder, tmp_path: Path
) -> None:
    def look_ahead(graph: Graph) -> None:
        forget(graph)
        inner = graph.before_output("logits")
        mean = graph.insert("ReduceMean", [inner, graph.put("t", np.array([1]))])
        graph.insert("Add", [inner, mean], output="logits")

    _, results = take_in(tiny_decoder, tmp_path, look_ahead)
    assert {"logits.prefill", "logits.token_by_token.itself"} <= names(results, "failed")


DAMAGES: dict[Callable[[Graph], Any], str] = {
    decoding.cache_mask_lost: "logits.left_padded.itself",
    decoding.positions_shifted_by_past: "logits.token_by_token.itself",
    decoding.rope_base: "logits.prefill",
    decoding.cache_entries_stale: "cache.chunked.itself",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_decoder_from_elsewhere_fails_where_it_must(
    tiny_decoder: TinyDecoder, tmp_path: Path, damage: Callable[[Graph], Any]
) -> None:
    def change(graph: Graph) -> None:
        damage(graph)
        rename_axes(graph)

    _, results = take_in(tiny_decoder, tmp_path, change)
    assert DAMAGES[damage] in names(results, "failed")


def test_positions_that_forget_the_past_fail(tiny_decoder: TinyDecoder, tmp_path: Path) -> None:
    """What a graph counts itself, it must count from the mask."""

    def count_new_tokens_only(graph: Graph) -> None:
        ids = graph.insert("Mul", ["input_ids", graph.put("none", np.array(0, np.int64))])
        ones = graph.insert("Add", [ids, graph.put("one", np.array(1, np.int64))])
        sums = graph.insert("CumSum", [ones, graph.put("axis", np.array(1, np.int64))])
        graph.redirect("position_ids", graph.insert("Sub", [sums, "one"]))
        _drop(graph, "position_ids")

    _, results = take_in(tiny_decoder, tmp_path, count_new_tokens_only)
    assert {"logits.token_by_token.itself", "greedy.checkpoint"} <= names(results, "failed")
