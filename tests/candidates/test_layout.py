"""The layouts that tools write, and folders that lie about what is in them."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from pipeline.candidates import find_place, read_files
from pipeline.digest_memory import DigestMemory
from pipeline.errors import ArtifactError, RecipeError
from pipeline.graph.model_facts import ExternalFile
from tests.candidates.test_interface import facts, logits, tensor

if TYPE_CHECKING:
    from pathlib import Path


def put(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_file_alone_has_no_companions(tmp_path: Path) -> None:
    model = put(tmp_path / "m.onnx")
    place = find_place(model)
    assert (place.model, place.companions) == (model, None)


def test_optimum_has_everything_in_one_folder(tmp_path: Path) -> None:
    put(tmp_path / "model.onnx")
    put(tmp_path / "config.json", b"{}")
    place = find_place(tmp_path)
    assert (place.model, place.companions) == (tmp_path / "model.onnx", tmp_path)


def test_transformers_js_has_its_models_one_folder_below(tmp_path: Path) -> None:
    for name in ("model", "model_quantized", "model_fp16"):
        put(tmp_path / f"onnx/{name}.onnx")
    put(tmp_path / "tokenizer.json", b"{}")
    with pytest.raises(RecipeError, match="3 models") as caught:
        find_place(tmp_path)
    assert "--file: onnx/model.onnx, onnx/model_fp16.onnx, onnx/model_quantized.onnx" in str(
        caught.value
    )
    place = find_place(tmp_path, "onnx/model_fp16.onnx")
    assert place.companions == tmp_path
    assert find_place(tmp_path / "onnx/model.onnx").companions == tmp_path


@pytest.mark.parametrize("key", ["onnx_file_name", "model_path"])
def test_olive_says_which_file_it_is(tmp_path: Path, key: str) -> None:
    put(tmp_path / "model.onnx")
    put(tmp_path / "model_int8.onnx")
    said = {"type": "ONNXModel", "config": {key: "/somewhere/else/model_int8.onnx"}}
    put(tmp_path / "model_config.json", json.dumps(said).encode())
    assert find_place(tmp_path).model.name == "model_int8.onnx"


@pytest.mark.parametrize(
    "said", [b"", b"[]", b'{"config": 3}', b'{"config": {"onnx_file_name": "../../x.onnx"}}']
)
def test_a_description_that_makes_no_sense_is_passed_over(tmp_path: Path, said: bytes) -> None:
    put(tmp_path / "model.onnx")
    put(tmp_path / "model_config.json", said)
    assert find_place(tmp_path).model.name == "model.onnx"


@pytest.mark.parametrize(
    ("name", "hint"), [("m.pt", "pickle"), ("m.ort", "ONNX Runtime's own format"), ("m.txt", "")]
)
def test_other_files_are_refused(tmp_path: Path, name: str, hint: str) -> None:
    with pytest.raises(RecipeError, match="neither an ONNX model") as caught:
        find_place(put(tmp_path / name))
    assert hint in caught.value.hint


@pytest.mark.parametrize("file", ["../m.onnx", "/etc/passwd", "nothing.onnx"])
def test_a_file_outside_or_missing_is_refused(tmp_path: Path, file: str) -> None:
    put(tmp_path / "m.onnx")
    put(tmp_path / "in/model.onnx")
    with pytest.raises(RecipeError):
        find_place(tmp_path / "in", file)


def test_an_empty_folder_and_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no ONNX model"):
        find_place(tmp_path)
    with pytest.raises(RecipeError, match="no file or folder"):
        find_place(tmp_path / "x")


def test_a_link_out_of_the_folder_is_refused_and_the_cache_of_a_hub_is_not(tmp_path: Path) -> None:
    blob = put(tmp_path / "repo/blobs/abc")
    home = tmp_path / "repo/snapshots/main"
    home.mkdir(parents=True)
    (home / "model.onnx").symlink_to(blob)
    assert find_place(home).model.name == "model.onnx"
    secret = put(tmp_path / "secret")
    (home / "other.onnx").symlink_to(secret)
    with pytest.raises(ArtifactError, match="leads out of the folder"):
        find_place(home, "other.onnx")


def with_weights(*locations: str) -> object:
    external = tuple(ExternalFile(location=name, size_bytes=None) for name in locations)
    return facts([tensor("input_ids")], [logits()], external_files=external)


HOSTILE = (
    "../secret", "a/../../secret", "/etc/passwd", "./../secret", "..", ".", "", "a/b", "a\\b",
    "C:\\x", "\0", "x\0y", "//server/share", "*/_ORT_MEM_ADDR_/*", "file:///etc/passwd", "sub/w",
    "missing", "link", "folder", "~/.ssh/id_rsa/..", "w/", "/proc/self/mem", "a/./b", "..\\secret",
)  # fmt: skip


@pytest.mark.parametrize("location", HOSTILE)
def test_weights_elsewhere_are_refused_before_anything_is_opened(
    tmp_path: Path, location: str
) -> None:
    secret = put(tmp_path / "secret", b"canary")
    os.utime(secret, (1, 1))
    home = tmp_path / "home"
    model = put(home / "model.onnx")
    put(home / "sub/w")
    (home / "folder").mkdir()
    (home / "link").symlink_to(secret)
    with pytest.raises(ArtifactError):
        read_files(find_place(model), with_weights(location), DigestMemory(tmp_path / "d.json"))
    assert secret.stat().st_atime == 1


def test_files_are_known_by_their_digests_and_only_known_companions_are_taken(
    tmp_path: Path,
) -> None:
    put(tmp_path / "model.onnx")
    put(tmp_path / "model.onnx_data", b"weights")
    for name in ("config.json", "tokenizer.json", "evil.py", "pytorch_model.bin", ".env"):
        put(tmp_path / name, b"{}")
    put(tmp_path / "1_Pooling/config.json", b"{}")
    files, companions = read_files(
        find_place(tmp_path), with_weights("model.onnx_data"), DigestMemory(tmp_path / "d.json")
    )
    assert sorted(files) == ["model.onnx", "model.onnx_data"]
    assert sorted(companions) == ["1_Pooling/config.json", "config.json", "tokenizer.json"]
