"""What is written for Triton is what its own protobuf reads."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

import pytest

from pipeline.bundle.triton import schema
from pipeline.bundle.triton.schema import data_type_name, parse_config
from pipeline.bundle.triton.text import Word, map_entries, write_message
from pipeline.errors import ArtifactError

VENDOR = Path(schema.__file__).parent / "vendor"

# From the README of triton-inference-server/onnxruntime_backend, with the brace too many it has.
PUBLISHED_SAMPLE = """\
name: "model"
backend: "onnxruntime"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [ 4 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 4 ] }
optimization { execution_accelerators {
  gpu_execution_accelerator : [ {
    name : "tensorrt"
    parameters { key: "precision_mode" value: "FP16" }
    parameters { key: "max_workspace_size_bytes" value: "1073741824" }}
    parameters { key: "trt_engine_cache_enable" value: "1" }}
  ]
}}
"""


def test_text_is_read_back_as_it_was_meant() -> None:
    text = write_message(
        {
            "name": 'quote " backslash \\ line\nend \x07',
            "max_batch_size": 0,
            "input": [{"name": "x", "data_type": Word("TYPE_INT64"), "dims": [-1, 3]}],
            "instance_group": [{"kind": Word("KIND_GPU"), "profile": ["0", "1"]}],
            "cc_model_filenames": map_entries({"8.9": "a.plan", "12.0": "b.plan"}),
            "optimization": {"graph": {"level": 2}},
            "model_warmup": [
                {"name": "w", "inputs": map_entries({"x": {"dims": [3], "zero_data": True}})}
            ],
        },
        comment="one\ntwo",
    )
    assert text.startswith("# one\n# two\n")
    assert "\nmax_batch_size: 0\n" in text  # protobuf's own writer leaves it out
    read = parse_config(text, where="config.pbtxt")
    assert read.name == 'quote " backslash \\ line\nend \x07'
    assert list(read.input[0].dims) == [-1, 3]
    assert data_type_name(read.input[0].data_type) == "TYPE_INT64"
    assert list(read.instance_group[0].profile) == ["0", "1"]
    assert dict(read.cc_model_filenames) == {"8.9": "a.plan", "12.0": "b.plan"}
    assert read.model_warmup[0].inputs["x"].zero_data is True


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        (PUBLISHED_SAMPLE, "config.pbtxt:11:5", "parameters"),
        ('name: "x"\ninput { data_type: TYPE_F32 }', "config.pbtxt:2:20", "TYPE_F32"),
        ("max_batchsize: 3", "config.pbtxt:1:1", "max_batchsize"),
        ('name: "x', "config.pbtxt:1:", ""),
        ("dynamic_batching {} ensemble_scheduling {}", "config.pbtxt:1:", "oneof"),
        ("max_batch_size: 99999999999", "config.pbtxt:1:17", ""),
    ],
)
def test_what_the_server_cannot_read_is_refused_with_line_and_column(
    text: str, place: str, words: str
) -> None:
    with pytest.raises(ArtifactError, match="Triton cannot read it") as caught:
        parse_config(text, where="config.pbtxt")
    assert caught.value.where.startswith(place)
    assert words in caught.value.message


def test_the_descriptor_is_the_one_of_the_package_it_is_from() -> None:
    (said,) = json.loads((VENDOR / "versions.json").read_text()).values()
    content = (VENDOR / "model_config.binpb").read_bytes()
    assert hashlib.sha256(content).hexdigest() == said["sha256"]
    spec = importlib.util.find_spec("tritonclient")
    if spec is None or spec.origin is None:
        return  # it cannot be installed beside this stack; see schema.py
    file = Path(spec.origin).parent / "grpc" / "model_config_pb2.py"
    loaded = importlib.util.spec_from_file_location("model_config_pb2", file)
    assert loaded is not None
    assert loaded.loader is not None
    module = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(module)
    assert module.DESCRIPTOR.serialized_pb == content
