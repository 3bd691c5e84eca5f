from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from pipeline.errors import StageError
from pipeline.runtimes.base import FeedError
from pipeline.runtimes.torch_reference import TorchReferenceRunner
from tests.runtimes.tiny_checkpoint import write_checkpoint

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> TorchReferenceRunner:
    checkpoint = write_checkpoint(tmp_path_factory.mktemp("torch") / "checkpoint")
    return TorchReferenceRunner(checkpoint, task="feature-extraction", component="model")


def _feeds(batch: int = 2, sequence: int = 5) -> dict[str, np.ndarray]:
    ones = np.ones((batch, sequence), np.int64)
    ids = np.arange(batch * sequence).reshape(batch, sequence)
    return {"input_ids": ids, "attention_mask": ones, "token_type_ids": ones}


def test_it_runs_like_every_other_runner(runner: TorchReferenceRunner) -> None:
    with runner:
        assert [spec.name for spec in runner.inputs] == list(_feeds())
        assert [spec.name for spec in runner.outputs] == ["last_hidden_state"]
        (array,) = runner.run(_feeds()).values()
        assert runner.load_time_ms > 0
    assert array.shape == (2, 5, 16)
    assert array.dtype == np.float32
    assert runner.session.startswith("torch ")


def test_feeds_are_checked_first(runner: TorchReferenceRunner) -> None:
    with runner, pytest.raises(FeedError, match="`input_ids` is int32"):
        runner.run(_feeds() | {"input_ids": np.ones((2, 5), np.int32)})


def test_ids_past_the_table_name_the_tokenizer(runner: TorchReferenceRunner) -> None:
    with (
        runner,
        pytest.raises(StageError, match="holds 12, the model's table ends at 11") as caught,
    ):
        runner.run(_feeds() | {"input_ids": np.full((2, 5), 12)})
    assert "tokenizer" in caught.value.hint


def test_sequences_past_the_positions_fail_with_torchs_reason(
    runner: TorchReferenceRunner,
) -> None:
    ones = np.ones((1, 65), np.int64)
    with (
        runner,
        pytest.raises(StageError, match=r"torch cannot run the model on input_ids \[1, 65"),
    ):
        runner.run({"input_ids": ones, "attention_mask": ones, "token_type_ids": ones})


def test_it_needs_its_with_block(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="outside"):
        TorchReferenceRunner(tmp_path, task="x", component="model").run({})
