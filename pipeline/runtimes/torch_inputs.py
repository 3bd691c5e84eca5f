"""What a torch model takes: which of the task's inputs, which values, and example tensors of them."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from pipeline.errors import ExportError
from pipeline.tasks import (
    BATCH_AXIS,
    CHOICES_AXIS,
    ENCODER,
    ENCODER_AXIS,
    PAST_AXIS,
    SEQUENCE_AXIS,
    TOTAL_AXIS,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedModel

    from pipeline.tasks import Task, TensorSpec

EXAMPLE_SIZES: Final[Mapping[str, int]] = {
    BATCH_AXIS: 2,
    CHOICES_AXIS: 3,
    SEQUENCE_AXIS: 11,
    PAST_AXIS: 7,
    ENCODER_AXIS: 13,
}
"""Axis -> its size in example tensors. The sequence is prime, and unlike the sizes that models are
built from, so that no axis of fixed size is mistaken for it. A cache is not empty, as an empty one
would be traced as none."""

EXAMPLE_LEFT_PADDING: Final = 2
"""Positions of a decoder's last example row that are padding, at its beginning."""


def example_sizes(sizes: Mapping[str, int]) -> dict[str, int]:
    """The usual sizes where none are given; what attention looks at is the cache and the new tokens."""
    chosen = {**EXAMPLE_SIZES, **sizes}
    return {TOTAL_AXIS: chosen[PAST_AXIS] + chosen[SEQUENCE_AXIS], **chosen}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInput:
    """One input of a torch model.

    Attributes:
        spec: Its name, named axes and dtype.
        fixed: Sizes of the axes behind the named ones, such as channels, height and width.
        limit: Its integers are below this number; None for measured values.
    """

    spec: TensorSpec
    fixed: tuple[int, ...] = ()
    limit: int | None = None

    @property
    def shape(self) -> tuple[int | str, ...]:
        """A name for each free axis, a number for each fixed one."""
        return (*self.spec.axes, *self.fixed)

    def _shape_of(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in self.shape)

    def example(self, sizes: Mapping[str, int]) -> torch.Tensor:
        """A fresh tensor that no other input's example is equal to.

        Integers count up from an offset made of the name; a mask ends in the middle of its last
        row, because an all-ones mask can be folded away, and one that covers a cache begins late in
        it, because that is how batches of prompts are padded; positions go on where the cache ends;
        measured values are a wave within [-1, 1].

        Args:
            sizes: Size of each named axis.
        """
        shape = self._shape_of(sizes)
        count = torch.arange(math.prod(shape), dtype=torch.int64).reshape(shape)
        offset = sum(map(ord, self.spec.name))
        if self.spec.name in {"attention_mask", "encoder_attention_mask"}:
            mask = torch.ones_like(count)
            if TOTAL_AXIS in self.spec.axes:
                mask[-1, :EXAMPLE_LEFT_PADDING] = 0
            else:
                mask[-1, ..., shape[-1] // 2 + 1 :] = 0
            return mask
        if self.spec.name == "position_ids":
            places = torch.arange(sizes[PAST_AXIS], sizes[PAST_AXIS] + shape[-1])
            positions = places.expand(shape).clone()
            positions[-1] = (positions[-1] - EXAMPLE_LEFT_PADDING).clamp(min=0)
            return positions
        if self.limit is None:
            return torch.sin(count.to(torch.float64) + offset).to(getattr(torch, self.spec.dtype))
        return (count + offset) % self.limit


def inputs_taken(
    model: PreTrainedModel, task: Task, image_size: tuple[int, ...] | None
) -> tuple[ModelInput, ...]:
    """The task's inputs that `forward` takes.

    `token_type_ids` is left out when the model does not have two types or more: it could only ever
    be 0, and Optimum leaves it out too.

    Args:
        model: A loaded model.
        task: What it was loaded for.
        image_size: Channels, height and width of one image, or bins and frames of a sound; None for
            text.

    Raises:
        ExportError: when the model does not take what every model of the task takes.
    """
    accepted = inspect.signature(model.forward).parameters
    types = getattr(model.config, "type_vocab_size", None) or 0
    part = task.part(ENCODER)  # of one graph, the whole
    taken = [spec for spec in part.inputs if spec.name in accepted]
    if types < 2:
        taken = [spec for spec in taken if spec.name != "token_type_ids"]
    names = {spec.name for spec in taken}
    absent = [name for name in part.required if name not in names]
    if absent:
        raise ExportError(
            f"{type(model).__name__} takes no `{absent[0]}`, which task `{task.name}` needs",
            hint="decoders that take no position ids, such as Bloom, or keep no keys and values, "
            "such as Mamba and RWKV, are not converted"
            if task.has_cache
            else "",
        )
    limits = {"attention_mask": 2, "token_type_ids": types}
    positions = longest_sequence(model) if "position_ids" in names else None
    if positions is not None:
        limits["position_ids"] = positions
    if task.modality == "text":
        limits["input_ids"] = model.config.vocab_size
    return tuple(
        ModelInput(
            spec=spec,
            fixed=image_size if image_size is not None and spec.dtype == "float32" else (),
            limit=limits.get(spec.name),
        )
        for spec in taken
    )


def longest_sequence(model: PreTrainedModel) -> int | None:
    """How many tokens the table of learnt positions has room for.

    Models that count positions from the padding index on (RoBERTa) declare it as the table's
    `padding_idx`, and lose it and all before it.
    """
    for name, part in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(part, nn.Embedding):
            return part.num_embeddings - (0 if part.padding_idx is None else part.padding_idx + 1)
    positions = getattr(model.config, "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None
