"""Decoders with a cache of a fixed length: as those whose cache grows, in one memory, and never beyond it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest

from pipeline.data.decoder_inputs import CACHE_POSITION, is_cache, is_present, positions_of
from pipeline.errors import StageError
from pipeline.graph.static_cache import write_static_cache
from pipeline.runtimes.base import FeedError
from pipeline.runtimes.decoder import Feed
from pipeline.runtimes.generation import GenerationOptions, generate, pad_left, prefill
from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner
from pipeline.runtimes.ort_decoder import OrtDecoder
from pipeline.runtimes.static_cache import CacheRunner, fit_feeds
from pipeline.stages.fuse import FUSE, FuseConfig
from pipeline.stages.simplify import SIMPLIFY, SimplifyConfig
from pipeline.stages.static_cache import STATIC_CACHE, StaticCacheConfig
from tests.mutants.surgery import Graph
from tests.stages.context import RecordingContext
from tests.stages.test_fuse_decoder import fuse_family

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.runtimes.base import Array
    from pipeline.stages.base import AnyStage, StageConfig
    from tests.decoders import TinyDecoder

LENGTH = 24
PROMPTS = [[5, 9, 2], [7, 7, 30, 31, 90, 12, 4, 4, 8], [1]]
SHAPES = ((1, 0, 1), (2, 0, 6), (3, 1, 1), (2, 9, 3), (1, 18, 6), (2, 5, 1))
"""Batch, past and sequence; the fifth fills the cache."""


@dataclass(frozen=True)
class Pair:
    """Directories of graphs that are the same but for their cache."""

    growing: Path
    static: Path


def write_static(source: Path, output: Path, length: int = LENGTH) -> dict[str, Any]:
    output.mkdir()
    config, context = StaticCacheConfig(length=length), RecordingContext(output.parent)
    return dict(STATIC_CACHE.run(config, {"model": source}, output, context))


@pytest.fixture(scope="module")
def pair(tiny_decoder: TinyDecoder, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    root, last = tmp_path_factory.mktemp("static"), tiny_decoder.root / "export"
    chain: tuple[tuple[AnyStage, StageConfig], ...] = (
        (SIMPLIFY, SimplifyConfig()),
        (FUSE, FuseConfig(last_logits=True)),
    )
    for stage, config in chain:
        (root / stage.name).mkdir()
        stage.run(config, {"model": last}, root / stage.name, RecordingContext(root))
        last = root / stage.name
    facts = write_static(last, root / "static")
    assert facts == {"length": LENGTH, "caches": 4, "attentions": 2}
    return Pair(last, root / "static")


@pytest.fixture(scope="module")
def growing(pair: Pair) -> Iterator[OrtDecoder]:
    with OrtDecoder(pair.growing / "model.onnx", threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def static(pair: Pair) -> Iterator[OrtDecoder]:
    with OrtDecoder(pair.static / "model.onnx", threads=1) as loaded:
        yield loaded


def _feeds(runner: OnnxRuntimeRunner, batch: int, past: int, sequence: int) -> dict[str, Array]:
    """With padding in front of the last row where there is room for it."""
    random = np.random.default_rng(past)
    mask = np.ones((batch, past + sequence), np.int64)
    mask[-1, : 2 * (past > 2)] = 0
    feeds: dict[str, Array] = {
        "input_ids": random.integers(0, 97, (batch, sequence)),
        "attention_mask": mask,
        "position_ids": positions_of(mask)[:, past:],
    }
    for spec in runner.inputs:
        if is_cache(spec.name):
            assert spec.shape is not None
            shape = (batch, spec.shape[1], past, spec.shape[3])
            feeds[spec.name] = random.standard_normal(shape).astype(np.float32)  # type: ignore[arg-type]
    return feeds


def _check_same(growing: Path, static: Path) -> None:
    """Bit for bit, whatever lies behind the tokens in cache and mask."""
    with (
        OnnxRuntimeRunner(growing / "model.onnx", threads=1) as one,
        OnnxRuntimeRunner(static / "model.onnx", threads=1) as other,
    ):
        for batch, past, sequence in SHAPES:
            feeds = _feeds(one, batch, past, sequence)
            fitted = fit_feeds(feeds, LENGTH)
            total = past + sequence
            for name, array in fitted.items():
                if is_cache(name):
                    array[:, :, past:] = np.nan
            fitted["attention_mask"][:, total:] = 1
            found = other.run(fitted)
            for name, expected in one.run(feeds).items():
                array = found[name]
                if is_present(name):
                    assert array.shape[2] == LENGTH
                    assert np.isnan(array[:, :, total:]).all()
                    array = array[:, :, :total]
                assert np.array_equal(array, expected), (batch, past, sequence, name)


def test_a_static_cache_changes_no_bit(
    pair: Pair, tiny_decoder: TinyDecoder, tmp_path: Path
) -> None:
    """Of the fused graph, and of the one as it was exported."""
    _check_same(pair.growing, pair.static)
    facts = write_static(tiny_decoder.root / "export", tmp_path / "export")
    assert facts == {"length": LENGTH, "caches": 4, "attentions": 0}
    _check_same(tiny_decoder.root / "export", tmp_path / "export")


def test_names_stay_and_no_input_grows(pair: Pair) -> None:
    with OnnxRuntimeRunner(pair.static / "model.onnx", threads=1) as runner:
        shapes = {spec.name: spec.shape for spec in (*runner.inputs, *runner.outputs)}
    assert shapes["attention_mask"] == ("batch", LENGTH)
    assert shapes[CACHE_POSITION] == (1,)
    assert shapes["position_ids"] == shapes["input_ids"] == ("batch", "sequence")
    for name in ("past_key_values.0.key", "present.1.value"):
        assert shapes[name] == ("batch", 2, LENGTH, 8)  # heads that share keys stay shared
    graph = Graph.read(pair.static)
    assert len(graph.all("TensorScatter")) == 4
    assert not graph.all("Concat", "Softmax") or all(
        "present" not in name for node in graph.all("Concat") for name in node.output
    )


def test_texts_are_continued_as_with_a_cache_that_grows(
    growing: OrtDecoder, static: OrtDecoder
) -> None:
    for chunk in (None, 4):
        options = GenerationOptions(tokens=LENGTH - 9, chunk=chunk, keeps_logits=True)
        expected = generate(growing, PROMPTS, options)
        found = generate(static, PROMPTS, options)
        assert found.tokens == expected.tokens
        for one, other in zip(found.logits, expected.logits, strict=True):
            assert np.array_equal(one, other)
    assert static.bytes_per_token == growing.bytes_per_token
    assert (static.room, growing.room) == (LENGTH, None)


def _next(mask: Any, tokens: list[int]) -> tuple[Feed, Any]:
    wider = np.concatenate([mask, np.ones((len(tokens), 1), np.int64)], axis=1)
    feed = Feed(
        tokens=np.array(tokens)[:, None], mask=wider, positions=positions_of(wider)[:, -1:]
    )
    return feed, wider


def test_past_and_present_are_one_memory_and_caches_stay_values(static: OrtDecoder) -> None:
    tokens, mask = pad_left(PROMPTS)
    _, cache = prefill(static, tokens, mask)
    before, places = static.read(cache), _places(cache)
    first, wider = _next(mask, [3, 4, 5])
    logits, after = static.step(first, cache)
    assert _places(after) == places  # nothing was copied
    assert after.length == cache.length + 1
    # From the cache before once more, with other tokens: what was written first is not lost.
    other, _ = _next(mask, [8, 9, 10])
    held = static.read(after)
    _, beside = static.step(other, cache)
    assert not set(_places(beside)) & set(places)
    assert all(np.array_equal(array, held[name]) for name, array in static.read(after).items())
    assert all(np.array_equal(array, before[name]) for name, array in static.read(cache).items())
    again, _ = static.step(first, cache)
    assert np.array_equal(again, logits)
    # And on from the longest one, in the memory that it has.
    further, _ = _next(wider, [1, 2, 3])
    assert _places(static.step(further, after)[1]) == places
    exchanged = static.reorder(cache, [2, 0, 2])
    moved, _ = _next(mask[[2, 0, 2]], [5, 3, 5])
    np.testing.assert_array_equal(static.step(moved, exchanged)[0], logits[[2, 0, 2]])


def _places(cache: Any) -> list[int]:
    return [value.data_ptr() for value in cache.values.values()]


def test_texts_that_do_not_fit_are_refused(static: OrtDecoder, pair: Pair) -> None:
    steps: list[int] = []
    with pytest.raises(FeedError, match=r"texts of 25 tokens, .* static cache of 24") as caught:
        generate(static, [[1] * 20], GenerationOptions(tokens=6), on_step=steps.append)
    assert not steps  # before anything is computed
    assert len(generate(static, [[1] * 20], GenerationOptions(tokens=5)).tokens[0]) == 5
    tokens = np.ones((1, 25), np.int64)
    with pytest.raises(FeedError, match="texts of 25 tokens"):
        prefill(static, tokens, tokens)
    assert "`static_cache: {length: 25}`" in caught.value.hint
    with (
        CacheRunner(pair.static / "model.onnx", threads=1) as runner,
        pytest.raises(FeedError, match="texts of 25 tokens"),
    ):
        runner.run(_feeds(runner, 1, 20, 5))


def test_comparisons_feed_it_like_one_that_grows(pair: Pair) -> None:
    with (
        CacheRunner(pair.growing / "model.onnx", threads=1) as one,
        CacheRunner(pair.static / "model.onnx", threads=1) as other,
    ):
        assert other.inputs == one.inputs
        assert other.outputs == one.outputs
        feeds = _feeds(one, 2, 5, 3)
        found = other.run(feeds)
        for name, expected in one.run(feeds).items():
            assert np.array_equal(found[name], expected)


def test_a_cache_that_does_not_grow_by_new_tokens_is_refused(
    tiny_decoder: TinyDecoder, tmp_path: Path
) -> None:
    graph = Graph.read(tiny_decoder.root / "export")
    join = graph.maker("present.1.value")
    assert join is not None
    join.input[0], join.input[1] = join.input[1], join.input[0]
    with pytest.raises(
        StageError, match=r"`present.1.value` is not `past_key_values.1.value` with"
    ):
        write_static_cache(ir.from_proto(graph.model), LENGTH)
    with pytest.raises(StageError, match="no decoder with a cache that grows"):
        write_static_cache(ir.Model(ir.Graph([], [], nodes=[]), ir_version=10), LENGTH)


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", ["gpt2", "qwen3", "gemma2", "gemma3", "mistral", "phi", "opt", "gpt_neox"]
)
def test_other_families_change_no_bit(tmp_path: Path, family: str) -> None:
    """Among them shared heads, windows, bent scores (which no `Attention` takes) and positions of OPT."""
    _, path, _ = fuse_family(tmp_path, family)
    facts = write_static(path.parent, tmp_path / "static")
    assert facts["caches"] == 4
    assert facts["attentions"] == (0 if family == "gemma2" else 2)
    _check_same(path.parent, tmp_path / "static")
