"""What may be written next, beside the logits: repetitions, forbidden tokens, forced ones.

Each rule is one of those that `generate` of `transformers` 5.23 takes from a `generation_config.json`, in
its order, and works on the tokens of one text without its padding.

Source: `transformers.generation.logits_process`, and `_get_logits_processor` of `GenerationMixin`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.runtimes.base import FeedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """What is asked of each next token; the names are those of `generation_config.json`.

    Attributes:
        repetition_penalty: Logits of tokens that the text has, prompt included, are divided by it when
            they are above 0 and multiplied below (Keskar et al., CTRL, 2019); 1: as they are.
        no_repeat_ngram_size: So many tokens in a row never stand in a text twice; 0: they may.
        bad_words: Tokens in a row that are never written. One that is a stop alone may be.
        min_length: No stop before a text has so many tokens, prompt included.
        min_new_tokens: No stop before there are so many new ones.
        forced_bos: The token that follows a prompt of one token; None: any.
        forced_eos: What the last token that is asked for is one of; empty: any.
        suppress: Tokens that are never written.
        begin_suppress: Tokens that are not written first; behind `forced_bos` not second.
    """

    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words: tuple[tuple[int, ...], ...] = ()
    min_length: int = 0
    min_new_tokens: int = 0
    forced_bos: int | None = None
    forced_eos: tuple[int, ...] = ()
    suppress: tuple[int, ...] = ()
    begin_suppress: tuple[int, ...] = ()

    def apply(
        self,
        scores: NDArray[np.floating],
        prompt: Sequence[int],
        new: Sequence[int],
        *,
        tokens: int,
        stops: frozenset[int],
    ) -> NDArray[np.float64]:
        """Scores of what may follow.

        Args:
            scores: Logits, or log probabilities of beam search; float (vocabulary,), finite.
            prompt: Tokens of the prompt, without padding.
            new: Those that were written so far.
            tokens: New tokens at most.
            stops: Tokens that end the text.

        Returns:
            float64 (vocabulary,); -inf for what is forbidden, which may be everything.
        """
        made = scores.astype(np.float64)
        text = [*prompt, *new]
        if self.repetition_penalty != 1.0:
            seen = _known(set(text), made.size)
            made[seen] = np.where(
                made[seen] < 0,
                made[seen] * self.repetition_penalty,
                made[seen] / self.repetition_penalty,
            )
        made[_known(self._repeated(text), made.size)] = -np.inf
        made[_known(self._bad(text, stops), made.size)] = -np.inf
        if len(text) < self.min_length or len(new) < self.min_new_tokens:
            made[_known(stops, made.size)] = -np.inf
        if self.forced_bos is not None and len(text) == 1:
            made = _only((self.forced_bos,), made.size)
        if self.forced_eos and len(new) == tokens - 1:
            made = _only(self.forced_eos, made.size)
        made[_known(self.suppress, made.size)] = -np.inf
        is_second = self.forced_bos is not None and len(prompt) == 1
        if len(new) == is_second:
            made[_known(self.begin_suppress, made.size)] = -np.inf
        return made

    def _repeated(self, text: Sequence[int]) -> set[int]:
        """Tokens that would make a row of tokens stand there again."""
        size = self.no_repeat_ngram_size
        if size < 1 or len(text) < size:
            return set()
        end = tuple(text[len(text) + 1 - size :])
        rows = (tuple(text[at : at + size]) for at in range(len(text) + 1 - size))
        return {row[-1] for row in rows if row[:-1] == end}

    def _bad(self, text: Sequence[int], stops: frozenset[int]) -> set[int]:
        """Tokens that would finish a forbidden word."""
        return {
            word[-1]
            for word in self.bad_words
            if not (len(word) == 1 and word[0] in stops)
            and tuple(text[len(text) + 1 - len(word) :]) == word[:-1]
        }


PLAIN = TokenRules()
"""No rule: the logits alone decide."""


def require_any(scores: NDArray[np.floating], new: int) -> None:
    """Refuse to go on where nothing is left to choose.

    Args:
        scores: What rules made of logits.
        new: Tokens that were written before.

    Raises:
        FeedError: every token is forbidden.
    """
    if np.isneginf(scores).all():
        raise FeedError(
            f"behind {new} new tokens none may follow: generation_config.json forbids every one",
            hint="correct it in the checkpoint, or write without its rules",
        )


def _known(tokens: frozenset[int] | set[int] | Sequence[int], vocabulary: int) -> list[int]:
    """Those that there are logits for."""
    return [token for token in tokens if 0 <= token < vocabulary]


def _only(tokens: Sequence[int], vocabulary: int) -> NDArray[np.float64]:
    made = np.full(vocabulary, -np.inf)
    made[_known(tokens, vocabulary)] = 0.0
    return made
