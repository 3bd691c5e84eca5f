"""One training, in a process of its own: `python -m tests.trained.job NAME FOLDER KEY`.

Writes the model, its data and `training.json`, which says what was made from what and how good it
is. Ends with exit code 1, and a message, when the model is not as accurate as it must be.
"""

from __future__ import annotations

import importlib
import json
import platform
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.hashing import sha256_file
from tests.trained.catalogue import FACTS_FILE, SEED, find_entry, package_versions
from tests.trained.training import make_deterministic

if TYPE_CHECKING:
    from tests.trained.training import Outcome


def run(name: str, folder: Path, key: str) -> None:
    """Train one model into an empty folder.

    Args:
        name: Of the catalogue.
        folder: Exists, and is empty.
        key: Written down, so that the folder says itself what it was made from.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    entry = find_entry(name)
    make_deterministic(SEED)
    started = time.monotonic()
    outcome: Outcome = importlib.import_module(entry.module).train(folder)
    seconds = time.monotonic() - started
    if outcome.accuracy < entry.least_accuracy:
        sys.exit(
            f"error: `{name}` is right in {outcome.accuracy:.1%} of its test split, "
            f"at least {entry.least_accuracy:.0%} are wanted"
        )
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    facts = {
        "name": name,
        "task": entry.task,
        "key": key,
        "seed": SEED,
        "accuracy": round(outcome.accuracy, 6),
        "seconds": round(seconds, 1),
        **outcome.facts,
        "versions": {"python": platform.python_version(), **package_versions()},
        "files": {path.relative_to(folder).as_posix(): sha256_file(path) for path in files},
    }
    (folder / FACTS_FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
