"""Runs a module of ours that measures, in a process that starts from nothing, and reads its record."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from pipeline.bench.processes import describe_failure, launch_command, launch_environment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def run_measuring(
    module: str,
    job: str,
    folder: Path,
    *,
    threads: int,
    on_line: Callable[[], None] = lambda: None,
) -> bytes:
    """Run `python -m MODULE JOB RECORD`.

    Args:
        module: Which.
        job: What it is told, JSON.
        folder: A private, empty directory.
        threads: Of the libraries that ask the environment.
        on_line: Called for each line that it writes on standard output.

    Returns:
        What it wrote to RECORD.

    Raises:
        StageError: the process failed; with its last lines.
    """
    from pipeline.errors import StageError

    names = ("job.json", "record.json", "launch.log")
    job_file, record_file, log_file = (folder / name for name in names)
    job_file.write_text(job, encoding="utf-8")
    with (
        log_file.open("wb") as log,
        subprocess.Popen(  # noqa: S603  (our own module, our own arguments)
            [*launch_command(module), str(job_file), str(record_file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=launch_environment(folder, threads),
            cwd=folder,
        ) as process,
    ):
        assert process.stdout is not None
        for _ in process.stdout:
            on_line()
        returncode = process.wait()
    if returncode != 0:
        raise StageError(describe_failure(returncode, log_file), where="benchmark launch")
    return record_file.read_bytes()
