"""Where trained models are kept, and how they get there: once, whole, by one process at a time."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import ArtifactError, StageError
from pipeline.hashing import sha256_file
from tests.trained.catalogue import FACTS_FILE, KEY_DIGITS, content_key, find_entry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.trained.catalogue import Entry

VARIABLE: Final = "CONVERT_FIXTURES"
REPOSITORY: Final = Path(__file__).resolve().parents[2]


TIME_LIMIT_S: Final = 900
"""Of one training; they take about a minute. Waiting for another process has twice as long."""

ABANDONED_AFTER_S: Final = 4 * TIME_LIMIT_S
"""Age at which a half-made folder cannot belong to a training that still runs."""

_ONE_THREAD: Final = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",
    "HF_HUB_OFFLINE": "1",
}
"""Set before the process starts, because the libraries read them when they are loaded."""


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A trained model with its data. Do not write into it: all tests share it.

    Attributes:
        root: The directory that holds everything.
        facts: `training.json`: accuracy, samples, labels, versions, digests of all files.
    """

    root: Path
    facts: Mapping[str, Any]

    @property
    def checkpoint(self) -> Path:
        """The directory to name in a recipe: weights, config, tokenizer or image processor."""
        return self.root / "checkpoint"

    @property
    def test(self) -> Path:
        """The labelled test split: a JSON lines file, or a folder of images by label."""
        return self._split("test")

    @property
    def calibration(self) -> Path:
        """Labelled samples out of the training split, in the form of `test`."""
        return self._split("calibration")

    @property
    def task(self) -> str:
        """As a recipe says it."""
        return str(self.facts["task"])

    @property
    def accuracy(self) -> float:
        """Share of the test split that torch gets right, 0 to 1."""
        return float(self.facts["accuracy"])

    def _split(self, name: str) -> Path:
        folder = self.root / name
        return folder if folder.is_dir() else self.root / f"{name}.jsonl"


def cache_root() -> Path:
    """The directory of all trained models: `$CONVERT_FIXTURES`, or one in the user's cache."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    import platformdirs

    return platformdirs.user_cache_path("convert") / "fixtures"


def find_trained(name: str) -> TrainedModel | None:
    """The model as it would be trained now, when it is in the cache.

    Raises:
        KeyError: when the catalogue has no such name.
        ArtifactError: when it was changed after it was made.
    """
    return _read(_place(find_entry(name)))


def ensure_trained(name: str, *, is_forced: bool = False) -> TrainedModel:
    """The model, trained first when it is not in the cache; see `obtain_trained`."""
    return obtain_trained(name, is_forced=is_forced)[0]


def obtain_trained(name: str, *, is_forced: bool = False) -> tuple[TrainedModel, bool]:
    """The model, trained first when it is not in the cache, and whether it was trained here.

    Several processes may ask at once: one trains, the others wait and find it.

    Args:
        name: Of the catalogue.
        is_forced: Train even when it is there. It is replaced only by a whole new one.

    Raises:
        KeyError: when the catalogue has no such name.
        StageError: when the training fails, or its accuracy is too low.
        ArtifactError: when the model in the cache was changed after it was made.
    """
    entry = find_entry(name)
    place = _place(entry)
    if not is_forced and (found := _read(place)):
        return found, False
    from filelock import FileLock, Timeout

    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place.with_name(f"{place.name}.lock"), timeout=2 * TIME_LIMIT_S)
    try:
        with lock:
            if not is_forced and (found := _read(place)):
                return found, False
            _train_into(entry, place)
    except Timeout as err:
        raise StageError(
            f"another process has been training `{name}` for {2 * TIME_LIMIT_S} s",
            where=lock.lock_file,
            hint="end that process, then run this again",
        ) from err
    trained = _read(place)
    assert trained is not None, place
    return trained, True


def _place(entry: Entry) -> Path:
    return cache_root() / f"{entry.name}-{content_key(entry)[:KEY_DIGITS]}"


def _read(place: Path) -> TrainedModel | None:
    """The model at a place, None when there is none; a folder is there whole or not at all."""
    if not place.is_dir():
        return None
    hint = f"scripts/train_fixtures --force {place.name.rpartition('-')[0]}"
    try:
        facts = json.loads((place / FACTS_FILE).read_text(encoding="utf-8"))
        digests = {name: sha256_file(place / name) for name in facts["files"]}
    except (OSError, ValueError, KeyError) as err:
        raise ArtifactError(
            f"a trained model is damaged: {err}", where=str(place), hint=hint
        ) from err
    changed = sorted(name for name, digest in digests.items() if digest != facts["files"][name])
    if changed:
        raise ArtifactError(
            f"files of a trained model were changed after it was made: {', '.join(changed)}",
            where=str(place),
            hint=hint,
        )
    return TrainedModel(place, facts)


def _train_into(entry: Entry, place: Path) -> None:
    _remove_abandoned(place)
    # A folder of its own: a training whose parent was killed may still be writing to another one.
    with tempfile.TemporaryDirectory(prefix=f".{place.name}.", dir=place.parent) as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        _run_job(entry, made)
        if place.exists():
            place.rename(Path(temporary) / "replaced")
        made.rename(place)


def _run_job(entry: Entry, folder: Path) -> None:
    command = [sys.executable, "-m", "tests.trained.job"]
    command += [entry.name, str(folder), content_key(entry)]
    failed = f"training `{entry.name}` failed"
    try:
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            env=os.environ | _ONE_THREAD,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIME_LIMIT_S,
        )
    except subprocess.TimeoutExpired as err:
        raise StageError(f"{failed}: it took longer than {TIME_LIMIT_S} s") from err
    if done.returncode != 0:
        tail = "\n".join(done.stderr.strip().splitlines()[-10:])
        raise StageError(f"{failed} with exit code {done.returncode}:\n{tail}")


def _remove_abandoned(place: Path) -> None:
    """Remove what trainings that were killed have left."""
    for folder in place.parent.glob(f".{place.name}.*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - folder.stat().st_mtime > ABANDONED_AFTER_S:
                shutil.rmtree(folder, ignore_errors=True)
