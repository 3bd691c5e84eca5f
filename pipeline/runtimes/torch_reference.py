"""The checkpoint in torch, float32 on the CPU: what every candidate is held against."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Self

import torch

from pipeline.errors import StageError
from pipeline.runtimes.base import ModelTensor, check_feeds
from pipeline.runtimes.torch_model import load_torch_model
from pipeline.runtimes.torch_streamed import at_hand, load_streamed
from pipeline.runtimes.torch_variants import PlacedModel, TorchDevice, TorchVariant

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from pipeline.runtimes.base import Array
    from pipeline.runtimes.torch_model import TorchComponent


class TorchReferenceRunner:
    """One component of a checkpoint, run in torch without gradients.

    Args:
        checkpoint: Directory with `config.json` and the weights as safetensors.
        task: The task, e.g. `feature-extraction`.
        component: The component, e.g. `model`.
        threads: Threads inside an operator, for the whole process; None leaves torch's own choice.
        scratch: A directory that lasts as long as this; with it memory never holds all weights of a
            large checkpoint, see `pipeline.runtimes.torch_streamed`.
        log: Is told when it has to hold them all the same.
    """

    def __init__(
        self,
        checkpoint: Path,
        *,
        task: str,
        component: str,
        threads: int | None = None,
        scratch: Path | None = None,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self._checkpoint = checkpoint
        self._task = task
        self._component = component
        self._threads = threads
        self._scratch = scratch
        self._log = log
        self._at_hand = contextlib.ExitStack()
        self._loaded: TorchComponent | None = None
        self._load_time_ms = 0.0

    def __enter__(self) -> Self:
        """Load the weights.

        Raises:
            StageError: when the checkpoint cannot be loaded for this task.
        """
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        # bfloat16 passes inside float32 products would make the reference worse than candidates.
        torch.set_float32_matmul_precision("highest")
        started = time.perf_counter()
        self._loaded = self._load()
        self._load_time_ms = (time.perf_counter() - started) * 1e3
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let go of the module and its memory."""
        self._at_hand.close()
        self._loaded = None

    def _load(self) -> TorchComponent:
        if self._scratch is None:
            return load_torch_model(self._checkpoint, self._task, self._component)
        loaded = load_streamed(
            self._checkpoint,
            self._task,
            self._component,
            scratch=self._scratch,
            log=self._log,
        )
        self._at_hand.enter_context(at_hand(loaded))
        return loaded

    def _require_loaded(self) -> TorchComponent:
        if self._loaded is None:
            raise RuntimeError("TorchReferenceRunner is used outside of its `with` block")
        return self._loaded

    @property
    def inputs(self) -> tuple[ModelTensor, ...]:
        """The module's positional arguments, in their order."""
        return tuple(
            ModelTensor(name=taken.spec.name, dtype=taken.spec.dtype, shape=taken.shape)
            for taken in self._require_loaded().takes
        )

    @property
    def outputs(self) -> tuple[ModelTensor, ...]:
        """The module's results, in their order; torch declares no shapes."""
        return tuple(
            ModelTensor(name=name, dtype="float32", shape=None)
            for name in self._require_loaded().output_names
        )

    @property
    def session(self) -> str:
        """Such as `torch 2.13.0+cpu, float32`."""
        return f"torch {torch.__version__}, float32"

    @property
    def load_time_ms(self) -> float:
        """From files to a module that is ready, milliseconds."""
        return self._load_time_ms

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs by name, float32; fresh arrays that belong to the caller.

        Raises:
            FeedError: when a name, a dtype or a rank does not fit; nothing was run then.
            StageError: when an id is outside of its table, or torch refuses the run.
        """
        loaded = self._require_loaded()
        check_feeds(self.inputs, feeds, "torch")
        for name, limit in loaded.id_limits.items():
            largest = int(feeds[name].max(initial=0))
            if largest >= limit:
                raise StageError(
                    f"`{name}` holds {largest}, the model's table ends at {limit - 1}",
                    hint="the tokenizer does not belong to this checkpoint",
                )
        tensors = [torch.from_numpy(feeds[name].copy()) for name in loaded.input_names]
        try:
            results = self._compute(loaded, tensors)
        except (IndexError, RuntimeError) as err:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise StageError(f"torch cannot run the model on {shapes}: {err}") from err
        return {
            name: result.to(torch.float32).numpy()
            for name, result in zip(loaded.output_names, results, strict=True)
        }

    def _compute(
        self, loaded: TorchComponent, tensors: Sequence[torch.Tensor]
    ) -> Sequence[torch.Tensor]:
        with torch.inference_mode():
            results: Sequence[torch.Tensor] = loaded.module(*tensors)
        return results


class TorchVariantRunner(TorchReferenceRunner):
    """The same in another precision, compiled, or on a GPU; outputs are float32 still.

    Args:
        checkpoint, task, component, threads: As above.
        variant: How it computes.
        device: Where.
    """

    def __init__(
        self,
        checkpoint: Path,
        *,
        task: str,
        component: str,
        variant: TorchVariant,
        device: TorchDevice,
        threads: int | None = None,
    ) -> None:
        super().__init__(checkpoint, task=task, component=component, threads=threads)
        self._variant = variant
        self._device = device
        self._placed: PlacedModel | None = None

    def __enter__(self) -> Self:
        """Load the weights, and bring them where they are used.

        Raises:
            StageError: when the checkpoint cannot be loaded for this task, or there is no GPU.
        """
        super().__enter__()
        started = time.perf_counter()
        loaded = self._require_loaded()
        self._placed = PlacedModel(loaded, self._variant, device=self._device)
        self._load_time_ms += (time.perf_counter() - started) * 1e3
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let go of the module and its memory."""
        self._placed = None
        super().__exit__(kind, error, traceback)

    @property
    def outputs(self) -> tuple[ModelTensor, ...]:
        """The module's results with their leading axes, by which padding is told from the rest."""
        return tuple(
            ModelTensor(name=spec.name, dtype="float32", shape=spec.axes)
            for spec in self._require_loaded().outputs
        )

    @property
    def session(self) -> str:
        """Such as `torch 2.13.0 float16, compiled, NVIDIA L4`."""
        if self._placed is None:
            raise RuntimeError("TorchVariantRunner is used outside of its `with` block")
        return self._placed.description

    def _compute(
        self, loaded: TorchComponent, tensors: Sequence[torch.Tensor]
    ) -> Sequence[torch.Tensor]:
        del loaded
        if self._placed is None:
            raise RuntimeError("TorchVariantRunner is used outside of its `with` block")
        return self._placed(self._placed.prepare(tensors))
