"""One launch, in a process of its own: `python -m pipeline.bench.launch job.json record.json`.

Loads the reference and one candidate, measures both in blocks of random order, and writes what it
measured. It judges nothing: one launch alone proves nothing.
"""

from __future__ import annotations

import gc
import resource
import sys
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from pipeline.bench.contenders import load_contender
from pipeline.bench.feeds import SampleStream
from pipeline.bench.job import (
    DeviceRecord,
    LaunchJob,
    LaunchRecord,
    LoadRecord,
    PairRecord,
    Role,
    ShapeRecord,
)
from pipeline.bench.schedule import WARM_UP_S, mirrored_orders, plan_blocks
from pipeline.data.sample_set import load_samples
from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.bench.contenders import Call, Loaded
    from pipeline.bench.types import Shape

WARM_UP_CALLS = 10
DEVICE_CALLS = 100
"""Enough for a 99th percentile of one launch to be the slowest call but one."""
FARTHEST_START = 1 << 20
"""Inputs begin with a random sample below this one in the (endless) row of samples."""


def run_launch(job: LaunchJob) -> LaunchRecord:
    """Load both models and measure every shape.

    Raises:
        StageError: when the samples do not fit a model.
    """
    random = Random(job.seed)  # noqa: S311  (an order of blocks, not a secret)
    samples = SampleStream(load_samples(Path(job.samples)), job.axes)
    start = random.randrange(FARTHEST_START)
    second: Role = "candidate" if job.first == "reference" else "reference"
    models: dict[Role, Loaded] = {}
    calls: dict[Role, list[Call]] = {}
    records: dict[Role, LoadRecord] = {}
    for role in (job.first, second):
        contender = job.reference if role == "reference" else job.candidate
        model = models[role] = load_contender(contender, threads=job.threads)
        calls[role] = [
            model.bind(samples.cut(model.input_names, shape, start)) for shape in job.shapes
        ]
        for call in calls[role]:
            call()
        records[role] = LoadRecord(
            description=model.description,
            load_time_ns=model.load_time_ns,
            peak_rss_bytes=peak_rss_bytes() if role == job.first else None,
        )
    places = list(range(len(job.shapes)))
    random.shuffle(places)
    shapes = {
        place: ShapeRecord(
            axes=job.axes,
            shape=job.shapes[place],
            pairs=_measure(
                {role: calls[role][place] for role in calls},
                seconds=job.seconds_per_shape,
                random=random,
            ),
            device=_device_parts(models["candidate"], samples, job.shapes[place], start),
        )
        for place in places
    }
    return LaunchRecord(
        reference=records["reference"],
        candidate=records["candidate"],
        shapes=tuple(shapes[place] for place in sorted(shapes)),
    )


def _measure(
    calls: Mapping[Role, Call], *, seconds: float, random: Random
) -> tuple[PairRecord, ...]:
    """Time both models at one shape, in pairs of blocks."""
    cycle_ns = sum(min(_time_block(call, 2)) for call in calls.values())
    plan = plan_blocks(cycle_ns / 1e9, seconds)
    pairs = []
    gc.collect()
    gc.disable()
    try:
        for first in mirrored_orders(plan.pairs, random):
            order: tuple[Role, ...] = (first, *(role for role in calls if role != first))
            blocks = {role: _time_block(calls[role], plan.calls) for role in order}
            pairs.append(
                PairRecord(
                    first=first,
                    reference_ns=blocks["reference"],
                    candidate_ns=blocks["candidate"],
                )
            )
    finally:
        gc.enable()
    return tuple(pairs)


def _device_parts(
    model: Loaded, samples: SampleStream, shape: Shape, start: int
) -> DeviceRecord | None:
    """The parts of single calls, where the runtime can tell; behind the pairs, which they would slow."""
    if model.bind_timed is None:
        return None
    call = model.bind_timed(samples.cut(model.input_names, shape, start))
    for _ in range(WARM_UP_CALLS):
        call()
    parts = [call() for _ in range(DEVICE_CALLS)]
    return DeviceRecord(
        h2d_ms=tuple(part.h2d_ms for part in parts),
        compute_ms=tuple(part.compute_ms for part in parts),
        d2h_ms=tuple(part.d2h_ms for part in parts),
        enqueue_ms=tuple(part.enqueue_ms for part in parts),
    )


def _time_block(call: Call, count: int) -> tuple[int, ...]:
    """Durations of `count` calls in ns, after a warm-up that is not counted.

    The warm-up meets the caches, and outlasts the spinning threads, that the other model left.
    """
    warm_until = time.perf_counter_ns() + int(WARM_UP_S * 1e9)
    call()
    while time.perf_counter_ns() < warm_until:
        call()
    durations = []
    for _ in range(count):
        started = time.perf_counter_ns()
        call()
        durations.append(time.perf_counter_ns() - started)
    return tuple(durations)


def peak_rss_bytes() -> int:
    """The largest resident set this process ever had, bytes.

    On Linux `VmHWM` of /proc/self/status: `ru_maxrss` keeps the peak of the process that forked
    this one, so a small process started by a large one would look large (execve, Linux 6.1,
    fs/exec.c: `setmax_mm_hiwater_rss`). Elsewhere `ru_maxrss`, which macOS gives in bytes.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main(arguments: list[str]) -> None:
    """Read the job, run it, write the record."""
    job_path, record_path = map(Path, arguments)
    job = LaunchJob.model_validate_json(job_path.read_bytes())
    try:
        record = run_launch(job)
    except PipelineError as err:
        sys.exit(str(err))  # the launcher shows it; where it was raised tells the user nothing
    record_path.write_text(record.model_dump_json(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
