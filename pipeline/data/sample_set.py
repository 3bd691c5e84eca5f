"""The sample set on disk: `samples.safetensors`, `samples.json`, and `images/` where there are any.

The tensors are named `{input}/{index:06d}`: one for each model input of each sample, without a
batch axis and without padding. The JSON holds what people read (texts, labels, pictures' names) and
what a reader needs to make padded batches.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import safetensors
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.numpy import save_file

from pipeline.errors import StageError
from pipeline.hashing import sha256_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

Tensor: TypeAlias = NDArray[Any]
Label: TypeAlias = int | tuple[int, ...]

TENSOR_FILE = "samples.safetensors"
INDEX_FILE = "samples.json"
IMAGE_FOLDER = "images"
"""Holds a small picture of each image sample, for the report."""

NO_LABEL = -100
"""Among the labels of a sample's tokens: this one is not counted. torch's `ignore_index`."""


def tensor_name(name: str, index: int) -> str:
    """Name of one sample's tensor in a file of many: `input_ids/000007`."""
    return f"{name}/{index:06d}"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InputSpec(_Record):
    """One model input as all samples have it.

    Attributes:
        dtype: Of its tensors.
        axes: Name of each axis of a sample's tensor, without the batch; None for one whose size is
            the same in all samples.
        fill: What padded positions hold.
    """

    dtype: Literal["int64", "float32"]
    axes: tuple[str | None, ...]
    fill: int | float = 0


class SampleEntry(_Record):
    """One sample.

    Attributes:
        index: Its place.
        text: What it is, for people: the text, the texts joined by ` | `, the image's name.
        extents: Size of each named axis: `{"sequence": 17}`; empty for images of one size.
        label: The true answer: a class; the place of the right choice; a class for each token
            (`NO_LABEL`: not counted); first and last token of the answer. None when unlabelled.
        image: The sample's picture below the sample set's directory, `images/000007.png`.
        fingerprint: SHA-256 of its tensors, the same for equal samples of any set.
        kind: What a probe is made to show; empty for samples of data.
        starts: Where outputs begin to be compared along a named axis, where not at 0: what lies
            before is padding.
        compared: `finite`: the outputs only have to be numbers, for nobody reads them.
    """

    index: int
    text: str
    extents: dict[str, int]
    label: Label | None = None
    image: str | None = None
    fingerprint: str = ""
    kind: str = ""
    starts: dict[str, int] = {}
    compared: Literal["values", "finite"] = "values"


class SampleIndex(_Record):
    """`samples.json`, version 2.

    Attributes:
        source: Where the samples are from.
        use: What they are for: `evaluation` or `calibration`.
        seed: Of the choice of samples.
        max_length: Longest allowed sample, tokens; None for images.
        inputs: By name, the inputs that every sample has.
        label_names: Names of the classes, in the order of the model's outputs; empty without any.
        padding_side: Where the fill goes.
    """

    schema_version: Literal[2] = 2
    source: str
    use: str
    seed: int
    max_length: int | None
    inputs: dict[str, InputSpec]
    label_names: tuple[str, ...] = ()
    padding_side: Literal["right"] = "right"
    samples: tuple[SampleEntry, ...]


@dataclass(frozen=True, slots=True)
class SampleSet:
    """An open sample set. Tensors are read when they are asked for, so memory stays flat."""

    index: SampleIndex
    tensors: Path

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs that every sample has, sorted."""
        return tuple(sorted(self.index.inputs))

    @property
    def entries(self) -> tuple[SampleEntry, ...]:
        """The samples' entries, in order."""
        return self.index.samples

    def __len__(self) -> int:
        return len(self.index.samples)

    def read(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        """The inputs of the samples at `indices`, by input name; the arrays are owned by you.

        Raises:
            StageError: when a tensor is missing or is not what the index says.
        """
        with safetensors.safe_open(self.tensors, framework="numpy") as file:
            present = frozenset(file.keys())
            return [
                {
                    name: self._check(file.get_tensor(key), key, name, index)
                    for name in self.input_names
                    if self._is_there(key := tensor_name(name, index), present)
                }
                for index in indices
            ]

    def _is_there(self, key: str, present: frozenset[str]) -> bool:
        if key not in present:
            raise StageError(f"tensor `{key}` is missing", where=self.tensors.name)
        return True

    def _check(self, tensor: Tensor, key: str, name: str, index: int) -> Tensor:
        spec, extents = self.index.inputs[name], self.index.samples[index].extents
        wanted = [None if axis is None else extents.get(axis) for axis in spec.axes]
        fits = tensor.ndim == len(wanted) and all(
            size is None or size == found for size, found in zip(wanted, tensor.shape, strict=True)
        )
        if tensor.dtype.name != spec.dtype or not fits:
            declared = ["any" if size is None else size for size in wanted]
            raise StageError(
                f"tensor `{key}` is {tensor.dtype} {list(tensor.shape)}, "
                f"`{INDEX_FILE}` says {spec.dtype} {declared}",
                where=self.tensors.name,
            )
        return tensor


def save_samples(
    index: SampleIndex, inputs: Sequence[Mapping[str, Tensor]], directory: Path
) -> str:
    """Write a sample set; the same samples give the same bytes.

    Args:
        index: What the samples are and how to pad them.
        inputs: For each sample its tensors by input name, in the order of the index.
        directory: An existing directory, empty of these two files.

    Returns:
        The SHA-256 of the tensor file: the fingerprint of what models get to see, and its order.
    """
    tensors = {
        tensor_name(name, number): np.ascontiguousarray(tensor, dtype=index.inputs[name].dtype)
        for number, sample in enumerate(inputs)
        for name, tensor in sample.items()
    }
    # No metadata in the tensor file: safetensors writes it in the order of a hash map.
    save_file(tensors, directory / TENSOR_FILE)
    text = json.dumps(index.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False)
    (directory / INDEX_FILE).write_text(f"{text}\n", encoding="utf-8")
    return sha256_file(directory / TENSOR_FILE)


def load_samples(directory: Path) -> SampleSet:
    """Open a sample set.

    Raises:
        StageError: when a file is missing, is of another version or does not hold samples in order.
    """
    path = directory / INDEX_FILE
    try:
        index = SampleIndex.model_validate_json(path.read_bytes())
    except FileNotFoundError as err:
        raise StageError(f"there is no `{INDEX_FILE}`", where=str(directory)) from err
    except ValidationError as err:
        raise StageError(f"not a sample index of version 2: {err}", where=INDEX_FILE) from err
    if [entry.index for entry in index.samples] != list(range(len(index.samples))):
        raise StageError("samples are not numbered 0, 1, 2, ...", where=INDEX_FILE)
    tensors = directory / TENSOR_FILE
    if not tensors.is_file():
        raise StageError(f"there is no `{TENSOR_FILE}`", where=str(directory))
    return SampleSet(index, tensors)
