"""`convert check`: right models pass, damaged ones do not, and nothing of a foreign file is trusted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import pytest
from onnx import helper, numpy_helper

from pipeline.engines.header import HEADER_BYTES
from tests.cli.commands import run_convert
from tests.recipes import write_recipe

if TYPE_CHECKING:
    import subprocess

    Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, filled_store: Path) -> Path:
    """A folder with a store that knows the checkpoint's own outputs: only the candidate is new."""
    folder = tmp_path_factory.mktemp("check")
    shutil.copytree(filled_store, folder / "store")
    return folder


@pytest.fixture(scope="module")
def recipe(home: Path, sentence_encoder: Path) -> Path:
    """The samples and sizes that the store has results for."""
    gates = {"parity": {"cosine_similarity": {"min": 0.5}}}
    return write_recipe(home / "recipe.yaml", sentence_encoder, gates=gates)


@pytest.fixture
def artifact(tmp_path: Path, filled_store: Path) -> Path:
    home = filled_store.parent / "artifacts/tiny"
    return Path(shutil.copytree(home / (home / "latest").readlink(), tmp_path / "artifact"))


def check(home: Path, recipe: Path, candidate: Path, *options: str | Path) -> tuple[Any, Done]:
    """The document that `--json` prints, and the process."""
    done = run_convert("check", candidate, "--recipe", recipe, "--json", *options, cwd=home)
    return json.loads(done.stdout), done


def failed_gates(document: dict[str, Any]) -> set[str]:
    return {gate["gate"] for gate in document["report"]["gates"] if not gate["is_allowed"]}


def optimum(path: Path, exported: Path, checkpoint: Path) -> Path:
    """A folder as Optimum writes it: its names of the axes, and the files of the checkpoint."""
    path.mkdir()
    model = onnx.load(exported)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            names = {"batch": "batch_size", "sequence": "sequence_length"}
            if dim.dim_param:
                dim.dim_param = names.get(dim.dim_param, dim.dim_param)
    onnx.save(model, path / "model.onnx")
    for file in checkpoint.glob("*.*"):
        if file.suffix in {".json", ".txt"}:
            shutil.copy(file, path)
    return path


def square_weight(model: onnx.ModelProto) -> onnx.TensorProto:
    return next(
        t for t in model.graph.initializer if len(t.dims) == 2 and t.dims[0] == t.dims[1] > 8
    )


def test_a_right_model_passes_and_its_weights_stay_where_they_are(
    home: Path, recipe: Path, exported_encoder: Path, sentence_encoder: Path
) -> None:
    folder = optimum(home / "right", exported_encoder, sentence_encoder)
    document, done = check(home, recipe, folder)
    assert (done.returncode, document["verdict"]) == (0, "passed"), done.stderr
    assert document["candidate"]["precision"] == "float32"
    gates = {gate["gate"] for gate in document["report"]["gates"]}
    assert {"parity", "stages", "invariance", "companions"} <= gates
    artifact = Path(document["artifact"])
    assert not list(artifact.rglob("*.onnx"))
    assert {"report.html", "junit.xml", "report.sarif"} <= {p.name for p in artifact.iterdir()}
    ran = {node["stage"] for node in document["report"]["nodes"] if node["state"] == "ran"}
    assert ran == {"adopt", "validate", "invariance", "check_companions"}
    assert "PASSED" in done.stderr
    assert "modules.json names a pooling" in done.stderr
    assert len(done.stderr.splitlines()) < 60
    again, _ = check(home, recipe, folder)
    assert again["is_up_to_date"]


def test_a_transposed_weight_and_a_tokenizer_of_another_model_are_both_named(
    home: Path, recipe: Path, exported_encoder: Path, sentence_encoder: Path
) -> None:
    folder = optimum(home / "damaged", exported_encoder, sentence_encoder)
    model = onnx.load(folder / "model.onnx")
    weight = square_weight(model)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).T.copy(), weight.name))
    onnx.save(model, folder / "model.onnx")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"normalizer": None}))
    document, done = check(home, recipe, folder)
    assert (done.returncode, document["verdict"]) == (1, "failed")
    assert {"stages", "companions"} <= failed_gates(document)
    assert "export it again" in done.stderr
    assert "tokenizer.different" in done.stderr
    assert "failed" in Path(document["artifact"]).parts
    finding = document["report"]["findings"][0]
    assert "in the candidate" in finding["sentence"]


@pytest.mark.slow
def test_an_input_that_is_dropped_fails(home: Path, recipe: Path, exported_encoder: Path) -> None:
    model = onnx.load(exported_encoder)
    inputs = [value for value in model.graph.input if value.name != "token_type_ids"]
    ids = helper.make_node("Sub", ["input_ids", "input_ids"], ["token_type_ids"])
    nodes = [ids, *model.graph.node]
    del model.graph.input[:], model.graph.node[:]
    model.graph.input.extend(inputs)
    model.graph.node.extend(nodes)
    onnx.save(model, home / "dropped.onnx")
    document, done = check(home, recipe, home / "dropped.onnx")
    assert done.returncode == 1
    assert any("token_type_ids" in reason for reason in document["report"]["reasons"])


@pytest.mark.slow
def test_int8_is_judged_by_what_8_bits_allow_and_its_damage_is_found(
    home: Path, recipe: Path, artifact: Path
) -> None:
    path = Path(shutil.copy(artifact / "cpu-int8/model.onnx", home / "int8.onnx"))
    document, done = check(home, recipe, path)
    assert done.returncode == 0, done.stderr
    assert "ranges taken at run time" in document["candidate"]["precision"]
    model = onnx.load(path)
    weights = [t for t in model.graph.initializer if t.data_type in {2, 3} and len(t.dims) == 2]
    for tensor in weights:
        flipped = numpy_helper.to_array(tensor)[::-1].copy()
        tensor.CopyFrom(numpy_helper.from_array(flipped, tensor.name))
    onnx.save(model, path)
    document, done = check(home, recipe, path)
    assert done.returncode == 1
    assert "per_channel" in done.stderr


# --- our own artifacts ----------------------------------------------------------------------


def test_an_artifact_of_several_targets_needs_the_targets_name(
    home: Path, recipe: Path, artifact: Path
) -> None:
    document, done = check(home, recipe, artifact)
    assert done.returncode == 2
    assert "--target cpu-fp32" in document["error"]["hint"]


def test_a_target_of_an_artifact_that_is_damaged_is_not_looked_at(
    home: Path, recipe: Path, artifact: Path
) -> None:
    with (artifact / "cpu-fp32/model.onnx").open("ab") as file:
        file.write(b"\0")
    document, done = check(home, recipe, artifact, "--target", "cpu-fp32")
    assert done.returncode == 3
    assert "not what its manifest says" in document["error"]["message"]


@pytest.mark.slow
def test_an_engine_of_an_artifact_is_not_run_and_its_graph_stands_in(
    home: Path, recipe: Path, artifact: Path
) -> None:
    document, done = check(home, recipe, artifact, "--target", "rtx-fp16")
    assert done.returncode == 1
    assert failed_gates(document) == {"device_parity"}
    assert "not run" in done.stderr
    _, done = check(home, recipe, artifact, "--target", "rtx-fp16", "--allow-not-run")
    assert done.returncode == 0, done.stderr


def test_an_engine_from_elsewhere_is_never_loaded(home: Path, recipe: Path) -> None:
    engine = home / "foreign.engine"
    header = bytearray(HEADER_BYTES)
    header[0:4] = header[28:32] = b"vtrt"
    header[16:24] = HEADER_BYTES.to_bytes(8, "little")
    header[24:28] = bytes([1, 7, 1, 116])
    header[8] = header[32] = 2  # the layout's number, and sm80
    engine.write_bytes(bytes(header))
    document, done = check(home, recipe, engine)
    assert done.returncode == 2
    assert "was not run, because" in document["error"]["message"]
    engine.write_bytes(bytes(header) + b"more")
    document, done = check(home, recipe, engine)
    assert (done.returncode, document["error"]["kind"]) == (3, "ArtifactError")


# --- what cannot be checked -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("empty.onnx", b"", 3),
        ("noise.onnx", bytes(range(256)) * 8, 3),
        ("pickle.pt", b"\x80\x04.", 2),
        ("text.txt", b"x", 2),
    ],
)
def test_files_that_are_no_models_are_refused(
    home: Path, recipe: Path, name: str, content: bytes, code: int
) -> None:
    (home / name).write_bytes(content)
    document, done = check(home, recipe, home / name)
    assert done.returncode == code
    assert document["exit_code"] == code
    assert "Traceback" not in done.stderr


def test_a_truncated_model_and_truncated_weights_are_damage(
    home: Path, recipe: Path, exported_encoder: Path
) -> None:
    content = exported_encoder.read_bytes()
    (home / "cut.onnx").write_bytes(content[: len(content) // 2])
    _, done = check(home, recipe, home / "cut.onnx")
    assert done.returncode == 3
    folder = home / "outside"
    folder.mkdir()
    onnx.save(
        onnx.load(exported_encoder),
        folder / "model.onnx",
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
    )
    with (folder / "w.bin").open("r+b") as file:
        file.truncate(100)
    document, done = check(home, recipe, folder)
    assert done.returncode == 3
    assert any(
        "cut off" in reason or "bytes" in reason for reason in document["report"]["reasons"]
    )
    (folder / "w.bin").unlink()
    document, done = check(home, recipe, folder)
    assert done.returncode == 3
    assert "is missing" in document["error"]["message"]


def test_operators_of_an_unknown_library_are_refused(
    home: Path, recipe: Path, exported_encoder: Path
) -> None:
    model = onnx.load(exported_encoder)
    model.opset_import.append(helper.make_opsetid("evil", 1))
    model.graph.node[0].domain = "evil"
    onnx.save(model, home / "custom.onnx")
    document, done = check(home, recipe, home / "custom.onnx")
    assert done.returncode == 2
    assert "evil::" in document["error"]["message"]


def test_names_in_a_hostile_file_cannot_steer_the_terminal(
    home: Path, recipe: Path, exported_encoder: Path
) -> None:
    model = onnx.load(exported_encoder)
    model.graph.input.append(
        helper.make_tensor_value_info("x\x1b]0;title\x07\x1b[2J", onnx.TensorProto.FLOAT, [1])
    )
    onnx.save(model, home / "escapes.onnx")
    _, done = check(home, recipe, home / "escapes.onnx")
    assert done.returncode == 2
    assert not {"\x1b", "\x07"} & set(done.stderr)


def test_wrong_words_are_usage_errors(home: Path, recipe: Path, exported_encoder: Path) -> None:
    for options in (
        (exported_encoder,),
        (exported_encoder, "--like", "cpu-fp32"),
        (exported_encoder, "--recipe", recipe, "--like", "nothing"),
        (exported_encoder, "--recipe", recipe, "--rename", "x"),
        (exported_encoder, "--recipe", recipe, "--task", "text-classification"),
    ):
        done = run_convert("check", *options, cwd=home)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr


def test_a_checkpoint_on_a_hub_that_cannot_be_reached_is_missing(
    home: Path, exported_encoder: Path
) -> None:
    done = run_convert("check", exported_encoder, "--reference", "hub:no/such", cwd=home)
    assert done.returncode == 4


@pytest.mark.slow
def test_without_a_recipe_the_task_and_the_limits_are_found_and_said(
    tmp_path: Path, exported_encoder: Path, sentence_encoder: Path
) -> None:
    folder = optimum(tmp_path / "m", exported_encoder, sentence_encoder)
    done = run_convert(
        "check", "m", "--reference", sentence_encoder, "--samples", "8", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert folder.is_dir()
    assert "task feature-extraction" in done.stderr
    assert "8 made-up samples" in done.stderr
    assert "limits for float32" in done.stderr


@pytest.mark.slow
def test_a_model_of_one_size_is_checked_at_that_size(
    tmp_path: Path, exported_encoder: Path, sentence_encoder: Path
) -> None:
    model = onnx.load(exported_encoder)
    for value in (*model.graph.input, *model.graph.output):
        for dim, size in zip(value.type.tensor_type.shape.dim, (1, 12), strict=False):
            if dim.dim_param:
                dim.dim_value = size
    onnx.save(model, tmp_path / "fixed.onnx")
    done = run_convert(
        "check", "fixed.onnx", "--reference", sentence_encoder, "--samples", "8", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "batches of 1 only" in done.stderr
