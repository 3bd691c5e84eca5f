"""`builtin:stdlib-docstrings` as rows: a text, and what tasks on several texts ask for.

The text is the same whatever else is asked for. Questions, passages and choices are only of the
right form; nobody knows the right answer, so there are no labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.data.rows import Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.data.rows import Request

CHOICES = 4
QUESTION_WORDS = 12


def read_builtin_texts(request: Request) -> Iterator[Row]:
    """Rows with `text`, `question` and `context`, `choices`; exactly `request.samples` of them.

    Raises:
        StageError: when the standard library is not here as source, or holds too few sentences.
    """
    from pipeline.data.builtin import read_texts

    texts = read_texts(samples=request.samples, seed=request.seed, max_tokens=request.max_length)
    others = texts
    if not {"text"}.issuperset(request.columns):
        others = read_texts(samples=request.samples, seed=request.seed + 1, max_tokens=1)
    for number, text in enumerate(texts):
        nearby = [others[(number + step) % len(others)] for step in range(CHOICES)]
        yield Row(
            where=f"{request.source}:{number + 1}",
            values={
                "text": text,
                "question": " ".join(nearby[0].split()[:QUESTION_WORDS]),
                "context": text,
                "choices": nearby,
            },
        )
