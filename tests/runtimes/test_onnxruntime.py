from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from pipeline.errors import EnvironmentMissing, StageError
from pipeline.runtimes import onnxruntime as module
from pipeline.runtimes.base import FeedError
from pipeline.runtimes.onnxruntime import ERRORS, OnnxRuntimeRunner
from tests.parity.graphs import write_graph

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def _feeds(batch: int = 2, sequence: int = 3) -> dict[str, NDArray[np.int64]]:
    ones = np.ones((batch, sequence), np.int64)
    return {"input_ids": ones * 4, "attention_mask": ones, "token_type_ids": ones * 0}


def _runner(tmp_path: Path) -> OnnxRuntimeRunner:
    return OnnxRuntimeRunner(write_graph(tmp_path) / "model.onnx", threads=1)


def test_outputs_come_by_name_with_their_own_shapes(tmp_path: Path) -> None:
    with _runner(tmp_path) as runner:
        outputs = runner.run(_feeds())
        assert runner.load_time_ms > 0
    assert {name: array.shape for name, array in outputs.items()} == {
        "last_hidden_state": (2, 3, 8),
        "sentence_embedding": (2, 8),
    }


def test_what_the_graph_declares_is_read(tmp_path: Path) -> None:
    with _runner(tmp_path) as runner:
        assert [str(spec) for spec in runner.inputs] == ["int64 [batch, sequence]"] * 3
        hidden, pooled = runner.outputs
    assert (hidden.dtype, hidden.shape) == ("float32", ("batch", "sequence", 8))
    assert (hidden.axis("sequence"), pooled.axis("sequence")) == (1, None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"attention_mask": None}, "`attention_mask` is missing"),
        ({"position_ids": np.ones((2, 3), np.int64)}, "`position_ids` is no input of the model"),
        ({"input_ids": np.ones((2, 3), np.int32)}, "`input_ids` is int32, the model takes int64"),
        ({"input_ids": np.ones(3, np.int64)}, r"`input_ids` has shape \[3\]"),
    ],
)
def test_feeds_that_do_not_fit_are_refused_before_anything_runs(
    tmp_path: Path, change: dict[str, NDArray[np.int64] | None], reason: str
) -> None:
    feeds = {name: array for name, array in (_feeds() | change).items() if array is not None}
    with _runner(tmp_path) as runner, pytest.raises(FeedError, match=reason):
        runner.run(feeds)


def test_a_failing_run_carries_the_runtimes_reason_and_the_shapes(tmp_path: Path) -> None:
    feeds = _feeds() | {"input_ids": np.full((2, 3), 999)}
    with _runner(tmp_path) as runner:
        with pytest.raises(StageError, match=r"input_ids \[2, 3\].*out of data bounds"):
            runner.run(feeds)
        # The session is still of use, and still on the provider that was asked for.
        assert runner.run(_feeds())["sentence_embedding"].shape == (2, 8)


def test_results_belong_to_the_caller(tmp_path: Path) -> None:
    with _runner(tmp_path) as runner:
        first = runner.run(_feeds())["sentence_embedding"]
        kept = first.copy()
        runner.run(_feeds() | {"input_ids": np.full((2, 3), 9)})
    assert np.array_equal(first, kept)


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x08\x07" * 40])
def test_a_file_that_is_no_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(StageError, match="cannot load the graph"), OnnxRuntimeRunner(path):
        pass


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError), OnnxRuntimeRunner(tmp_path / "model.onnx"):
        pass


def test_a_provider_that_is_not_built_in_is_not_replaced_by_another(tmp_path: Path) -> None:
    path = write_graph(tmp_path) / "model.onnx"
    runner = OnnxRuntimeRunner(path, provider="TensorrtExecutionProvider")
    with pytest.raises(EnvironmentMissing, match=r"has no TensorrtExecutionProvider, only .*CPU"):
        runner.__enter__()


def test_a_provider_that_does_not_start_is_not_replaced_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime only warns then, and runs on the CPU: here a provider is merely claimed."""
    claimed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(module.onnxruntime, "get_available_providers", lambda: claimed)
    path = write_graph(tmp_path) / "model.onnx"
    runner = OnnxRuntimeRunner(path, provider="CUDAExecutionProvider")
    with pytest.warns(UserWarning, match="CUDA"), pytest.raises(EnvironmentMissing, match="CUDA"):
        runner.__enter__()


def test_nothing_is_written_beside_the_model(tmp_path: Path) -> None:
    with _runner(tmp_path) as runner:
        runner.run(_feeds())
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_optimisations_off_and_on_agree(tmp_path: Path) -> None:
    path = write_graph(tmp_path) / "model.onnx"
    with (
        OnnxRuntimeRunner(path, optimizations="disabled") as plain,
        OnnxRuntimeRunner(path, optimizations="all") as optimised,
    ):
        left, right = plain.run(_feeds()), optimised.run(_feeds())
        assert plain.session.endswith("optimizations disabled")
    np.testing.assert_allclose(left["last_hidden_state"], right["last_hidden_state"], rtol=1e-6)


def test_waiting_threads_change_no_number(tmp_path: Path) -> None:
    path = write_graph(tmp_path) / "model.onnx"
    with (
        OnnxRuntimeRunner(path, threads=2) as busy,
        OnnxRuntimeRunner(path, threads=2, spins=False) as idle,
    ):
        left, right = busy.run(_feeds()), idle.run(_feeds())
    for name, array in left.items():
        np.testing.assert_array_equal(array, right[name])


def test_use_outside_of_the_with_block_is_a_programming_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="outside"):
        _runner(tmp_path).run(_feeds())


def test_every_error_of_the_native_module_is_in_the_table() -> None:
    from onnxruntime.capi import onnxruntime_pybind11_state as native

    raised = {
        value
        for value in vars(native).values()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    # These three are answers to requests that we never make.
    ours = raised - {native.DeviceReset, native.ModelLoadCanceled, native.ModelLoaded}
    assert ours == set(ERRORS)
