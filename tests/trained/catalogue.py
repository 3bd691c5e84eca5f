"""Which trained models there are, and what the content of each depends on. Imports nothing heavy."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pipeline.environment import find_package
from pipeline.hashing import sha256_file, tagged_digest

if TYPE_CHECKING:
    from pipeline.hashing import JSON

SEED: Final = 0
FACTS_FILE: Final = "training.json"
KEY_DIGITS: Final = 16
"""Hex digits of a key in a directory's name; `training.json` has all of them."""

PACKAGES: Final = (
    "numpy",
    "pillow",
    "safetensors",
    "scikit-learn",
    "tokenizers",
    "torch",
    "transformers",
)
"""Libraries that can change what a training makes."""

_PACKAGE = Path(__file__).parent
_OWN_IMPORT = re.compile(r"^from tests\.trained\.(\w+) import", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One model.

    Attributes:
        name: Its name for people and tests.
        task: As a recipe says it.
        summary: One line.
        least_accuracy: Share of the test split that must be right; less fails the training.
    """

    name: str
    task: str
    summary: str
    least_accuracy: float

    @property
    def module(self) -> str:
        """Where its `train(folder)` is."""
        return f"tests.trained.{self.name}"


CATALOGUE: Final = (
    Entry(
        name="answers",
        task="question-answering",
        summary="BERT: where in a function's head is what is asked for?",
        least_accuracy=0.85,
    ),
    Entry(
        name="digits",
        task="image-classification",
        summary="ViT on scikit-learn's handwritten digits",
        least_accuracy=0.95,
    ),
    Entry(
        name="lm",
        task="text-generation",
        summary="Llama, byte by byte, on docstrings",
        least_accuracy=0.45,
    ),
    Entry(
        name="pairs",
        task="text2text-generation",
        summary="mBART, byte by byte: names in rot13",
        least_accuracy=0.9,
    ),
    Entry(
        name="snippets",
        task="text-classification",
        summary="BERT: call, docstring, error or signature?",
        least_accuracy=0.9,
    ),
    Entry(
        name="tokens",
        task="token-classification",
        summary="BERT: the parts of a line of Python",
        least_accuracy=0.95,
    ),
)


def find_entry(name: str) -> Entry:
    """The entry of this name.

    Raises:
        KeyError: when there is none; names those there are.
    """
    for entry in CATALOGUE:
        if entry.name == name:
            return entry
    names = ", ".join(entry.name for entry in CATALOGUE)
    raise KeyError(f"no trained model is called `{name}`; there are: {names}")


def content_key(entry: Entry) -> str:
    """Digest of all that a training depends on: its code, Python with its library, packages.

    The whole of `sys.version` is in it, because the text that is learned is the source of the
    standard library, and distributions patch that.
    """
    code = {name: sha256_file(_PACKAGE / f"{name}.py") for name in code_of(entry)}
    preimage: JSON = {
        "code": code,
        "python": sys.version,
        "packages": package_versions(),
        "seed": SEED,
    }
    return tagged_digest("convert/trained-model/1", preimage)


def code_of(entry: Entry) -> list[str]:
    """The modules of this package that its training runs, found by following their imports."""
    found: set[str] = set()
    waiting = ["job", entry.module.rpartition(".")[2]]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _OWN_IMPORT.findall((_PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
    # This file lists all models: a new one would be a reason to train all the others again.
    return sorted(found - {"catalogue"})


def package_versions() -> dict[str, str]:
    """Version of every library that matters; `missing` for one that is not installed."""
    facts = {name: find_package(name) for name in PACKAGES}
    return {name: fact.version if fact else "missing" for name, fact in facts.items()}
