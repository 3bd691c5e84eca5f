"""`convert inspect`: each kind is recognised, and hostile models stay in their own process."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from pipeline.engines.facts_file import (
    EngineFacts,
    ProfileFacts,
    TensorFacts,
    facts_path,
    write_engine_facts,
)
from pipeline.errors import ArtifactError, PipelineError, RecipeError
from pipeline.foreign_models import read_model
from pipeline.graph.layers import iter_layers
from pipeline.hashing import sha256_bytes
from pipeline.inspection import ModelInspection, inspect_path
from pipeline.listing import list_artifacts
from pipeline.recipe import load_recipe
from tests.cli.artifacts import edit_manifest, publish
from tests.cli.commands import run_convert
from tests.graph.models import embedding_model, parse, random, write
from tests.recipes import INT8, write_recipe


def _engine(size: int = 100, magic: bytes = b"vtrt") -> bytes:
    head = struct.pack("<4sIQQ4B4sQQQQ", magic, 0, 2, size, 1, 7, 1, 116, magic, 0b1001, 0, 0, 30)
    return head + bytes(100 - len(head))


def test_a_recipe_is_shown_with_defaults_and_can_be_read_back(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", "checkpoint", targets=[INT8])
    done = run_convert("inspect", "recipe.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "reduce_range: false" in done.stdout  # a default that the file does not say
    (tmp_path / "shown.yaml").write_text(done.stdout)
    assert load_recipe(tmp_path / "shown.yaml") == load_recipe(path)
    answer = json.loads(run_convert("inspect", "recipe.yaml", "--json", cwd=tmp_path).stdout)
    assert answer["kind"] == "recipe"
    assert answer["recipe"]["targets"][0]["quantization"]["per_channel"] is True


def test_a_wrong_recipe_has_the_errors_of_a_recipe(tmp_path: Path) -> None:
    write_recipe(tmp_path / "recipe.yaml", "checkpoint", limits_={})
    done = run_convert("inspect", "recipe.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "did you mean `limits`?" in done.stderr


def test_an_artifact_is_shown_by_name(tmp_path: Path) -> None:
    (publish(tmp_path / "artifacts") / "rtx-fp16" / "model.sm89.engine").write_bytes(_engine())
    done = run_convert("inspect", "tiny", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for text in ("passed", "cpu-fp32", "sm89", "onnx  1.23.2", "checkpoint"):
        assert text in done.stdout
    answer = json.loads(run_convert("inspect", "latest", "--json", cwd=tmp_path).stdout)
    assert answer["kind"] == "artifact"
    assert answer["artifact"]["version"] == "0123456789ab"


def test_an_artifact_with_a_damaged_manifest_exits_with_3(tmp_path: Path) -> None:
    edit_manifest(publish(tmp_path / "artifacts"), source=7)
    done = run_convert("inspect", "tiny", cwd=tmp_path)
    assert done.returncode == 3
    assert "`source`" in done.stderr


def test_a_manifest_of_another_version_is_named_with_its_number(tmp_path: Path) -> None:
    edit_manifest(publish(tmp_path / "artifacts"), schema_version=99)
    for command in ("inspect", "verify"):
        done = run_convert(command, "tiny", cwd=tmp_path)
        assert done.returncode == 3
        assert "schema version 99, and 1 is read here" in done.stderr
        assert "newer version of convert" in done.stderr


def test_a_model_has_its_interface_operators_and_precision(tmp_path: Path) -> None:
    path = write(tmp_path / "m", embedding_model())
    done = run_convert("inspect", path, "--layers", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = " ".join(done.stdout.split())
    for text in (
        "opset 20, ir_version 10",
        "input_ids int64 (batch, sequence)",
        "last_hidden_state float (batch, sequence, 4)",
        "weights 32 parameters",
        "float 128 bytes 94.1%",
        "Gather float 1 layer 32 parameters",
        "Unsqueeze 1",
    ):
        assert text in shown, text
    answer = json.loads(run_convert("inspect", path, "--json", cwd=tmp_path).stdout)
    assert answer["kind"] == "model"
    assert answer["model"]["layers"] == [
        {"node": "hidden", "op": "Gather", "weight": "table", "dtype": "float", "parameters": 32}
    ]


def test_a_model_is_recognised_without_its_suffix(tmp_path: Path) -> None:
    path = write(tmp_path / "m", embedding_model()).rename(tmp_path / "model.bin")
    assert isinstance(inspect_path(str(path), tmp_path), ModelInspection)


def test_a_layer_counts_in_the_dtype_that_its_weight_is_stored_in() -> None:
    """Through DequantizeLinear and Transpose: what the file holds, not what the product sees."""
    model = parse(
        """
        quantised (float[n, 4] x) => (float[n, 8] y)
        {
            wide = DequantizeLinear(weight, scale)
            turned = Transpose<perm = [1, 0]>(wide)
            product = MatMul(x, turned)
            y = Add(product, bias)
        }
        """,
        {
            "weight": random(8, 4).astype("int8"),
            "scale": random(1)[0],
            "bias": random(8),
        },
    )
    (layer,) = iter_layers(model)
    assert (layer.op, layer.weight, layer.dtype, layer.parameters) == (
        "MatMul",
        "weight",
        "int8",
        32,
    )


def test_layers_in_a_circle_come_to_an_end() -> None:
    nodes = [
        helper.make_node("Cast", ["b"], ["a"], to=1),
        helper.make_node("Cast", ["a"], ["b"], to=1),
        helper.make_node("MatMul", ["a", "b"], ["c"]),
    ]
    assert list(iter_layers(helper.make_model(helper.make_graph(nodes, "circle", [], [])))) == []


def test_an_engine_is_read_without_tensorrt(tmp_path: Path) -> None:
    (tmp_path / "model.engine").write_bytes(_engine())
    done = run_convert("inspect", "model.engine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for text in ("1.7.1.116", "sm75 sm89", "30 bytes"):
        assert text in done.stdout
    answer = json.loads(run_convert("inspect", "model.engine", "--json", cwd=tmp_path).stdout)
    assert answer["engine"]["compute_capabilities"] == ["sm75", "sm89"]


def test_an_engine_of_full_tensorrt_is_told_from_one_of_rtx(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(_engine(magic=b"ftrt"))
    done = run_convert("inspect", "other", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("TensorRT engine  other")
    assert "not in the header of full TensorRT" in done.stdout
    assert "cannot be loaded here: " in done.stdout


def _with_facts(folder: Path, **changes: Any) -> Path:
    """An engine with the facts beside it, of which some are changed."""
    folder.mkdir(parents=True, exist_ok=True)
    engine = folder / "model.sm89.engine"
    head = struct.pack("<4sIQQ4B4sQQQQ", b"vtrt", 0, 2, 100, 1, 7, 1, 116, b"vtrt", 8, 0, 0, 30)
    engine.write_bytes(head + bytes(36))
    shapes = ((1, 2), (8, 64), (32, 128))
    tensor = TensorFacts(name="input_ids", dtype="int64", dims=("batch", "sequence"))
    facts = {
        "runtime": "tensorrt-rtx",
        "version": "1.7.1.116",
        "target": "sm89",
        "precision": "fp16",
        "profiles": (
            ProfileFacts(
                axes={"batch": (1, 8, 32), "sequence": (2, 64, 128)}, inputs={"input_ids": shapes}
            ),
        ),
        "inputs": (tensor,),
        "outputs": (TensorFacts(name="logits", dtype="float", dims=("batch", 2)),),
        "layer_fingerprint": "ab" * 32,
        "size_bytes": 100,
        "sha256": sha256_bytes(engine.read_bytes()),
    }
    write_engine_facts(EngineFacts.model_validate(facts | changes), facts_path(engine))
    return engine


def test_an_engine_is_shown_with_the_facts_beside_it(tmp_path: Path) -> None:
    engine = _with_facts(tmp_path)
    done = run_convert("inspect", engine, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = " ".join(done.stdout.split())
    for text in (
        f"{sha256_bytes(engine.read_bytes())}, as stated beside it",
        "profile 0 batch 1..8..32, sequence 2..64..128",
        "input_ids 1x2 8x64 32x128",
        "input_ids int64 (batch, sequence)",
        "logits float (batch, 2)",
    ):
        assert text in shown, text
    answer = json.loads(run_convert("inspect", engine, "--json", cwd=tmp_path).stdout)
    assert answer["facts"]["profiles"][0]["axes"]["batch"] == [1, 8, 32]
    assert answer["engine"]["kind"] == "tensorrt-rtx"
    assert answer["can_be_loaded_here"] is not bool(answer["loading_problem"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": "1.6.0.9"}, "header says version 1.7.1.116, and model.sm89.engine.json says"),
        ({"runtime": "tensorrt"}, "header says runtime tensorrt-rtx"),
        ({"target": "sm120"}, "header says target mask 0x8, and model.sm89.engine.json says 0x10"),
        ({"target": "portable"}, "says 0x7e"),
        ({"sha256": "0" * 64}, "digest is"),
        ({"size_bytes": 99}, "has 100 bytes, and its facts say 99"),
    ],
)
def test_an_engine_with_the_facts_of_another_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    engine = _with_facts(tmp_path, **changes)
    done = run_convert("inspect", engine, cwd=tmp_path)
    assert done.returncode == 3
    assert words in done.stderr


def test_facts_that_cannot_be_read_are_damage(tmp_path: Path) -> None:
    engine = _with_facts(tmp_path)
    facts_path(engine).write_text('{"format": 1}')
    with pytest.raises(ArtifactError, match="these are not the facts of an engine"):
        inspect_path(str(engine), tmp_path)


def test_any_flipped_bit_of_an_engine_is_seen_through_its_facts(tmp_path: Path) -> None:
    engine = _with_facts(tmp_path)
    whole = engine.read_bytes()
    for byte in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[byte] ^= 1 << byte % 8
        engine.write_bytes(damaged)
        with pytest.raises(ArtifactError):
            inspect_path(str(engine), tmp_path)


def test_an_artifact_lists_its_engines(tmp_path: Path) -> None:
    artifact = publish(tmp_path / "artifacts")
    _with_facts(artifact / "more")
    (artifact / "more" / "model.sm75.engine").write_bytes(_engine())
    done = run_convert("inspect", "tiny", cwd=tmp_path)
    assert done.returncode == 3, done.stderr  # one of them cannot be read
    shown = " ".join(done.stdout.split())
    assert "more/model.sm89.engine sm89 fp16 TensorRT-RTX 1.7.1.116 batch 1..8..32" in shown
    assert "more/model.sm75.engine sm75 sm89 TensorRT-RTX 1.7.1.116" in shown
    assert "rtx-fp16/model.sm89.engine cannot be read: the engine has 18 bytes" in shown
    answer = json.loads(run_convert("inspect", "tiny", "--json", cwd=tmp_path).stdout)
    assert answer["exit_code"] == 3
    assert [row["path"] for row in answer["engines"]] == [
        "more/model.sm75.engine",
        "more/model.sm89.engine",
        "rtx-fp16/model.sm89.engine",
    ]


@pytest.mark.parametrize(
    ("name", "content", "code", "words"),
    [
        ("model.engine", _engine(size=999), 3, "is truncated"),
        ("other", _engine(magic=b"ftrt")[:50], 3, "has 50 bytes"),
        ("model.engine", b"ftrx" + _engine()[4:], 3, "is not an engine"),
        ("model.onnx", b"", 3, "no ONNX graph"),
        ("model.onnx", b"\x08", 3, "not a readable ONNX file"),
        ("notes.txt", b"hello", 2, "no recipe (.yaml), ONNX model (.onnx) or engine"),
        ("folder/model.onnx", b"", 2, "folder/model.onnx"),
    ],
)
def test_what_cannot_be_shown_says_why(
    tmp_path: Path, name: str, content: bytes, code: int, words: str
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(PipelineError) as caught:
        inspect_path(str(tmp_path / Path(name).parts[0]), tmp_path)
    assert caught.value.exit_code == code
    assert words in str(caught.value)


def test_a_name_that_no_file_can_have_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="File name too long"):
        list_artifacts(tmp_path / ("x" * 300))
    done = run_convert("inspect", "x" * 300, cwd=tmp_path)
    assert done.returncode == 2
    assert "File name too long" in done.stderr
    assert "defect" not in done.stderr


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RecipeError, match="neither a file nor a directory"):
        inspect_path(str(tmp_path / "pipe"), tmp_path)


def _model_with(tensor: TensorProto, node: str = "n") -> bytes:
    nodes = [helper.make_node("MatMul", ["x", tensor.name], ["y"], name=node)]
    model = helper.make_model(helper.make_graph(nodes, "g", [], [], [tensor]))
    return model.SerializeToString()


def _tensor(name: str = "w", dtype: int = 1, dims: tuple[int, ...] = (2, 3)) -> TensorProto:
    return TensorProto(name=name, data_type=dtype, dims=dims)


HOSTILE = {
    "more elements than there are atoms": (_tensor(dims=(1 << 62,) * 500), "shape that cannot be"),
    "negative axis": (_tensor(dims=(-5, 7)), "shape that cannot be: -5 x 7"),
    "unknown element type": (_tensor(dtype=999), "999"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_model_is_refused_with_a_reason(tmp_path: Path, case: str) -> None:
    tensor, words = HOSTILE[case]
    (tmp_path / "model.onnx").write_bytes(_model_with(tensor))
    with pytest.raises(ArtifactError, match=words):
        read_model(tmp_path / "model.onnx")


def test_a_model_that_takes_too_much_memory_is_refused(tmp_path: Path) -> None:
    """Two bytes in the file are a whole node in memory."""
    path = tmp_path / "model.onnx"
    empty_nodes = b"\x0a\x00" * 4_000_000
    path.write_bytes(b"\x08\x0a\x3a" + _varint(len(empty_nodes)) + empty_nodes)
    with pytest.raises(ArtifactError):
        read_model(path, base_memory_bytes=400 << 20)


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def test_a_model_that_takes_too_long_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m", embedding_model())
    with pytest.raises(ArtifactError, match="took longer than"):
        read_model(path, time_s=0.001)


def test_a_reader_that_dies_is_an_error_with_its_ending(tmp_path: Path) -> None:
    path = write(tmp_path / "m", embedding_model())
    with pytest.raises(ArtifactError, match=r"its reader|MemoryError"):
        read_model(path, base_memory_bytes=30 << 20)


def test_weights_elsewhere_are_not_opened_and_names_cannot_steer_the_terminal(
    tmp_path: Path,
) -> None:
    tensor = _tensor(name="w\x1b[2J\u202e")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")
    (tmp_path / "secret").write_bytes(bytes(5000))
    path = tmp_path / "a" / "b" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(_model_with(tensor, node="n\x1b]0;title\x07"))
    done = run_convert("inspect", path, "--layers", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "in ../../secret: MISSING" in done.stdout
    assert not {"\x1b", "\x07", "\u202e"} & set(done.stdout)
    assert read_model(path).size_bytes == path.stat().st_size


def test_no_module_is_taken_from_the_current_directory(tmp_path: Path) -> None:
    """A folder with a model may also hold an `onnx.py`."""
    write(tmp_path / "m", embedding_model())
    (tmp_path / "m" / "onnx.py").write_text("raise SystemExit(9)")
    done = run_convert("inspect", "model.onnx", cwd=tmp_path / "m")
    assert done.returncode == 0, done.stderr
