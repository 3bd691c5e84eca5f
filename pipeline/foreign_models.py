"""Reads a model file that somebody else made: in a process of its own, with limits on time and memory.

What such a file holds is not known before it is read, and parsers of it have had holes. The reader
(`pipeline.graph.read_foreign`) parses the message, runs nothing of the model, and opens none of its
external data.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from pydantic import ValidationError

from pipeline.errors import ArtifactError
from pipeline.graph.model_facts import Answer, ModelFacts
from pipeline.run.process import worker_environment

READ_TIME_S = 60.0
"""For reading a model: about 5 s for 2 GB, protobuf's largest message."""

BASE_MEMORY_BYTES = 1 << 30
"""Address space of Python with onnx; the model comes on top of it, `MEMORY_PER_BYTE` times."""

MEMORY_PER_BYTE = 4
"""A model with its weights is there twice while it is parsed. A message of many tiny parts takes far
more memory than its file has bytes, and is refused."""


def read_model(
    path: Path, *, time_s: float = READ_TIME_S, base_memory_bytes: int = BASE_MEMORY_BYTES
) -> ModelFacts:
    """Read a model in a process of its own.

    Args:
        path: The `.onnx` file.
        time_s: After which the process is ended.
        base_memory_bytes: Address space it may use beside what the file's size allows.

    Raises:
        ArtifactError: it is no ONNX model, or reading it takes too long, too much memory, or crashes.
    """
    memory_bytes = base_memory_bytes + MEMORY_PER_BYTE * path.stat().st_size
    environment = worker_environment(threads=1)
    package_parent = str(Path(__file__).resolve().parents[1])
    inherited = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package_parent, inherited)))
    module = "pipeline.graph.read_foreign"
    try:
        done = subprocess.run(  # noqa: S603 - our own module; -P: not from the current directory
            [sys.executable, "-P", "-m", module, str(path.resolve()), str(memory_bytes)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment,
            timeout=time_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ArtifactError(
            f"reading the model took longer than {time_s:g} s", where=str(path)
        ) from error
    try:
        answer = Answer.model_validate_json(done.stdout)
    except ValidationError as error:
        raise ArtifactError(
            f"the model cannot be read: its reader {_ending(done.returncode)}",
            where=str(path),
            hint=f"it may use {memory_bytes >> 20:,} MiB; the file is damaged, or made to do harm",
        ) from error
    if answer.facts is None:
        refusal = answer.refusal
        raise ArtifactError(
            refusal.message if refusal else "the model's reader said nothing",
            where=str(path),
            hint=refusal.hint if refusal else "",
        )
    return answer.facts


def _ending(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with status {code} and no answer"
