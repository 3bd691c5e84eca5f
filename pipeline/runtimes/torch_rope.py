"""Rotary embeddings whose frequencies go by the length of the text, as a function that can be traced.

transformers looks the length up while a model runs, and keeps the frequencies that it found in the
module: `longrope` (Phi) has a second set beyond the length of its first training, `dynamic` stretches
them beyond `max_position_embeddings`. Both are written here as values of `position_ids`, without a memory of
earlier texts, and the model's own rotation is given them.
Source: `transformers.modeling_rope_utils.dynamic_rope_update`, transformers 5.23.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KINDS: Final = ("dynamic", "longrope")


class RopeOfLength(nn.Module):
    """The rotation of another module, with frequencies from the largest position of a call.

    Args:
        inner: Of transformers, for all layers alike; its `rope_type` is one of `KINDS`.
    """

    beyond: torch.Tensor
    """Frequencies of long texts, of `longrope`."""

    def __init__(self, inner: Any) -> None:
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        super().__init__()
        self.inner = inner
        self._rotate = inspect.unwrap(type(inner).forward)
        self._frequencies = ROPE_INIT_FUNCTIONS[inner.rope_type]
        self._border = 0
        if inner.rope_type == "longrope":
            self._border = int(inner.config.rope_parameters["original_max_position_embeddings"])
            beyond, _ = self._frequencies(inner.config, seq_len=self._border + 1)
            self.register_buffer("beyond", beyond, persistent=False)

    def forward(
        self, x: torch.Tensor, position_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, (batch, length, size) each, of positions int64 (batch, length)."""
        length = position_ids.max() + 1
        if self.inner.rope_type == "longrope":
            within = self.inner.original_inv_freq
            frequencies = torch.where(length > self._border, self.beyond, within)
        else:
            frequencies, _ = self._frequencies(self.inner.config, x.device, seq_len=length)
        found: tuple[torch.Tensor, torch.Tensor] = self._rotate(
            _With(self.inner, frequencies), x, position_ids
        )
        return found


class _With:
    """A module as its own methods see it, but for its frequencies."""

    def __init__(self, module: nn.Module, frequencies: torch.Tensor) -> None:
        self._module = module
        self.inv_freq = frequencies

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def make_rope_traceable(model: PreTrainedModel) -> None:
    """Wrap every such module of a model; what others compute is as before."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if getattr(child, "rope_type", None) in KINDS and not isinstance(parent, RopeOfLength):
                setattr(parent, name, RopeOfLength(child))
