"""A checkpoint that is run module by module: of a large one memory holds what is computed with just now.

Each module reads its weights when it runs and drops them (`pipeline.runtimes.torch_mapped`). The numbers
are those of the whole model in memory, bit for bit; every run reads the checkpoint once more.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pipeline.data.stored_tensors import stored_tensors
from pipeline.runtimes.torch_model import load_torch_model
from pipeline.stages.base import INLINE_LIMIT_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.runtimes.torch_model import TorchComponent

_WIDTH = 4
"""Bytes of a float32."""


def load_streamed(
    checkpoint: Path,
    task: str,
    component: str,
    *,
    scratch: Path,
    attention: str | None = None,
    limit: int = INLINE_LIMIT_BYTES,
    log: Callable[[str], None] | None = None,
) -> TorchComponent:
    """Load a component; of a large checkpoint the numbers of weights stay in its files.

    Args:
        checkpoint: As for `load_torch_model`.
        task: As there.
        component: As there.
        attention: As there.
        scratch: An existing directory, in which files are made that take no room and must last as
            long as the result.
        limit: Bytes of float32 weights above which they stay there.
        log: Is told when they cannot stay, and memory must hold them all.

    Returns:
        The component; run it within `at_hand`.

    Raises:
        ExportError: as `load_torch_model`, and its other errors.
    """
    if _float32_bytes(checkpoint) <= limit:
        return load_torch_model(checkpoint, task, component, attention=attention)
    own = Path(tempfile.mkdtemp(prefix="stand-in-", dir=scratch))
    loaded = load_torch_model(checkpoint, task, component, attention=attention, scratch=own)
    if loaded.mapped is None and log is not None:
        log("all weights are in memory: not each one is in one place of the files")
    return loaded


def at_hand(
    loaded: TorchComponent, dtype: torch.dtype = torch.float32
) -> contextlib.AbstractContextManager[None]:
    """Within it a component can be run, whether its weights are in memory or not.

    Args:
        loaded: What `load_streamed` gave.
        dtype: In which it is to be run; `loaded.module.to(dtype)` is for the caller to call, within.
    """
    if loaded.mapped is None:
        return contextlib.nullcontext()
    return loaded.mapped.at_hand(loaded.module, dtype=dtype)


def _float32_bytes(checkpoint: Path) -> int:
    return _WIDTH * sum(
        tensor.size
        for file in checkpoint.glob("*.safetensors")
        for tensor in stored_tensors(file).values()
    )
