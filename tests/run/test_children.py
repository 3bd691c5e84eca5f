"""Workers forked from a nursery: fresh, and gone with their parent or their nursery."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass, field

import psutil
import pytest

from pipeline.run.children import CAN_FORK, Child, Exit, Pipes, end_nurseries, fork_child
from pipeline.run.process import worker_environment
from pipeline.run.worker import PROCESS_NAME
from pipeline.stages.catalogue import STAGES

pytestmark = pytest.mark.skipif(not CAN_FORK, reason=f"{sys.platform} has no pidfd")


@dataclass
class _Forked:
    """A worker that waits for its job."""

    variables: dict[str, str] = field(default_factory=dict)
    child: Child = field(init=False)
    orders: int = field(init=False)
    log: int = field(init=False)

    def __post_init__(self) -> None:
        control, self.orders = os.pipe()
        events_read, events = os.pipe()
        self.log, log = os.pipe()
        pipes = Pipes(control, events, log)
        self.child = fork_child("graphs", worker_environment(1) | self.variables, pipes)
        pipes.close()
        os.close(events_read)

    def process(self) -> psutil.Process:
        deadline = time.monotonic() + 60
        while (pid := self.child.pid()) is None or psutil.Process(pid).name() != PROCESS_NAME:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return psutil.Process(pid)

    def end(self) -> Exit:
        deadline = time.monotonic() + 60
        while (ended := self.child.poll()) is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.close(self.log)
        return ended


def test_workers_of_a_group_come_from_one_nursery_and_end_with_their_orders() -> None:
    first, second = _Forked(), _Forked({"CONVERT_STORE": "/elsewhere"})
    one, two = first.process(), second.process()
    assert one.ppid() == two.ppid() != os.getpid()
    assert os.getpgid(one.pid) == one.pid
    os.close(first.orders)
    assert first.end().code == 0
    assert second.child.poll() is None  # a sibling holds nothing of it, and goes on
    second.child.kill()
    assert second.end().code == -signal.SIGKILL
    os.close(second.orders)


def test_other_variables_ask_for_another_nursery() -> None:
    plain, other = _Forked(), _Forked({"LANG": "xx"})
    assert plain.process().ppid() != other.process().ppid()
    for forked in (plain, other):
        os.close(forked.orders)
        assert forked.end().code == 0


def test_a_worker_ends_with_its_nursery_and_the_next_gets_a_new_one() -> None:
    worker = _Forked({"LANG": "yy"})
    process = worker.process()
    nursery = process.ppid()
    os.kill(nursery, signal.SIGKILL)
    assert worker.end().code == -signal.SIGKILL
    os.close(worker.orders)
    process.wait(10)
    again = _Forked({"LANG": "yy"})
    assert again.process().ppid() != nursery
    os.close(again.orders)
    assert again.end().code == 0


def test_what_measures_time_declares_it() -> None:
    """The executor starts such stages anew; see `LocalExecutor`."""
    measuring = {stage.name for stage in STAGES if stage.name.startswith("benchmark")}
    assert measuring <= {stage.name for stage in STAGES if stage.is_exclusive}


def test_a_worker_that_is_not_forked_yet_ends_with_all_nurseries() -> None:
    worker = _Forked({"LANG": "zz"})  # a nursery of its own, which has yet to import
    end_nurseries()
    assert worker.child.pid() is None
    worker.child.kill()
    assert worker.end().code == -signal.SIGKILL
    os.close(worker.orders)
