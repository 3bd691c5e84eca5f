"""Work that goes on beside this process: in a copy of it, on another processor.

A thread would have to wait for the interpreter's lock again and again; a copy has its own, and shares
all memory until one of the two writes to it, so that weights are not held twice.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Forked:
    """Runs `work` in a copy of this process, from now on; what it changes in memory stays there.

    The copy has this thread alone. Pools of threads do not survive a fork, so `work` computes with one.

    Args:
        work: Its errors are seen as a failure only, as a fork that the system refuses is: whoever wants
            to know more runs it once more.
        niceness: By how much others come before it where processors are few. What forked it goes on
            meanwhile and has the longest way, so it is never 0.
    """

    def __init__(self, work: Callable[[], object], *, niceness: int = 5) -> None:
        self._is_successful: bool | None = None
        try:
            self._pid = os.fork()
        except OSError:  # no memory that could be promised twice, or too many processes
            self._is_successful = False
            return
        if not self._pid:
            _run(work, niceness)

    def succeeded(self) -> bool:
        """Wait for the end; whether there was no error, and no signal either."""
        if self._is_successful is None:
            _, status = os.waitpid(self._pid, 0)
            self._is_successful = status == 0
        return self._is_successful

    def end(self) -> None:
        """End it now, unless it has ended."""
        if self._is_successful is None:
            os.kill(self._pid, signal.SIGKILL)
            self.succeeded()


def _run(work: Callable[[], object], niceness: int) -> None:
    status = 1
    try:
        os.nice(niceness)
        work()
        status = 0
    finally:  # nothing of this process may go on in its copy, whatever happened
        os._exit(status)
