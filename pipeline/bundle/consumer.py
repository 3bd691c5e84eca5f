"""What was written is loaded by the program that it is for, in a process of its own.

Such programs are native code: a crash of theirs must end as a message, and nothing of theirs stays in
our memory.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import ArtifactError
from pipeline.run.process import worker_environment

if TYPE_CHECKING:
    from collections.abc import Mapping

TRIAL_TIME_S: Final = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What a consumer did.

    Attributes:
        told: What was tried, and that it is right, in a few words.
        notes: What its users should know, a sentence each.
    """

    told: str
    notes: tuple[str, ...]


def has_package(name: str) -> bool:
    """Whether a module can be imported; it is not."""
    return importlib.util.find_spec(name) is not None


def try_in_consumer(module: str, question: Mapping[str, Any], *, what: str, where: str) -> Trial:
    """Run one of our modules that loads a bundle.

    It reads the question, JSON, on standard input, and answers on the last line of standard output:
    `{"told": ..., "notes": [...]}`, or `{"problem": ..., "hint": ...}` when the bundle is not right;
    the hint may be left out.

    Args:
        module: Which.
        question: What it needs.
        what: The consumer, in words.
        where: The target, for messages.

    Raises:
        ArtifactError: the bundle is not right, or the consumer crashes.
    """
    environment = worker_environment(threads=1)
    package_parent = str(Path(__file__).resolve().parents[2])
    inherited = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package_parent, inherited)))
    try:
        done = subprocess.run(  # noqa: S603 - our own module; -P: not from the current directory
            [sys.executable, "-P", "-m", module],
            input=json.dumps(question),
            capture_output=True,
            text=True,
            env=environment,
            timeout=TRIAL_TIME_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ArtifactError(
            f"{what} was not done after {TRIAL_TIME_S:g} s", where=where
        ) from error
    try:
        answer = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise ArtifactError(
            f"{what} cannot load it: {_ending(done.returncode, done.stderr)}", where=where
        ) from error
    if answer.get("problem"):
        raise ArtifactError(
            f"{what}: {answer['problem']}", where=where, hint=answer.get("hint", "")
        )
    return Trial(told=answer["told"], notes=tuple(answer["notes"]))


def _ending(code: int, said: str) -> str:
    if code < 0:
        return f"it was ended by {signal.Signals(-code).name}"
    last = said.strip().splitlines()[-1:] or ["it said nothing"]
    return f"it ended with status {code}: {last[0]}"
