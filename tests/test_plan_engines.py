"""Plans of engines: chains of every precision, profiles inside of shapes, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from pipeline.build import BuildOptions, open_store, prepare_plan
from pipeline.data_source import resolve_data
from pipeline.digest_memory import DigestMemory
from pipeline.environment import nvidia_driver_version
from pipeline.errors import (
    ArtifactError,
    DigestMismatch,
    EnvironmentMissing,
    ExitCode,
    RecipeError,
)
from pipeline.hashing import sha256_bytes
from pipeline.planning import Plan, build_plan
from pipeline.recipe import load_recipe_file
from pipeline.resolving import resolve_plan
from pipeline.source import resolve_source
from tests.recipes import FP32, RTX, write_recipe

BUILTIN = {"source": "builtin:stdlib-docstrings", "samples": 4}
STATIC = {"mode": "static"}
FULL = {"name": "trt", "runtime": "tensorrt", "precision": "fp16"}


def _plan(tmp_path: Path, checkpoint: Path, **target: Any) -> Plan:
    written = write_recipe(
        tmp_path / "recipe.yaml",
        checkpoint,
        targets=[{**(copy.deepcopy(RTX) if "runtime" not in target else {}), **target}],
        data={"evaluation": BUILTIN, "calibration": BUILTIN},
    )
    loaded = load_recipe_file(written)
    memory = DigestMemory(tmp_path / "memory.json")
    source = resolve_source(loaded.recipe.model.source, recipe_directory=tmp_path, memory=memory)
    data = {
        use: resolve_data(spec, directory=tmp_path, memory=memory)
        for use, spec in loaded.recipe.data.specs().items()
    }
    return build_plan(loaded.recipe, source, data, loaded.where)


def _chain(plan: Plan) -> list[tuple[str, str | None]]:
    (links,) = plan.targets[0].chain.models.values()
    return [(plan.nodes[link.node.node].stage.name, link.arithmetic) for link in links]


def _engines(plan: Plan) -> list[Any]:
    return [node.config for node in plan.nodes if node.stage.name == "engine"]


PLAIN = [("export", "float32"), ("simplify", "float32"), ("arrange_attention", "float32")]
HALF = [*PLAIN, ("cast", "float16")]


@pytest.mark.parametrize(
    ("target", "chain"),
    [
        ({"precision": "fp32"}, PLAIN),
        ({"precision": "fp16"}, HALF),
        ({"precision": "bf16"}, [*PLAIN, ("cast", "bfloat16")]),
        (
            {"precision": "int8", "quantization": STATIC},
            [*HALF, ("quantize_static", "quantized")],
        ),
        ({"precision": "fp8", "quantization": STATIC}, [*HALF, ("quantize_static", "quantized")]),
        (
            {"precision": "int8", "quantization": {"mode": "weight_only", "bits": 8}},
            [*HALF, ("quantize_weights", "quantized")],
        ),
        (
            {"precision": "int4", "quantization": {"mode": "weight_only"}},
            [*HALF, ("quantize_weights", "quantized")],
        ),
        (
            {"precision": "fp16", "attention": "operator"},
            [*PLAIN, ("fuse_attention", "float32"), ("cast", "float16")],
        ),
        (
            {"precision": "fp32", "attention": "operator"},
            [*PLAIN, ("fuse_attention", "float32")],
        ),
    ],
)
def test_every_precision_has_its_chain(
    tmp_path: Path, sentence_encoder: Path, target: dict[str, Any], chain: list[Any]
) -> None:
    plan = _plan(tmp_path, sentence_encoder, **target)
    assert _chain(plan) == chain
    (config,) = _engines(plan)
    assert config.precision == target["precision"]
    mode = target.get("quantization", {}).get("mode")
    assert config.is_weight_only == (mode == "weight_only")


def test_static_precisions_tell_the_quantiser_their_type(
    tmp_path: Path, sentence_encoder: Path
) -> None:
    found = {}
    for precision in ("int8", "fp8"):
        plan = _plan(tmp_path, sentence_encoder, precision=precision, quantization=STATIC)
        (config,) = [n.config for n in plan.nodes if n.stage.name == "quantize_static"]
        found[precision] = (config.activation_dtype, config.weight_dtype)  # type: ignore[attr-defined]
    assert found == {"int8": ("int8", "int8"), "fp8": ("float8", "float8")}


def test_without_profiles_there_is_one_the_recipes_shapes(
    tmp_path: Path, sentence_encoder: Path
) -> None:
    (config,) = _engines(_plan(tmp_path, sentence_encoder))
    assert config.profiles == ({"batch": (1, 2, 4), "sequence": (2, 8, 16)},)


def test_profiles_replace_the_shapes_axis_by_axis(tmp_path: Path, sentence_encoder: Path) -> None:
    one, many = {"min": 1, "opt": 1, "max": 1}, {"min": 2, "opt": 4, "max": 4}
    short = {"min": 2, "opt": 4, "max": 4}
    plan = _plan(
        tmp_path, sentence_encoder, profiles=[{"batch": one, "sequence": short}, {"batch": many}]
    )
    (config,) = _engines(plan)
    assert config.profiles == (
        {"batch": (1, 1, 1), "sequence": (2, 4, 4)},
        {"batch": (2, 4, 4), "sequence": (2, 8, 16)},
    )


@pytest.mark.parametrize(
    ("profiles", "where", "message"),
    [
        (
            [{"batch": {"min": 1, "opt": 1, "max": 8}}],
            "profiles[0].batch",
            r"batch goes from 1 to 8, and `shapes.batch` from 1 to 4",
        ),
        (
            [
                {"batch": {"min": 1, "opt": 1, "max": 1}},
                {"sequence": {"min": 1, "opt": 2, "max": 2}},
            ],
            "profiles[1].sequence",
            "sequence goes from 1 to 2",
        ),
        (
            [{"num_choices": {"min": 1, "opt": 1, "max": 1}}],
            "profiles[0].num_choices",
            "have no axis `num_choices`",
        ),
        (
            [{"batch": {"min": 1, "opt": 1, "max": 1}}] * 2,
            "profiles[1]",
            r"`profiles\[0\]` has the same shapes",
        ),
        (
            [{"batch": {"min": 2, "opt": 1, "max": 4}}],
            "profiles[0].batch",
            "min <= opt <= max does not hold: 2, 1, 4",
        ),
        ([{}], "profiles[0]", "a profile needs the range of at least one axis"),
        ([], "profiles", "needs at least"),
    ],
)
def test_an_impossible_profile_is_refused_at_its_line(
    tmp_path: Path, sentence_encoder: Path, profiles: list[Any], where: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        _plan(tmp_path, sentence_encoder, profiles=profiles)
    text = str(caught.value)
    assert "recipe.yaml:" in text
    assert f"targets[0].{where}" in text
    assert caught.value.exit_code is ExitCode.USAGE


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"precision": "fp8", "quantization": STATIC, "compute_capability": ["sm86"]}, "no FP8"),
        (
            {"precision": "fp8", "quantization": STATIC, "compute_capability": ["portable"]},
            "does not build fp8 for portable: it runs on sm80 and sm86 too",
        ),
        ({"precision": "fp32", "compute_capability": ["sm75"]}, "no FP32 matrix product"),
        ({"precision": "bf16", "compute_capability": ["sm89", "sm75"]}, "no BF16 type"),
        (
            {
                "precision": "int8",
                "quantization": {"mode": "weight_only", "bits": 8},
                "compute_capability": ["sm75"],
            },
            "does not build int8 weights for sm75",
        ),
        ({"precision": "int8"}, r"int8 needs `quantization: \{mode: static\}` or"),
        ({"precision": "fp16", "quantization": STATIC}, "fp16 takes no `quantization`"),
        (
            {"precision": "fp8", "quantization": {"mode": "weight_only"}},
            r"fp8 takes `quantization: \{mode: static\}`, not mode weight_only",
        ),
        ({"precision": "int4", "quantization": STATIC}, "int4 takes .*not mode static"),
        (
            {"precision": "int8", "quantization": {"mode": "weight_only"}},
            "int8 needs `bits: 8`",
        ),
        (
            {"precision": "fp8", "quantization": {**STATIC, "repair": {"max_noise": 0.05}}},
            "`repair` tries layers in int8",
        ),
    ],
)
def test_an_impossible_pair_is_refused_before_anything_is_built(
    tmp_path: Path, sentence_encoder: Path, target: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        _plan(tmp_path, sentence_encoder, **target)
    assert "targets[0]" in str(caught.value)


@pytest.mark.parametrize("name", ["refit", "strip_weights"])
def test_what_only_a_gpu_can_build_is_refused_without_a_driver(
    tmp_path: Path, sentence_encoder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("pipeline.targets.tensorrt_rtx.nvidia_driver_version", lambda: "")
    with pytest.raises(EnvironmentMissing, match=f"`{name}` needs a GPU") as caught:
        _plan(tmp_path, sentence_encoder, **{name: True})
    assert caught.value.exit_code is ExitCode.ENVIRONMENT_MISSING
    monkeypatch.setattr("pipeline.targets.tensorrt_rtx.nvidia_driver_version", lambda: "580.1")
    (config,) = _engines(_plan(tmp_path, sentence_encoder, **{name: True}))
    assert getattr(config, name)


def test_options_reach_the_builder(tmp_path: Path, sentence_encoder: Path) -> None:
    plan = _plan(
        tmp_path, sentence_encoder, workspace_mib=64, compute_capability=["portable", "sm89"]
    )
    assert [(c.compute_capability, c.workspace_mib) for c in _engines(plan)] == [
        ("portable", 64),
        ("sm89", 64),
    ]
    (made,) = plan.targets[0].chain.deliverables.values()
    assert made[1].renames["engine.json"] == "model.portable.engine.json"


def test_full_tensorrt_needs_its_package_and_then_a_gpu(
    tmp_path: Path, sentence_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.engines import module
    from pipeline.gpu import Machine

    monkeypatch.setattr(module, "installed_version", lambda _: None)
    with pytest.raises(EnvironmentMissing, match="package tensorrt is not installed") as caught:
        _plan(tmp_path, sentence_encoder, **FULL)
    assert caught.value.hint == "pip install 'convert-pipeline[gpu]'"
    assert caught.value.exit_code is ExitCode.ENVIRONMENT_MISSING
    monkeypatch.setattr(module, "installed_version", lambda _: "10.13.3.9")
    monkeypatch.setattr("pipeline.targets.tensorrt.this_machine", lambda: Machine(driver=""))
    with pytest.raises(
        EnvironmentMissing, match="on a GPU only, and this machine has no"
    ) as caught:
        _plan(tmp_path, sentence_encoder, **FULL)
    assert "tensorrt-rtx" in caught.value.hint


def test_full_tensorrt_has_no_list_of_compute_capabilities(
    tmp_path: Path, sentence_encoder: Path
) -> None:
    with pytest.raises(
        RecipeError, match="compute_capability: a target of `runtime: tensorrt` has no such key"
    ):
        _plan(tmp_path, sentence_encoder, **FULL, compute_capability=["sm89"])


def _pretend_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.engines import module
    from pipeline.environment import PackageFact
    from pipeline.gpu import Gpu, Machine

    gpu = Gpu(name="NVIDIA H200", major=9, minor=0, memory_bytes=1 << 37, cuda="13.0")
    monkeypatch.setattr(module, "installed_version", lambda _: "10.13.3.9")
    machine = Machine(driver="580.1", gpu=gpu)
    monkeypatch.setattr("pipeline.targets.tensorrt.this_machine", lambda: machine)
    found = {"tensorrt": PackageFact("10.13.3.9", "0" * 64)}
    monkeypatch.setattr("pipeline.planning.keys.require_packages", lambda _: found)


def _resolved(tmp_path: Path, checkpoint: Path, **cache: Any) -> Plan:
    written = write_recipe(
        tmp_path / "recipe.yaml", checkpoint, targets=[{**FULL, "timing_cache": cache}]
    )
    memory = DigestMemory(tmp_path / "memory.json")
    return resolve_plan(load_recipe_file(written), memory, note=print)


def test_a_timing_cache_is_an_input_by_its_digest(
    tmp_path: Path, sentence_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretend_a_gpu(monkeypatch)
    contents = {}
    for name, content in (("a.cache", b"one"), ("b.cache", b"one"), ("c.cache", b"two")):
        (tmp_path / name).write_bytes(content)
        digest = sha256_bytes(content)
        plan = _resolved(tmp_path, sentence_encoder, file=name, sha256=digest)
        (engine,) = [node for node in plan.nodes if node.stage.name == "engine_tensorrt"]
        group = engine.inputs["timing_cache"].group  # type: ignore[union-attr]
        contents[name] = plan.group_content(group)
        shown = tmp_path / f"shown-{name}"
        shown.mkdir()
        plan.materialise(group, shown)
        assert (shown / "timing.cache").read_bytes() == content
        plan.require_unchanged()
    assert contents["a.cache"] == contents["b.cache"] != contents["c.cache"]
    (tmp_path / "c.cache").write_bytes(b"six")
    with pytest.raises(ArtifactError, match=r"`c.cache` changed while it was being used"):
        plan.require_unchanged()


def test_a_timing_cache_that_is_not_the_one_that_is_meant_is_refused(
    tmp_path: Path, sentence_encoder: Path
) -> None:
    (tmp_path / "a.cache").write_bytes(b"one")
    with pytest.raises(DigestMismatch, match="and the recipe says 0000") as caught:
        _resolved(tmp_path, sentence_encoder, file="a.cache", sha256="0" * 64)
    assert "recipe.yaml:" in caught.value.where
    with pytest.raises(RecipeError, match=r"there is no file `b\.cache`"):
        _resolved(tmp_path, sentence_encoder, file="b.cache", sha256="0" * 64)


def test_full_tensorrt_builds_one_engine_for_the_gpu_that_is_there(
    tmp_path: Path, sentence_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretend_a_gpu(monkeypatch)
    plan = _plan(
        tmp_path,
        sentence_encoder,
        **FULL,
        version_compatible=True,
        hardware_compatibility="ampere_plus",
    )
    (engine,) = [node for node in plan.nodes if node.stage.name == "engine_tensorrt"]
    assert engine.config.hardware_compatibility == "ampere_plus"  # type: ignore[attr-defined]
    assert set(engine.stage.machine) >= {"gpu_target", "nvidia_driver"}
    (made,) = plan.targets[0].chain.deliverables.values()
    assert made[1].renames["model.engine"] == "model.sm90.engine"


@pytest.mark.parametrize(
    "target",
    [
        {**RTX, "precision": "int8", "quantization": {"mode": "weight_only", "bits": 8}},
        {**RTX, "precision": "int4", "quantization": {"mode": "weight_only"}},
        {**RTX, "precision": "fp8", "quantization": STATIC, "attention": "operator"},
        {**RTX, "profiles": [{"batch": {"min": 1, "opt": 1, "max": 1}}], "workspace_mib": 8},
        {**FULL, "timing_cache": {"file": "a.cache", "sha256": "0" * 64}},
    ],
)
def test_a_recipe_in_a_report_is_read_again_as_it_was(
    tmp_path: Path, sentence_encoder: Path, target: dict[str, Any]
) -> None:
    loaded = load_recipe_file(
        write_recipe(tmp_path / "recipe.yaml", sentence_encoder, targets=[target])
    )
    written = loaded.recipe.model_dump_json()
    assert type(loaded.recipe).model_validate_json(written) == loaded.recipe


@pytest.mark.skipif(bool(nvidia_driver_version()), reason="with a driver it may run here")
@pytest.mark.parametrize(
    ("allowed", "words"),
    [
        (
            [],
            "device_parity and speed cannot be judged here, as this machine has no NVIDIA driver",
        ),
        (["device_parity"], "`rtx-fp16` will fail in the end: speed cannot be judged here"),
        (["device_parity", "speed"], ""),
    ],
)
def test_gates_that_cannot_be_run_and_must_be_are_told_at_once(
    tmp_path: Path, sentence_encoder: Path, allowed: list[str], words: str
) -> None:
    gates = {
        "parity": {"cosine_similarity": {"min": 0.9}},
        "speed": {"min_speedup_over_reference": 1.0},
        "allow_not_run": allowed,
    }
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        sentence_encoder,
        targets=[FP32, RTX],
        gates=gates,
        benchmark={"launches": 3},
    )
    notes: list[str] = []
    store = open_store(BuildOptions(store=tmp_path / "store"))
    prepare_plan(load_recipe_file(recipe), store, note=notes.append)
    assert len(notes) == bool(words)
    assert words in "".join(notes)
