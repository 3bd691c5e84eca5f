"""Small data sets for drafts, and what a drafting fixture is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.drafting import Draft

Drafter = Callable[..., Draft]
"""Model, output and options -> a draft, in a clean directory."""

WORDS = ["the", "a", "file", "is", "of", "return", "name", "of", "the", "file", "is", "a", "name"]


def sentence(number: int) -> str:
    """One of many short texts of different lengths."""
    return " ".join(WORDS[(number * 5 + step) % len(WORDS)] for step in range(2 + number % 5))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def write_reviews(path: Path, count: int = 24, classes: int = 3, **more: Any) -> Path:
    """Labelled sentences: columns `review` and `stars`."""
    rows = [
        {"review": f"{sentence(number)} {number}", "stars": number % classes, **more}
        for number in range(count)
    ]
    return write_rows(path, rows)


def write_questions(path: Path, count: int = 9) -> Path:
    """Questions, passages and answers as SQuAD has them."""
    rows = []
    for number in range(count):
        passage = f"{sentence(number)} {number} is a name"
        start = passage.index(f"{number} is")
        rows.append(
            {
                "question": f"name {number}?",
                "context": passage,
                "answers": {"text": [str(number)], "answer_start": [start]},
            }
        )
    return write_rows(path, rows)


def write_images(folder: Path, count: int = 4, labels: tuple[str, ...] = ("0", "1", "2")) -> Path:
    """Pictures of noise in a folder for each label; in one folder without labels."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for label in labels or ("",):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    return folder
