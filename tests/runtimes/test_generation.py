"""The generation loop on a real graph, beside what `transformers` generates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.data.decoder_inputs import positions_of
from pipeline.errors import StageError
from pipeline.runtimes.base import FeedError
from pipeline.runtimes.decoder import Feed
from pipeline.runtimes.generation import (
    GenerationOptions,
    choose,
    distribution,
    generate,
    pad_left,
    prefill,
)
from pipeline.runtimes.ort_decoder import OrtDecoder
from tests.decoders import POSITIONS, VOCABULARY
from tests.mutants.surgery import Graph

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.decoders import TinyDecoder

PROMPTS = [[5, 9, 2], [7, 7, 30, 31, 90, 12, 4, 4, 8], [1]]


@pytest.fixture(scope="module")
def root(tiny_decoder: TinyDecoder) -> Path:
    return tiny_decoder.root


@pytest.fixture(scope="module")
def decoder(root: Path) -> Iterator[OrtDecoder]:
    with OrtDecoder(root / "export/model.onnx", threads=1) as loaded:
        yield loaded


def _options(**changes: Any) -> GenerationOptions:
    return GenerationOptions(**({"tokens": 8} | changes))


def test_a_batch_is_continued_as_transformers_continues_each_prompt(
    root: Path, decoder: OrtDecoder
) -> None:
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(root / "checkpoint").eval()
    found = generate(decoder, PROMPTS, _options(keeps_logits=True))
    for prompt, tokens, logits in zip(PROMPTS, found.tokens, found.logits, strict=True):
        expected = model.generate(
            torch.tensor([prompt]), max_new_tokens=8, do_sample=False, pad_token_id=0
        )
        assert list(tokens) == expected[0, len(prompt) :].tolist()
        assert logits.shape == (8, VOCABULARY)
        assert logits.dtype == np.float32
        assert logits.argmax(axis=1).tolist() == list(tokens)


@pytest.mark.parametrize("chunk", [1, 2, 4, 100])
def test_a_prompt_in_chunks_is_continued_the_same(decoder: OrtDecoder, chunk: int) -> None:
    whole = generate(decoder, PROMPTS, _options()).tokens
    assert generate(decoder, PROMPTS, _options(chunk=chunk)).tokens == whole


def test_texts_end_with_a_stop_token_and_others_go_on(decoder: OrtDecoder) -> None:
    whole = generate(decoder, PROMPTS, _options()).tokens
    stop = whole[0][2]
    found = generate(decoder, PROMPTS, _options(stops=frozenset({stop}))).tokens
    for tokens, all_tokens in zip(found, whole, strict=True):
        end = all_tokens.index(stop) + 1 if stop in all_tokens else len(all_tokens)
        assert tokens == all_tokens[:end]
    steps: list[int] = []
    alone = _options(stops=frozenset({stop}))
    generate(decoder, PROMPTS[:1], alone, on_step=steps.append)
    assert steps == list(range(len(found[0])))  # nothing runs when nobody is left


def test_what_is_drawn_hangs_on_the_seed_and_not_on_the_neighbours(decoder: OrtDecoder) -> None:
    options = _options(temperature=1.5, top_k=50, top_p=0.95, seed=3)
    first = generate(decoder, PROMPTS, options).tokens
    assert generate(decoder, PROMPTS, options).tokens == first
    assert generate(decoder, PROMPTS[:1], options).tokens[0] == first[0]
    others = [generate(decoder, PROMPTS, _options(temperature=1.5, seed=seed)) for seed in (4, 5)]
    assert others[0].tokens != others[1].tokens


def test_the_likeliest_are_kept_as_transformers_keeps_them() -> None:
    import torch
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32) * 3
    options = _options(temperature=0.7, top_k=10, top_p=0.8)
    scores = torch.from_numpy(logits.copy())
    for warp in (TemperatureLogitsWarper(0.7), TopKLogitsWarper(10), TopPLogitsWarper(0.8)):
        scores = warp(None, scores)
    expected = torch.softmax(scores, dim=-1).numpy()
    np.testing.assert_allclose(distribution(logits, options), expected, atol=1e-6)
    generators = [np.random.default_rng(row) for row in range(4)]
    drawn = [choose(logits, options, generators) for _ in range(200)]
    for row in range(4):
        assert {int(each[row]) for each in drawn} <= set(np.flatnonzero(expected[row]).tolist())
    only = _options(temperature=1.0, top_p=1e-9)
    assert (distribution(logits, only).argmax(axis=1) == logits.argmax(axis=1)).all()
    assert np.count_nonzero(distribution(logits, only)) == 4


def test_a_cache_is_a_value_and_rows_can_be_exchanged(decoder: OrtDecoder) -> None:
    tokens, mask = pad_left(PROMPTS)
    assert mask.sum(axis=1).tolist() == [3, 9, 1]
    assert positions_of(mask)[0].tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 2]
    _, cache = prefill(decoder, tokens, mask)
    before = decoder.read(cache)
    wider = np.concatenate([mask, np.ones((3, 1), np.int64)], axis=1)
    feed = Feed(
        tokens=np.array([[3], [4], [5]]), mask=wider, positions=positions_of(wider)[:, -1:]
    )
    first, after = decoder.step(feed, cache)
    again, _ = decoder.step(feed, cache)
    assert first.tobytes() == again.tobytes()
    assert after.length == cache.length + 1 == 10
    for name, array in decoder.read(cache).items():
        assert array.tobytes() == before[name].tobytes()
        assert decoder.read(after)[name][:, :, :-1].tobytes() == array.tobytes()
    rows = [2, 0, 2]
    moved = Feed(tokens=feed.tokens[rows], mask=wider[rows], positions=feed.positions[rows])
    exchanged, _ = decoder.step(moved, decoder.reorder(cache, rows))
    np.testing.assert_allclose(exchanged, first[rows], atol=1e-5)
    assert decoder.bytes_per_token == 2 * 2 * 2 * 8 * 4


@pytest.mark.parametrize(
    ("prompts", "changes", "message"),
    [
        ([[1], []], {}, "a prompt without a token"),
        ([], {}, "a prompt without a token"),
        ([[1]], {"tokens": 0}, "`tokens` cannot be 0"),
        ([[1]], {"temperature": -1.0}, "`temperature` cannot be -1.0"),
        ([[1]], {"temperature": float("nan")}, "`temperature` cannot be nan"),
        ([[1]], {"top_k": 0}, "`top_k` cannot be 0"),
        ([[1]], {"top_p": 1.5}, "`top_p` cannot be 1.5"),
        ([[1]], {"chunk": 0}, "`chunk` cannot be 0"),
        ([[1] * 60], {"positions": POSITIONS}, "more than the 64 positions"),
    ],
)
def test_options_without_sense_are_refused(
    decoder: OrtDecoder, prompts: list[list[int]], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(FeedError, match=message):
        generate(decoder, prompts, _options(**changes))


def test_shapes_that_do_not_fit_the_cache_are_refused(decoder: OrtDecoder) -> None:
    tokens, mask = pad_left(PROMPTS)
    feed = Feed(tokens=tokens, mask=mask[:, :-1], positions=positions_of(mask))
    with pytest.raises(FeedError, match=r"`attention_mask` has shape \[3, 8\]; with 0 tokens"):
        decoder.step(feed, decoder.empty(3))


def test_logits_that_are_no_numbers_are_never_chosen_from() -> None:
    logits = np.array([[0.0, np.nan]], np.float32)
    with pytest.raises(FeedError, match="NaN"):
        choose(logits, _options(), [np.random.default_rng(0)])


def test_a_graph_without_a_cache_is_no_decoder(root: Path, tmp_path: Path) -> None:
    graph = Graph.read(root / "export")
    (gone,) = [value for value in graph.model.graph.output if value.name == "present.1.key"]
    graph.model.graph.output.remove(gone)
    graph.write(tmp_path)
    with (
        pytest.raises(StageError, match=r"`past_key_values.1.key` has no output `present.1.key`"),
        OrtDecoder(tmp_path / "model.onnx"),
    ):
        pass


def test_a_cache_that_does_not_grow_is_noticed(root: Path, tmp_path: Path) -> None:
    graph = Graph.read(root / "export")
    graph.before_output("present.0.key")
    graph.insert("Identity", ["past_key_values.0.key"], output="present.0.key")
    graph.write(tmp_path)
    with (
        OrtDecoder(tmp_path / "model.onnx") as stale,
        pytest.raises(StageError, match=r"`present.0.key` is \[3, 2, 0, 8\] behind 9 tokens"),
    ):
        generate(stale, PROMPTS, _options())
