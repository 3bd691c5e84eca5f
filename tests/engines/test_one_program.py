"""One builder program for TensorRT 10, 11 and RTX, on packages with exactly their attributes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import onnx
import pytest

from pipeline.engines import builder_program
from pipeline.engines.build import EngineRequest, build_engine
from pipeline.engines.facts_file import read_engine_facts, require_engine_of_facts
from pipeline.engines.module import TENSORRT, EngineModule, installed_version
from pipeline.errors import EngineBuildError, EnvironmentMissing, ExitCode
from pipeline.gpu import Gpu, Machine
from pipeline.stages.engine_tensorrt import (
    ENGINE_TENSORRT,
    TIMING_CACHE_PORT,
    TensorRTEngineConfig,
)
from tests.engines.fake_tensorrt import OWN, attributes, install
from tests.engines.graphs import PROFILE, product
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from pathlib import Path

FULL = ("10.13.3", "11.4.0")
SHAPES = {"x": ((1, 64), (2, 64), (4, 64))}


def _install(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[EngineModule, Path]:
    """A fake package under a name of its own, so that a real one is never meant."""
    name = f"fake_trt_{version.replace('.', '_')}"
    calls = install(version, tmp_path / "site", name=name)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return EngineModule(import_name=name, distribution=name, extra="gpu"), calls


def _request(module: EngineModule, tmp_path: Path, **changes: Any) -> EngineRequest:
    (tmp_path / "in").mkdir()
    onnx.save(product(), tmp_path / "in" / "model.onnx")
    fields: dict[str, Any] = {"compute_capabilities": (), "profiles": (SHAPES,)} | changes
    return EngineRequest(module=module, model=tmp_path / "in" / "model.onnx", **fields)


def _scratch(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def _calls(path: Path) -> list[list[Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("version", [*FULL, "rtx"])
def test_every_package_is_driven_by_the_attributes_it_has(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, path = _install(version, tmp_path, monkeypatch)
    is_rtx = version == "rtx"
    request = _request(
        module,
        tmp_path,
        compute_capabilities=("sm89",) if is_rtx else (),
        workspace_bytes=1 << 20,
        flags={"TF32": False, "REFIT": True},
        hardware_compatibility=None if is_rtx else "AMPERE_PLUS",
        keeps_timing_cache=not is_rtx,
        is_attention_decomposable=version != "10.13.3",
    )
    built = build_engine(request, _scratch(tmp_path))
    assert built.path.read_bytes()[:4] == (b"vtrt" if is_rtx else b"ftrt")
    calls = _calls(path)
    strongly_typed = sorted(attributes(version)["NetworkDefinitionCreationFlag"]).index(
        "STRONGLY_TYPED"
    )
    assert ["create_network", 1 << strongly_typed] in calls
    assert ["Builder", "max_threads", 1] in calls
    assert ["workspace", "WORKSPACE", 1 << 20] in calls
    assert ["clear_flag", "TF32"] in calls
    assert ["set_flag", "REFIT"] in calls
    assert ["profile", "x", [1, 64], [2, 64], [4, 64]] in calls
    assert (["capability", "SM89", 0] in calls) == is_rtx
    level = ["IBuilderConfig", "hardware_compatibility_level", "AMPERE_PLUS"]
    assert (level in calls) == (not is_rtx)
    assert (["IAttention", "decomposable", True] in calls) == (version != "10.13.3")
    # The names of precisions are flags of 10, and none is ever set.
    assert {call[1] for call in calls if call[0] == "set_flag"} == {"REFIT"}
    assert bool(built.result.layers) == is_rtx
    assert bool(built.result.inspection) == (not is_rtx)


@pytest.mark.parametrize("version", FULL)
def test_a_timing_cache_goes_in_and_comes_out(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, path = _install(version, tmp_path, monkeypatch)
    (tmp_path / "old.cache").write_bytes(b"earlier")
    request = _request(
        module, tmp_path, keeps_timing_cache=True, timing_cache=tmp_path / "old.cache"
    )
    built = build_engine(request, _scratch(tmp_path))
    assert ["timing_cache", "earlier"] in _calls(path)
    assert built.timing_cache is not None
    assert built.timing_cache.read_bytes() == b"earlier+timed"
    assert (tmp_path / "old.cache").read_bytes() == b"earlier"


@pytest.mark.parametrize("content", [b"damaged", b"of another GPU"])
def test_a_timing_cache_that_does_not_fit_is_refused(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _ = _install("11.4.0", tmp_path, monkeypatch)
    (tmp_path / "old.cache").write_bytes(content)
    request = _request(
        module, tmp_path, keeps_timing_cache=True, timing_cache=tmp_path / "old.cache"
    )
    with pytest.raises(EngineBuildError, match="damaged, or of another TensorRT or GPU"):
        build_engine(request, _scratch(tmp_path))


@pytest.mark.parametrize(
    ("version", "changes", "message"),
    [
        ("10.13.3", {"is_attention_decomposable": True}, "cannot take `Attention` apart"),
        ("11.4.0", {"flags": {"FP16": True}}, "has no builder flag FP16"),
        ("rtx", {"hardware_compatibility": "AMPERE_PLUS"}, "AMPERE_PLUS is unknown"),
        ("rtx", {"keeps_timing_cache": True}, "of no use to TensorRT-RTX"),
        ("rtx", {"compute_capabilities": ("sm90",)}, "compute capability sm90 is refused"),
        (
            "11.4.0",
            {"profiles": (SHAPES, {"x": ((4, 64), (2, 64), (1, 64))})},
            "optimization profile 1 is refused",
        ),
    ],
)
def test_what_a_package_lacks_is_refused_with_the_reason(
    version: str,
    changes: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, _ = _install(version, tmp_path, monkeypatch)
    with pytest.raises(EngineBuildError, match=message):
        build_engine(_request(module, tmp_path, **changes), _scratch(tmp_path))


@pytest.mark.parametrize("version", [*FULL, "rtx"])
def test_the_fake_has_its_attributes_and_no_others(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that touched what a version lacks would fail here as it does with the real one."""
    module, _ = _install(version, tmp_path, monkeypatch)
    foreign = {
        (kind, name)
        for other in OWN
        for kind, names in attributes(other).items()
        for name in names - attributes(version).get(kind, set())
        if kind in {"", "BuilderFlag", "NetworkDefinitionCreationFlag"}
    }
    code = (
        f"import importlib, json; m = importlib.import_module({module.import_name!r});"
        f"print([p for p in {sorted(foreign)!r} if hasattr(getattr(m, p[0]) if p[0] else m, p[1])]);"
        "c = m.Builder(None).create_builder_config();"
        "print(hasattr(c, 'set_compute_capability'), hasattr(m.Builder, 'platform_has_fast_fp16'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "site",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["[]", f"{version == 'rtx'} False"]


def test_the_fake_of_rtx_has_nothing_that_the_real_one_lacks() -> None:
    pytest.importorskip("tensorrt_rtx")
    table = {kind: sorted(names) for kind, names in attributes("rtx").items()}
    lacking = {
        kind: sorted(set(OWN["10.13.3"].get(kind, ())) - {"platform_has_fast_fp16"})
        for kind in ("Builder", "BuilderFlag", "NetworkDefinitionCreationFlag", "IBuilderConfig")
    }
    code = (
        "import tensorrt_rtx as trt\n"
        f"table, lacking = {table!r}, {lacking!r}\n"
        "def has(kind, name): return hasattr(getattr(trt, kind) if kind else trt, name)\n"
        "print([(k, n) for k, ns in table.items() for n in ns if not has(k, n)])\n"
        "print([(k, n) for k, ns in lacking.items() for n in ns if has(k, n)])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "[]"]


# --- the stage of full TensorRT -------------------------------------------------------------

GPU = Gpu(name="NVIDIA H200", major=9, minor=0, memory_bytes=1 << 37, cuda="13.0")


def _run(
    version: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    cache: bytes | None = None,
    **changes: Any,
) -> tuple[dict[str, Any], Path]:
    install(version, tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr("pipeline.gpu.this_machine", lambda: Machine(driver="580.1", gpu=GPU))
    for name in ("in", "out", "cache"):
        (tmp_path / name).mkdir()
    onnx.save(product(), tmp_path / "in" / "model.onnx")
    inputs = {"model": tmp_path / "in"}
    if cache is not None:
        (tmp_path / "cache" / "timing.cache").write_bytes(cache)
        inputs[TIMING_CACHE_PORT] = tmp_path / "cache"
    config = TensorRTEngineConfig(precision="fp16", profiles=(PROFILE,), **changes)
    context = RecordingContext(_scratch(tmp_path))
    return dict(ENGINE_TENSORRT.run(config, inputs, tmp_path / "out", context)), tmp_path / "out"


@pytest.mark.parametrize("version", FULL)
def test_the_stage_of_full_tensorrt_says_what_it_built_and_where(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, output = _run(
        version,
        tmp_path,
        monkeypatch,
        version_compatible=True,
        hardware_compatibility="ampere_plus",
    )
    assert installed_version(TENSORRT) == f"{version}.9"
    assert sorted(path.name for path in output.iterdir()) == [
        "engine.json",
        "layers.json",
        "model.engine",
        "timing.cache",
    ]
    written = read_engine_facts(output / "engine.json")
    require_engine_of_facts(written, output / "model.engine")
    assert (written.runtime, written.version, written.target) == (
        "tensorrt",
        f"{version}.9",
        "sm90",
    )
    assert written.compatibility == ("version_compatible", "ampere_plus")
    assert (written.gpu, written.driver) == ("NVIDIA H200", "580.1")
    assert facts["gemm_kinds"] == {"Half x Half": 1}
    assert facts["coverage"]["copy_layers"] == 1
    assert facts["layer_rows"][1]["onnx_nodes"] == ["product", "relu"]
    calls = _calls(tmp_path / "site" / "calls.json")
    assert ["set_flag", "VERSION_COMPATIBLE"] in calls
    assert ["clear_flag", "TF32"] in calls  # of fp16 too: what is left of float32 must be exact
    assert ["timing_cache", ""] in calls


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({}, set()),
        ({"refit": True}, {"REFIT"}),
        ({"refit": "identical"}, {"REFIT_IDENTICAL"}),
        ({"strip_weights": True}, {"STRIP_PLAN", "REFIT_IDENTICAL"}),
        ({"strip_weights": True, "refit": True}, {"STRIP_PLAN", "REFIT"}),
    ],
    ids=["none", "refit", "identical", "strip", "strip-refit"],
)
def test_weights_can_be_exchanged_for_any_only_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], flags: set[str]
) -> None:
    _run("11.4.0", tmp_path, monkeypatch, **options)
    calls = _calls(tmp_path / "site" / "calls.json")
    assert {call[1] for call in calls if call[0] == "set_flag"} == flags


def test_a_timing_cache_of_an_earlier_build_is_an_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, output = _run("11.4.0", tmp_path, monkeypatch, cache=b"earlier")
    assert (output / "timing.cache").read_bytes() == b"earlier+timed"


def test_the_stage_of_full_tensorrt_needs_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.gpu.this_machine", lambda: Machine(driver=""))
    config = TensorRTEngineConfig(precision="fp16", profiles=(PROFILE,))
    with pytest.raises(EnvironmentMissing, match="on a GPU only") as caught:
        ENGINE_TENSORRT.run(
            config, {"model": tmp_path}, tmp_path, RecordingContext(_scratch(tmp_path))
        )
    assert caught.value.exit_code is ExitCode.ENVIRONMENT_MISSING


def test_the_program_looks_at_no_version() -> None:
    from pathlib import Path as RealPath

    source = RealPath(builder_program.__file__).read_text(encoding="utf-8")
    assert source.count("__version__") == 1  # it is written down, and nothing else
