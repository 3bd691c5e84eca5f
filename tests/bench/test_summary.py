"""From raw durations to figures, on launches that are made up so that the answer is known."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Literal

import pytest

from pipeline.bench.job import (
    Contender,
    Launch,
    LaunchJob,
    LaunchRecord,
    LoadRecord,
    PairRecord,
    Role,
    ShapeRecord,
)
from pipeline.bench.schedule import mirrored_orders
from pipeline.bench.summary import (
    median_load_time_ms,
    median_peak_rss_mib,
    speedup_of,
    summarise_shape,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

AXES = ("batch", "sequence")
SHAPE = (4, 16)
CONTENDER = Contender(runtime="onnxruntime", path="model")


def make_shape(random: Random, *, ratio: float, bias: float, drift: float) -> ShapeRecord:
    """A candidate of 1 ms and a reference of `ratio` ms on a machine that gets slower and slower."""
    slowness = 1.0
    pairs = []
    for first in mirrored_orders(8, random):
        blocks: dict[str, tuple[int, ...]] = {}
        for role in (first, "candidate" if first == "reference" else "reference"):
            base = ratio * bias if role == "reference" else 1.0
            blocks[role] = tuple(
                int(1e6 * base * slowness * random.lognormvariate(0, 0.01)) for _ in range(5)
            )
            slowness *= drift
        pairs.append(
            PairRecord(
                first=first, reference_ns=blocks["reference"], candidate_ns=blocks["candidate"]
            )
        )
    return ShapeRecord(axes=AXES, shape=SHAPE, pairs=tuple(pairs))


def make_launch(
    kind: Literal["ab", "aa"], shape: ShapeRecord, *, first: Role = "candidate", mib: int = 100
) -> Launch:
    def load(role: Role, ms: int) -> LoadRecord:
        peak = mib << 20 if first == role else None
        return LoadRecord(description=role, load_time_ns=ms * 1_000_000, peak_rss_bytes=peak)

    job = LaunchJob(
        reference=CONTENDER,
        candidate=CONTENDER,
        first=first,
        axes=shape.axes,
        shapes=(shape.shape,),
        samples="",
        threads=1,
        seconds_per_shape=1.0,
        seed=0,
    )
    record = LaunchRecord(
        reference=load("reference", 900), candidate=load("candidate", 30), shapes=(shape,)
    )
    return Launch(kind=kind, job=job, record=record)


def make_launches(ratio: float, *, seed: int, spread: float = 0.02) -> Iterator[Launch]:
    random = Random(seed)
    kinds: tuple[tuple[Literal["ab", "aa"], float], ...] = (("ab", ratio), ("aa", 1.0))
    for _ in range(5):
        for kind, truth in kinds:
            bias = random.lognormvariate(0, spread)
            yield make_launch(kind, make_shape(random, ratio=truth, bias=bias, drift=1.02))


@pytest.mark.parametrize(("ratio", "verdict"), [(1.5, "faster"), (0.6, "slower"), (1.0, "same")])
def test_the_verdict_is_the_truth(ratio: float, verdict: str) -> None:
    result = summarise_shape(list(make_launches(ratio, seed=2)), SHAPE, margin=0.08)
    assert result.verdict == verdict
    assert result.reason
    assert len(result.launch_speedups) == 5
    assert result.speedup_interval.low <= result.speedup <= result.speedup_interval.high


def test_the_interval_covers_the_truth_in_about_95_percent_of_experiments() -> None:
    hits = 0
    for seed in range(200):
        result = summarise_shape(list(make_launches(1.2, seed=seed)), SHAPE, margin=0.05)
        hits += result.speedup_interval.low <= 1.2 <= result.speedup_interval.high
    assert 0.90 <= hits / 200 <= 0.99


def test_a_machine_that_gets_slower_does_not_shift_the_ratio() -> None:
    # 5 % slower from block to block: more than twice as slow in the end.
    record = make_shape(Random(1), ratio=1.0, bias=1.0, drift=1.05)
    assert speedup_of(record) == pytest.approx(1.0, abs=0.02)


def test_a_rare_slow_call_costs_throughput_and_not_the_median() -> None:
    pair = PairRecord(
        first="reference",
        reference_ns=(2_000_000,) * 5,
        candidate_ns=(1_000_000,) * 4 + (6_000_000,),
    )
    shape = ShapeRecord(axes=AXES, shape=SHAPE, pairs=(pair,))
    launches = [make_launch(kind, shape) for kind in ("ab", "ab", "aa", "aa")]
    result = summarise_shape(launches, SHAPE, margin=0.05)
    assert result.candidate.latency_p50_ms == 1.0
    assert result.candidate.throughput_samples_per_s == pytest.approx(4 * 5 / 0.010)
    assert result.reference.throughput_samples_per_s == pytest.approx(2000)


_ROLES_AND_MIB: tuple[tuple[Role, int], ...] = (
    ("candidate", 100),
    ("reference", 110),
    ("candidate", 120),
)


def test_memory_counts_only_where_the_model_was_alone_and_ran_every_shape() -> None:
    shape = make_shape(Random(0), ratio=1.0, bias=1.0, drift=1.0)
    alone = [make_launch("aa", shape, first=role, mib=mib) for role, mib in _ROLES_AND_MIB]
    other = make_launch("ab", shape, first="reference", mib=700)
    launches = [*alone, other]
    assert median_peak_rss_mib(launches, "aa", None, (SHAPE,)) == 110
    assert median_peak_rss_mib(launches, "ab", "reference", (SHAPE,)) == 700
    other_shapes = other.model_copy(
        update={"job": other.job.model_copy(update={"shapes": ((1, 1),)})}
    )
    assert median_peak_rss_mib([other, other_shapes], "ab", "reference", (SHAPE,)) == 700


def test_load_time_is_the_median_over_launches_against_the_reference() -> None:
    shape = make_shape(Random(0), ratio=1.0, bias=1.0, drift=1.0)
    launches = [make_launch("ab", shape), make_launch("ab", shape), make_launch("aa", shape)]
    assert median_load_time_ms(launches, "candidate") == 30
    assert median_load_time_ms(launches, "reference") == 900


def test_each_shape_is_judged_by_its_own_records() -> None:
    launches = []
    for launch in make_launches(1.5, seed=2):
        (shape,) = launch.record.shapes
        # The same figures under another shape, with the models' parts swapped.
        pairs = tuple(
            pair.model_copy(
                update={"reference_ns": pair.candidate_ns, "candidate_ns": pair.reference_ns}
            )
            for pair in shape.pairs
        )
        other = ShapeRecord(axes=("batch", "sequence"), shape=(16, 4), pairs=pairs)
        record = launch.record.model_copy(update={"shapes": (shape, other)})
        launches.append(launch.model_copy(update={"record": record}))
    one, two = (summarise_shape(launches, shape, margin=0.08) for shape in (SHAPE, (16, 4)))
    assert (one.shape, one.verdict) == (SHAPE, "faster")
    assert (two.shape, two.verdict) == ((16, 4), "slower")
    assert two.speedup == pytest.approx(1 / one.speedup)
