"""Starts launches, one after the other, each a process of its own in a bare environment."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Self

from pipeline.bench.job import LaunchJob, LaunchRecord
from pipeline.bench.processes import describe_failure, launch_command, launch_environment
from pipeline.errors import StageError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType


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
