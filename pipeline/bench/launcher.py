"""Starts launches, one after the other, each in a fresh process with a bare environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from pipeline.bench.job import LaunchJob, LaunchRecord
from pipeline.errors import StageError

INHERITED: Final = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL")
"""Environment variables that a launch takes over: what finds programs and libraries, no settings."""

LAST_LINES: Final = 20


def launch(job: LaunchJob, folder: Path) -> LaunchRecord:
    """Run one launch to its end.

    The child stays in this process's group, so whoever stops the stage's group stops it too; when
    this process is interrupted, the child is killed before the error goes on.

    Args:
        job: What to measure.
        folder: A private, empty directory for the launch.

    Raises:
        StageError: when the launch fails, with its last lines.
    """
    job_path, record_path, log_path = (
        folder / name for name in ("job.json", "record.json", "launch.log")
    )
    job_path.write_text(job.model_dump_json(), encoding="utf-8")
    command = [
        sys.executable,
        "-P",
        "-m",
        "pipeline.bench.launch",
        str(job_path),
        str(record_path),
    ]
    with log_path.open("wb") as log:
        done = subprocess.run(  # noqa: S603  (our own module, our own arguments)
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=launch_environment(folder, job.threads),
            cwd=folder,
            check=False,
        )
    if done.returncode != 0:
        raise StageError(_describe_failure(done.returncode, log_path), where="benchmark launch")
    return LaunchRecord.model_validate_json(record_path.read_bytes())


def launch_environment(folder: Path, threads: int) -> dict[str, str]:
    """The whole environment of a launch.

    Thread counts and library settings of the caller's shell would change what is measured without
    being part of the key; the cache and configuration of the caller's home likewise.
    """
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return {
        **inherited,
        # Where this process finds its modules, also when the paths were given relative to its cwd.
        "PYTHONPATH": os.pathsep.join(str(Path(path).resolve()) for path in sys.path if path),
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }


def _describe_failure(returncode: int, log_path: Path) -> str:
    if returncode < 0:
        how = f"was killed by {signal.Signals(-returncode).name}"
    else:
        how = f"ended with exit code {returncode}"
    text = log_path.read_text(encoding="utf-8", errors="replace")
    lines = text.splitlines()[-LAST_LINES:]
    return "\n".join([f"a benchmark launch {how}; its last lines:", *lines])
