"""One benchmark: rounds of launches, judged, and repeated once where they leave it open."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Literal

from pipeline.bench.device import describe_device
from pipeline.bench.job import Contender, Launch, LaunchJob, LaunchLog
from pipeline.bench.launcher import Nursery, launch
from pipeline.bench.schedule import shuffled_orders
from pipeline.bench.summary import median_load_time_ms, median_peak_rss_mib, summarise_shape
from pipeline.bench.types import BenchmarkResult
from pipeline.stages.base import MODEL_FILE, model_size_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from pipeline.bench.job import LaunchRecord
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
    folder = context.scratch / "nursery"
    folder.mkdir()
    checkpoint = inputs["checkpoint"].resolve()
    reference = Contender(
        runtime="torch",
        path=str(checkpoint),
        task=config.task,
        component=config.component,
        device=config.reference_device,
        device_number=config.gpu_number,
    )
    with Nursery(checkpoint, folder, config.threads) as nursery:
        session = _Session(
            config, reference, inputs, context.scratch, context.progress, nursery.launch
        )
        results, notes = _judge(config, session)
    notes = (*notes, *_device_notes(results.values()))
    for note in notes:
        context.log(note)
    weights = sum(file.stat().st_size for file in checkpoint.rglob("*.safetensors"))
    of_candidate = weights if config.runtime == "torch" else model_size_bytes(inputs["model"])
    sizes = (weights, of_candidate)
    result = _result(config, sizes, session.launches, results, notes)
    return result, LaunchLog(launches=tuple(session.launches))


def measure_pair(
    config: BenchmarkConfig,
    inputs: Mapping[str, Path],
    *,
    scratch: Path,
    progress: Callable[[int, int, str], None],
) -> BenchmarkResult:
    """Measure one graph against another, both in ONNX Runtime.

    Args:
        config: What to measure.
        inputs: `reference` and `model`, directories with a graph each, and `samples`.
        scratch: A private directory.
        progress: Is told how many launches are done.

    Raises:
        StageError: when a launch fails, or the samples do not fit a model.
    """
    reference = Contender(runtime=config.runtime, path=str(inputs["reference"].resolve()))
    session = _Session(config, reference, inputs, scratch, progress, launch)
    results, notes = _judge(config, session)
    sizes = (model_size_bytes(inputs["reference"]), model_size_bytes(inputs["model"]))
    return _result(config, sizes, session.launches, results, notes)


def _judge(
    config: BenchmarkConfig, session: _Session
) -> tuple[dict[Shape, ShapeResult], tuple[str, ...]]:
    """Launch, judge, and launch again where it is open; the notes say that."""
    shapes = tuple(dict.fromkeys(config.shapes))
    session.launch_round(shapes)
    results = session.judge(shapes)
    still_open = tuple(shape for shape in shapes if results[shape].verdict == "inconclusive")
    notes: list[str] = []
    if still_open:
        names = " and ".join(results[shape].description for shape in still_open)
        notes.append(
            f"{config.launches} launches left {names} inconclusive, so as many were added there"
        )
        session.launch_round(still_open)
        results |= session.judge(still_open)
    return results, tuple(notes)


def _device_notes(results: Iterable[ShapeResult]) -> Iterator[str]:
    """What a call on a GPU consists of, and what to be wary of."""
    for result in results:
        if result.device is not None:
            yield f"{result.description}: {describe_device(result.device)} (medians)"
            for warning in result.device.warnings:
                yield f"{result.description}: {warning}"


class _Session:
    """All launches of one measurement, in the order they happened.

    Args:
        config: What to measure.
        reference: What the candidate is held against.
        inputs: `model` (the candidate's directory) and `samples`.
        scratch: A private directory.
        progress: Is told how many launches are done.
        launch_versus: Launches reference against candidate; the candidate against itself always
            gets a process of its own.
    """

    def __init__(
        self,
        config: BenchmarkConfig,
        reference: Contender,
        inputs: Mapping[str, Path],
        scratch: Path,
        progress: Callable[[int, int, str], None],
        launch_versus: Callable[[LaunchJob, Path], LaunchRecord],
    ) -> None:
        self.launches: list[Launch] = []
        self._launch_versus = launch_versus
        self._config = config
        self._reference = reference
        self._inputs = inputs
        self._scratch = scratch
        self._progress = progress
        self._candidate = _candidate(config, inputs, scratch)
        self._random = Random(config.seed)  # noqa: S311  (orders, not secrets)

    def launch_round(self, shapes: tuple[Shape, ...]) -> None:
        """Launch reference against candidate, and candidate against itself, `launches` times each.

        The two kinds take turns, so that both see the same machine.
        """
        config, count = self._config, self._config.launches
        candidate = self._candidate
        total = len(self.launches) + 2 * count
        orders = {kind: shuffled_orders(count, self._random) for kind in ("ab", "aa")}
        kinds: tuple[Literal["ab", "aa"], ...] = ("ab", "aa")
        for turn in range(count):
            for kind in kinds:
                self._progress(len(self.launches), total, "launches")
                job = LaunchJob(
                    reference=self._reference if kind == "ab" else candidate,
                    candidate=candidate,
                    first=orders[kind][turn],
                    axes=config.axes,
                    shapes=shapes,
                    samples=str(self._inputs["samples"].resolve()),
                    threads=config.threads,
                    seconds_per_shape=config.seconds_per_shape,
                    seed=self._random.getrandbits(32),
                )
                folder = self._scratch / f"launch-{len(self.launches):03d}"
                folder.mkdir()
                run_one = self._launch_versus if kind == "ab" else launch
                record = run_one(job, folder)
                self.launches.append(Launch(kind=kind, job=job, record=record))
        self._progress(total, total, "launches")

    def judge(self, shapes: tuple[Shape, ...]) -> dict[Shape, ShapeResult]:
        """The result of each shape, over all launches so far."""
        return {
            shape: summarise_shape(self.launches, shape, margin=self._config.margin)
            for shape in shapes
        }


def _candidate(config: BenchmarkConfig, inputs: Mapping[str, Path], scratch: Path) -> Contender:
    model = inputs["model"].resolve()
    if config.runtime == "torch":
        return Contender(
            runtime="torch",
            path=str(model),
            task=config.task,
            component=config.component,
            device=config.reference_device,
            variant=config.variant,
        )
    if config.provider is None:
        return Contender(
            runtime=config.runtime, path=str(model), uses_cuda_graph=config.cuda_graphs
        )
    from pipeline.runtimes.ort_profile import profile_of_inputs
    from pipeline.runtimes.ort_providers import copy_cache

    cache = scratch / "provider-cache"
    if "cache" in inputs:  # the provider writes into it
        copy_cache(inputs["cache"], cache)
    shapes = profile_of_inputs(model / MODEL_FILE, config.profile)
    return Contender(
        runtime=config.runtime,
        path=str(model),
        provider=config.provider.name,
        provider_options=config.provider.session_options(shapes, cache),
    )


def _result(
    config: BenchmarkConfig,
    sizes: tuple[int, int],
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
        size_bytes=sizes[1],
        reference_size_bytes=sizes[0],
        shapes=tuple(results.values()),
        notes=notes,
    )
