"""Full TensorRT for real: needs its package and a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
import pytest

from pipeline.engines.facts_file import read_engine_facts, require_engine_of_facts
from pipeline.engines.header import read_engine_header
from pipeline.gpu import this_machine
from pipeline.stages.engine_tensorrt import (
    ENGINE_TENSORRT,
    TIMING_CACHE_PORT,
    TensorRTEngineConfig,
)
from tests.engines.graphs import PROFILE, encoder
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _needs_tensorrt_and_a_gpu() -> None:
    pytest.importorskip("tensorrt")
    if this_machine().gpu is None:
        pytest.skip("there is no GPU here")


def _run(root: Path, *, cache: Path | None = None, **changes: Any) -> tuple[dict[str, Any], Path]:
    for name in ("in", "scratch", "out"):
        (root / name).mkdir(parents=True)
    onnx.save(encoder(2), root / "in" / "model.onnx")
    ports = {"model": root / "in"}
    if cache is not None:
        ports[TIMING_CACHE_PORT] = cache
    fields: dict[str, Any] = {"precision": "fp16", "profiles": (PROFILE,)} | changes
    context = RecordingContext(root / "scratch")
    config = TensorRTEngineConfig(**fields)
    return dict(ENGINE_TENSORRT.run(config, ports, root / "out", context)), root / "out"


def test_an_engine_is_built_for_this_gpu_and_says_so(tmp_path: Path) -> None:
    facts, output = _run(tmp_path)
    gpu = this_machine().gpu
    assert gpu is not None
    assert read_engine_header(output / "model.engine").kind == "tensorrt"
    written = read_engine_facts(output / "engine.json")
    require_engine_of_facts(written, output / "model.engine")
    assert (written.target, written.gpu) == (gpu.target, gpu.name)
    assert facts["coverage"]["fp16_gemms"] == 1.0
    assert facts["fused_attention"] == facts["attention_blocks"] == 2


def test_a_timing_cache_of_one_build_serves_the_next(tmp_path: Path) -> None:
    first, output = _run(tmp_path / "first")
    assert (output / "timing.cache").stat().st_size > 0
    second, _ = _run(tmp_path / "second", cache=output)
    assert second["layer_fingerprint"] == first["layer_fingerprint"]


def test_two_profiles_and_weights_that_can_be_exchanged(tmp_path: Path) -> None:
    small = {"batch": (1, 1, 1), "sequence": (8, 8, 16)}
    facts, _ = _run(tmp_path, profiles=(small, PROFILE), refit=True)
    assert len(facts["by_profile"]) == 2
