"""A process that has imported libraries, and forks a worker whenever it is asked for one.

Importing torch and transformers takes 2 to 4 s of a stage's CPU, for every stage that needs them. A
nursery imports them once; it never computes, so what it forks is as fresh as a process that has
just imported the same: heap, threads, random numbers of its own.

Started as `python -m pipeline.run.nursery SOCKET_FD MODULE...`. A request is one packet, the
worker's variables as JSON, with four descriptors: the worker's control, events and log, and where
to say how it goes (first its process number, at the end its status). It ends with the socket.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pipeline.run.worker import close_worker, preload, serve

if TYPE_CHECKING:
    from collections.abc import Mapping

LARGEST_REQUEST: Final = 1 << 16
"""Bytes; a request is a few variables."""


@dataclass(slots=True)
class _Nursery:
    """What it waits for.

    Attributes:
        requests: Where the parent asks for workers.
        selector: Watches it, and the workers.
        workers: Descriptor of a worker's process -> its number, and where to say how it ended.
    """

    requests: socket.socket
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    workers: dict[int, tuple[int, int]] = field(default_factory=dict)

    def serve(self) -> None:
        """Fork and reap until the parent closes the socket."""
        self.selector.register(self.requests, selectors.EVENT_READ)
        while True:
            for key, _ in self.selector.select():
                if key.fd in self.workers:
                    self._reap(key.fd)
                    continue
                packet, descriptors, _, _ = socket.recv_fds(self.requests, LARGEST_REQUEST, 4)
                if not packet:
                    return
                self._fork(json.loads(packet), tuple(descriptors))

    def _fork(self, environment: Mapping[str, str], descriptors: tuple[int, ...]) -> None:
        control, events, log, ending = descriptors
        pid = os.fork()
        if pid == 0:
            self._become(environment, control, events, log, ending)
        for descriptor in (control, events, log):
            os.close(descriptor)
        _say(ending, {"pid": pid})
        process = os.pidfd_open(pid)
        self.workers[process] = (pid, ending)
        self.selector.register(process, selectors.EVENT_READ)

    def _become(
        self, environment: Mapping[str, str], control: int, events: int, log: int, ending: int
    ) -> None:
        """Be a worker, in the child; never comes back."""
        os.setsid()
        os.dup2(log, 1)
        os.dup2(log, 2)
        # Of its siblings it must hold nothing: they end when their pipes are closed.
        self.requests.close()
        self.selector.close()
        for process, (_, other) in self.workers.items():
            os.close(process)
            os.close(other)
        for descriptor in (log, ending):
            os.close(descriptor)
        os.environ.clear()
        os.environ.update(environment)
        close_worker(serve(control, events))

    def _reap(self, process: int) -> None:
        pid, ending = self.workers.pop(process)
        _, status, usage = os.wait4(pid, 0)
        self.selector.unregister(process)
        os.close(process)
        _say(ending, {"status": status, "peak_kib": usage.ru_maxrss})
        os.close(ending)


def _say(descriptor: int, message: Mapping[str, int]) -> None:
    try:
        os.write(descriptor, (json.dumps(message) + "\n").encode())
    except BrokenPipeError:
        return  # the parent does not want to know any more


if __name__ == "__main__":
    preload(sys.argv[2:])
    _Nursery(socket.socket(fileno=int(sys.argv[1]))).serve()
