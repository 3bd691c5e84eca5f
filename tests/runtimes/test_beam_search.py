"""Beam search on real graphs and checkpoints, beside `generate(num_beams=...)` of `transformers`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.runtimes.base import FeedError
from pipeline.runtimes.beam_search import BeamOptions, search_beams
from pipeline.runtimes.checkpoint_decoder import CheckpointDecoder
from pipeline.runtimes.generation import GenerationOptions, generate
from pipeline.runtimes.ort_decoder import OrtDecoder
from pipeline.runtimes.seq2seq import SourcedDecoder
from pipeline.runtimes.torch_model import load_torch_model
from pipeline.runtimes.torch_reference import TorchReferenceRunner
from tests.decoders import POSITIONS
from tests.pairs import BINS, END, FAMILIES, FRAMES, PAD, SPEECH, TEXTS, build_pair
from tests.trained_models import ensure_trained

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.runtimes.beam_search import Beam
    from tests.decoders import TinyDecoder

PROMPTS = [[5, 9, 2], [7, 7, 30, 31, 90, 12, 4, 4, 8], [1]]
SCORE = 2e-4
"""Scores of float32 sums against those of float64; two texts this close may change places."""


@pytest.fixture(scope="module")
def decoder(tiny_decoder: TinyDecoder) -> Iterator[OrtDecoder]:
    with OrtDecoder(tiny_decoder.root / "export/model.onnx", threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def model(tiny_decoder: TinyDecoder) -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(tiny_decoder.root / "checkpoint").eval()


def _options(**changes: Any) -> BeamOptions:
    return BeamOptions(**({"beams": 4, "tokens": 10} | changes))


def _theirs(
    model: Any, prompt: int, options: BeamOptions, count: int = 0, **inputs: Any
) -> list[tuple[Any, Any]]:
    """Tokens without what fills them up, and score, of the best beams of one text; 0: of all."""
    import torch

    with torch.no_grad():
        found = model.generate(
            **inputs,
            max_new_tokens=options.tokens,
            do_sample=False,
            num_beams=options.beams,
            num_return_sequences=count or options.beams,
            length_penalty=options.length_penalty,
            early_stopping=options.early_stopping,
            eos_token_id=sorted(options.stops) or None,
            pad_token_id=options.pad,
            return_dict_in_generate=True,
            output_scores=True,
        )
    texts = []
    for row, score in zip(found.sequences.tolist(), found.sequences_scores.tolist(), strict=True):
        tokens = row[prompt:]
        ends = [at for at, token in enumerate(tokens) if token in options.stops]
        texts.append((tuple(tokens[: ends[0] + 1] if ends else tokens), score))
    return texts


def _assert_same(ours: tuple[Beam, ...], theirs: list[tuple[Any, Any]]) -> None:
    np.testing.assert_allclose(
        [beam.score for beam in ours], [score for _, score in theirs], rtol=0, atol=SCORE
    )
    for beam, (tokens, score) in zip(ours, theirs, strict=True):
        ties = [other for other, near in theirs if abs(near - score) <= SCORE]
        assert beam.tokens == tokens or beam.tokens in ties


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"beams": 3, "length_penalty": 2.0, "early_stopping": True},
        {"length_penalty": -1.5},
        {"length_penalty": 0.0, "early_stopping": "never"},
        {"length_penalty": 1.3, "early_stopping": "never"},
    ],
)
def test_a_batch_is_searched_as_transformers_searches_each_prompt(
    decoder: OrtDecoder, model: Any, changes: dict[str, Any]
) -> None:
    import torch

    # Tokens that do come, so that texts end at several lengths.
    greedy = generate(decoder, PROMPTS, GenerationOptions(tokens=10)).tokens
    options = _options(stops=frozenset({greedy[0][3], greedy[1][2], 11}), **changes)
    found = search_beams(decoder, PROMPTS, options)
    lengths = {len(beam.tokens) for beams in found for beam in beams}
    assert len(lengths) > 1
    for prompt, beams in zip(PROMPTS, found, strict=True):
        wanted = _theirs(model, len(prompt), options, input_ids=torch.tensor([prompt]))
        _assert_same(beams, wanted)


def test_beams_find_what_greed_does_not(decoder: OrtDecoder) -> None:
    """One beam is greedy, and more find likelier texts."""
    greedy = generate(decoder, PROMPTS, GenerationOptions(tokens=8)).tokens
    narrow = search_beams(decoder, PROMPTS, _options(beams=1, tokens=8))
    assert [beams[0].tokens for beams in narrow] == list(greedy)
    wide = search_beams(decoder, PROMPTS, _options(beams=8, tokens=8))
    gains = [w[0].score - n[0].score for w, n in zip(wide, narrow, strict=True)]
    assert max(gains) > 0.01
    assert sum(gains) > 0


def test_what_a_text_finds_does_not_hang_on_its_neighbours(decoder: OrtDecoder) -> None:
    options = _options(chunk=2)
    together = search_beams(decoder, PROMPTS, options)
    for prompt, beams in zip(PROMPTS, together, strict=True):
        (alone,) = search_beams(decoder, [prompt], options)
        _assert_same(beams, [(beam.tokens, beam.score) for beam in alone])


def test_rows_that_do_not_follow_their_beams_find_other_texts(
    decoder: OrtDecoder, model: Any
) -> None:
    """The comparison above sees a cache that stays where it is."""
    import torch

    class Stuck:
        """Beams are told apart, but their caches are not exchanged."""

        def __getattr__(self, name: str) -> Any:
            return getattr(decoder, name)

        def reorder(self, cache: Any, rows: list[int]) -> Any:
            kept = list(range(len(rows))) if len(rows) == cache.rows else rows
            return decoder.reorder(cache, kept)

    stuck: Any = Stuck()
    wrong = search_beams(stuck, PROMPTS[:1], _options())[0]
    wanted = _theirs(model, 3, _options(), input_ids=torch.tensor(PROMPTS[:1]))
    with pytest.raises(AssertionError):
        _assert_same(wrong, wanted)


@pytest.mark.parametrize(
    "family",
    ["t5", *(pytest.param(name, marks=pytest.mark.slow) for name in ("marian", "whisper"))],
)
def test_padded_sources_are_searched_as_by_transformers(family: str, tmp_path: Path) -> None:
    import torch
    import transformers

    path = build_pair(tmp_path / "checkpoint", family)
    task = SPEECH if family == "whisper" else TEXTS
    generator = np.random.default_rng(0)
    sources: dict[str, np.ndarray[Any, Any]]
    if family == "whisper":
        sources = {"input_features": generator.normal(size=(2, BINS, FRAMES)).astype(np.float32)}
    else:
        mask = np.ones((2, 9), np.int64)
        mask[1, 4:] = 0
        ids = np.where(mask, generator.integers(0, PAD, mask.shape), PAD)
        sources = {"input_ids": ids, "attention_mask": mask}
    model = getattr(transformers, FAMILIES[family][0]).from_pretrained(path).eval()
    options = _options(tokens=6, stops=frozenset({END}), pad=PAD, length_penalty=0.7)
    with (
        TorchReferenceRunner(path, task=task, component="encoder") as encoder,
        TorchReferenceRunner(path, task=task, component="decoder") as decoder,
    ):
        found = search_beams(SourcedDecoder(encoder, decoder, sources), [[PAD]] * 2, options)
    inputs = {name: torch.from_numpy(array) for name, array in sources.items()}
    for row, beams in enumerate(found):
        alone = {name: tensor[[row]] for name, tensor in inputs.items()}
        # Whisper's `generate` of transformers 5.23 returns the best text again and again.
        count = 1 if family == "whisper" else options.beams
        wanted = _theirs(model, 1, options, count, **alone)
        _assert_same(beams[:count], wanted)


@pytest.mark.parametrize(
    ("prompts", "changes", "message"),
    [
        ([[1], []], {}, "a prompt without a token"),
        ([[1]], {"beams": 0}, "`beams` cannot be 0"),
        ([[1]], {"length_penalty": float("nan")}, "`length_penalty` cannot be nan"),
        ([[1]], {"early_stopping": "soon"}, "`early_stopping` cannot be soon"),
        ([[1] * 60], {"positions": POSITIONS}, "more than the 64 positions"),
    ],
)
def test_options_without_sense_are_refused(
    decoder: OrtDecoder, prompts: list[list[int]], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(FeedError, match=message):
        search_beams(decoder, prompts, _options(**changes))


@pytest.mark.slow
@pytest.mark.trained
def test_a_trained_model_is_searched_as_by_transformers() -> None:
    """Real text, where the likeliest tokens are far from each other and beams end at unlike times."""
    import json

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trained = ensure_trained("lm")
    model = AutoModelForCausalLM.from_pretrained(trained.checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained.checkpoint)
    rows = [json.loads(line)["text"] for line in trained.test.read_text().splitlines()[:4]]
    prompts = [tokenizer(text)["input_ids"][: 8 + 5 * n] for n, text in enumerate(rows)]
    decoder = CheckpointDecoder(load_torch_model(trained.checkpoint, "text-generation", "model"))
    newline = tokenizer("\n")["input_ids"][0]
    options = _options(tokens=16, stops=frozenset({tokenizer.eos_token_id, newline}))
    found = search_beams(decoder, prompts, options)
    for prompt, beams in zip(prompts, found, strict=True):
        wanted = _theirs(model, len(prompt), options, input_ids=torch.tensor([prompt]))
        _assert_same(beams, wanted)
