"""The parent's side of a worker: start, feed, watch, limit, and say how it ended."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.environment import memory_mib
from pipeline.run.children import CAN_FORK, Child, Exit, Pipes, StartedChild, fork_child

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LOG_LINES = 400
POLL_INTERVAL_S = 0.2
INHERITED_VARIABLES = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "USER",
    "LOGNAME",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "VIRTUAL_ENV",
    "CUDA_VISIBLE_DEVICES",
    "CONVERT_STORE",
)
"""The only variables a stage inherits; everything else could change a result unseen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a worker ended.

    Attributes:
        facts: What the stage returned; None when it failed.
        message: Why it failed; empty when it did not.
        signal: Name of the signal that ended it, or empty.
        last_lines: The end of its log.
    """

    facts: Mapping[str, Any] | None
    message: str
    hint: str
    where: str
    signal: str
    exit_code: int
    last_lines: tuple[str, ...]
    wall_time_s: float
    peak_rss_mib: float


def worker_environment(threads: int) -> dict[str, str]:
    """The variables of a worker: the allow-list, no network for hubs, fixed hash seed and threads."""
    kept = {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ}
    return kept | {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": str(threads),
    }


class WorkerProcess:
    """A worker that has been started and waits for its one job.

    Args:
        preload: Modules it may import while it waits.
        threads: Threads the stage may use.
        group: Workers of one group are forked from one nursery; started anew when empty.
    """

    def __init__(self, preload: tuple[str, ...], threads: int, group: str = "") -> None:
        self.threads = threads
        self.preload = preload
        self.group = group
        control_read, control_write = os.pipe()
        events_read, events_write = os.pipe()
        log_read, log_write = os.pipe()
        package_parent = str(Path(__file__).resolve().parents[2])
        environment = worker_environment(threads)
        inherited = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package_parent, inherited)))
        pipes = Pipes(control_read, events_write, log_write)
        try:
            self._child: Child = (
                fork_child(group, environment, pipes)
                if group and CAN_FORK
                else StartedChild(environment, pipes)
            )
        finally:
            pipes.close()
        self._control = os.fdopen(control_write, "w", encoding="utf-8")
        self._exit: Exit | None = None
        self._log: collections.deque[str] = collections.deque(maxlen=LOG_LINES)
        self._last_event: dict[str, Any] = {}
        self._on_progress: Callable[[int, int, str], None] | None = None
        self._on_line: Callable[[str], None] | None = None
        self._stop_reason = ("", "")
        self._readers = [
            threading.Thread(target=self._read_log, args=(log_read,), daemon=True),
            threading.Thread(target=self._read_events, args=(events_read,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        self._write(json.dumps(list(preload)))

    def _write(self, line: str) -> None:
        # A worker that died early has closed its end; its ending tells why.
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._control.write(line + "\n")
            self._control.flush()

    def _read_log(self, descriptor: int) -> None:
        with os.fdopen(descriptor, encoding="utf-8", errors="replace") as stream:
            for raw in stream:
                line = raw.rstrip()
                self._log.append(line)
                if self._on_line is not None:
                    self._on_line(line)

    def _read_events(self, descriptor: int) -> None:
        with os.fdopen(descriptor, encoding="utf-8", errors="replace") as stream:
            for line in stream:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue  # a native library wrote to the wrong descriptor
                if event.get("event") != "progress":
                    self._last_event = event
                elif self._on_progress is not None:
                    self._on_progress(event["done"], event["total"], event["unit"])

    def run(
        self,
        job: Mapping[str, Any],
        *,
        time_s: float,
        memory_limit_mib: int | None,
        limit_keys: tuple[str, str] = ("limits.time_s", "limits.memory_mib"),
        on_progress: Callable[[int, int, str], None],
        on_line: Callable[[str], None] | None = None,
    ) -> Ending:
        """Send the job, wait until the process has ended, and clean up its whole group.

        Args:
            job: Stage name, config, inputs, output, scratch and threads.
            time_s: Longest wall time; the group is killed after it.
            memory_limit_mib: Most resident memory of the process and its children together.
            limit_keys: Where the recipe has these two limits, for hints.
            on_progress: Called from another thread with (done, total, unit).
            on_line: Called from another thread with each line of the log.
        """
        self._on_progress = on_progress
        self._on_line = on_line
        started = time.monotonic()
        self._write(json.dumps(job))
        ended = self._wait(started + time_s, time_s, memory_limit_mib, limit_keys)
        wall_time_s = time.monotonic() - started
        self.kill()  # whatever the stage left running in its group
        for reader in self._readers:
            reader.join(timeout=5)  # a process that left the group holds a pipe open
        self._close_control()
        done_kib = self._last_event.get("peak_kib", 0)  # only a worker that is done says it
        if memory_limit_mib and done_kib >> 10 > memory_limit_mib and not self._stop_reason[0]:
            # It was over between two looks, and has ended since: whether it passes is no matter of luck.
            self._stop_reason = _over_memory(done_kib >> 10, memory_limit_mib, limit_keys[1])
        return self._ending(ended, wall_time_s, memory_limit_mib)

    def _wait(
        self,
        deadline: float,
        time_s: float,
        memory_limit_mib: int | None,
        limit_keys: tuple[str, str],
    ) -> Exit:
        time_key, memory_key = limit_keys
        while True:
            ended = self._child.poll()
            if ended is not None:
                return ended
            if self._stop_reason[0]:
                time.sleep(0.01)
                continue
            pid = self._child.pid() if memory_limit_mib else None
            resident_mib = group_resident_mib(pid) if pid else 0
            if memory_limit_mib and resident_mib > memory_limit_mib:
                self._stop_reason = _over_memory(resident_mib, memory_limit_mib, memory_key)
                self.kill()
            elif time.monotonic() > deadline:
                self._stop_reason = (
                    f"it ran longer than its limit of {time_s:g} s",
                    f"raise `{time_key}`",
                )
                self.kill()
            else:
                time.sleep(POLL_INTERVAL_S if memory_limit_mib else 0.02)

    def _ending(self, ended: Exit, wall_time_s: float, memory_limit_mib: int | None) -> Ending:
        code = ended.code
        event = self._last_event
        message, hint = self._stop_reason
        is_done = event.get("event") == "done" and code == 0 and not message
        facts = event.get("facts") if is_done else None
        where, signal_name, exit_code = "", "", 3
        if code < 0:
            signal_name = signal.Signals(-code).name
        if facts is None and not message:
            if event.get("event") == "failed":
                message, hint = event["message"], event["hint"]
                where, exit_code = event["where"], event["exit_code"]
            elif signal_name:
                message = f"its process was ended by {signal_name}"
                hint = _signal_hint(signal_name, ended.peak_kib // 1024, memory_limit_mib)
            else:
                message = f"its process ended with status {code} and no result"
        return Ending(
            facts=facts,
            message=message,
            hint=hint,
            where=where,
            signal=signal_name,
            exit_code=exit_code,
            last_lines=tuple(self._log),
            wall_time_s=wall_time_s,
            # The worker's own word, where it could give it: the system's counts our memory as well.
            peak_rss_mib=event.get("peak_kib", ended.peak_kib) / 1024,
        )

    def kill(self) -> None:
        """End the worker and everything in its process group, now."""
        self._child.kill()

    def discard(self) -> None:
        """End a worker that got no job."""
        self._close_control()
        self._child.discard()

    def _close_control(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._control.close()


def _over_memory(used_mib: int, limit_mib: int, key: str) -> tuple[str, str]:
    """Why a stage failed that used too much, and what to do."""
    return (
        f"it used {used_mib:,} MiB, more than its limit of {limit_mib:,} MiB",
        f"raise `{key}`, or make `shapes` smaller",
    )


def _signal_hint(name: str, peak_mib: int, limit_mib: int | None) -> str:
    if name == "SIGKILL":
        return (
            f"the system kills a process like this when memory runs out: its peak was "
            f"{peak_mib:,} MiB of {limit_mib or memory_mib():,} MiB"
        )
    if name in {"SIGSEGV", "SIGABRT", "SIGILL", "SIGBUS", "SIGFPE"}:
        return "a native library crashed; the last lines of its log tell which"
    return f"something sent it {name}"


def group_resident_mib(group: int) -> int:
    """Resident memory of all processes of a group together, MiB; what a fork shares counts once.

    Of a child that is what it has alone (USS), or what it has more than the leader where that is more:
    two children that share a file have nothing of it alone. Source: smaps_rollup, proc_pid_smaps(5).
    """
    import psutil

    total = 0
    with contextlib.suppress(psutil.Error):
        leader = psutil.Process(group)
        total = own = leader.memory_info().rss
        for child in leader.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                used = child.memory_full_info()
                total += max(used.uss, used.rss - own)
    return total >> 20
