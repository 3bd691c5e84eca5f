"""What sentence-transformers adds behind a transformer: pooling and normalisation, as a module.

Only what a graph can reproduce exactly is accepted; anything else is an error, never an
approximation. Formulas: `sentence_transformers.sentence_transformer.modules.pooling` and
`sentence_transformers.base.modules.normalize`, sentence-transformers 6.2.0.
"""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final, cast

import torch
from torch import nn

from pipeline.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MODULES_FILE: Final = "modules.json"
POOLING_MODES: Final = ("cls", "max", "mean")
_LEGACY_MODES: Final = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""One flag a mode, in the order in which several are concatenated (before version 5.5)."""


class SentencePooling(nn.Module):
    """Pools token vectors into one vector a sentence, and brings it to length 1 if asked.

    Args:
        modes: Of `POOLING_MODES`; the results of several are concatenated in this order.
        is_normalized: Divide by the L2 norm (at least 1e-12) in the end.
    """

    def __init__(self, modes: tuple[str, ...], *, is_normalized: bool) -> None:
        super().__init__()
        self.modes = modes
        self.is_normalized = is_normalized

    def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Pool `hidden`, float (batch, sequence, width), where `attention_mask` is not 0.

        Returns:
            float (batch, width * number of modes).
        """
        pooled = torch.cat([_POOL[mode](hidden, attention_mask) for mode in self.modes], dim=-1)
        return nn.functional.normalize(pooled, p=2.0, dim=-1) if self.is_normalized else pooled


def _mean(hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    mask = attention_mask.unsqueeze(-1).to(hidden.dtype)  # (batch, sequence, 1)
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)


def _max(hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    return hidden.masked_fill(attention_mask.unsqueeze(-1) == 0, float("-inf")).amax(dim=1)


def _cls(hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    # The first token that is not padding, wherever the padding is. Float, because TensorRT and
    # older runtimes have no ArgMax of int64.
    first = attention_mask.to(hidden.dtype).argmax(dim=1)  # (batch,)
    index = first[:, None, None].expand(-1, 1, hidden.shape[-1])
    return hidden.gather(1, index).squeeze(1)


_POOL: Final = {"cls": _cls, "max": _max, "mean": _mean}


def load_sentence_pooling(checkpoint: Path) -> SentencePooling | None:
    """The pooling that `modules.json` declares; None when the checkpoint has no such file.

    Raises:
        ExportError: when a file is not as expected, or declares what cannot be reproduced exactly.
    """
    path = checkpoint / MODULES_FILE
    if not path.is_file():
        return None
    modules = _read_json(path)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ExportError("modules.json is not a list of modules", where=MODULES_FILE)
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    folders = [str(module.get("path", "")) for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ExportError(
            f"modules.json declares {' -> '.join(kinds) or 'nothing'}; supported is Transformer -> "
            "Pooling [-> Normalize]",
            where=MODULES_FILE,
            hint="remove modules.json from a copy of the checkpoint to export the token vectors "
            "alone",
        )
    if folders[0] not in {"", "."}:
        raise ExportError(
            f"the transformer is in the folder `{folders[0]}`, not beside modules.json",
            where=MODULES_FILE,
        )
    modes = _pooling_modes(checkpoint, folders[1])
    return SentencePooling(modes, is_normalized="Normalize" in kinds)


def _pooling_modes(checkpoint: Path, folder: str) -> tuple[str, ...]:
    relative = PurePosixPath(folder) / "config.json"
    _require_inside(relative)
    where = str(relative)
    config = _read_json(checkpoint / relative)
    if not isinstance(config, dict):
        raise ExportError("the pooling's config.json is not an object", where=where)
    if config.get("include_prompt") is False:
        raise ExportError(
            "`include_prompt: false` leaves the prompt out of the pooling; a graph that gets "
            "tokens cannot know where the prompt ends",
            where=where,
        )
    modes = _declared_modes(config)
    unsupported = [mode for mode in modes if mode not in POOLING_MODES]
    if unsupported:
        raise ExportError(
            f"pooling mode `{unsupported[0]}` is not supported; supported are "
            f"{', '.join(POOLING_MODES)}",
            where=where,
        )
    return modes


def _declared_modes(config: Mapping[str, object]) -> tuple[str, ...]:
    """As sentence-transformers reads it: `pooling_mode` wins; without any, the mean."""
    mode = config.get("pooling_mode")
    if isinstance(mode, str):
        return (mode,)
    if isinstance(mode, list) and mode:
        return tuple(str(name) for name in mode)
    legacy = tuple(name for key, name in _LEGACY_MODES.items() if config.get(key) is True)
    return legacy or ("mean",)


def _require_inside(relative: PurePosixPath) -> None:
    if relative.is_absolute() or ".." in relative.parts:
        raise ExportError(f"`{relative}` leads out of the checkpoint", where=MODULES_FILE)


def _read_json(path: Path) -> object:
    try:
        return cast("object", json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as err:
        raise ExportError(f"cannot be read as JSON: {err}", where=path.name) from err
