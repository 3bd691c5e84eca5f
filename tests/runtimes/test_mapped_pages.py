"""Large graphs of floats are run where their weights lie: the same numbers, and pages are given back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest

from pipeline.graph.files import load_graph_only, load_ir_model, save_ir_model
from pipeline.graph.narrow_weights import NarrowWeight
from pipeline.graph.stand_in import has_bfloat16, write_stand_in
from pipeline.runtimes.mapped_pages import few_pages, give_back
from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner
from pipeline.stages.base import EXTERNAL_DATA_FILE, MODEL_FILE
from tests.graph.models import parse, random, write

if TYPE_CHECKING:
    from typing import Literal

SIZE = 256
GRAPH = f"""
g (float[n, {SIZE}] x) => (float[n, {SIZE}] y)
{{
    hidden = MatMul(x, first)
    active = Tanh(hidden)
    y = MatMul(active, second)
}}
"""


@pytest.fixture(params=["float32", "bfloat16"])
def outside(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A graph whose weights lie beside its file, in 16 bits with a `Cast` behind each, or not."""
    weights = {name: random(SIZE, SIZE, seed=n) for n, name in enumerate(("first", "second"))}
    model = load_ir_model(write(tmp_path / "inline", parse(GRAPH, weights)))
    if request.param == "bfloat16":
        for value in model.graph.initializers.values():
            assert value.const_value is not None
            value.const_value = _narrow(value.const_value.numpy(), str(value.name), tmp_path)
    (tmp_path / "outside").mkdir()
    save_ir_model(model, tmp_path / "outside", inline_limit_bytes=0)
    return tmp_path / "outside"


def _narrow(array: np.ndarray, name: str, folder: Path) -> NarrowWeight:
    file = folder / f"{name}.bin"
    file.write_bytes((array.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    stored = ir.ExternalTensor(
        file, 0, 2 * array.size, ir.DataType.BFLOAT16, shape=ir.Shape(array.shape), name=name
    )
    return NarrowWeight(stored, name)


@pytest.mark.parametrize("optimizations", ["disabled", "all"])
def test_weights_that_are_used_where_they_lie_mean_the_same(
    outside: Path, tmp_path: Path, optimizations: Literal["disabled", "all"]
) -> None:
    stand_in = write_stand_in(outside, tmp_path, optimizations)
    assert stand_in.model == outside  # widening every weight would double the disk it takes
    assert stand_in.leaves_weights
    feeds = {"x": random(3, SIZE, seed=7)}
    path = outside / MODEL_FILE
    with OnnxRuntimeRunner(path, optimizations=optimizations, threads=1) as plain:
        expected = plain.run(feeds)["y"]
    kept = OnnxRuntimeRunner(path, optimizations=optimizations, threads=1).leaving_weights()
    with few_pages([outside / EXTERNAL_DATA_FILE], most_bytes=0), kept as runner:
        found = [runner.run(feeds)["y"] for _ in range(3)]
        assert "weights used where they are mapped" in runner.session
    for each in found:
        np.testing.assert_allclose(each, expected, rtol=1e-4, atol=1e-4)


def test_a_graph_that_computes_in_bfloat16_is_still_rounded(tmp_path: Path) -> None:
    text = GRAPH.replace(
        "active = Tanh(hidden)", "half = Cast<to = 16>(hidden)\nactive = Cast<to = 1>(half)"
    )
    weights = {name: random(SIZE, SIZE, seed=n) for n, name in enumerate(("first", "second"))}
    path = write(tmp_path / "model", parse(text, weights))
    assert has_bfloat16(load_graph_only(path))


def test_pages_of_a_file_are_given_back_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"\1" * (1 << 22))
    read = np.memmap(file, np.uint8, mode="r")
    written = np.memmap(file, np.uint8, mode="c")  # may hold what the file does not
    written[:] = 2
    assert int(read.sum()) == 1 << 22
    assert _resident(read) == 1 << 22
    assert give_back({str(file.resolve())}) == 1 << 22
    assert _resident(read) == 0
    assert int(read.sum()) == 1 << 22
    assert int(written.sum()) == 2 << 22
    del written
    may_be_written = np.memmap(file, np.uint8, mode="c")
    assert int(may_be_written.sum()) == 1 << 22
    assert give_back({str(file.resolve())}) == 2 << 22
    assert _resident(may_be_written) == 0


def test_what_onnx_runtime_maps_is_given_back(tmp_path: Path) -> None:
    weights = {name: random(SIZE, SIZE, seed=n) for n, name in enumerate(("first", "second"))}
    model = load_ir_model(write(tmp_path / "inline", parse(GRAPH, weights)))
    save_ir_model(model, tmp_path, inline_limit_bytes=0)
    data = tmp_path / EXTERNAL_DATA_FILE
    runner = OnnxRuntimeRunner(tmp_path / MODEL_FILE, optimizations="all", threads=1)
    with runner.leaving_weights() as loaded:
        expected = loaded.run({"x": random(3, SIZE)})["y"]
        assert give_back({str(data.resolve())}) >= 2 * 4 * SIZE * SIZE
        np.testing.assert_array_equal(loaded.run({"x": random(3, SIZE)})["y"], expected)


def test_pages_are_given_back_while_somebody_else_works(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"\1" * (1 << 22))
    read = np.memmap(file, np.uint8, mode="r")
    with few_pages([file, tmp_path / "not-there"], most_bytes=0):
        assert int(read.sum()) == 1 << 22
        deadline = time.monotonic() + 10
        while _resident(read) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert _resident(read) == 0


def _resident(array: np.ndarray) -> int:
    """Bytes of a mapping that count as memory of this process (`man 5 proc_pid_smaps`)."""
    begin = f"{array.ctypes.data:x}-"
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.lstrip("0").startswith(begin):
            return next(int(each.split()[1]) << 10 for each in lines if each.startswith("Rss:"))
    raise AssertionError(begin)
