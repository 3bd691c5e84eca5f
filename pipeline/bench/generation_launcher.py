"""Starts the process that times a decoder, and reads what it found."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pipeline.bench.generation_job import GenerationJob, GenerationRecord
from pipeline.bench.measuring import run_measuring

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def launch_generation(
    job: GenerationJob, folder: Path, *, on_call: Callable[[], None] = lambda: None
) -> GenerationRecord:
    """Measure in a process that starts from nothing.

    Args:
        job: What; `spawned_s` is filled in.
        folder: A private, empty directory.
        on_call: Called whenever a call is finished.

    Raises:
        StageError: when the process fails, with its last lines.
    """
    spawned = job.model_copy(update={"spawned_s": time.monotonic()})
    record = run_measuring(
        "pipeline.bench.generation_launch",
        spawned.model_dump_json(),
        folder,
        threads=job.threads,
        on_line=on_call,
    )
    return GenerationRecord.model_validate_json(record)
