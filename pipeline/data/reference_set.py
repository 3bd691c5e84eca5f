"""The reference on disk: `reference.safetensors` and `reference.json`.

The tensors are named `{output}/{index:06d}`, float32 without a batch axis: what the checkpoint
itself computes for each sample, alone and unpadded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import safetensors
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.numpy import save_file

from pipeline.data.sample_set import tensor_name
from pipeline.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

TENSOR_FILE = "reference.safetensors"
INDEX_FILE = "reference.json"
PROBES_FOLDER = "probes"
"""Holds the reference of the probes, in the same two files."""


class ReferenceIndex(BaseModel):
    """`reference.json`, version 1.

    Attributes:
        inputs: The inputs that were fed; a candidate must take the same.
        outputs: The outputs there are; a candidate must have them all.
        samples: How many samples, numbered from 0.
        session: How the reference was run, such as `torch 2.13.0+cpu, float32`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    task: str
    component: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    samples: int
    session: str


@dataclass(frozen=True, slots=True)
class ReferenceSet:
    """An open reference; tensors are read when they are asked for."""

    index: ReferenceIndex
    tensors: Path

    def read(
        self, indices: Sequence[int], outputs: Sequence[str]
    ) -> dict[str, list[NDArray[np.float32]]]:
        """For each output, the tensors of the samples at `indices`, in that order."""
        with safetensors.safe_open(self.tensors, framework="numpy") as file:
            return {
                name: [file.get_tensor(tensor_name(name, index)) for index in indices]
                for name in outputs
            }


def save_reference(
    index: ReferenceIndex, tensors: Mapping[str, NDArray[np.float32]], directory: Path
) -> None:
    """Write a reference; the same tensors give the same bytes."""
    save_file(dict(tensors), directory / TENSOR_FILE)
    text = json.dumps(index.model_dump(mode="json"), indent=1, sort_keys=True)
    (directory / INDEX_FILE).write_text(f"{text}\n", encoding="utf-8")


def load_reference(directory: Path) -> ReferenceSet:
    """Open a reference.

    Raises:
        StageError: when a file is missing or of another version, or a tensor is not there.
    """
    path, tensors = directory / INDEX_FILE, directory / TENSOR_FILE
    for file in (path, tensors):
        if not file.is_file():
            raise StageError(f"there is no `{file.name}`", where=str(directory))
    try:
        index = ReferenceIndex.model_validate_json(path.read_bytes())
    except ValidationError as err:
        raise StageError(f"not a reference index of version 1: {err}", where=INDEX_FILE) from err
    wanted = {tensor_name(name, i) for name in index.outputs for i in range(index.samples)}
    with safetensors.safe_open(tensors, framework="numpy") as file:
        absent = sorted(wanted.difference(file.keys()))
    if absent:
        raise StageError(f"tensor `{absent[0]}` is missing", where=TENSOR_FILE)
    return ReferenceSet(index, tensors)
