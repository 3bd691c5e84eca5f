"""The checkpoint in torch in other precisions: the harness, run for real on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pipeline.bench.types import BenchmarkResult
from pipeline.errors import StageError
from pipeline.parity.types import Parity
from pipeline.stages.benchmark import BENCHMARK_FILE, BENCHMARK_TORCH, BenchmarkConfig
from pipeline.stages.validate_torch import VALIDATE_TORCH, ValidateTorchConfig
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.runtimes.torch_variants import TorchVariant
    from tests.checks.chain import Chain


def _validate(
    chain: Chain,
    sentence_encoder: Path,
    tmp_path: Path,
    variant: TorchVariant,
    device: str = "cpu",
) -> Parity:
    config = ValidateTorchConfig(
        task="feature-extraction", component="model", variant=variant, device=device, batch_size=4
    )
    ports = {
        "checkpoint": sentence_encoder,
        **{name: chain.root / name for name in ("samples", "probes", "reference")},
    }
    for name in ("out", "scratch"):
        (tmp_path / name).mkdir()
    context = RecordingContext(tmp_path / "scratch", threads=2)
    VALIDATE_TORCH.run(config, ports, tmp_path / "out", context)
    return Parity.model_validate_json((tmp_path / "out" / "parity.json").read_bytes())


@pytest.mark.parametrize(
    ("variant", "least", "most"), [("fp32", 0.0, 1e-6), ("fp16", 1e-6, 1e-2), ("bf16", 1e-4, 1e-1)]
)
def test_each_precision_is_as_far_from_float32_as_it_must_be(
    chain: Chain,
    sentence_encoder: Path,
    tmp_path: Path,
    variant: TorchVariant,
    least: float,
    most: float,
) -> None:
    parity = _validate(chain, sentence_encoder, tmp_path, variant)
    # The pooling divides by 1e-9 at the least, which is 0 in float16.
    masked = [problem for problem in parity.problems if "every token is masked" in problem]
    assert list(parity.problems) == (masked if variant == "fp16" else [])
    assert parity.samples_seen > 0
    for output in parity.outputs:
        assert least <= output.metrics.relative_l2 <= most
    words = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
    assert f"{words[variant]}, eager mode" in parity.session


@pytest.mark.slow
def test_a_compiled_model_says_the_same(
    chain: Chain, sentence_encoder: Path, tmp_path: Path
) -> None:
    parity = _validate(chain, sentence_encoder, tmp_path, "compiled")
    assert "float32, compiled" in parity.session
    assert all(output.metrics.relative_l2 < 1e-5 for output in parity.outputs)


def test_a_gpu_that_torch_cannot_use_is_a_clear_failure(
    chain: Chain, sentence_encoder: Path, tmp_path: Path
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("torch has a GPU here")
    with pytest.raises(StageError, match="cannot use this machine's GPU"):
        _validate(chain, sentence_encoder, tmp_path, "fp16", "cuda")


@pytest.mark.slow
def test_a_precision_is_timed_against_float32_by_the_same_harness(
    chain: Chain, sentence_encoder: Path, tmp_path: Path
) -> None:
    config = BenchmarkConfig(
        task="feature-extraction",
        component="model",
        runtime="torch",
        axes=("batch", "sequence"),
        shapes=((1, 8),),
        launches=3,
        threads=1,
        margin=0.05,
        variant="bf16",
        seconds_per_shape=0.1,
    )
    for name in ("out", "scratch"):
        (tmp_path / name).mkdir()
    ports = {
        "checkpoint": sentence_encoder,
        "model": sentence_encoder,
        "samples": chain.root / "samples",
    }
    BENCHMARK_TORCH.run(config, ports, tmp_path / "out", RecordingContext(tmp_path / "scratch"))
    result = BenchmarkResult.model_validate_json((tmp_path / "out" / BENCHMARK_FILE).read_bytes())
    assert "bfloat16" in result.candidate
    assert "float32" in result.reference
    assert result.size_bytes == result.reference_size_bytes > 0


@pytest.mark.gpu
@pytest.mark.parametrize("variant", ["fp32", "fp16", "bf16", "compiled"])
def test_the_gpu_says_the_same(
    chain: Chain, sentence_encoder: Path, tmp_path: Path, variant: TorchVariant
) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch has no GPU here")
    parity = _validate(chain, sentence_encoder, tmp_path, variant, "cuda")
    assert all(output.metrics.relative_l2 < 0.1 for output in parity.outputs)
