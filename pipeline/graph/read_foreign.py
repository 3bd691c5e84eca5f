"""Reads a model file that may be hostile: a process of its own, with a limit on its memory.

    python -m pipeline.graph.read_foreign MODEL MEMORY_BYTES

Writes one `Answer` as JSON. What it does not survive, its parent sees from how it ended. Only the
protobuf message is parsed: nothing of the model is run, and no external data is opened.
"""

from __future__ import annotations

import resource
import sys
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ArtifactError, PipelineError
from pipeline.graph.model_facts import (
    Answer,
    ExternalFile,
    ModelFacts,
    Refusal,
    TensorFacts,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

    from pipeline.graph.inspect import TensorDescription

MAX_ELEMENTS = 1 << 53
"""More than this no file system holds, and JSON readers cannot say."""


def main(arguments: list[str]) -> None:
    """Limit this process, read the model, and write the answer to standard output."""
    path, memory_bytes = Path(arguments[0]), int(arguments[1])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        answer = Answer(facts=read_facts(path))
    except PipelineError as error:
        answer = Answer(refusal=Refusal(message=error.message, hint=error.hint))
    except (MemoryError, RecursionError, ValueError) as error:
        what = " ".join(str(error).split())[:300]
        answer = Answer(
            refusal=Refusal(
                message=f"the model cannot be described: {type(error).__name__} {what}".rstrip(),
                hint=f"it may take {memory_bytes >> 20:,} MiB to read; is it what you think it is?",
            )
        )
    sys.stdout.write(answer.model_dump_json())


def read_facts(path: Path) -> ModelFacts:
    """Describe a model file without its external data.

    Raises:
        ArtifactError: it is missing or no ONNX model.
        ValueError: what it says cannot be, such as an element type that does not exist.
    """
    from pipeline.graph.files import iter_tensors, load_graph_only
    from pipeline.graph.inspect import describe_model
    from pipeline.graph.layers import iter_layers

    description = describe_model(path)
    model = load_graph_only(path)
    for tensor in iter_tensors(model):
        if any(dim < 0 for dim in tensor.dims) or prod(tensor.dims) > MAX_ELEMENTS:
            shape = " x ".join(map(str, tensor.dims[:4]))
            raise ArtifactError(f"tensor `{tensor.name[:80]}` has a shape that cannot be: {shape}")
    external_files = tuple(_external_files(model, path.parent))
    return ModelFacts(
        opset=description.opset,
        domains=dict(description.domains),
        ir_version=description.ir_version,
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        inputs=tuple(map(_tensor_facts, description.inputs)),
        outputs=tuple(map(_tensor_facts, description.outputs)),
        op_counts=dict(description.op_counts),
        parameters=description.parameters,
        weight_bytes=dict(description.weight_bytes),
        layers=tuple(iter_layers(model)),
        external_files=external_files,
        size_bytes=path.stat().st_size + sum(file.size_bytes or 0 for file in external_files),
        functions=tuple(sorted({f"{each.domain}::{each.name}" for each in model.functions})),
    )


def _tensor_facts(tensor: TensorDescription) -> TensorFacts:
    return TensorFacts(name=tensor.name, dtype=tensor.dtype, shape=tensor.shape)


def _external_files(model: onnx.ModelProto, directory: Path) -> Iterator[ExternalFile]:
    from pipeline.graph.files import iter_tensors

    locations = {
        entry.value
        for tensor in iter_tensors(model)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for location in sorted(locations):
        path = directory / location
        is_beside = "/" not in location and "\\" not in location and "\0" not in location
        is_there = is_beside and path.is_file() and not path.is_symlink()
        yield ExternalFile(location=location, size_bytes=path.stat().st_size if is_there else None)


if __name__ == "__main__":
    main(sys.argv[1:])
