"""The server scenario of MLPerf's own load generator, asked of our reference loop.

LoadGen decides when requests come (a Poisson process of its own) and measures what it sees; who waits is
served together, as in `pipeline.bench.server`. So its times and ours are two measurements of the same
requests, and goodput comes of ours.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.bench.generation_metrics import GenerationTimes, Work
from pipeline.bench.server import Served, poisson_arrivals, serve
from pipeline.runtimes.generation import GenerationOptions, generate

if TYPE_CHECKING:
    from pipeline.bench.generation_job import ServerJob
    from pipeline.hashing import JSON
    from pipeline.runtimes.decoder import Decoder

PACKAGE: Final = "mlcommons-loadgen"
MODULE: Final = "mlperf_loadgen"
SUMMARY_FILE: Final = "mlperf_log_summary.txt"

_SAID: Final = {
    "Result is": "result",
    "99.00 percentile first token latency (ns)": "ttft_p99_ms",
    "99.00 percentile time to output token (ns)": "tpot_p99_ms",
}
"""Line of LoadGen's summary -> our name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadGenRun:
    """What came of one test.

    Attributes:
        served: All requests, in the order in which they were answered, by our clock.
        said: What LoadGen's own summary says: `result` (`VALID` when its objectives hold at the 99th
            percentile), `ttft_p99_ms` and `tpot_p99_ms`.
    """

    served: tuple[Served, ...]
    said: dict[str, JSON]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    sample: int
    arrival_s: float


class _Server:
    """Takes requests on LoadGen's thread and answers them, batch by batch, on its own."""

    def __init__(self, decoder: Decoder, work: Work) -> None:
        self._decoder, self._work = decoder, work
        self._waiting: SimpleQueue[_Request | None] = SimpleQueue()
        self._started_s = time.perf_counter()
        self._thread = Thread(target=self._serve)
        self.served: list[Served] = []
        self.error: Exception | None = None

    def start(self) -> None:
        self._started_s = time.perf_counter()
        self._thread.start()

    def stop(self) -> None:
        self._waiting.put(None)
        self._thread.join()

    def ask(self, samples: Any) -> None:
        """Called by LoadGen when requests come."""
        now = time.perf_counter() - self._started_s
        for sample in samples:
            self._waiting.put(_Request(sample=sample.id, arrival_s=now))

    def _serve(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch = [first]
            while len(batch) < self._work.batch and not self._waiting.empty():
                following = self._waiting.get()
                if following is None:
                    self._waiting.put(None)
                    break
                batch.append(following)
            try:
                if self.error is None:
                    self._write(batch)
            except Exception as error:  # noqa: BLE001  (raised again by the thread that asked)
                self.error = error
            if self.error is not None:  # LoadGen waits for an answer to every request
                _answer(batch, 1)

    def _write(self, batch: list[_Request]) -> None:
        work = Work(batch=len(batch), prompt=self._work.prompt, tokens=self._work.tokens)
        prompts = np.random.default_rng(0).integers(0, 2, (work.batch, work.prompt)).tolist()
        stamps: list[float] = []
        begun = time.perf_counter()

        def on_step(_: object) -> None:
            stamps.append(time.perf_counter() - begun)
            if len(stamps) == 1:
                _say_first(batch)

        generate(self._decoder, prompts, GenerationOptions(tokens=work.tokens), on_step=on_step)
        _answer(batch, work.tokens)
        times = GenerationTimes(work=work, stamps=tuple(stamps))
        begun_s = begun - self._started_s
        self.served += [
            Served(
                arrival_s=request.arrival_s,
                ttft_ms=(begun_s - request.arrival_s) * 1e3 + times.ttft_ms,
                tpot_ms=times.tpot_ms,
                end_s=begun_s + times.stamps[-1],
            )
            for request in batch
        ]


def serve_as_asked(
    decoder: Decoder, work: Work, asked: ServerJob
) -> tuple[tuple[Served, ...], dict[str, JSON]]:
    """Serve requests of whoever asks.

    Args:
        decoder: A loaded graph that ran once before.
        work: Prompt and new tokens of each; `batch` is how many are served together at most.
        asked: How many come, how fast, and who decides when.

    Returns:
        All requests; and `generator`, with what LoadGen itself says under `loadgen`.

    Raises:
        EnvironmentMissing: LoadGen is asked for and is not installed.
        StageError: the decoder cannot be run.
    """
    if asked.generator == "own":
        arrivals = poisson_arrivals(asked.requests, asked.requests_per_s, asked.seed)
        return serve(decoder, arrivals, work), {"generator": "own"}
    with tempfile.TemporaryDirectory(prefix="convert-") as folder:
        run = serve_loadgen(decoder, work, asked, Path(folder))
    return run.served, {"generator": "loadgen", "loadgen": run.said}


def serve_loadgen(
    decoder: Decoder,
    work: Work,
    asked: ServerJob,
    folder: Path,
) -> LoadGenRun:
    """Let LoadGen ask, and answer.

    Args:
        decoder: A loaded graph that ran once before.
        work: Prompt and new tokens of each request; `batch` is how many are served together at most.
        asked: How many come, how fast, and the objectives that LoadGen judges by.
        folder: Where LoadGen writes its logs; it exists.

    Raises:
        EnvironmentMissing: LoadGen is not installed.
        StageError: the decoder cannot be run.
    """
    from importlib.util import find_spec

    from pipeline.errors import EnvironmentMissing

    if find_spec(MODULE) is None:
        raise EnvironmentMissing(
            f"`{PACKAGE}` is not installed, and `generator: loadgen` asks for it",
            hint="pip install 'convert-pipeline[loadgen]'",
        )
    import mlperf_loadgen

    settings = mlperf_loadgen.TestSettings()
    settings.scenario = mlperf_loadgen.TestScenario.Server
    settings.mode = mlperf_loadgen.TestMode.PerformanceOnly
    settings.server_target_qps = asked.requests_per_s
    settings.min_query_count = settings.max_query_count = asked.requests
    settings.min_duration_ms = 0
    settings.use_token_latencies = True
    settings.ttft_latency, settings.tpot_latency = (
        int(asked.ttft_ms * 1e6),
        int(asked.tpot_ms * 1e6),
    )
    settings.schedule_rng_seed = settings.sample_index_rng_seed = settings.qsl_rng_seed = (
        asked.seed
    )
    output = mlperf_loadgen.LogOutputSettings()
    output.outdir, output.copy_summary_to_stdout = str(folder), False
    logs = mlperf_loadgen.LogSettings()
    logs.log_output, logs.enable_trace = output, False

    server = _Server(decoder, work)
    system = mlperf_loadgen.ConstructSUT(server.ask, lambda: None)
    library = mlperf_loadgen.ConstructQSL(
        asked.requests, asked.requests, lambda _: None, lambda _: None
    )
    server.start()
    try:
        mlperf_loadgen.StartTestWithLogSettings(system, library, settings, logs)
    finally:
        server.stop()
        mlperf_loadgen.DestroyQSL(library)
        mlperf_loadgen.DestroySUT(system)
    if server.error is not None:
        raise server.error
    return LoadGenRun(served=tuple(server.served), said=read_summary(folder / SUMMARY_FILE))


def _say_first(batch: list[_Request]) -> None:
    import mlperf_loadgen

    mlperf_loadgen.FirstTokenComplete(
        [mlperf_loadgen.QuerySampleResponse(request.sample, 0, 0) for request in batch]
    )


def _answer(batch: list[_Request], tokens: int) -> None:
    import mlperf_loadgen

    mlperf_loadgen.QuerySamplesComplete(
        [mlperf_loadgen.QuerySampleResponse(request.sample, 0, 0, tokens) for request in batch]
    )


def read_summary(path: Path) -> dict[str, JSON]:
    """LoadGen's own result, and its 99th percentiles in milliseconds."""
    found: dict[str, JSON] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        name = _SAID.get(key)
        if name is not None:
            found[name] = value if name == "result" else float(value) / 1e6
    return found
