"""The built-in source of text: docstrings of Python's standard library.

It needs no file and no network, and it is the same on every machine with the same Python. Modules
are read as text and parsed, never imported: importing some of them opens windows or prints.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
import sysconfig
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SOURCE = "builtin:stdlib-docstrings"

PARAGRAPH_SHARE = 0.25
"""Share of the texts that are whole paragraphs; they give the lengths between 40 and 200 tokens."""

LONG_SHARE = 0.04
"""Share of the texts that are sentences joined up to a length near the limit.

Few, because a text of 512 tokens costs as much as twenty of the usual length, and never none,
because position embeddings and padding go wrong at the long end first.
"""

LONG_FILLS = (1.0, 0.5, 0.9, 0.7)
"""How far the long texts go towards the limit, in turn. The first one reaches it for certain."""

POOL_FACTOR = 4
"""Candidates read for each text that is wanted; more of them spread the choice over more modules."""

TOKENS_PER_WORD = 1.6
"""What subword tokenizers make of this prose at most (MiniLM's WordPiece: 1.5), punctuation
included. A long text that is to stay below the limit is planned with it."""

_SKIPPED_PARTS = frozenset({"__pycache__", "site-packages", "test", "tests", "idle_test"})
_SENTENCE_END = re.compile(r"(?<=[a-z0-9)`'\"][.!?])\s+(?=[A-Z`'\"(])")
_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_WORD = re.compile(r"[A-Za-z]{2,}")
_MIN_WORDS = 3
_MIN_LETTER_SHARE = 0.6


def read_texts(*, samples: int, seed: int, max_tokens: int) -> tuple[str, ...]:
    """Texts of mixed lengths, the same for the same arguments and the same Python.

    Most are single sentences as they come; `PARAGRAPH_SHARE` are paragraphs, `LONG_SHARE` are
    joined sentences near the limit (at least one). No two texts are equal.

    Args:
        samples: How many, at least 1.
        seed: Which modules and which of their sentences.
        max_tokens: Length that the longest texts reach, in tokens.

    Raises:
        StageError: when the standard library is not here as source, or holds too few sentences.
    """
    long = max(1, round(samples * LONG_SHARE)) if samples > 1 else 0
    paragraphs = round((samples - long) * PARAGRAPH_SHARE)
    sentences = samples - long - paragraphs
    pool = _read_pool(seed, samples)
    chosen = _take(pool.paragraphs, paragraphs, "paragraphs")
    chosen += _take([s for s in pool.sentences if s not in set(chosen)], sentences, "sentences")
    # The long texts take sentences from the other end, so that they are no copies of the short.
    filler = pool.sentences[::-1]
    chosen += _join_long(filler, long, max_tokens)
    return tuple(sorted(chosen, key=lambda text: _rank(seed, text)))


class _Pool:
    """Candidates of both kinds, each in an order that the seed decides."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.paragraphs: list[str] = []


def _read_pool(seed: int, samples: int) -> _Pool:
    """Docstrings of modules in the seed's order, until there are enough candidates."""
    sentences: dict[str, None] = {}
    paragraphs: dict[str, None] = {}
    for path in sorted(_stdlib_files(), key=lambda path: _rank(seed, path.as_posix())):
        for docstring in _docstrings(_stdlib_root() / path):
            for paragraph in _BLANK_LINE.split(docstring):
                parts = _sentences(paragraph)
                sentences.update(dict.fromkeys(parts))
                if len(parts) > 1:
                    paragraphs[" ".join(parts)] = None
        if min(len(sentences), 2 * len(paragraphs)) >= POOL_FACTOR * samples:
            break
    pool = _Pool()
    pool.sentences = sorted(sentences, key=lambda text: _rank(seed, text))
    pool.paragraphs = sorted(paragraphs, key=lambda text: _rank(seed, text))
    return pool


def _take(candidates: Sequence[str], count: int, kind: str) -> list[str]:
    if len(candidates) < count:
        raise StageError(
            f"the standard library holds {len(candidates)} {kind}, {count} are wanted",
            where=SOURCE,
            hint="ask for fewer `samples`",
        )
    return list(candidates[:count])


def _join_long(sentences: Sequence[str], count: int, max_tokens: int) -> list[str]:
    """`count` texts of joined sentences, none used twice, each of a length near the limit."""
    left = iter(sentences)
    texts = []
    for index in range(count):
        fill = LONG_FILLS[index % len(LONG_FILLS)]
        # A word is at least one token, so a text of fill 1 passes the limit and is cut at it.
        wanted = max_tokens if fill == 1.0 else fill * max_tokens / TOKENS_PER_WORD
        parts: list[str] = []
        words = 0
        while words < wanted:
            part = next(left, None)
            if part is None:
                raise StageError(
                    f"the standard library holds too few sentences for {count} long texts",
                    where=SOURCE,
                    hint="ask for fewer `samples`",
                )
            parts.append(part)
            words += len(part.split())
        texts.append(" ".join(parts))
    return texts


def _rank(seed: int, text: str) -> bytes:
    """A place in an order that is fixed by the seed, on every version of Python."""
    return hashlib.sha256(f"{seed}\n{text}".encode("utf-8", "surrogatepass")).digest()


def _stdlib_root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _stdlib_files() -> list[Path]:
    """Source files of the standard library's public modules, relative to its root."""
    root = _stdlib_root()
    files: list[Path] = []
    for name in sys.stdlib_module_names:
        if (root / f"{name}.py").is_file():
            files.append(Path(f"{name}.py"))
        elif (root / name).is_dir():
            inside = (path.relative_to(root) for path in (root / name).rglob("*.py"))
            files += [path for path in inside if _SKIPPED_PARTS.isdisjoint(path.parts)]
    if not files:
        raise StageError(
            f"this Python has no source of its standard library under `{root}`",
            where=SOURCE,
            hint="use a Python that is installed with its library as .py files",
        )
    return files


def _docstrings(path: Path) -> Iterator[str]:
    """Docstrings of a file's module, classes and functions, in the order of the text."""
    with warnings.catch_warnings():
        # The library itself has invalid escapes; they are not for our users to read.
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(path.read_bytes())
        except SyntaxError as err:
            raise StageError(f"`{path}` is not Python source: {err}", where=SOURCE) from err
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring


def _sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph; none when it is a table, a signature or an example."""
    if ">>>" in paragraph or "::" in paragraph:
        return []
    text = " ".join(paragraph.split())
    return [part for part in _SENTENCE_END.split(text) if _is_prose(part)]


def _is_prose(text: str) -> bool:
    letters = sum(char.isalpha() or char.isspace() for char in text)
    return (
        len(_WORD.findall(text)) >= _MIN_WORDS
        and letters >= _MIN_LETTER_SHARE * len(text)
        and text[-1] in ".!?"
        and not text.startswith((".", "-", "|"))
    )
