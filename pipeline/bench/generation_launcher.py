"""Starts the process that times a decoder, and reads what it found."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING

from pipeline.bench.generation_job import GenerationJob, GenerationRecord
from pipeline.bench.processes import describe_failure, launch_command, launch_environment

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
    from pipeline.errors import StageError

    files = [folder / name for name in ("job.json", "record.json", "launch.log")]
    job_file, record_file, log_file = files
    spawned = job.model_copy(update={"spawned_s": time.monotonic()})
    job_file.write_text(spawned.model_dump_json(), encoding="utf-8")
    with (
        log_file.open("wb") as log,
        subprocess.Popen(  # noqa: S603  (our own module, our own arguments)
            [*launch_command("pipeline.bench.generation_launch"), str(job_file), str(record_file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=launch_environment(folder, job.threads),
            cwd=folder,
        ) as process,
    ):
        assert process.stdout is not None
        for _ in process.stdout:
            on_call()
        returncode = process.wait()
    if returncode != 0:
        raise StageError(describe_failure(returncode, log_file), where="benchmark launch")
    return GenerationRecord.model_validate_json(record_file.read_bytes())
