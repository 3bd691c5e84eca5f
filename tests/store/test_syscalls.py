"""The real system calls of a publish, failed or killed one after the other by strace.

`test_attacks.py` does the same at the seam of `pipeline.store.files` and needs no tool; this is the
check that the seam hides nothing.
"""

from __future__ import annotations

import mmap
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.store import Store
from tests.store import attacks

CHANGING = ("mkdir", "write", "fsync", "chmod", "rename", "renameat2", "unlink", "unlinkat")
READING = ("openat", "read", "getdents64", "newfstatat", "flock", "rmdir", "close")
TOLD, SILENT = 3, 0


def run_traced(root: Path, calls: tuple[str, ...], inject: str = "") -> tuple[int, str]:
    """Exit code of a child that builds, and the trace of its calls; minus the signal if killed."""
    tracer = shutil.which("strace")
    if tracer is None:
        pytest.skip("strace is not installed")
    go = mmap.mmap(-1, 1)
    pid = os.fork()
    if pid == 0:
        code = TOLD
        try:
            while not go[0]:
                time.sleep(0.001)
            attacks.build(Store(root))
            code = SILENT
        except (PipelineError, OSError):
            pass  # an OSError is the stage's own
        finally:
            os._exit(code)
    log = root.parent / "trace"
    options = ["-f", "-qq", "-o", str(log), "-e", f"trace={','.join(calls)}"]
    options += ["-e", f"inject={inject}"] if inject else []
    strace = subprocess.Popen([tracer, *options, "-p", str(pid)], stderr=subprocess.PIPE)
    status = Path(f"/proc/{pid}/status")
    while strace.poll() is None and "TracerPid:\t0\n" in status.read_text():
        time.sleep(0.001)
    if strace.poll() is not None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        pytest.skip("strace may not attach here: " + strace.communicate()[1].decode()[-200:])
    time.sleep(0.005)  # it has seized the child, and is about to trace it
    go[0] = 1
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    strace.communicate()
    return code, log.read_text()


def iter_injections(directory: Path, calls: tuple[str, ...]) -> list[tuple[str, int]]:
    """Each call of an undisturbed build, as its name and which one of its name it is."""
    code, trace = run_traced(directory / "undisturbed", calls)
    assert code == SILENT
    counts = Counter(re.findall(r"^\d+ +(\w+)\(", trace, flags=re.MULTILINE))
    assert counts["fsync"] >= 10 or "fsync" not in calls, trace
    return [(name, number + 1) for name in calls for number in range(counts[name])]


def sweep(directory: Path, calls: tuple[str, ...], fault: str) -> list[str]:
    """Violations over all calls; the fault is `signal=KILL` or `error=ENOSPC`."""
    violations = []
    for name, number in iter_injections(directory, calls):
        root = directory / "root"
        shutil.rmtree(root, ignore_errors=True)
        code, trace = run_traced(root, calls, f"{name}:{fault}:when={number}")
        was_hit = code == -signal.SIGKILL or "INJECTED" in trace
        where = f"{fault} at {name} {number}"
        if not was_hit:
            violations.append(f"{where}: was not reached")
        if code not in {SILENT, TOLD, -signal.SIGKILL}:
            violations.append(f"{where}: exit code {code}")
        if code == SILENT and Store(root).find(attacks.key_of()) is None:
            violations.append(f"{where}: no error, and no result")
        violations += [f"{where}: {problem}" for problem in attacks.visible_problems(root)]
        violations += [f"{where}: {problem}" for problem in attacks.resume_problems(root)]
    return violations


def test_a_kill_at_any_system_call_that_changes_the_disk_is_survived(fast_path: Path) -> None:
    assert sweep(fast_path, CHANGING, "signal=KILL") == []


@pytest.mark.slow
@pytest.mark.parametrize("error", ["ENOSPC", "EIO", "EDQUOT", "EMFILE"])
def test_a_failure_of_any_system_call_that_changes_the_disk_is_survived(
    error: str, fast_path: Path
) -> None:
    assert sweep(fast_path, CHANGING, f"error={error}") == []


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["signal=KILL", "error=EIO", "error=EMFILE"])
def test_faults_in_calls_that_only_read_are_survived(fault: str, fast_path: Path) -> None:
    assert sweep(fast_path, READING, fault) == []
