"""A decoder of `transformers` with its cache as plain tensors: one module for prefill and decode.

Keys and values go in as `past_key_values.N.key` and `.value`, (batch, KV heads, past, head size),
and come out as `present.N.key` and `.value`, longer by the new tokens. The past may be empty. Heads
that share keys and values (GQA, MQA) stay shared. Names are Optimum's.
Source: `optimum.exporters.onnx.base.OnnxConfigWithPast`, optimum-onnx.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from pipeline.errors import ExportError
from pipeline.tasks import BATCH_AXIS, PAST_AXIS, TOTAL_AXIS, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from pipeline.runtimes.torch_model import TorchComponent

KINDS: Final = ("key", "value")
FIRST_CACHE_INPUT: Final = 3
"""Positional arguments before the cache: `input_ids`, `attention_mask` and `position_ids`."""
AGREEMENT: Final = 1e-3
"""How far outputs with a cache may be from those without, of the largest output.

Both are float32 and add up the same numbers in another order, which is a thousandth of this. A model
that ignores its cache, its mask or its positions is off by as much as the outputs themselves.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLayout:
    """Which tensors a model's cache consists of.

    Attributes:
        inputs: `past_key_values.N.key` and `.value`, layer by layer.
        outputs: `present.N.key` and `.value`, layer by layer.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def layers(self) -> int:
        """How many layers keep keys and values."""
        return len(self.inputs) // len(KINDS)


class CachedDecoder(nn.Module):
    """A causal language model with positional tensors in and a tuple of tensors out.

    Args:
        model: The model, in evaluation mode.
        layers: How many layers keep keys and values.
    """

    def __init__(self, model: nn.Module, *, layers: int) -> None:
        super().__init__()
        self.model = model
        self.layers = layers

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits of the new tokens, then keys and values of all tokens.

        Args:
            tensors: `input_ids` and `position_ids`, int64 (batch, sequence), around
                `attention_mask`, int64 (batch, past + sequence); then for each layer keys and
                values, float32 (batch, KV heads, past, head size).
        """
        from transformers import DynamicCache

        ids, mask, positions, *past = tensors
        # The trace cannot know that these lengths belong together, and would guard each use.
        is_whole = mask.shape[1] == past[0].shape[2] + ids.shape[1]
        torch._check(is_whole)  # type: ignore[no-untyped-call]  # noqa: SLF001
        # Without the model's config every layer keeps all tokens, those with a sliding window too:
        # their window is in the mask. With it they would forget what a longer step needs.
        cache = DynamicCache()
        for layer in range(self.layers):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        result = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            return_dict=True,
        )
        present = [
            tensor
            for layer in result.past_key_values.layers
            for tensor in (layer.keys, layer.values)
        ]
        return (result.logits, *present)


def find_cache(model: PreTrainedModel) -> CacheLayout:
    """Run a model once without a past, and look at the cache that it leaves.

    Shapes are all that is asked for, and so the model is run without numbers. Where it looks at a
    number on the way it is run with them.

    Raises:
        ExportError: when the model keeps no cache, or one that is not keys and values of every
            token.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    name = type(model).__name__
    batch, length = 2, 5
    errors = (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            filled = _filled_cache(model, batch, length)
    except errors:
        try:
            filled = _filled_cache(model, batch, length)
        except errors as err:
            raise ExportError(f"{name} does not take a cache of keys and values: {err}") from err
    layers = getattr(filled, "layers", None) or []
    sizes = [
        [_sizes(layer, place, batch, length) for place in ("keys", "values")] for layer in layers
    ]
    if not sizes or any(size is None for pair in sizes for size in pair):
        raise ExportError(
            f"{name} keeps no cache of the keys and values of every token in every layer, which "
            "task `text-generation` needs",
            hint="models with states (Mamba), linear attention or no cache cannot be converted",
        )
    inputs, outputs = [], []
    for number, pair in enumerate(sizes):
        for kind, size in zip(KINDS, pair, strict=True):
            assert size is not None
            heads, width = size
            inputs.append(
                TensorSpec(
                    name=f"past_key_values.{number}.{kind}",
                    axes=(BATCH_AXIS, heads, PAST_AXIS, width),
                    dtype="float32",
                )
            )
            outputs.append(
                TensorSpec(
                    name=f"present.{number}.{kind}",
                    axes=(BATCH_AXIS, heads, TOTAL_AXIS, width),
                    dtype="float32",
                )
            )
    return CacheLayout(inputs=tuple(inputs), outputs=tuple(outputs))


def _filled_cache(model: PreTrainedModel, batch: int, length: int) -> object:
    from transformers import DynamicCache

    ids = torch.arange(batch * length).reshape(batch, length) % model.config.vocab_size
    with torch.no_grad():
        result = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            position_ids=torch.arange(length).expand(batch, length),
            past_key_values=DynamicCache(),
            use_cache=True,
            return_dict=True,
        )
    return result.past_key_values


def _sizes(layer: object, place: str, batch: int, length: int) -> tuple[int, int] | None:
    """KV heads and head size; None when these are not keys or values of every token."""
    tensor = getattr(layer, place, None)
    if not isinstance(tensor, torch.Tensor) or tensor.ndim != 4:
        return None
    if tensor.shape[0] != batch or tensor.shape[2] != length:
        return None
    return int(tensor.shape[1]), int(tensor.shape[3])


def require_cache_agreement(loaded: TorchComponent) -> None:
    """Refuse a model that gives other outputs with a cache, or beside padding, than without.

    The beginning of a text and its end are run one after the other, in a batch in which it is padded
    on the left; and the text is run at once, alone. Models that are not causal, or do not go by
    `attention_mask` and `position_ids`, show here, before anything is exported.

    Raises:
        ExportError: when they differ, or are no numbers.
    """
    past, new = 4, 3
    names = loaded.input_names
    whole = dict(zip(names, loaded.example(past_sequence=0, sequence=past + new), strict=True))
    empty = [whole[name] for name in names[FIRST_CACHE_INPUT:]]
    padded = int((whole["attention_mask"][-1] == 0).sum())

    def run(
        rows: slice, tokens: slice, seen: slice, states: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        result: tuple[torch.Tensor, ...] = loaded.module(
            whole["input_ids"][rows, tokens],
            whole["attention_mask"][rows, seen],
            whole["position_ids"][rows, tokens],
            *states,
        )
        return result

    every, last, text = slice(None), slice(-1, None), slice(padded, None)
    with torch.no_grad():
        alone = run(last, text, text, [state[last] for state in empty])[0][0]
        _require_numbers(loaded, alone)
        first = run(every, slice(past), slice(past), empty)
        second = run(every, slice(past, None), every, first[1:])
        in_steps = torch.cat([first[0], second[0]], dim=1)[-1, padded:]
        if _agree(in_steps, alone):
            return
        # Which of the two it is: the same batch, at once.
        beside = run(every, every, every, empty)[0][-1, padded:]
    how = "with a cache" if _agree(beside, alone) else "beside padding on the left"
    other = in_steps if _agree(beside, alone) else beside
    raise ExportError(
        f"the model gives other logits {how} than without: "
        f"{float((other - alone).abs().max()):.3g} apart, where the largest is "
        f"{float(alone.abs().max()):.3g}",
        hint="the architecture is not causal, or does not go by `attention_mask` and "
        "`position_ids` alone; it cannot be exported with a cache",
    )


def _require_numbers(loaded: TorchComponent, logits: torch.Tensor) -> None:
    """Refuse NaN and infinity, which agree with nothing; and say which weights hold them.

    Raises:
        ExportError: naming the first such weight that is in memory.
    """
    if bool(torch.isfinite(logits).all()):
        return
    bad = [
        name
        for name, weight in loaded.module.named_parameters()
        if weight.device.type != "meta" and not bool(torch.isfinite(weight).all())
    ]
    more = f", and so do {len(bad) - 1} others" if len(bad) > 1 else ""
    first = bad[0].removeprefix("model.") if bad else ""
    names = f": weight `{first}` holds some{more}" if bad else ""
    raise ExportError(
        f"the checkpoint's own logits in torch float32 are no numbers (NaN or infinity){names}",
        hint="the checkpoint is damaged, or was saved when its training had failed"
        if bad
        else "its weights are numbers, and what it computes of them is too large for float32",
    )


def _agree(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether logits are the same but for rounding; numbers that are none agree with nothing."""
    return bool((one - other).abs().max() <= AGREEMENT * other.abs().max())
