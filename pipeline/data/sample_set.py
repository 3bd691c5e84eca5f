"""The sample set on disk: `samples.safetensors` and `samples.json`.

The tensors are named `{input}/{index:06d}`, int64 (sequence,): one for each model input of each
sample, without a batch axis and without padding. The JSON holds the texts and what a reader needs
to make padded batches.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import safetensors
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.numpy import save_file

from pipeline.errors import StageError
from pipeline.hashing import sha256_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Tokens: TypeAlias = NDArray[np.int64]

TENSOR_FILE = "samples.safetensors"
INDEX_FILE = "samples.json"


def tensor_name(name: str, index: int) -> str:
    """Name of one sample's tensor in a file of many: `input_ids/000007`."""
    return f"{name}/{index:06d}"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SampleEntry(_Record):
    """One sample: its place, its text and its length in tokens, special tokens included."""

    index: int
    text: str
    tokens: int


class SampleIndex(_Record):
    """`samples.json`, version 1.

    Attributes:
        source: Where the texts are from.
        use: What the samples are for: `evaluation`.
        max_length: Longest allowed sample, tokens.
        padding: Input name -> the value that fills a row up to its batch's length. The names are
            the inputs that every sample has.
        padding_side: Where the fill goes.
    """

    schema_version: Literal[1] = 1
    source: str
    use: str
    seed: int
    max_length: int
    padding: dict[str, int]
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
        return tuple(sorted(self.index.padding))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Length of each sample, tokens."""
        return tuple(entry.tokens for entry in self.index.samples)

    def __len__(self) -> int:
        return len(self.index.samples)

    def read(self, indices: Sequence[int]) -> list[dict[str, Tokens]]:
        """The inputs of the samples at `indices`: int64 (sequence,), by input name; owned by you.

        Raises:
            StageError: when a tensor is missing or is not what the index says.
        """
        with safetensors.safe_open(self.tensors, framework="numpy") as file:
            present = frozenset(file.keys())
            return [
                {
                    name: self._check(file.get_tensor(key), key, index)
                    for name in self.input_names
                    if self._is_there(key := tensor_name(name, index), present)
                }
                for index in indices
            ]

    def _is_there(self, key: str, present: frozenset[str]) -> bool:
        if key not in present:
            raise StageError(f"tensor `{key}` is missing", where=self.tensors.name)
        return True

    def _check(self, tensor: NDArray[np.generic], key: str, index: int) -> Tokens:
        length = self.index.samples[index].tokens
        if tensor.dtype != np.int64 or tensor.shape != (length,):
            raise StageError(
                f"tensor `{key}` is {tensor.dtype} {list(tensor.shape)}, "
                f"`{INDEX_FILE}` says int64 [{length}]",
                where=self.tensors.name,
            )
        return tensor.astype(np.int64, copy=False)


def save_samples(
    index: SampleIndex, inputs: Sequence[Mapping[str, Tokens]], directory: Path
) -> str:
    """Write a sample set; the same samples give the same bytes.

    Args:
        index: The texts and how to pad.
        inputs: For each sample, int64 (sequence,) by input name, in the order of the index.
        directory: An existing directory, empty of these two files.

    Returns:
        The SHA-256 of the tensor file: the fingerprint of what models get to see.
    """
    tensors = {
        tensor_name(name, number): np.ascontiguousarray(tensor, dtype=np.int64)
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
        raise StageError(f"not a sample index of version 1: {err}", where=INDEX_FILE) from err
    if [entry.index for entry in index.samples] != list(range(len(index.samples))):
        raise StageError("samples are not numbered 0, 1, 2, ...", where=INDEX_FILE)
    tensors = directory / TENSOR_FILE
    if not tensors.is_file():
        raise StageError(f"there is no `{TENSOR_FILE}`", where=str(directory))
    return SampleSet(index, tensors)
