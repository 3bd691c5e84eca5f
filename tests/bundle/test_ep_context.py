"""`convert export-epcontext`: engines behind ONNX Runtime's own node, as far as it goes without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from pipeline.bundle.ep_context import export_ep_context
from pipeline.engines.facts_file import TensorFacts
from pipeline.errors import ArtifactError, RecipeError
from pipeline.graph.ep_context import require_ep_context, write_ep_context
from tests.bundle.conftest import with_engines
from tests.cli.commands import run_convert

INPUTS = (TensorFacts(name="ids", dtype="int64", dims=("batch", "sequence")),)
OUTPUTS = (TensorFacts(name="out", dtype="float16", dims=("batch", None, 4)),)


def _write(folder: Path, name: str = "model.sm89.engine", **options: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"stands for an engine")
    path = folder / "model_ctx.onnx"
    write_ep_context(folder / name, INPUTS, OUTPUTS, path, **options)
    return path


def test_a_model_stands_for_the_engine_beside_it(tmp_path: Path) -> None:
    path = _write(tmp_path, version="1.7.1.116", target="sm89")
    model = onnx.load(path)
    (node,) = model.graph.node
    assert (node.domain, node.op_type) == ("com.microsoft", "EPContext")
    found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert found == {
        "embed_mode": 0,
        "ep_cache_context": b"model.sm89.engine",
        "ep_sdk_version": b"10701",
        "hardware_architecture": b"89",
        "main_context": 0,
        "onnx_model_filename": b"model.onnx",
        "partition_name": b"model.sm89",
        "source": b"NvTensorRTRTXExecutionProvider",
    }
    shape = model.graph.output[0].type.tensor_type
    assert shape.elem_type == onnx.TensorProto.FLOAT16
    assert [d.dim_param or d.dim_value for d in shape.shape.dim] == ["batch", 0, 4]


@pytest.mark.parametrize(
    ("runtime", "provider"),
    [
        ("tensorrt-rtx", "NvTensorRTRTXExecutionProvider"),
        ("tensorrt", "TensorrtExecutionProvider"),
    ],
)
def test_onnx_runtime_names_the_provider_that_is_missing_here(
    tmp_path: Path, runtime: str, provider: str
) -> None:
    path = _write(tmp_path, runtime=runtime)
    require_ep_context(path, runtime)
    model = onnx.load(path)
    for attribute in model.graph.node[0].attribute:
        if attribute.name == "source":
            assert attribute.s.decode() == provider
            attribute.s = b"SomeOtherProvider"
    onnx.save(model, path)
    with pytest.raises(ArtifactError, match="ONNX Runtime does not know it"):
        require_ep_context(path, runtime)


def test_what_is_no_such_model_is_told(tmp_path: Path) -> None:
    path = _write(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match="ONNX Runtime cannot read it"):
        require_ep_context(path)
    graph = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1] x) => (float[1] y) { y = Relu(x) }'
    )
    onnx.save(graph, path)
    with pytest.raises(ArtifactError, match="runs it on the CPU"):
        require_ep_context(path)


def test_an_engine_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.engine").write_bytes(b"x")
    (tmp_path / "inner").mkdir()
    with pytest.raises(ArtifactError, match="is not in the directory of model_ctx"):
        write_ep_context(
            tmp_path / "inner" / ".." / "a.engine",
            INPUTS,
            OUTPUTS,
            tmp_path / "inner/model_ctx.onnx",
        )
    with pytest.raises(ArtifactError, match=r"takes no engine with `\.\.` in its path"):
        _write(tmp_path / "dots", "model..engine")
    strange = (TensorFacts(name="ids", dtype="complex7", dims=()),)
    with pytest.raises(ArtifactError, match="`ids` is complex7, which ONNX does not have"):
        write_ep_context(tmp_path / "a.engine", strange, OUTPUTS, tmp_path / "model_ctx.onnx")


def test_the_command_writes_a_model_for_each_engine(artifact: Path, tmp_path: Path) -> None:
    served = with_engines(artifact, tmp_path / "a", "sm89", "sm80", "portable", magic=b"vtrt")
    done = run_convert("export-epcontext", served, "out", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [(model["path"], model["compute_capability"]) for model in answer["models"]] == [
        ("cpu-fp32/model.portable_ctx.onnx", "portable"),
        ("cpu-fp32/model.sm80_ctx.onnx", "sm80"),
        ("cpu-fp32/model.sm89_ctx.onnx", "sm89"),
    ]
    assert "takes GPUs of sm86, sm89 and from sm120 on" in answer["notes"][0]
    folder = tmp_path / "out" / "cpu-fp32"
    for model in answer["models"]:
        require_ep_context(tmp_path / "out" / model["path"])
    engine = (folder / "model.sm89.engine").read_bytes()
    assert engine == (served / "cpu-fp32" / "model.sm89.engine").read_bytes()
    again = run_convert("export-epcontext", served, "out", cwd=tmp_path)
    assert (again.returncode, "is not empty" in again.stderr) == (2, True)
    forced = run_convert("export-epcontext", served, "out", "--force", cwd=tmp_path)
    assert forced.returncode == 0, forced.stderr
    (folder / "notes.txt").write_text("mine")
    kept = run_convert("export-epcontext", served, "out", "--force", cwd=tmp_path)
    assert (kept.returncode, "`cpu-fp32` in it is no folder" in kept.stderr) == (2, True)
    assert (folder / "notes.txt").read_text() == "mine"


def test_an_artifact_without_engines_is_refused(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no engine in cpu-fp32, cpu-int8"):
        export_ep_context(artifact, tmp_path / "out")
    with pytest.raises(RecipeError, match="there is no target `gpu`"):
        export_ep_context(artifact, tmp_path / "out", targets=["gpu"])
    assert list(tmp_path.iterdir()) == []


def test_an_engine_without_facts_is_refused(artifact: Path, tmp_path: Path) -> None:
    from tests.bundle.conftest import add_engine, remake

    served = remake(
        artifact,
        tmp_path / "a",
        lambda folder, _: Path(f"{add_engine(folder / 'cpu-fp32', 'sm89')}.json").unlink(),
    )
    with pytest.raises(ArtifactError, match="nothing lies beside the engine"):
        export_ep_context(served, tmp_path / "out")
