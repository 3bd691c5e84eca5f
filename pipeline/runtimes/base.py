"""The contract of every runtime: named arrays in, named arrays out, and nothing silently.

A runner is a context manager; it is loaded between `__enter__` and `__exit__`. `run` checks its
feeds before anything is computed. A runner never falls back to another device, provider or
precision than it was made for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

Array: TypeAlias = NDArray[Any]


class FeedError(PipelineError):
    """What was to be fed does not fit the model: a name, a dtype or a rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTensor:
    """An input or an output of a model.

    Attributes:
        name: Its name.
        dtype: numpy's name of the element type, such as `int64`; the runtime's own name where
            numpy has none.
        shape: A number for a fixed axis, a name for a named one, None for one of which nothing is
            known. None as a whole when not even the rank is known.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None

    def axis(self, name: str) -> int | None:
        """Position of a named axis, or None."""
        return self.shape.index(name) if self.shape is not None and name in self.shape else None

    def __str__(self) -> str:
        axes = "?" if self.shape is None else ", ".join(str(axis) for axis in self.shape)
        return f"{self.dtype} [{axes}]"


class Runner(Protocol):
    """What every runtime offers."""

    @property
    def inputs(self) -> tuple[ModelTensor, ...]:
        """What must be fed, in the model's order."""

    @property
    def outputs(self) -> tuple[ModelTensor, ...]:
        """What comes out, in the model's order."""

    @property
    def session(self) -> str:
        """One line for reports: runtime, version, device, optimisations."""

    @property
    def load_time_ms(self) -> float:
        """From file to ready, milliseconds; measured by the last `__enter__`."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs by name; the arrays are the caller's, and no later run writes to them.

        Raises:
            FeedError: when names or dtypes do not fit; nothing was computed then.
            StageError: when the runtime refuses or fails; with its own reason.
        """


class LoadedRunner:
    """What every runner of a file knows of it once it is loaded."""

    def __init__(self) -> None:
        self._inputs: tuple[ModelTensor, ...] = ()
        self._outputs: tuple[ModelTensor, ...] = ()
        self._load_time_ms = 0.0

    @property
    def inputs(self) -> tuple[ModelTensor, ...]:
        """The model's inputs, in its order."""
        return self._inputs

    @property
    def outputs(self) -> tuple[ModelTensor, ...]:
        """The model's outputs, in its order."""
        return self._outputs

    @property
    def load_time_ms(self) -> float:
        """From file to ready, checks of the file included, milliseconds."""
        return self._load_time_ms


def check_feeds(inputs: Sequence[ModelTensor], feeds: Mapping[str, Array], where: str) -> None:
    """Names and dtypes of the feeds are exactly those of the inputs.

    Raises:
        FeedError: naming what is missing, unknown or of another dtype.
    """
    wanted = {spec.name: spec for spec in inputs}
    faults = [f"`{name}` is missing" for name in wanted if name not in feeds]
    faults += [f"`{name}` is no input of the model" for name in feeds if name not in wanted]
    faults += [
        f"`{name}` is {array.dtype.name}, the model takes {wanted[name].dtype}"
        for name, array in feeds.items()
        if name in wanted and array.dtype.name != wanted[name].dtype
    ]
    faults += [
        f"`{name}` has shape {list(array.shape)}, the model takes {spec}"
        for name, array in feeds.items()
        if (spec := wanted.get(name)) is not None and not _fits(array, spec)
    ]
    if faults:
        takes = ", ".join(f"`{name}`" for name in wanted)
        raise FeedError(f"{'; '.join(faults)} (the inputs are {takes})", where=where)


def _fits(array: Array, spec: ModelTensor) -> bool:
    if spec.shape is None:
        return True
    return len(spec.shape) == array.ndim and all(
        not isinstance(axis, int) or axis == size
        for axis, size in zip(spec.shape, np.shape(array), strict=True)
    )
