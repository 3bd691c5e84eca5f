"""MLPerf's LoadGen asks our loop: every request is answered, waiting counts, errors end the test.

LoadGen is an extra; the slow test installs it and runs this file once more.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pipeline.bench.generation_job import ServerJob
from pipeline.bench.generation_metrics import Work
from pipeline.bench.loadgen import MODULE, read_summary, serve_as_asked
from pipeline.bench.server import summarize_server
from pipeline.bundle.consumer import has_package
from pipeline.errors import EnvironmentMissing, StageError
from pipeline.runtimes.decoder import Cache
from tests.openvino_environment import make_environment

if TYPE_CHECKING:
    from pipeline.runtimes.decoder import Feed, Floats

needs_loadgen = pytest.mark.skipif(not has_package(MODULE), reason="LoadGen is not installed")
SUMMARY = """\
Result is : VALID
99.00 percentile first token latency (ns)   : 712683375
99.00 percentile time to output token (ns)     : 2595917
target_qps : 4
"""


class SleepyDecoder:
    """Takes a while for every step, whatever the batch; remembers the batches."""

    def __init__(self, step_s: float, *, fails: bool = False) -> None:
        self.step_s, self.fails = step_s, fails
        self.batches: list[int] = []

    def empty(self, rows: int) -> Cache:
        self.batches.append(rows)
        return Cache(rows=rows, length=0, values={})

    def step(self, feed: Feed, cache: Cache, *, last: int | None = None) -> tuple[Floats, Cache]:
        del last
        if self.fails:
            raise StageError("it cannot be run", where="decoder")
        time.sleep(self.step_s)
        after = Cache(rows=cache.rows, length=feed.mask.shape[1], values={})
        return np.zeros((cache.rows, 1, 5), np.float32), after

    def reorder(self, cache: Cache, rows: object) -> Cache:
        del cache, rows
        raise AssertionError

    def read(self, cache: Cache) -> dict[str, Floats]:
        del cache
        raise AssertionError


def _asked(requests_per_s: float, **changes: object) -> ServerJob:
    asked = ServerJob(
        requests_per_s=requests_per_s,
        requests=6,
        batch=4,
        ttft_ms=5000,
        tpot_ms=1000,
        seed=1,
        generator="loadgen",
    )
    return asked.model_copy(update=changes)


WORK = Work(batch=4, prompt=3, tokens=3)


@needs_loadgen
def test_loadgen_asks_and_every_request_is_answered() -> None:
    decoder = SleepyDecoder(0.01)
    served, said = serve_as_asked(decoder, WORK, _asked(1000))
    assert said["generator"] == "loadgen"
    told = said["loadgen"]
    assert isinstance(told, dict)
    assert set(told) == {"result", "ttft_p99_ms", "tpot_p99_ms"}
    assert sum(decoder.batches) == len(served) == 6
    # They come faster than one is written, so those that wait are served together.
    assert 1 < max(decoder.batches) <= 4
    assert max(each.ttft_ms for each in served) > min(each.ttft_ms for each in served) + 20
    assert summarize_server(served, ttft_ms=5000, tpot_ms=1000)["good"] == 1.0
    assert summarize_server(served, ttft_ms=5000, tpot_ms=1)["goodput_per_s"] == 0.0


@needs_loadgen
def test_an_error_ends_the_test_and_comes_back() -> None:
    with pytest.raises(StageError, match="it cannot be run"):
        serve_as_asked(SleepyDecoder(0.0, fails=True), WORK, _asked(1000))


@pytest.mark.skipif(has_package(MODULE), reason="LoadGen is installed")
def test_without_loadgen_the_extra_is_named() -> None:
    with pytest.raises(EnvironmentMissing, match="mlcommons-loadgen") as caught:
        serve_as_asked(SleepyDecoder(0.0), WORK, _asked(1000))
    assert "convert-pipeline[loadgen]" in str(caught.value)


def test_our_own_generator_serves_as_before() -> None:
    served, said = serve_as_asked(SleepyDecoder(0.0), WORK, _asked(1000, generator="own"))
    assert (len(served), said) == (6, {"generator": "own"})


def test_what_loadgen_says_is_read_in_milliseconds(tmp_path: Path) -> None:
    (tmp_path / "summary.txt").write_text(SUMMARY)
    assert read_summary(tmp_path / "summary.txt") == {
        "result": "VALID",
        "ttft_p99_ms": 712.683375,
        "tpot_p99_ms": 2.595917,
    }


@pytest.mark.slow
def test_with_loadgen_installed(tmp_path: Path) -> None:
    python = make_environment(tmp_path, "mlcommons-loadgen==6.0.17")
    root = Path(__file__).resolve().parents[2]
    words = [
        python,
        "-m",
        "pytest",
        __file__,
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "loadgen_asks or an_error",
    ]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(
        words, cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert "2 passed" in done.stdout, done.stdout[-2000:]
