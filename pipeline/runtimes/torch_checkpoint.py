"""Refuses checkpoints that transformers would load as something else than their authors mean."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from pipeline.data.stored_tensors import stored_tensors
from pipeline.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from transformers import PreTrainedModel


def require_config(checkpoint: Path) -> None:
    """Look at `config.json`.

    Raises:
        ExportError: it cannot be read, or does not say which model it is of.
    """
    path = checkpoint / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise ExportError(f"config.json cannot be read: {err}", where=path.name) from err
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ExportError(
            "config.json has no `model_type`, so the model's class is not known", where=path.name
        )


def require_safetensors(checkpoint: Path) -> None:
    """Open every weight file, which checks that the header and the length of the file agree.

    Raises:
        ExportError: there is none, or one is damaged.
    """
    files = sorted(checkpoint.glob("*.safetensors"))
    if not files:
        raise ExportError(
            "the checkpoint has no weights in safetensors format; pickled weights can run code "
            "and are not read",
            hint="convert them once with `save_pretrained(..., safe_serialization=True)`",
        )
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as err:
            raise ExportError(f"truncated or damaged weights: {err}", where=file.name) from err


def require_floats(checkpoint: Path, model: PreTrainedModel) -> None:
    """Refuse integers where weights are floats: without their scales they are other numbers.

    Raises:
        ExportError: naming the first.
    """
    floats = {name for name, weight in model.named_parameters() if weight.is_floating_point()}
    found = sorted(
        (name, tensor.dtype)
        for file in sorted(checkpoint.glob("*.safetensors"))
        for name, tensor in stored_tensors(file).items()
        if name in floats and not tensor.dtype.startswith(("F", "BF"))
    )
    if found:
        name, dtype = found[0]
        others = f", and {len(found) - 1} more" if len(found) > 1 else ""
        raise ExportError(
            f"weights of the checkpoint are integers: `{name}` is {dtype}{others}",
            hint="give the checkpoint that it was quantised from, in floats",
        )


def require_shapes(mismatched: Collection[tuple[str, Sequence[int], Sequence[int]]]) -> None:
    """Refuse weights that config.json says have another shape.

    Args:
        mismatched: Name, shape in the checkpoint, shape in the model.

    Raises:
        ExportError: naming the first.
    """
    if not mismatched:
        return
    name, stored, wanted = min(mismatched, key=lambda one: one[0])
    others = len(mismatched) - 1
    raise ExportError(
        "weights have another shape than config.json gives them: "
        f"`{name}` is {tuple(stored)}, the model's is {tuple(wanted)}"
        + (f", and {others} more" if others else ""),
        hint="config.json and the weights are not of one model; fetch both again",
    )
