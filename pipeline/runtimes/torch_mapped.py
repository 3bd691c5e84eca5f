"""Models of which torch knows the shapes, while the numbers stay in the checkpoint's files.

`transformers` maps float32 weights from the file and copies nothing. Weights in 16 bits it would convert
into memory, twice their size; for these it is given a *stand-in*: files of the same tensors in
float32, whose large tensors are holes that take neither disk nor memory. Either way the kernel knows
which part of which file each parameter is mapped from, and so the true numbers are found again
whatever the parameter is called. They are read when a module runs, and when the graph is written.
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import json
import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from pipeline.data.stored_tensors import ITEM_BYTES, StoredTensor, stored_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

LARGE_BYTES: Final = 1 << 18
"""Weights of this size, as float32, are read when they are needed; smaller ones are always there."""

_MAPS: Final = Path("/proc/self/maps")
_WIDTH: Final = 4
"""Bytes of a float32."""


class NotMappedError(Exception):
    """The weights of this model have to be loaded into memory; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Laid:
    """Where a file that is loaded has a tensor, and where its true numbers are."""

    begin: int
    end: int
    source: StoredTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedCheckpoint:
    """A checkpoint as it is given to `transformers`.

    Attributes:
        directory: The checkpoint, or the stand-in for it.
        is_stand_in: Whether large tensors are holes there.
        laid: Real path of a file -> its tensors of floats, in order.
    """

    directory: Path
    is_stand_in: bool
    laid: Mapping[str, Sequence[_Laid]]

    def match(self, model: nn.Module, missing: frozenset[str]) -> MappedWeights:
        """Find the weights of a model that was loaded from `directory`.

        Args:
            model: With the parameters that `transformers` has mapped.
            missing: Names of those that the checkpoint lacks.

        Raises:
            NotMappedError: when a stand-in was loaded, and the numbers of a weight are not in one
                place of one file.
        """
        if self.is_stand_in and missing:
            raise NotMappedError("the checkpoint lacks weights")
        regions = _mapped_regions(self.laid)
        found = {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            if name in missing or not tensor.is_floating_point():
                continue
            source = self._source(tensor, regions)
            if source is not None:
                found[tensor.data_ptr()] = source
            elif self.is_stand_in:
                raise NotMappedError(f"`{name}` is made of weights when it is loaded")
        return MappedWeights(found, is_stand_in=self.is_stand_in)

    def _source(self, tensor: torch.Tensor, regions: Sequence[_Region]) -> StoredTensor | None:
        if tensor.dtype != torch.float32 or not tensor.is_contiguous():
            return None
        begin, length = tensor.data_ptr(), tensor.numel() * _WIDTH
        for region in regions:
            if region.begin <= begin and begin + length <= region.end:
                offset = begin - region.begin + region.offset
                return _part(self.laid[region.file], offset, length, tuple(tensor.shape))
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Region:
    begin: int
    end: int
    offset: int
    file: str


def _mapped_regions(files: Mapping[str, object]) -> list[_Region]:
    """Addresses of this process at which these files lie. Source: `man 5 proc_pid_maps`."""
    try:
        lines = _MAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as err:
        raise NotMappedError("this system does not say what is mapped") from err
    found = []
    for line in lines:
        parts = line.split(maxsplit=5)
        if len(parts) == 6 and parts[5] in files:
            begin, end = (int(part, 16) for part in parts[0].split("-"))
            found.append(_Region(begin=begin, end=end, offset=int(parts[2], 16), file=parts[5]))
    return found


def _part(
    laid: Sequence[_Laid], offset: int, length: int, shape: tuple[int, ...]
) -> StoredTensor | None:
    place = bisect.bisect_right(laid, offset, key=lambda one: one.begin) - 1
    if place < 0 or offset + length > laid[place].end:
        return None
    return laid[place].source.part((offset - laid[place].begin) // _WIDTH, shape)


class MappedWeights:
    """The weights of a loaded model and where their numbers are.

    Args:
        sources: Address of a parameter -> its numbers.
        is_stand_in: Whether what is at those addresses is something else.
    """

    def __init__(self, sources: Mapping[int, StoredTensor], *, is_stand_in: bool) -> None:
        self._sources = sources
        self.is_stand_in = is_stand_in

    def find(self, tensor: torch.Tensor) -> StoredTensor | None:
        """The numbers of a parameter, or of a tensor that shares its memory; None for others."""
        if tensor.dtype != torch.float32 or not tensor.is_contiguous() or not tensor.numel():
            return None
        source = self._sources.get(tensor.data_ptr())
        return source if source is not None and source.shape == tuple(tensor.shape) else None

    @contextlib.contextmanager
    def at_hand(self, model: nn.Module, *, dtype: torch.dtype = torch.float32) -> Iterator[None]:
        """While this lasts each module of a model reads its large weights when it runs, and drops them.

        What is mapped as it is stored is dropped only: the kernel reads it again. A weight of a
        stand-in, or in another dtype, that is used anywhere but in its own module is empty there, so
        that torch refuses to compute with it.

        Args:
            model: What runs; its small weights are left as they are.
            dtype: In which it computes. The caller brings the model itself to it, meanwhile.
        """
        if not self.is_stand_in and dtype == torch.float32:
            with self._forgotten(model):
                yield
            return
        owned = {module: self._large(module) for module in model.modules()}
        rooms = _Rooms()
        kept = {weight: weight.data for pairs in owned.values() for weight, _ in pairs}
        hooks = []
        for module, pairs in owned.items():
            if pairs:
                hooks.append(module.register_forward_pre_hook(_fetch(pairs, rooms, dtype)))
                hooks.append(module.register_forward_hook(_drop(pairs, rooms), always_call=True))
        try:
            for weight in kept:
                weight.data = torch.empty(0, dtype=dtype)
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for weight, data in kept.items():
                weight.data = data

    @contextlib.contextmanager
    def _forgotten(self, model: nn.Module) -> Iterator[None]:
        owned = {module: self._large(module) for module in model.modules()}
        hooks = [
            module.register_forward_hook(
                _forget([weight for weight, _ in pairs]), always_call=True
            )
            for module, pairs in owned.items()
            if pairs
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _large(self, module: nn.Module) -> list[tuple[nn.Parameter, StoredTensor]]:
        return [
            (weight, source)
            for weight in module.parameters(recurse=False)
            if (source := self.find(weight)) is not None and source.size * _WIDTH >= LARGE_BYTES
        ]


class _Rooms:
    """Memory that was used before: to ask for more of it anew takes longer than to read into it."""

    def __init__(self) -> None:
        self._free: dict[int, list[torch.Tensor]] = {}

    def filled(self, source: StoredTensor) -> torch.Tensor:
        """The numbers of a tensor; nobody else has this memory until it is given back."""
        free = self._free.get(source.size)
        room = free.pop() if free else torch.empty(source.size, dtype=torch.float32)
        source.read(room.numpy())
        return room.view(source.shape)

    def give_back(self, weight: torch.Tensor) -> None:
        """What `filled` gave; in another dtype it is another tensor, which nobody needs."""
        if weight.dtype != torch.float32:
            return
        self._free.setdefault(weight.numel(), []).append(weight.reshape(-1))


def _forget(weights: Sequence[nn.Parameter]) -> Any:
    """Give pages back that were mapped from a file to be read: they hold what the file holds."""
    libc, page = ctypes.CDLL(None), mmap.PAGESIZE

    def forget(module: nn.Module, given: Any, result: Any) -> None:
        del module, given, result
        for weight in weights:
            begin = -(-weight.data_ptr() // page) * page  # whole pages of this weight alone
            end = (weight.data_ptr() + weight.numel() * _WIDTH) // page * page
            libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)

    return forget


def _fetch(
    pairs: Sequence[tuple[nn.Parameter, StoredTensor]], rooms: _Rooms, dtype: torch.dtype
) -> Any:
    def fetch(module: nn.Module, given: Any) -> None:
        del module, given
        for weight, source in pairs:
            stored = rooms.filled(source)
            weight.data = stored.to(dtype)
            if weight.dtype != stored.dtype:
                rooms.give_back(stored)

    return fetch


def _drop(pairs: Sequence[tuple[nn.Parameter, StoredTensor]], rooms: _Rooms) -> Any:
    def drop(module: nn.Module, given: Any, result: Any) -> None:
        del module, given, result
        for weight, _ in pairs:
            rooms.give_back(weight.data)
            weight.data = torch.empty(0, dtype=weight.dtype)

    return drop


def map_checkpoint(checkpoint: Path, scratch: Path) -> MappedCheckpoint:
    """Make a checkpoint ready to be loaded without its numbers.

    Args:
        checkpoint: A directory with `config.json` and `*.safetensors`.
        scratch: An existing directory, in which a stand-in is made when one is needed; it must last
            as long as the model.

    Raises:
        ArtifactError: when a file is no safetensors file.
        NotMappedError: for types that float32 does not hold, and quantised checkpoints.
    """
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    if config.get("quantization_config") is not None:
        raise NotMappedError("the checkpoint is quantised")
    files = {file: stored_tensors(file) for file in sorted(checkpoint.glob("*.safetensors"))}
    types = {tensor.dtype for tensors in files.values() for tensor in tensors.values()}
    if unknown := {one for one in types if one[0] in "FB" and one not in {*ITEM_BYTES, "BOOL"}}:
        raise NotMappedError(f"the checkpoint has weights of type {min(unknown)}")
    if not types & {"F16", "BF16"}:
        laid = {str(file.resolve()): _laid(tensors, tensors) for file, tensors in files.items()}
        return MappedCheckpoint(directory=checkpoint, is_stand_in=False, laid=laid)
    directory = scratch / "stand-in"
    directory.mkdir()
    for file in checkpoint.glob("*.json"):
        (directory / file.name).write_bytes(file.read_bytes())
    laid = {}
    for file, tensors in files.items():
        made = _write_stand_in(directory / file.name, tensors)
        laid[str(made.resolve())] = _laid(stored_tensors(made), tensors)
    return MappedCheckpoint(directory=directory, is_stand_in=True, laid=laid)


def _laid(
    loaded: Mapping[str, StoredTensor], sources: Mapping[str, StoredTensor]
) -> tuple[_Laid, ...]:
    found = [
        _Laid(begin=tensor.offset, end=tensor.offset + tensor.size * _WIDTH, source=sources[name])
        for name, tensor in loaded.items()
        if tensor.dtype == "F32"
    ]
    return tuple(sorted(found, key=lambda one: one.begin))


def _write_stand_in(path: Path, tensors: Mapping[str, StoredTensor]) -> Path:
    """The same tensors, floats as float32; large ones are holes, the others have their numbers."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        is_float = tensor.dtype in ITEM_BYTES
        length = tensor.size * _WIDTH if is_float else _length(tensor)
        header[name] = {
            "dtype": "F32" if is_float else tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + length],
        }
        offset += length
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        file.truncate(start + offset)
        for name, tensor in tensors.items():
            begin, end = header[name]["data_offsets"]  # type: ignore[index]
            if tensor.dtype not in ITEM_BYTES:
                file.seek(start + begin)
                file.write(_bytes(tensor, end - begin))
            elif end - begin < LARGE_BYTES:
                file.seek(start + begin)
                file.write(tensor.read().tobytes())
    return path


def _length(tensor: StoredTensor) -> int:
    """Bytes of a tensor that holds no floats."""
    bits = {"BOOL": 8, "I8": 8, "U8": 8}.get(tensor.dtype) or int(tensor.dtype[1:])
    return math.prod(tensor.shape) * bits // 8


def _bytes(tensor: StoredTensor, length: int) -> bytes:
    with tensor.file.open("rb") as file:
        file.seek(tensor.offset)
        return file.read(length)
