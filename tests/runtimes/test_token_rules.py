"""Rules of a `generation_config.json`, beside what `generate` of `transformers` does with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.runtimes.base import FeedError
from pipeline.runtimes.beam_search import BeamOptions, search_beams
from pipeline.runtimes.generation import GenerationOptions, choose, generate
from pipeline.runtimes.ort_decoder import OrtDecoder
from pipeline.runtimes.token_rules import PLAIN, TokenRules
from tests.decoders import VOCABULARY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.decoders import TinyDecoder

PROMPTS = [[5, 9, 2, 9], [7, 7, 30, 31, 90, 12, 4, 4, 8], [1]]
TOKENS = 10


@pytest.fixture(scope="module")
def decoder(tiny_decoder: TinyDecoder) -> Iterator[OrtDecoder]:
    with OrtDecoder(tiny_decoder.root / "export/model.onnx", threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def model(tiny_decoder: TinyDecoder) -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(tiny_decoder.root / "checkpoint").eval()


@pytest.fixture(scope="module")
def greedy(decoder: OrtDecoder) -> tuple[tuple[int, ...], ...]:
    return generate(decoder, PROMPTS, GenerationOptions(tokens=TOKENS)).tokens


def _rules(name: str, greedy: tuple[tuple[int, ...], ...]) -> tuple[TokenRules, dict[str, Any]]:
    """Rules that change what is written, and how transformers is told."""
    first = tuple(sorted({text[0] for text in greedy}))
    many = tuple(sorted({token for text in greedy for token in text[:4]}))
    word = greedy[0][1:3]
    cases: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "repetition": ({"repetition_penalty": 3.5}, {"repetition_penalty": 3.5}),
        "reward": ({"repetition_penalty": 0.4}, {"repetition_penalty": 0.4}),
        "one in a row": ({"no_repeat_ngram_size": 1}, {"no_repeat_ngram_size": 1}),
        "two in a row": (
            {"no_repeat_ngram_size": 2, "repetition_penalty": 0.4},
            {"no_repeat_ngram_size": 2, "repetition_penalty": 0.4},
        ),
        "bad words": (
            {"bad_words": ((first[0],), word)},
            {"bad_words_ids": [[first[0]], list(word)]},
        ),
        "suppressed": ({"suppress": many}, {"suppress_tokens": list(many)}),
        "begin": ({"begin_suppress": first}, {"begin_suppress_tokens": list(first)}),
        "forced": (
            {"forced_bos": 3, "forced_eos": (44,), "begin_suppress": first},
            {
                "forced_bos_token_id": 3,
                "forced_eos_token_id": 44,
                "begin_suppress_tokens": list(first),
            },
        ),
        "least length": ({"min_length": 9}, {"min_length": 9}),
        "least new": ({"min_new_tokens": 6}, {"min_new_tokens": 6}),
        "all": (
            {
                "repetition_penalty": 1.3,
                "no_repeat_ngram_size": 3,
                "suppress": many[:2],
                "forced_eos": (44,),
                "min_length": 8,
                "forced_bos": 3,
            },
            {
                "repetition_penalty": 1.3,
                "no_repeat_ngram_size": 3,
                "suppress_tokens": list(many[:2]),
                "forced_eos_token_id": 44,
                "min_length": 8,
                "forced_bos_token_id": 3,
            },
        ),
    }
    ours, theirs = cases[name]
    return TokenRules(**ours), theirs


def _theirs(model: Any, prompt: list[int], stops: frozenset[int], **said: Any) -> tuple[int, ...]:
    import torch

    with torch.no_grad():
        found = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=TOKENS,
            do_sample=False,
            eos_token_id=sorted(stops) or None,
            pad_token_id=0,
            **said,
        )
    new = found[0, len(prompt) :].tolist()
    ends = [at for at, token in enumerate(new) if token in stops]
    return tuple(new[: ends[0] + 1] if ends else new)


ALL = ("repetition", "reward", "one in a row", "two in a row", "bad words", "suppressed")
ALL += ("begin", "forced", "least length", "least new", "all")


@pytest.mark.parametrize(
    ("name", "beams"),
    [*((name, 1) for name in ALL), *((name, 3) for name in ("repetition", "forced", "all"))],
)
def test_rules_are_followed_as_by_transformers(
    decoder: OrtDecoder, model: Any, greedy: tuple[tuple[int, ...], ...], name: str, beams: int
) -> None:
    rules, said = _rules(name, greedy)
    # Stops that do come early, where a rule is to forbid them.
    stops = frozenset(
        {greedy[0][2], greedy[1][3]} if rules.min_length + rules.min_new_tokens else ()
    )

    def write(followed: TokenRules) -> list[tuple[int, ...]]:
        if beams == 1:
            asked = GenerationOptions(tokens=TOKENS, stops=stops, rules=followed)
            return list(generate(decoder, PROMPTS, asked).tokens)
        wide = BeamOptions(beams=beams, tokens=TOKENS, stops=stops, rules=followed)
        return [found[0].tokens for found in search_beams(decoder, PROMPTS, wide)]

    found = write(rules)
    assert found != write(PLAIN)
    assert found == [_theirs(model, each, stops, num_beams=beams, **said) for each in PROMPTS]


def test_what_is_drawn_follows_them_too(decoder: OrtDecoder) -> None:
    rules = TokenRules(suppress=tuple(range(3, VOCABULARY)))
    options = GenerationOptions(tokens=8, temperature=5.0, top_k=90, top_p=0.99, rules=rules)
    for text in generate(decoder, PROMPTS, options).tokens:
        assert set(text) <= {0, 1, 2}


def test_where_everything_is_forbidden_nothing_is_written(decoder: OrtDecoder) -> None:
    nothing = TokenRules(suppress=tuple(range(VOCABULARY + 5)))
    with pytest.raises(FeedError, match="behind 0 new tokens none may follow"):
        generate(decoder, PROMPTS, GenerationOptions(tokens=2, rules=nothing))
    with pytest.raises(FeedError, match="behind 0 new tokens none may follow"):
        search_beams(decoder, PROMPTS, BeamOptions(beams=2, tokens=2, rules=nothing))
    # Of three tokens that come once each there is none left for the fourth.
    once = TokenRules(suppress=tuple(range(3, VOCABULARY)), no_repeat_ngram_size=1)
    with pytest.raises(FeedError, match="behind 3 new tokens"):
        generate(decoder, [[9, 9]], GenerationOptions(tokens=5, rules=once))


def test_logits_that_are_no_numbers_are_no_rule() -> None:
    logits = np.array([[0.0, np.inf, 1.0]], np.float32)
    with pytest.raises(FeedError, match="NaN or infinite"):
        choose(logits, GenerationOptions(tokens=1), [], np.zeros((1, 3)))
