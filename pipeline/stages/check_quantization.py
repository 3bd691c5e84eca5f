"""Compare a quantised graph with the float graph it was made from, exactly, and its ranges with data.

Ports: `model` (quantised), `float` (what it was made from), `samples` (for evaluation), `probes`, for
static quantisation `ranges`, and `repair`, `moments` and `bits`
where the quantising stage had them. Facts only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, cast

from pydantic import Field

from pipeline.stages.base import EXTERNAL_DATA_FILE, MODEL_FILE, Footprint, Stage, StageConfig
from pipeline.stages.quantize_dynamic import QuantizeDynamicConfig
from pipeline.stages.quantize_static import QuantizeStaticConfig
from pipeline.stages.quantize_weights import (
    MOMENTS_PORT,
    QuantizeWeightsConfig,
    as_request,
    read_wide,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path

    from pipeline.calibration.fit import Levels
    from pipeline.calibration.methods import Method, Range
    from pipeline.calibration.ranges import Ranges, TensorRange
    from pipeline.calibration.statistics import TensorStatistics
    from pipeline.data.sample_set import SampleSet
    from pipeline.graph.quantization_audit import Audit, AuditedActivation, AuditRow
    from pipeline.graph.stand_in import StandIn
    from pipeline.hashing import JSON
    from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner
    from pipeline.stages.base import StageContext

MODEL_PORT = "model"
FLOAT_PORT = "float"
SAMPLES_PORT = "samples"
PROBES_PORT = "probes"
RANGES_PORT = "ranges"

GROUPS: Final = 4
"""Parts of the samples of each of which the method's own range is taken, see `calibration.fit`."""

MOST_ROWS: Final = 50
"""Of each kind that are kept, worst first."""


class CheckQuantizationConfig(StageConfig):
    """What was asked of the quantisation, and how much is run.

    Attributes:
        dynamic: The config of the stage that made the graph, when it was `quantize_dynamic`.
        static: Likewise for `quantize_static`.
        weight_only: Likewise for `quantize_weights`.
        run_samples: Samples on which the graph without its quantisation is compared with the float
            graph, spread over their lengths; one probe of each kind comes on top.
        fit_samples: Samples on which ranges are judged, spread likewise.
    """

    dynamic: QuantizeDynamicConfig | None = None
    static: QuantizeStaticConfig | None = None
    weight_only: QuantizeWeightsConfig | None = None
    run_samples: Annotated[int, Field(ge=1)] = 4
    fit_samples: Annotated[int, Field(ge=1)] = 64


def run(
    config: CheckQuantizationConfig,
    inputs: Mapping[str, Path],
    output: Path,
    context: StageContext,
) -> dict[str, JSON]:
    """Facts: `measures` by kind, worst first, the `noise` of each output, and what was quantised.

    Raises:
        ArtifactError: when an input is no model.
        StageError: when ONNX Runtime cannot run one of the graphs at all.
    """
    from concurrent.futures import ThreadPoolExecutor

    from pipeline.calibration.ranges import load_ranges
    from pipeline.data.sample_set import load_samples

    del output
    ranges = None if config.static is None else load_ranges(inputs[RANGES_PORT])
    samples = load_samples(inputs[SAMPLES_PORT])
    skeleton = context.scratch / "skeleton"
    skeleton.mkdir()
    audit = _audit(config, inputs, ranges, skeleton)
    rows = list(audit.rows)
    with ThreadPoolExecutor(max_workers=context.threads) as pool:
        noise = _noise(config, inputs, samples, skeleton, audit, pool)
        if ranges is not None:
            rows += _impossible_ranges(ranges, audit)
            rows += _fits(config, inputs, samples, audit, ranges, pool, context)
    return {
        "measures": _summaries(rows),
        "noise": noise,
        "quantized": len(audit.quantized),
        "kept_float": [
            {"layer": name, "reason": reason} for name, reason in audit.kept_float[:MOST_ROWS]
        ],
        "weight_share": audit.weight_share,
        "layer_share": audit.layer_share,
        "calibration_samples": None if ranges is None else ranges.samples,
        "calibration_method": None if ranges is None else ranges.method,
    }


def _audit(
    config: CheckQuantizationConfig,
    inputs: Mapping[str, Path],
    ranges: Ranges | None,
    skeleton: Path,
) -> Audit:
    """What the two graphs say without being run; writes the one without its quantisation."""
    import gc

    from pipeline.calibration.moments import Moments
    from pipeline.graph.files import load_ir_model, save_ir_model
    from pipeline.graph.qdq import QdqOptions
    from pipeline.graph.qdq_placements import PLACEMENTS
    from pipeline.graph.quantization import QuantizationOptions
    from pipeline.graph.quantization_audit import StaticRequest, audit_dynamic, audit_static
    from pipeline.graph.weight_only_audit import audit_weight_only
    from pipeline.stages.given_back import read_given_back

    original = load_ir_model(inputs[FLOAT_PORT] / MODEL_FILE)
    made = load_ir_model(inputs[MODEL_PORT] / MODEL_FILE)
    given_back = read_given_back(inputs)
    if config.static is not None and ranges is not None:
        fields = config.static.model_dump(exclude={"placement"})
        request = StaticRequest(
            options=QdqOptions(**fields, given_back=given_back),
            placement=PLACEMENTS[config.static.placement],
            ranges=ranges.by_name(),
        )
        audit = audit_static(original, made, request)
    elif config.dynamic is not None:
        options = QuantizationOptions(**config.dynamic.model_dump(), given_back=given_back)
        audit = audit_dynamic(original, made, options)
    elif config.weight_only is not None:
        moments = Moments(inputs[MOMENTS_PORT]) if MOMENTS_PORT in inputs else None
        asked = as_request(config.weight_only, read_wide(inputs))
        audit = audit_weight_only(original, made, asked, moments)
    else:
        raise ValueError("neither a dynamic, a static nor a weight-only quantisation")
    save_ir_model(made, skeleton)
    del original, made
    gc.collect()  # graphs are full of cycles, and would keep their weights for long
    return audit


def _spread(samples: SampleSet, count: int) -> list[int]:
    """Some samples, from the shortest to the longest."""
    import numpy as np

    order = sorted(
        range(len(samples)), key=lambda i: (tuple(samples.entries[i].extents.values()), i)
    )
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return [order[place] for place in sorted(set(places.tolist()))]


_LONG_PROBES: Final = frozenset({"last_tokens", "longest", "rare_tokens"})
"""What these show is in the tables, whose numbers are compared themselves."""


def _feeds(
    config: CheckQuantizationConfig, samples: SampleSet, inputs: Mapping[str, Path]
) -> list[tuple[str, dict[str, Any]]]:
    """(What it is, inputs by name) of some samples and of one probe of each kind."""
    from pipeline.data.sample_set import load_samples

    chosen = _spread(samples, config.run_samples)
    feeds = [
        (f"sample {index}", tensors)
        for index, tensors in zip(chosen, samples.read(chosen), strict=True)
    ]
    if PROBES_PORT in inputs:
        probes = load_samples(inputs[PROBES_PORT])
        firsts = {
            entry.kind: entry.index
            for entry in reversed(probes.entries)
            if entry.kind not in _LONG_PROBES
        }
        for kind, index in sorted(firsts.items(), key=lambda item: item[1]):
            feeds.append((f"probe {index} ({kind.replace('_', ' ')})", probes.read([index])[0]))
    return feeds


def _noise(
    config: CheckQuantizationConfig,
    inputs: Mapping[str, Path],
    samples: SampleSet,
    skeleton: Path,
    audit: Audit,
    pool: ThreadPoolExecutor,
) -> list[dict[str, JSON]]:
    """For each output the largest RMSE over its size, and on what; None when it is no number.

    `skeleton` is a directory; a graph in bfloat16 is run as one that can be, made beside it.
    """
    from pipeline.errors import PipelineError
    from pipeline.graph.stand_in import write_stand_in

    feeds = _feeds(config, samples, inputs)
    wanted = _run_all(write_stand_in(inputs[FLOAT_PORT], skeleton.parent), feeds, pool)
    try:
        given = _run_all(write_stand_in(skeleton, skeleton.parent), feeds, pool)
    except PipelineError as err:
        # That it cannot be run is what was to be found out.
        return [{"output": name, "noise": None, "where": err.message} for name in audit.outputs]
    places = [where for where, _ in feeds]
    return [_distance(name, places, wanted, given) for name in audit.outputs]


def _run_all(
    model: StandIn,
    feeds: Sequence[tuple[str, dict[str, Any]]],
    pool: ThreadPoolExecutor,
) -> list[dict[str, Any]]:
    """One thread a run: the last bits would depend on the number of cores otherwise."""
    from pipeline.runtimes.mapped_pages import few_pages
    from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner

    loaded = OnnxRuntimeRunner(
        model.model / MODEL_FILE,
        optimizations="disabled",
        threads=1,
    ).leaving_weights(is_wanted=model.leaves_weights)
    with few_pages([model.model / EXTERNAL_DATA_FILE]), loaded as runner:
        return _run_each(runner, feeds, pool)


def _run_each(
    runner: OnnxRuntimeRunner,
    feeds: Sequence[tuple[str, dict[str, Any]]],
    pool: ThreadPoolExecutor,
) -> list[dict[str, Any]]:
    from pipeline.errors import StageError

    names = [spec.name for spec in runner.inputs]
    for name in names:
        if name not in feeds[0][1]:
            raise StageError(
                f"the model takes `{name}`, the samples have only "
                + ", ".join(f"`{each}`" for each in feeds[0][1])
            )
    wholes = [{name: tensors[name][None] for name in names} for _, tensors in feeds]
    return list(pool.map(runner.run, wholes))


def _distance(
    name: str,
    places: Sequence[str],
    wanted: Sequence[Mapping[str, Any]],
    given: Sequence[Mapping[str, Any]],
) -> dict[str, JSON]:
    """One output over all runs. Where the float graph makes no number, nothing is compared."""
    import numpy as np

    squares, elements = 0.0, 0
    worst, where = 0.0, places[0]
    for place, expected_all, got_all in zip(places, wanted, given, strict=True):
        expected, got = expected_all[name].astype(np.float64), got_all.get(name)
        if got is None or got.shape != expected.shape:
            return {"output": name, "noise": None, "where": f"{place}: it has another shape"}
        usable = np.isfinite(expected)
        if not usable.any():
            continue
        gap = got.astype(np.float64)[usable] - expected[usable]
        size = float(np.sqrt(np.square(gap).mean()))
        if not np.isfinite(size):
            return {"output": name, "noise": None, "where": place}
        if size > worst:
            worst, where = size, place
        squares += float(np.square(expected[usable]).sum())
        elements += int(usable.sum())
    unit = float(np.sqrt(squares / elements)) if squares else 1.0
    return {"output": name, "noise": worst / unit, "where": where}


def _impossible_ranges(ranges: Ranges, audit: Audit) -> Iterator[AuditRow]:
    """Ranges that reach beyond everything that calibration saw: no method makes such ones."""
    from pipeline.graph.quantization_audit import AuditRow

    layers = {each.tensor: each.layer for each in audit.activations}
    for each in ranges.tensors:
        low, high = min(each.minimum, 0.0), max(each.maximum, 0.0)
        seen = max(-low, high)
        excess = max(each.high - high, low - each.low, each.magnitude - seen)
        name = next((name for name in each.names if name in layers), each.names[0])
        yield AuditRow(
            kind="impossible_ranges",
            layer=layers.get(name, name),
            value=max(excess, 0.0) / seen if seen else float(excess > 0),
            detail=f"`{name}` was seen from {low:.4g} to {high:.4g}, its range is from "
            f"{each.low:.4g} to {each.high:.4g}, or {each.magnitude:.4g} around zero",
        )


def _fits(
    config: CheckQuantizationConfig,
    inputs: Mapping[str, Path],
    samples: SampleSet,
    audit: Audit,
    ranges: Ranges,
    pool: ThreadPoolExecutor,
    context: StageContext,
) -> Iterator[AuditRow]:
    """How the scale of each tensor fits the evaluation samples."""
    from pipeline.calibration.fit import Levels, measure_fit
    from pipeline.graph.observed import write_observed_model
    from pipeline.graph.quantization_audit import AuditRow
    from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner

    known = audit.computed | set(samples.input_names)
    looked_at = [each for each in audit.activations if each.tensor in known]
    names = sorted({each.tensor for each in looked_at})
    inner = [name for name in names if name in audit.computed and name not in audit.outputs]
    observed = context.scratch / "observed"
    observed.mkdir()
    path = write_observed_model(inputs[FLOAT_PORT], inner, observed, is_float32=False)
    with OnnxRuntimeRunner(path, optimizations="disabled", threads=1) as original:
        whole, groups = _observe(config, original, samples, names, pool, context)
    seen = {name: tensor for tensor in ranges.tensors for name in tensor.names}
    for each in looked_at:
        statistics = whole[each.tensor]
        if statistics is None or not each.scale > 0:
            why = "has elements that are NaN or infinite" if each.scale > 0 else "has no scale"
            detail = f"`{each.tensor}` {why}"
            yield AuditRow(kind="activation_loss", layer=each.layer, value=None, detail=detail)
            continue
        low, high = _ENDS[each.dtype]
        own = Levels(
            scale=each.scale,
            zero_point=each.zero_point,
            low=low,
            high=high,
            is_float8=each.dtype == "float8",
        )
        if statistics.histogram is None or not statistics.count:
            continue
        parts = [group[each.tensor] for group in groups]
        usual = (_levels(each, found) for found in _usual(statistics, parts, ranges))
        fit = measure_fit(statistics.histogram.finish(), own, usual)
        if each.tensor in seen:
            yield _unseen(each, statistics, seen[each.tensor])
        yield AuditRow(
            kind="activation_loss",
            layer=each.layer,
            value=fit.loss_db,
            detail=f"`{each.tensor}` keeps {fit.sqnr_db:.1f} dB; {ranges.method} gives "
            f"{fit.usual_db:.1f} dB or more on the evaluation samples themselves",
        )
        yield AuditRow(
            kind="activation_clipping",
            layer=each.layer,
            value=fit.clipped,
            detail=f"`{each.tensor}`",
        )


_NOTABLE: Final = 0.25
"""Share of a tensor's size above which one of its two ends says something."""


def _unseen(
    activation: AuditedActivation, statistics: TensorStatistics, seen: TensorRange
) -> AuditRow:
    """How many times as far the evaluation samples go as calibration saw, at either end."""
    from pipeline.graph.quantization_audit import AuditRow

    size = max(-statistics.low, statistics.high)
    least = max(-seen.minimum, seen.maximum) * 0.01
    ends = ((-statistics.low, -seen.minimum), (statistics.high, seen.maximum))
    ratios = [found / max(known, least) for found, known in ends if found > _NOTABLE * size]
    return AuditRow(
        kind="unseen_values",
        layer=activation.layer,
        value=max(ratios, default=0.0) if least else None if size else 0.0,
        detail=f"calibration saw `{activation.tensor}` from {seen.minimum:.4g} to "
        f"{seen.maximum:.4g}, on the evaluation samples it is from {statistics.low:.4g} to "
        f"{statistics.high:.4g}",
    )


_ENDS: Final = {"int8": (-128, 127), "uint8": (0, 255), "float8": (-448, 448)}


def _usual(
    whole: TensorStatistics, groups: Sequence[TensorStatistics | None], ranges: Ranges
) -> Iterator[Range]:
    """What the method of the calibration makes of the samples, and of groups of them.

    A percentile also drops twice as many: where a few large numbers end decides it, and they may be
    a little more or less rare than the rest of a percentage (MiniLM with 32 samples: 8.3 dB).
    """
    from pipeline.calibration.methods import choose_range

    method = cast("Method", ranges.method)
    for part in (whole, *groups):
        if part is not None and part.count:
            yield choose_range(part, method, ranges.percentile)
    if ranges.percentile is not None:
        doubled = max(100 - 2 * (100 - ranges.percentile), 50.0)
        yield choose_range(whole, method, doubled)


def _levels(activation: AuditedActivation, found: Range) -> Levels:
    import numpy as np

    from pipeline.calibration.fit import Levels
    from pipeline.graph.qdq import activation_scale

    scale, zero_point = activation_scale(
        found, activation.dtype, np.dtype(np.float32), is_rectified=activation.is_rectified
    )
    low, high = _ENDS[activation.dtype]
    return Levels(
        scale=float(scale),
        zero_point=int(zero_point),
        low=low,
        high=high,
        is_float8=activation.dtype == "float8",
    )


Observed = dict[str, "TensorStatistics | None"]
"""By tensor; None for one that has NaN or infinity."""


def _observe(
    config: CheckQuantizationConfig,
    original: OnnxRuntimeRunner,
    samples: SampleSet,
    names: Sequence[str],
    pool: ThreadPoolExecutor,
    context: StageContext,
) -> tuple[Observed, list[Observed]]:
    """Statistics over all samples, and over each of some groups; one sample in memory a thread."""
    from pipeline.calibration.statistics import TensorStatistics, mask_of, real_values
    from pipeline.errors import QuantizationError

    chosen = _spread(samples, config.fit_samples)
    inputs = [spec.name for spec in original.inputs]
    computed = [name for name in names if name not in inputs]
    parts = GROUPS * max(1, context.threads // GROUPS)
    done = 0

    def observe(part: int) -> Observed:
        nonlocal done
        found: Observed = {name: TensorStatistics(has_histogram=True) for name in names}
        for index in chosen[part::parts]:
            (sample,) = samples.read([index])
            feeds = {name: sample[name][None] for name in inputs}
            values = {**feeds, **original.run(feeds, computed)}
            mask = mask_of(feeds)
            for name, kept in found.items():
                try:
                    if kept is not None:
                        kept.add(real_values(values[name], mask))
                except QuantizationError:
                    found[name] = None
            done += 1
            context.progress(done, len(chosen), "samples")
        return found

    results = list(pool.map(observe, range(parts)))
    groups = [_merged(results[number::GROUPS], names) for number in range(GROUPS)]
    return _merged(results, names), groups


def _merged(parts: Sequence[Observed], names: Sequence[str]) -> Observed:
    from pipeline.calibration.statistics import TensorStatistics

    merged: Observed = {}
    for name in names:
        total: TensorStatistics | None = TensorStatistics(has_histogram=True)
        for part in parts:
            other = part[name]
            if other is None or total is None:
                total = None
            else:
                total.merge(other)
        merged[name] = total
    return merged


def _summaries(rows: Sequence[AuditRow]) -> dict[str, JSON]:
    """By kind: how many, their sum, and the worst; what is zero is not listed."""
    by_kind: dict[str, list[AuditRow]] = {}
    for row in rows:
        by_kind.setdefault(row.kind, []).append(row)
    return {kind: _summary(each) for kind, each in by_kind.items()}


def _summary(rows: list[AuditRow]) -> JSON:
    ordered = sorted(rows, key=lambda row: (row.value is not None, -(row.value or 0.0), row.layer))
    return {
        "count": len(rows),
        "total": sum(row.value or 0.0 for row in rows),
        "worst": [
            {"layer": row.layer, "value": row.value, "detail": row.detail}
            for row in ordered[:MOST_ROWS]
            if row.value != 0.0
        ],
    }


CHECK_QUANTIZATION = Stage(
    name="check_quantization",
    version=6,
    footprint=Footprint(base_mib=200, memory_per_weight=4.2),
    config_type=CheckQuantizationConfig,
    run=run,
    packages=("ml-dtypes", "numpy", "onnx", "onnx-ir", "onnxruntime", "scipy"),
    extra="cpu",
    # The last bits of an activation depend on the instruction set.
    machine=("cpu_flags",),
    preload=("onnxruntime", "pipeline.graph.quantization_audit", "pipeline.calibration.fit"),
)
"""Ports `model`, `float`, `samples`, `probes`, `ranges`, `repair` -> facts only."""
