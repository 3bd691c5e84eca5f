from __future__ import annotations

import sys

import pytest

from pipeline.data import builtin
from pipeline.data.builtin import read_texts
from pipeline.errors import StageError


def test_the_same_seed_gives_the_same_texts_and_another_seed_gives_others() -> None:
    first = read_texts(samples=20, seed=3, max_tokens=64)
    assert first == read_texts(samples=20, seed=3, max_tokens=64)
    other = read_texts(samples=20, seed=4, max_tokens=64)
    assert len(set(first) & set(other)) < 5


def test_no_text_comes_twice_and_there_are_as_many_as_asked_for() -> None:
    texts = read_texts(samples=120, seed=0, max_tokens=128)
    assert len(texts) == len(set(texts)) == 120


def test_lengths_spread_from_a_few_words_to_the_limit() -> None:
    words = sorted(len(text.split()) for text in read_texts(samples=100, seed=0, max_tokens=256))
    assert words[0] <= 8
    assert words[-1] >= 256
    assert sum(count > 25 for count in words) >= 10
    assert sum(count > 100 for count in words) <= 10


def test_reading_does_not_import_the_modules_it_reads() -> None:
    before = set(sys.modules)
    read_texts(samples=50, seed=1, max_tokens=64)
    loaded = {name.split(".")[0] for name in set(sys.modules) - before}
    assert not loaded & {"antigravity", "this", "idlelib", "turtle", "tkinter"}


def test_more_samples_than_the_library_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "_stdlib_files", lambda: [builtin.Path("json/__init__.py")])
    with pytest.raises(StageError, match=r"\d+ paragraphs, \d+ are wanted"):
        read_texts(samples=5000, seed=0, max_tokens=64)


def test_a_python_without_library_source_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: builtin.Path
) -> None:
    monkeypatch.setattr(builtin, "_stdlib_root", lambda: tmp_path)
    with pytest.raises(StageError, match="no source of its standard library"):
        read_texts(samples=5, seed=0, max_tokens=64)


@pytest.mark.parametrize(
    "paragraph",
    [">>> print(1)\n1", "f(x) -> y", "| a | b |", "Usage::\n\n  run it", "x = 1; y = 2; z = 3."],
)
def test_examples_tables_and_signatures_are_not_sentences(paragraph: str) -> None:
    assert builtin._sentences(paragraph) == []


def test_sentences_end_where_a_reader_would_end_them() -> None:
    text = "Return the `size` in bytes.  Use os.stat()\nfor more. See version 3.2 of the manual!"
    assert builtin._sentences(text) == [
        "Return the `size` in bytes.",
        "Use os.stat() for more.",
        "See version 3.2 of the manual!",
    ]
