"""The numbers behind the charts: what is drawn, where, and what cannot be drawn."""

from __future__ import annotations

import math

import pytest

from pipeline.parity.types import Metrics, SampleMetrics
from pipeline.report.distributions import MAX_POINTS, spreads
from pipeline.report.schema import Report, SampleSizes, TargetReport
from pipeline.report.sizes import ENGINE, GRAPH, OTHER, size_nodes, size_parts
from pipeline.report.spec_parts import decades
from pipeline.report.specs import (
    error_specs,
    latency_specs,
    lengths_spec,
    size_spec,
    speedup_spec,
    spread_spec,
)
from tests.report.example import MIB, example_report, image_report, metrics


def with_errors(errors: list[float | None]) -> Report:
    """The example's first target alone, its samples with these errors."""
    base = example_report()
    target = base.targets[0]
    last = target.parity[-1]
    assert last.parity is not None
    samples = tuple(
        SampleMetrics(index=i, metrics=metrics(0.1).model_copy(update={"relative_l2": error}))
        for i, error in enumerate(errors)
    )
    output = last.parity.outputs[0].model_copy(update={"samples": samples})
    parity = last.parity.model_copy(update={"outputs": (output,)})
    links = (last.model_copy(update={"parity": parity}),)
    return base.model_copy(update={"targets": (target.model_copy(update={"parity": links}),)})


def test_quantiles_are_figures_of_real_samples() -> None:
    (spread,) = spreads(with_errors([float(i) for i in range(101)]))
    assert (spread.least, spread.lower, spread.median) == (0, 25, 50)
    assert (spread.upper, spread.p95, spread.most) == (75, 95, 100)
    assert (spread.count, spread.unknown) == (101, 0)


def test_samples_without_a_number_are_counted_and_in_no_quantile() -> None:
    (spread,) = spreads(with_errors([0.1, None, math.nan, math.inf, 0.3]))
    assert (spread.count, spread.unknown) == (5, 3)
    assert (spread.least, spread.most) == (0.1, 0.3)


def test_of_many_samples_both_ends_are_kept() -> None:
    (spread,) = spreads(with_errors([i / 10_000 for i in range(10_000)]))
    assert len(spread.points) == MAX_POINTS
    assert spread.points[0] == (0, 0.0)
    assert spread.points[-1] == (9999, 0.9999)


def test_an_error_of_zero_stands_at_the_low_end_of_the_axis() -> None:
    spec = spread_spec(spreads(with_errors([0.0, 2e-3, 5e-2])))
    assert spec is not None
    rows = spec["data"]["values"]
    assert [row["x"] for row in rows] == [1e-3, 2e-3, 5e-2]
    assert [row["shown"] for row in rows] == ["0", "0.002", "0.05"]
    assert spread_spec(spreads(with_errors([0.0, 0.0]))) is None


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ([3e-4, 0.02], (-4, -1)),
        ([1.0], (0, 1)),
        ([1e-40, 1.0], (-16, 0)),
        ([0.0, math.nan, math.inf], None),
    ],
)
def test_an_axis_holds_whole_decades(values: list[float], ends: tuple[int, int] | None) -> None:
    span = decades(values)
    assert (span and (span.low, span.high)) == ends


def test_all_targets_share_the_axis_of_errors() -> None:
    specs = error_specs(example_report("failed"))
    assert list(specs) == ["cpu-fp32", "cpu-int8", "rtx-fp16"]
    domains = {tuple(spec["encoding"]["x"]["scale"]["domain"]) for spec in specs.values()}
    assert domains == {(1e-7, 0.1)}
    stages = specs["cpu-int8"]["encoding"]["y"]["scale"]["domain"]
    assert stages == ["export", "simplify", "fuse", "quantize_dynamic"]


def test_an_error_that_is_not_finite_is_not_drawn() -> None:
    broken = Metrics(
        cosine_similarity=None,
        cosine_similarity_mean=None,
        max_abs_diff=math.nan,
        mean_abs_diff=None,
        relative_l2=math.nan,
        sqnr_db=None,
        non_finite=3,
        elements=9,
    )
    report = with_errors([0.1])
    target = report.targets[0]
    parity = target.parity[0].parity
    assert parity is not None
    output = parity.outputs[0].model_copy(update={"metrics": broken})
    link = target.parity[0].model_copy(
        update={"parity": parity.model_copy(update={"outputs": (output,)})}
    )
    wrong = target.model_copy(update={"parity": (link,)})
    assert error_specs(report.model_copy(update={"targets": (wrong,)})) == {}


def test_each_shape_has_both_sides_of_each_target() -> None:
    specs = latency_specs(image_report())
    assert list(specs) == ["batch 1", "batch 8"]
    rows = specs["batch 1"]["data"]["values"]
    assert [(row["target"], row["who"], row["x"]) for row in rows] == [
        ("cpu-fp32", "torch", 9.84),
        ("cpu-fp32", "target", 6.41),
        ("cpu-int8", "torch", 9.91),
        ("cpu-int8", "target", 4.12),
    ]
    assert all(row["low"] < row["x"] < row["high"] for row in rows)


def test_one_times_is_always_on_the_axis_of_speedups() -> None:
    spec = speedup_spec(example_report())
    assert spec is not None
    low, high = spec["layer"][1]["encoding"]["x"]["scale"]["domain"]
    assert low < 0.8
    assert high > 2.67
    assert 1 in spec["layer"][1]["encoding"]["x"]["axis"]["values"]


@pytest.mark.parametrize("target", example_report().targets, ids=lambda target: target.name)
def test_the_parts_of_a_target_are_all_of_its_files(target: TargetReport) -> None:
    parts = size_parts(target)
    assert sum(part.size_bytes for part in parts) == sum(f.size_bytes for f in target.files)
    assert any(part.kind == GRAPH for part in parts)
    engines = [part for part in parts if part.kind == ENGINE]
    assert len(engines) == len(target.engines)


def test_weights_that_are_more_than_the_file_are_not_believed() -> None:
    target = example_report().targets[0]
    weight = target.weights[0].model_copy(update={"size_bytes": 900 * MIB})
    parts = size_parts(target.model_copy(update={"weights": (weight,)}))
    assert parts[0].name == "model.onnx"
    assert sum(part.size_bytes for part in parts) == sum(f.size_bytes for f in target.files)


def test_many_small_parts_are_one() -> None:
    target = example_report().targets[0]
    weights = tuple(
        target.weights[0].model_copy(update={"part": f"Op{i}", "size_bytes": 1000 + i})
        for i in range(90)
    )
    parts = size_parts(target.model_copy(update={"weights": weights}))
    assert len(parts) == 41
    assert parts[-1].kind == OTHER
    assert sum(part.size_bytes for part in parts) == sum(f.size_bytes for f in target.files)


def test_components_are_told_apart_where_there_are_several() -> None:
    target = example_report().targets[0]
    first, second = target.weights[:2]
    both = (first, second.model_copy(update={"component": "decoder"}))
    names = {part.name for part in size_parts(target.model_copy(update={"weights": both}))}
    assert {"model: Gather", "decoder: MatMul"} <= names


def test_the_treemap_is_one_tree() -> None:
    nodes = size_nodes(example_report())
    known = {node.identity for node in nodes}
    assert len(known) == len(nodes)
    assert [node.parent for node in nodes if node.parent not in known] == [None]
    assert size_spec(()) is None


def test_lengths_are_drawn_as_they_were_counted() -> None:
    spec = lengths_spec(SampleSizes(axis="sequence", counts=((4, 2), (9, 1))))
    assert spec is not None
    assert spec["data"]["values"] == [{"size": 4, "count": 2}, {"size": 9, "count": 1}]
    assert lengths_spec(SampleSizes(axis="sequence", counts=())) is None
