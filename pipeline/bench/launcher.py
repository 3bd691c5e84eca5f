"""Starts launches, one after the other, each a process of its own in a bare environment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from pipeline.bench.job import LaunchJob, LaunchRecord
from pipeline.errors import StageError

if TYPE_CHECKING:
    from types import TracebackType

INHERITED: Final = (
    "PATH",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "LANG",
    "LC_ALL",
    "CUDA_VISIBLE_DEVICES",
)
"""Environment variables that a launch takes over: what finds programs, libraries and the GPU."""

LAST_LINES: Final = 20


class _Folder:
    """The files of one launch."""

    def __init__(self, folder: Path, job: LaunchJob) -> None:
        self.job, self.record, self.log = (
            folder / name for name in ("job.json", "record.json", "launch.log")
        )
        self.job.write_text(job.model_dump_json(), encoding="utf-8")

    def read(self, returncode: int) -> LaunchRecord:
        if returncode != 0:
            raise StageError(describe_failure(returncode, self.log), where="benchmark launch")
        return LaunchRecord.model_validate_json(self.record.read_bytes())


def launch(job: LaunchJob, folder: Path) -> LaunchRecord:
    """Run one launch to its end, in a process that starts from nothing.

    The child stays in this process's group, so whoever stops the stage's group stops it too; when
    this process is interrupted, the child is killed before the error goes on.

    Args:
        job: What to measure.
        folder: A private, empty directory for the launch.

    Raises:
        StageError: when the launch fails, with its last lines.
    """
    files = _Folder(folder, job)
    with files.log.open("wb") as log:
        done = subprocess.run(  # noqa: S603  (our own module, our own arguments)
            [*launch_command("pipeline.bench.launch"), str(files.job), str(files.record)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=launch_environment(folder, job.threads),
            cwd=folder,
            check=False,
        )
    return files.read(done.returncode)


class Nursery:
    """Runs launches that need torch, each forked from one process that has imported it.

    A context manager; the process is started by the first launch and ends with the context.

    Args:
        checkpoint: Whose model code is imported.
        folder: A private, empty directory for the process.
        threads: Threads of the launches.
    """

    def __init__(self, checkpoint: Path, folder: Path, threads: int) -> None:
        self._checkpoint = checkpoint
        self._folder = folder
        self._threads = threads
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def launch(self, job: LaunchJob, folder: Path) -> LaunchRecord:
        """Run one launch to its end.

        Raises:
            StageError: when the launch, or importing what it needs, fails; with its last lines.
        """
        files = _Folder(folder, job)
        process = self._start() if self._process is None else self._process
        assert process.stdin is not None
        process.stdin.write(json.dumps([str(files.job), str(files.record), str(files.log)]) + "\n")
        process.stdin.flush()
        return files.read(os.waitstatus_to_exitcode(int(self._answer(process))))

    def _start(self) -> subprocess.Popen[str]:
        log = self._folder / "nursery.log"
        with log.open("wb") as stream:
            self._process = subprocess.Popen(  # noqa: S603  (our own module, our own arguments)
                [*launch_command("pipeline.bench.nursery"), str(self._checkpoint)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                env=launch_environment(self._folder, self._threads),
                cwd=self._folder,
            )
        self._answer(self._process)
        return self._process

    def _answer(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        answer = process.stdout.readline().strip()
        if not answer:
            log = self._folder / "nursery.log"
            raise StageError(describe_failure(process.wait(), log), where="benchmark launch")
        return answer


def launch_command(module: str) -> list[str]:
    """What starts a module of ours in a process of its own."""
    return [sys.executable, "-P", "-m", module]


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


def describe_failure(returncode: int, log_path: Path) -> str:
    """How a launch ended, and its last lines."""
    if returncode < 0:
        how = f"was killed by {signal.Signals(-returncode).name}"
    else:
        how = f"ended with exit code {returncode}"
    text = log_path.read_text(encoding="utf-8", errors="replace")
    lines = text.splitlines()[-LAST_LINES:]
    return "\n".join([f"a benchmark launch {how}; its last lines:", *lines])
