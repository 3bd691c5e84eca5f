"""How a worker's process comes to be, and how its parent hears of its end.

Either started anew, or forked by a nursery that has already imported what it needs. What is
measured must not depend on what ran before, so stages that measure time are always started anew.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

CAN_FORK: Final = hasattr(os, "pidfd_open") and hasattr(socket, "SOCK_SEQPACKET")
"""Linux; elsewhere every worker is started anew."""
GROUPS: Final = {
    "graphs": ("pipeline.stages.catalogue", "numpy", "onnx", "onnx_ir", "pipeline.graph.files"),
    "torch": (
        *("pipeline.stages.catalogue", "torch", "transformers", "transformers.modeling_utils"),
        *("pipeline.runtimes.torch_model", "pipeline.runtimes.torch_capture"),
        "pipeline.graph.torch_translate",
    ),
}
"""What the nursery of a group imports. Nothing that starts threads of its own when it is imported
(ONNX Runtime does): a fork keeps only one, and finds the locks of the others as they were."""
OWN_VARIABLES: Final = frozenset({"CONVERT_STORE"})
"""Variables that libraries do not read when they are imported: a nursery serves any value."""
FORK_WAIT_S: Final = 60.0
"""Longest wait for a fork that is to be killed: the nursery may be importing torch."""


@dataclass(frozen=True, slots=True)
class Pipes:
    """The worker's ends, as descriptors; closed here once it has them.

    Attributes:
        control: It reads its job there.
        events: It writes events there.
        log: Its standard output and error.
    """

    control: int
    events: int
    log: int

    def close(self) -> None:
        """Close all three."""
        for descriptor in (self.control, self.events, self.log):
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended.

    Attributes:
        code: Its exit status, or the number of the signal that ended it, negative.
        peak_kib: Its peak resident memory as the system tells it.
    """

    code: int
    peak_kib: int


class Child(Protocol):
    """A worker's process, leader of a process group of its own."""

    def pid(self) -> int | None:
        """Its number; None while it is not there yet."""

    def poll(self) -> Exit | None:
        """How it ended; None while it runs."""

    def kill(self) -> None:
        """End it and its process group."""

    def discard(self) -> None:
        """End it before it had anything to do."""


class StartedChild:
    """A worker started anew.

    Args:
        environment: All variables it has.
        pipes: Its ends.
    """

    def __init__(self, environment: Mapping[str, str], pipes: Pipes) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", "pipeline.run.worker", str(pipes.control), str(pipes.events)],
            stdin=subprocess.DEVNULL,
            stdout=pipes.log,
            stderr=subprocess.STDOUT,
            pass_fds=(pipes.control, pipes.events),
            start_new_session=True,
            env=dict(environment),
        )

    def pid(self) -> int | None:
        """Known from the start."""
        return self._process.pid

    def poll(self) -> Exit | None:
        """Reaps it when it has ended."""
        done, status, usage = os.wait4(self._process.pid, os.WNOHANG)
        if not done:
            return None
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return Exit(self._process.returncode, usage.ru_maxrss)

    def kill(self) -> None:
        """Now."""
        _kill_group(self._process.pid)

    def discard(self) -> None:
        """Now, and reap it."""
        self.kill()
        self._process.wait()


class ForkedChild:
    """A worker that a nursery was asked for.

    Args:
        ending: Where the nursery says the worker's number, and later its status.
    """

    def __init__(self, ending: int) -> None:
        self._ending = os.fdopen(ending, "rb", buffering=0)
        self._text = b""
        self._pid: int | None = None
        self._exit: Exit | None = None

    def pid(self) -> int | None:
        """None until the nursery has forked it."""
        self._read(0.0)
        return self._pid

    def poll(self) -> Exit | None:
        """As the nursery says; a worker whose nursery was killed counts as killed."""
        self._read(0.0)
        return self._exit

    def kill(self) -> None:
        """As soon as it is there."""
        if self._pid is None and self._exit is None:
            self._read(FORK_WAIT_S)
        if self._pid is not None and self._exit is None:
            _kill_group(self._pid)

    def discard(self) -> None:
        """Now, when it is there; else it ends by itself, as its orders are closed."""
        if self.pid() is not None:
            self.kill()

    def _read(self, timeout_s: float) -> None:
        while self._exit is None and select.select([self._ending], [], [], timeout_s)[0]:
            timeout_s = 0.0
            part = self._ending.read(4096)
            if not part:
                self._end(Exit(-signal.SIGKILL, 0))
                return
            *lines, self._text = (self._text + part).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if "pid" in message:
                    self._pid = message["pid"]
                else:
                    code = os.waitstatus_to_exitcode(message["status"])
                    self._end(Exit(code, message["peak_kib"]))

    def _end(self, how: Exit) -> None:
        if self._pid is not None:
            _kill_group(self._pid)  # whatever the stage left running
        self._exit = how
        self._ending.close()


@dataclass(slots=True)
class _Nursery:
    """The parent's side of `pipeline.run.nursery`.

    Attributes:
        modules: What it imports.
        environment: All variables it was started with.
    """

    modules: tuple[str, ...]
    environment: Mapping[str, str]
    _requests: socket.socket = field(init=False)
    _process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [
                    *(sys.executable, "-m", "pipeline.run.nursery"),
                    *(str(theirs.fileno()), *self.modules),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env=dict(self.environment),
            )

    def fork(self, environment: Mapping[str, str], pipes: Pipes) -> Child:
        """Ask for a worker.

        Raises:
            OSError: the nursery is gone.
        """
        read, write = os.pipe()
        try:
            request = json.dumps(environment).encode()
            descriptors = [pipes.control, pipes.events, pipes.log, write]
            socket.send_fds(self._requests, [request], descriptors)
        except OSError:
            os.close(read)
            raise
        finally:
            os.close(write)
        return ForkedChild(read)

    def close(self) -> None:
        """End it, with all that it imported; its workers end by themselves."""
        self._requests.close()
        self._process.kill()
        self._process.wait()


_nurseries: dict[tuple[str, frozenset[tuple[str, str]]], _Nursery] = {}
_lock = threading.Lock()


def fork_child(group: str, environment: Mapping[str, str], pipes: Pipes) -> Child:
    """A worker from the nursery of a group, which is started when there is none.

    Args:
        group: One of `GROUPS`.
        environment: All variables of the worker.
        pipes: The worker's ends.
    """
    wanted = {name: value for name, value in environment.items() if name not in OWN_VARIABLES}
    key = (group, frozenset(wanted.items()))
    with _lock:
        nursery = _nurseries.get(key)
        if nursery is not None:
            with contextlib.suppress(OSError):
                return nursery.fork(environment, pipes)
            _nurseries.pop(key).close()
        nursery = _nurseries[key] = _Nursery(GROUPS[group], wanted)
        return nursery.fork(environment, pipes)


@atexit.register
def end_nurseries() -> None:
    """End all, with their workers, those too that are not forked yet; the next worker starts another."""
    with _lock:
        while _nurseries:
            _nurseries.popitem()[1].close()


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
