"""One benchmark: rounds of launches, judged, and repeated once where they leave it open."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Literal

from pipeline.bench.job import Contender, Launch, LaunchJob, LaunchLog
from pipeline.bench.launcher import Nursery, launch
from pipeline.bench.schedule import shuffled_orders
from pipeline.bench.summary import median_load_time_ms, median_peak_rss_mib, summarise_shape
from pipeline.bench.types import BenchmarkResult
from pipeline.stages.base import EXTERNAL_DATA_FILE, MODEL_FILE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from pipeline.bench.types import Shape, ShapeResult
    from pipeline.stages.base import StageContext
    from pipeline.stages.benchmark import BenchmarkConfig


def measure(
    config: BenchmarkConfig, inputs: Mapping[str, Path], context: StageContext
) -> tuple[BenchmarkResult, LaunchLog]:
    """Measure the candidate against the checkpoint in torch.

    Args:
        config: What to measure.
        inputs: `checkpoint`, `model` and `samples`, as the stage has them.
        context: Progress counts launches.

    Raises:
        StageError: when a launch fails, or the samples do not fit the model.
    """
    shapes = tuple(dict.fromkeys(config.shapes))
    folder = context.scratch / "nursery"
    folder.mkdir()
    with Nursery(inputs["checkpoint"].resolve(), folder, config.threads) as nursery:
        session = _Session(config, inputs, context, nursery)
        results, notes = _judge(config, context, session, shapes)
    result = _result(config, inputs, session.launches, results, notes)
    return result, LaunchLog(launches=tuple(session.launches))


def _judge(
    config: BenchmarkConfig,
    context: StageContext,
    session: _Session,
    shapes: tuple[Shape, ...],
) -> tuple[dict[Shape, ShapeResult], tuple[str, ...]]:
    """Launch, judge, and launch again where it is open; the notes say that."""
    session.launch_round(shapes)
    results = session.judge(shapes)
    still_open = tuple(shape for shape in shapes if results[shape].verdict == "inconclusive")
    notes: list[str] = []
    if still_open:
        names = " and ".join(results[shape].description for shape in still_open)
        notes.append(
            f"{config.launches} launches left {names} inconclusive, so as many were added there"
        )
        context.log(notes[-1])
        session.launch_round(still_open)
        results |= session.judge(still_open)
    return results, tuple(notes)


class _Session:
    """All launches of one run of the stage, in the order they happened."""

    def __init__(
        self,
        config: BenchmarkConfig,
        inputs: Mapping[str, Path],
        context: StageContext,
        nursery: Nursery,
    ) -> None:
        self._nursery = nursery
        self.launches: list[Launch] = []
        self._config = config
        self._inputs = inputs
        self._context = context
        self._random = Random(config.seed)  # noqa: S311  (orders, not secrets)

    def launch_round(self, shapes: tuple[Shape, ...]) -> None:
        """Launch reference against candidate, and candidate against itself, `launches` times each.

        The two kinds take turns, so that both see the same machine.
        """
        config, count = self._config, self._config.launches
        reference, candidate = _contenders(config, self._inputs)
        total = len(self.launches) + 2 * count
        orders = {kind: shuffled_orders(count, self._random) for kind in ("ab", "aa")}
        kinds: tuple[Literal["ab", "aa"], ...] = ("ab", "aa")
        for turn in range(count):
            for kind in kinds:
                self._context.progress(len(self.launches), total, "launches")
                job = LaunchJob(
                    reference=reference if kind == "ab" else candidate,
                    candidate=candidate,
                    first=orders[kind][turn],
                    axes=config.axes,
                    shapes=shapes,
                    samples=str(self._inputs["samples"].resolve()),
                    threads=config.threads,
                    seconds_per_shape=config.seconds_per_shape,
                    seed=self._random.getrandbits(32),
                )
                folder = self._context.scratch / f"launch-{len(self.launches):03d}"
                folder.mkdir()
                run_one = self._nursery.launch if kind == "ab" else launch
                record = run_one(job, folder)
                self.launches.append(Launch(kind=kind, job=job, record=record))
        self._context.progress(total, total, "launches")

    def judge(self, shapes: tuple[Shape, ...]) -> dict[Shape, ShapeResult]:
        """The result of each shape, over all launches so far."""
        return {
            shape: summarise_shape(self.launches, shape, margin=self._config.margin)
            for shape in shapes
        }


def _contenders(
    config: BenchmarkConfig, inputs: Mapping[str, Path]
) -> tuple[Contender, Contender]:
    reference = Contender(
        runtime="torch",
        path=str(inputs["checkpoint"].resolve()),
        task=config.task,
        component=config.component,
    )
    candidate = Contender(runtime=config.runtime, path=str(inputs["model"].resolve()))
    return reference, candidate


def _result(
    config: BenchmarkConfig,
    inputs: Mapping[str, Path],
    launches: list[Launch],
    results: Mapping[Shape, ShapeResult],
    notes: tuple[str, ...],
) -> BenchmarkResult:
    shapes = tuple(results)
    versus = [launch for launch in launches if launch.kind == "ab"]

    return BenchmarkResult(
        reference=versus[0].record.reference.description,
        candidate=versus[0].record.candidate.description,
        threads=config.threads,
        launches=len(versus),
        margin=config.margin,
        load_time_ms=median_load_time_ms(versus, "candidate"),
        reference_load_time_ms=median_load_time_ms(versus, "reference"),
        # The candidate's own process is one without torch; that is an A/A launch.
        peak_rss_mib=median_peak_rss_mib(launches, "aa", None, shapes),
        reference_peak_rss_mib=median_peak_rss_mib(launches, "ab", "reference", shapes),
        size_bytes=_size_bytes(
            inputs["model"] / name for name in (MODEL_FILE, EXTERNAL_DATA_FILE)
        ),
        reference_size_bytes=_size_bytes(inputs["checkpoint"].rglob("*.safetensors")),
        shapes=tuple(results.values()),
        notes=notes,
    )


def _size_bytes(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files if file.is_file())
