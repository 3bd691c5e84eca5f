"""The child process: runs one stage, once, and says how it went.

Started as `python -m pipeline.run.worker CONTROL_FD EVENTS_FD` in a process group of its own, or
forked by `pipeline.run.nursery`. It reads two lines of JSON from the control pipe: first the modules
it may import while it waits, then its job. Events go out as lines of JSON. When the control pipe closes the parent is gone, and the
whole group ends with it. Standard output and error are captured by the parent as the stage's log.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import re
import resource
import signal
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from pipeline.errors import PipelineError, StageError

if TYPE_CHECKING:
    from collections.abc import Mapping

PROGRESS_INTERVAL_S = 0.1
PROCESS_NAME = "convert-worker"


class _Context:
    """Implements `pipeline.stages.base.StageContext` over the event pipe."""

    def __init__(
        self, scratch: Path, threads: int, events: TextIO, resumable: Path | None = None
    ) -> None:
        self._scratch = scratch
        self._resumable = resumable
        self._threads = threads
        self._events = events
        self._last_sent_s = 0.0

    @property
    def scratch(self) -> Path:
        return self._scratch

    @property
    def resumable(self) -> Path | None:
        return self._resumable

    @property
    def threads(self) -> int:
        return self._threads

    def progress(self, done: int, total: int, unit: str) -> None:
        import time

        now = time.monotonic()
        if done < total and now - self._last_sent_s < PROGRESS_INTERVAL_S:
            return
        self._last_sent_s = now
        _send(self._events, {"event": "progress", "done": done, "total": total, "unit": unit})

    def log(self, message: str) -> None:
        sys.stderr.write(f"{message}\n")
        sys.stderr.flush()


def _send(events: TextIO, message: Mapping[str, Any]) -> None:
    events.write(json.dumps(message) + "\n")
    events.flush()


def preload(modules: list[str]) -> None:
    """Import what the stage will need. A module that is missing is the stage's to report.

    Without collections meanwhile: importing torch and transformers makes millions of objects that
    stay, and looking through them again and again takes a quarter of the time.
    """
    gc.disable()
    for name in ("pipeline.stages.catalogue", *modules):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()
    gc.enable()


def _end_with_parent(control: TextIO) -> None:
    """Kill the own process group as soon as the control pipe closes."""

    def watch() -> None:
        while control.readline():
            pass
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _run_job(job: Mapping[str, Any], events: TextIO) -> None:
    from pipeline.stages.catalogue import STAGES

    stage = next(stage for stage in STAGES if stage.name == job["stage"])
    config = stage.config_type.model_validate_json(job["config"])
    scratch = Path(job["scratch"])
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
    os.chdir(scratch)
    resumable = Path(job["resumable"]) if job.get("resumable") else None
    context = _Context(scratch, int(job["threads"]), events, resumable)
    inputs = {port: Path(path) for port, path in job["inputs"].items()}
    facts = stage.run(config, inputs, Path(job["output"]), context)
    _send(events, {"event": "done", "facts": facts, "peak_kib": _peak_kib()})


def _peak_kib() -> int:
    """Peak resident memory of this process or of its largest child, KiB.

    Linux counts the parent's memory at the time of the fork into `ru_maxrss`, which stays after
    exec; `VmHWM` (proc(5)) begins anew. A child of ours begins with what we had, which is right.
    """
    status = Path("/proc/self/status")
    own = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text("ascii"), re.MULTILINE)
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    own_kib = int(own.group(1)) if own else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return max(own_kib, children)


def _failure_of(error: BaseException) -> dict[str, Any]:
    """How an exception is told to the parent: ours as they are, foreign ones by kind and text."""
    if isinstance(error, PipelineError):
        return {
            "event": "failed",
            "message": error.message,
            "hint": error.hint,
            "where": error.where,
            "exit_code": int(error.exit_code),
        }
    hint = ""
    text = str(error).lower()
    if "no space left" in text or "os error 28" in text:  # Rust libraries have their own types
        hint = "the disk of the store is full: free some space, or set CONVERT_STORE elsewhere"
    if isinstance(error, MemoryError):
        hint = "the stage ran out of memory: free some, or raise `limits.memory_mib`"
    return {
        "event": "failed",
        "message": f"{type(error).__name__}: {error}",
        "hint": hint,
        "where": "",
        "exit_code": int(StageError.exit_code),
    }


def serve(control_fd: int, events_fd: int) -> int:
    """Run the one job that the parent sends; the exit status is 0 only when it succeeded."""
    faulthandler.enable()
    with contextlib.suppress(OSError):  # proc(5): what `ps` and `top` call it
        Path("/proc/self/comm").write_text(PROCESS_NAME, "ascii")
    control = os.fdopen(control_fd, encoding="utf-8")
    events = os.fdopen(events_fd, "w", encoding="utf-8")
    preload(json.loads(control.readline() or "[]"))
    line = control.readline()
    if not line:
        return 0  # the parent found that there is nothing to do
    _end_with_parent(control)
    try:
        _run_job(json.loads(line), events)
    except Exception as error:  # noqa: BLE001 - the one place where a stage's errors leave its process
        # An error on purpose says all there is to say; any other is a defect, and its place helps.
        if not isinstance(error, PipelineError):
            traceback.print_exc()
        _send(events, _failure_of(error))
        return 1
    return 0


def close_worker(status: int) -> NoReturn:
    """End this process with a status, now."""
    sys.stdout.flush()
    sys.stderr.flush()
    # Native libraries may hang or crash in their own clean-up; what counts is done.
    os._exit(status)


if __name__ == "__main__":
    close_worker(serve(int(sys.argv[1]), int(sys.argv[2])))
