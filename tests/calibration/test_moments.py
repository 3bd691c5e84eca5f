"""Moments of what goes into products: padding does not count, and passes change nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pipeline.calibration.moment_sums import MomentSums
from pipeline.calibration.moments import Moments
from pipeline.data.sample_set import load_samples
from pipeline.errors import QuantizationError
from pipeline.graph.product_moments import product_inputs
from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner
from pipeline.stages.export import EXPORT, ExportConfig
from pipeline.stages.observe_products import OBSERVE_PRODUCTS, ObserveProductsConfig
from pipeline.stages.simplify import SIMPLIFY, SimplifyConfig
from tests.graph.models import parse, random, write
from tests.stages.test_calibrate import random_samples
from tests.stages.test_quantize_static import Workbench

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, sentence_encoder: Path) -> Workbench:
    bench = Workbench(tmp_path_factory.mktemp("moments"))
    export = ExportConfig(task="feature-extraction", component="model")
    bench.run(EXPORT, export, "export", checkpoint=sentence_encoder)
    bench.run(SIMPLIFY, SimplifyConfig(), "simplify", model="export")
    random_samples(bench.root / "samples", 12, 60)
    facts = bench.run(
        OBSERVE_PRODUCTS, ObserveProductsConfig(), "moments", model="simplify", samples="samples"
    )
    (bench.root / "facts.json").write_text(json.dumps(facts))
    return bench


def test_moments_are_those_of_every_row_that_is_no_padding(
    bench: Workbench, tmp_path: Path
) -> None:
    from pipeline.graph.observed import write_observed_model

    samples = load_samples(bench.root / "samples")
    needed = product_inputs(bench.model("simplify"))
    moments = Moments(bench.root / "moments")
    tensor = next(each for each in needed if each.is_inner)
    path = write_observed_model(bench.root / "simplify", [tensor.name], tmp_path)
    rows = []
    with OnnxRuntimeRunner(path, optimizations="disabled", threads=1) as runner:
        names = [spec.name for spec in runner.inputs]
        for sample in samples.read(list(range(len(samples)))):
            feeds = {name: sample[name][None] for name in names}
            rows.append(runner.run(feeds, [tensor.name])[tensor.name][0])
    whole = np.concatenate(rows).astype(np.float64)
    place = moments.place(tensor.names[-1])
    assert place is not None
    wanted = whole.T @ whole / len(whole)
    np.testing.assert_allclose(moments.products(place), wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(moments.magnitudes(place), np.abs(whole).mean(axis=0), rtol=1e-5)
    assert moments.index.tensors[place].count == len(whole)
    facts = json.loads((bench.root / "facts.json").read_text())
    assert facts["tensors"] == len(needed)
    assert facts["rows"] == len(whole)


def test_several_passes_and_threads_give_the_same_bytes(
    bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.calibration.moments.LARGEST_PASS_BYTES", 1)
    again = Workbench(tmp_path)
    ports = {"model": bench.root / "simplify", "samples": bench.root / "samples"}
    again.run(OBSERVE_PRODUCTS, ObserveProductsConfig(), "moments", **ports)
    first = sorted((bench.root / "moments").iterdir())
    assert len(first) > 3
    for path in first:
        assert path.read_bytes() == (tmp_path / "moments" / path.name).read_bytes(), path.name


def test_magnitudes_alone_are_small(bench: Workbench, tmp_path: Path) -> None:
    again = Workbench(tmp_path)
    ports = {"model": bench.root / "simplify", "samples": bench.root / "samples"}
    again.run(OBSERVE_PRODUCTS, ObserveProductsConfig(has_products=False), "moments", **ports)
    assert not list((tmp_path / "moments").glob("*.products.npy"))
    with pytest.raises(QuantizationError, match="cannot be read"):
        Moments(tmp_path / "moments").products(0)
    with pytest.raises(QuantizationError, match=r"there is no `moments\.json`"):
        Moments(tmp_path)


def test_what_rows_are_chosen_from_is_found_under_its_own_name_too(tmp_path: Path) -> None:
    """A graph that reads the last tokens only, and one that reads all, share what was seen."""
    text = """
    one (float[batch, sequence, 4] x) => (float[batch, last, 3] y, float[batch, sequence, 2] z)
    {
        normed = Relu(x)
        last = Slice(normed, start, end, axis)
        y = MatMul(last, head)
        other = Exp(x)
        z = MatMul(other, side)
    }
    """
    numbers = {"start": np.array([-1]), "end": np.array([9]), "axis": np.array([1])}
    weights = {"head": random(4, 3), "side": random(4, 2)}
    path = write(tmp_path / "model", parse(text, numbers | weights))
    names = {tensor.name: tensor.names for tensor in product_inputs(path)}
    assert names == {"last": ("last", "normed"), "other": ("other",)}


@pytest.mark.parametrize("inputs", [1, 256, 600])
def test_sums_do_not_hang_on_how_rows_come(inputs: int) -> None:
    """Parts of rows and panels of several sizes; a product is symmetric to the last bit."""
    rows = random(700, inputs, seed=4)
    found = []
    for cuts in ([], [1, 3, 300, 301], [256, 512]):
        sums = MomentSums(inputs, has_products=True)
        assert all(sums.add(part) for part in np.split(rows, cuts))
        assert sums.count == len(rows)
        found.append(sums.products())
        np.testing.assert_allclose(
            sums.magnitudes(), np.abs(rows).mean(axis=0, dtype=np.float64), rtol=1e-6
        )
    assert (found[0] == found[0].T).all()
    assert all((found[0] == other).all() for other in found)
    wanted = rows.T.astype(np.float64) @ rows / len(rows)
    np.testing.assert_allclose(found[0], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_no_numbers_count_for_nothing(bad: float) -> None:
    sums = MomentSums(3, has_products=True)
    rows = np.ones((2, 3), np.float32)
    assert sums.add(rows)
    assert not sums.add(np.array([[1, bad, 1]], np.float32))
    assert (sums.products() == 1).all()
    with pytest.raises(QuantizationError, match="that is no padding"):
        MomentSums(3, has_products=True).products()
