"""`convert export-triton`: what is written, what is refused, and that text goes through it."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from pipeline.bundle.triton.repository import export_triton
from pipeline.bundle.triton.schema import parse_config
from pipeline.errors import ArtifactError, RecipeError
from tests.bundle.conftest import remake, with_engines
from tests.cli.commands import run_convert

TEXTS = ["Return the name of a file.", "a", "The file is a file; it returns names. " * 9]


def config(root: Path, model: str) -> Any:
    """The configuration of a model, as the server reads it."""
    return parse_config((root / model / "config.pbtxt").read_text(), where=model)


@pytest.fixture(scope="module")
def models(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_triton(artifact, tmp_path_factory.mktemp("served") / "models").directory


def test_the_command_writes_a_repository_and_says_what_is_in_it(
    artifact: Path, tmp_path: Path
) -> None:
    done = run_convert(
        "export-triton", artifact, "models", "--name", "embed", "--json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [(model["name"], model["backend"]) for model in answer["models"]] == [
        ("embed-cpu-fp32", "onnxruntime"),
        ("embed-cpu-int8", "onnxruntime"),
        ("embed-tokenizer", "python"),
        ("embed-cpu-fp32-text", "ensemble"),
        ("embed-cpu-int8-text", "ensemble"),
    ]
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == sorted(
        model["name"] for model in answer["models"]
    )
    again = run_convert("export-triton", artifact, "models", cwd=tmp_path)
    assert again.returncode == 2
    assert "is not empty" in again.stderr
    forced = run_convert("export-triton", artifact, "models", "--force", cwd=tmp_path)
    assert forced.returncode == 0, forced.stderr
    assert "written: models" in forced.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models"]
    assert (tmp_path / "models" / "tiny-cpu-fp32").is_dir()
    assert not (tmp_path / "models" / "embed-cpu-fp32").exists()


def test_a_graph_is_served_as_it_was_published(artifact: Path, models: Path) -> None:
    served = config(models, "tiny-cpu-int8")
    assert served.backend == "onnxruntime"
    assert served.max_batch_size == 4
    assert [list(tensor.dims) for tensor in served.output] == [[-1, 32], [32]]
    assert [(warm.name, warm.batch_size) for warm in served.model_warmup] == [
        ("min", 1),
        ("opt", 2),
        ("max", 4),
    ]
    assert list(served.dynamic_batching.preferred_batch_size) == [2]
    file = models / "tiny-cpu-int8" / "1" / "model.onnx"
    assert file.read_bytes() == (artifact / "cpu-int8" / "model.onnx").read_bytes()
    assert not served.optimization.graph.level


def test_warm_up_requests_are_ones_that_the_model_takes(models: Path) -> None:
    session = onnxruntime.InferenceSession(models / "tiny-cpu-fp32" / "1" / "model.onnx")
    for warm_up in config(models, "tiny-cpu-fp32").model_warmup:
        feed = {}
        for name, data in warm_up.inputs.items():
            one = np.zeros(tuple(data.dims), dtype=np.int64)
            if data.input_data_file:
                path = models / "tiny-cpu-fp32" / "warmup" / data.input_data_file
                one = np.fromfile(path, dtype="<i8").reshape(one.shape)
            feed[name] = np.stack([one] * warm_up.batch_size)
        assert all(np.isfinite(output).all() for output in session.run(None, feed))


# --- the tokenizer, run as the python backend runs it ----------------------------------------


class _Tensor:
    def __init__(self, name: str, array: Any) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Any:
        return self._array


class _Request:
    def __init__(self, inputs: list[_Tensor]) -> None:
        self._inputs = inputs

    def inputs(self) -> list[_Tensor]:
        return self._inputs


class _Error:
    def __init__(self, message: str) -> None:
        self._message = message

    def message(self) -> str:
        return self._message


class _Response:
    def __init__(self, output_tensors: list[_Tensor], error: _Error | None = None) -> None:
        self._tensors, self._error = output_tensors, error

    def output_tensors(self) -> list[_Tensor]:
        return self._tensors

    def error(self) -> _Error | None:
        return self._error


def _python_backend() -> types.ModuleType:
    """`triton_python_backend_utils` as its README documents it; the real one is in the server."""
    backend: Any = types.ModuleType("triton_python_backend_utils")
    backend.Tensor, backend.InferenceRequest = _Tensor, _Request
    backend.InferenceResponse, backend.TritonError = _Response, _Error
    backend.get_input_tensor_by_name = lambda request, name: next(
        (tensor for tensor in request.inputs() if tensor.name() == name), None
    )
    return backend


def load_tokenizer_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", _python_backend())
    spec = importlib.util.spec_from_file_location("model", folder / "1" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    model.initialize({"model_repository": str(folder), "model_version": "1", "model_config": "{}"})
    return model


def text_request(*columns: list[str], names: tuple[str, ...] = ("text",)) -> _Request:
    return _Request(
        [
            _Tensor(name, np.array([[text.encode()] for text in texts], dtype=np.object_))
            for name, texts in zip(names, columns, strict=True)
        ]
    )


def run_ensemble(root: Path, name: str, tokens: dict[str, Any]) -> dict[str, Any]:
    """The second step of an ensemble, with its own maps, in ONNX Runtime."""
    ensemble = config(root, name)
    step = ensemble.ensemble_scheduling.step[1]
    session = onnxruntime.InferenceSession(root / step.model_name / "1" / "model.onnx")
    first = ensemble.ensemble_scheduling.step[0]
    tensors = {first.output_map[key]: value for key, value in tokens.items()}
    feed = {key: tensors[value] for key, value in step.input_map.items()}
    names = list(step.output_map)
    found = session.run(names, feed)
    return {step.output_map[key]: value for key, value in zip(names, found, strict=True)}


@pytest.mark.parametrize("target", ["cpu-fp32", "cpu-int8"])
def test_text_gives_the_numbers_of_the_artifact(
    artifact: Path, models: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """Through tokenizer and ensemble; against transformers' tokenizer and the artifact's graph."""
    from transformers import AutoTokenizer

    model = load_tokenizer_model(models / "tiny-tokenizer", monkeypatch)
    (response,) = model.execute([text_request(TEXTS)])
    tokens = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
    served = run_ensemble(models, f"tiny-{target}-text", tokens)

    tokenizer = AutoTokenizer.from_pretrained(artifact / target)
    session = onnxruntime.InferenceSession(artifact / target / "model.onnx")
    names = [node.name for node in session.get_inputs()]
    own = tokenizer(TEXTS, padding=True, truncation=True, max_length=16, return_tensors="np")
    expected = session.run(None, {name: own[name].astype(np.int64) for name in names})
    for node, array in zip(session.get_outputs(), expected, strict=True):
        np.testing.assert_array_equal(served[node.name], array)


def test_requests_of_one_batch_have_one_shape_and_a_bad_one_fails_alone(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_tokenizer_model(models / "tiny-tokenizer", monkeypatch)
    bad = _Request([_Tensor("text", np.array([[b"\xff"]], dtype=np.object_))])
    short, broken, long = model.execute([text_request(["a"]), bad, text_request([TEXTS[2]])])
    shapes = [tensor.as_numpy().shape for r in (short, long) for tensor in r.output_tensors()]
    assert set(shapes) == {(1, 16)}  # cut at the longest that the recipe allows
    assert short.output_tensors()[0].as_numpy().dtype == np.int64
    assert "cannot be tokenised" in broken.error().message()
    assert short.error() is None
    mask = {t.name(): t.as_numpy() for t in short.output_tensors()}["attention_mask"]
    assert mask.sum() == 3  # [CLS] a [SEP]


# --- engines --------------------------------------------------------------------------------


def test_engines_of_full_tensorrt_are_one_model_for_all_their_gpus(
    artifact: Path, tmp_path: Path
) -> None:
    served = with_engines(artifact, tmp_path / "a", "sm89", "sm120", batches=(8, 3))
    made = export_triton(served, tmp_path / "models", targets=["cpu-fp32"])
    assert [(model.name, model.backend) for model in made.models] == [
        ("tiny-cpu-fp32", "tensorrt"),
        ("tiny-cpu-fp32-onnx", "onnxruntime"),
        ("tiny-tokenizer", "python"),
        ("tiny-cpu-fp32-text", "ensemble"),
    ]
    engine = config(tmp_path / "models", "tiny-cpu-fp32")
    assert dict(engine.cc_model_filenames) == {
        "8.9": "model_sm89.plan",
        "12.0": "model_sm120.plan",
    }
    assert list(engine.instance_group[0].profile) == ["0", "1"]
    assert engine.max_batch_size == 3  # every listed profile must hold it
    assert [(warm.name, warm.batch_size) for warm in engine.model_warmup] == [
        ("profile0", 3),
        ("profile1", 1),
    ]
    graph = config(tmp_path / "models", "tiny-cpu-fp32-onnx")
    assert graph.optimization.graph.level == 2
    ensemble = config(tmp_path / "models", "tiny-cpu-fp32-text")
    assert ensemble.ensemble_scheduling.step[1].model_name == "tiny-cpu-fp32"


def test_an_engine_of_tensorrt_rtx_is_not_served_and_that_is_said(
    artifact: Path, tmp_path: Path
) -> None:
    served = with_engines(artifact, tmp_path / "a", "sm89", magic=b"vtrt")
    done = run_convert("export-triton", served, "models", "--target", "cpu-fp32", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Triton's tensorrt backend cannot read" in done.stderr
    assert not list((tmp_path / "models").rglob("*.plan"))
    graph = config(tmp_path / "models", "tiny-cpu-fp32-onnx")
    assert (graph.backend, graph.optimization.graph.level) == ("onnxruntime", 2)


def test_a_graph_that_onnx_runtime_may_refuse_is_served_only_by_name(
    artifact: Path, tmp_path: Path
) -> None:
    def change(_folder: Path, document: dict[str, Any]) -> None:
        document["recipe"]["targets"][0]["precision"] = "bf16"

    engines = with_engines(artifact, tmp_path / "a", "sm89", magic=b"vtrt")
    served = remake(engines, tmp_path / "b", change)
    made = export_triton(served, tmp_path / "all")
    assert {model.target for model in made.models if model.backend == "onnxruntime"} == {
        "cpu-int8"
    }
    assert any(note.startswith("cpu-fp32: its graph is left out") for note in made.notes)
    named = export_triton(served, tmp_path / "named", targets=["cpu-fp32"])
    assert "tiny-cpu-fp32-onnx" in {model.name for model in named.models}
    assert any("kernels for few operators" in note for note in named.notes)


def test_an_artifact_of_such_graphs_alone_is_refused_with_what_to_do(
    artifact: Path, tmp_path: Path
) -> None:
    def change(_folder: Path, document: dict[str, Any]) -> None:
        del document["recipe"]["targets"][1]
        document["recipe"]["targets"][0]["precision"] = "fp8"

    engines = with_engines(artifact, tmp_path / "a", "sm89", magic=b"vtrt")
    with pytest.raises(RecipeError, match="nothing of cpu-fp32 is known") as caught:
        export_triton(remake(engines, tmp_path / "b", change), tmp_path / "models")
    assert "--target cpu-fp32" in caught.value.hint
    assert not (tmp_path / "models").exists()


def test_engines_that_differ_are_not_one_model(artifact: Path, tmp_path: Path) -> None:
    def change(folder: Path, document: dict[str, Any]) -> None:
        from tests.bundle.conftest import add_engine

        add_engine(folder / "cpu-fp32", "sm89", batches=(4,))
        add_engine(folder / "cpu-fp32", "sm90", batches=(8,))

    served = remake(artifact, tmp_path / "a", change)
    with pytest.raises(ArtifactError, match="takes other inputs or shapes"):
        export_triton(served, tmp_path / "models")


def test_an_engine_of_another_build_than_its_facts_is_not_served(
    artifact: Path, tmp_path: Path
) -> None:
    def change(folder: Path, document: dict[str, Any]) -> None:
        from tests.bundle.conftest import add_engine

        engine = add_engine(folder / "cpu-fp32", "sm89")
        engine.write_bytes(engine.read_bytes()[:-1] + b"x")

    served = remake(artifact, tmp_path / "a", change)
    with pytest.raises(ArtifactError, match="digest is"):
        export_triton(served, tmp_path / "models")


def test_a_provider_is_told_what_it_was_told_when_it_was_measured(
    artifact: Path, tmp_path: Path
) -> None:
    def change(folder: Path, document: dict[str, Any]) -> None:
        first, second = document["recipe"]["targets"]
        first |= {"provider": "cuda", "provider_options": None}
        second |= {
            "provider": "tensorrt",
            "provider_options": {"trt_fp16_enable": True, "workspace_mib": 64},
        }

    export_triton(remake(artifact, tmp_path / "a", change), tmp_path / "models")
    cuda = config(tmp_path / "models", "tiny-cpu-fp32")
    assert cuda.instance_group[0].kind == 1  # KIND_GPU
    (accelerator,) = cuda.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "cuda"
    assert dict(accelerator.parameters)["use_tf32"] == "0"
    assert "device_id" not in accelerator.parameters
    tensorrt = config(tmp_path / "models", "tiny-cpu-int8")
    (accelerator,) = tensorrt.optimization.execution_accelerators.gpu_execution_accelerator
    told = dict(accelerator.parameters)
    assert accelerator.name == "tensorrt"
    assert (told["precision_mode"], told["max_workspace_size_bytes"]) == ("FP16", str(64 << 20))
    assert "input_ids:2x8" in told["trt_profile_opt_shapes"]
    assert not [name for name in told if "path" in name]


# --- weights beside the graph ---------------------------------------------------------------


def test_weights_beside_the_graph_go_with_it(artifact: Path, tmp_path: Path) -> None:
    def change(folder: Path, document: dict[str, Any]) -> None:
        path = folder / "cpu-fp32" / "model.onnx"
        model = onnx.load(path)
        path.unlink()
        onnx.save(
            model,
            path,
            save_as_external_data=True,
            location="model.onnx.data",
            size_threshold=1024,
        )

    served = remake(artifact, tmp_path / "a", change)
    export_triton(served, tmp_path / "models", targets=["cpu-fp32"])
    place = tmp_path / "models" / "tiny-cpu-fp32" / "1" / "model.onnx"
    assert sorted(path.name for path in place.iterdir()) == ["model.onnx", "model.onnx.data"]
    onnxruntime.InferenceSession(place / "model.onnx")


# --- what is refused ------------------------------------------------------------------------


def test_a_damaged_artifact_is_refused(artifact: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(artifact, tmp_path / "a"))
    (damaged / "cpu-fp32" / "config.json").write_text("{}")
    done = run_convert("export-triton", damaged, "models", cwd=tmp_path)
    assert done.returncode == 3
    assert "'cpu-fp32/config.json'" in done.stderr
    assert not (tmp_path / "models").exists()


def test_an_artifact_that_failed_its_gates_is_refused(artifact: Path, tmp_path: Path) -> None:
    def change(folder: Path, document: dict[str, Any]) -> None:
        document |= {"verdict": "failed", "reasons": ["cpu-int8: parity"]}

    failed = remake(artifact, tmp_path / "a", change)
    done = run_convert("export-triton", failed, "models", cwd=tmp_path)
    assert done.returncode == 2
    assert "did not pass (failed: cpu-int8: parity)" in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"targets": ["gpu"]}, "there is no target `gpu`, only cpu-fp32, cpu-int8"),
        ({"name": "no/name"}, "cannot be the name of a model"),
    ],
)
def test_what_cannot_be_is_refused(
    artifact: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        export_triton(artifact, tmp_path / "models", **options)
    assert list(tmp_path.iterdir()) == []


def test_only_a_repository_gives_way(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for replace in (False, True):
        with pytest.raises(RecipeError, match=r"is not (empty|replaced)"):
            export_triton(artifact, tmp_path / "mine", replace=replace)
    (tmp_path / "link").symlink_to("mine")
    with pytest.raises(RecipeError, match="is no directory"):
        export_triton(artifact, tmp_path / "link", replace=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_nothing_half_written_is_left(artifact: Path, tmp_path: Path) -> None:
    def change(folder: Path, document: dict[str, Any]) -> None:
        (folder / "cpu-int8" / "tokenizer.json").write_text("{}")
        (folder / "cpu-fp32" / "tokenizer.json").write_text("{}")

    broken = remake(artifact, tmp_path / "a", change)
    with pytest.raises(Exception, match=r"tokenizer\.json"):
        export_triton(broken, tmp_path / "models")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


# --- other tasks ----------------------------------------------------------------------------


def test_a_question_and_its_context_are_two_texts(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(folder: Path, document: dict[str, Any]) -> None:
        document["recipe"]["model"]["task"] = "question-answering"

    served = remake(artifact, tmp_path / "a", change)
    export_triton(served, tmp_path / "models", targets=["cpu-fp32"])
    ensemble = config(tmp_path / "models", "tiny-cpu-fp32-text")
    assert [tensor.name for tensor in ensemble.input] == ["question", "context"]
    model = load_tokenizer_model(tmp_path / "models" / "tiny-tokenizer", monkeypatch)
    request = text_request(["name of"], ["the file is a " * 9], names=("question", "context"))
    (response,) = model.execute([request])
    tokens = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
    assert tokens["input_ids"].shape == (1, 16)
    assert (
        tokens["token_type_ids"][0, 4] == 1
    )  # [CLS] name of [SEP] the ...: the question is whole


def test_images_have_no_ensemble_and_that_is_said(artifact: Path, tmp_path: Path) -> None:
    def change(folder: Path, document: dict[str, Any]) -> None:
        document["recipe"]["model"]["task"] = "image-classification"

    made = export_triton(remake(artifact, tmp_path / "a", change), tmp_path / "models")
    assert {model.backend for model in made.models} == {"onnxruntime"}
    assert "there is no ensemble from text: task image-classification" in made.notes[0]
