"""An encoder with a decoder of `transformers` as two modules of plain tensors, cut where the text is.

The encoder gives its last hidden state and `present.N.encoder.key` and `.value`: what the decoder's
layers look at of the source, computed once. The decoder takes them as `past_key_values.N.encoder.*`,
and its own tokens' as `past_key_values.N.decoder.*`, which come out longer as `present.N.decoder.*`.
The past may be empty. Every weight is in one of the two. Names are Optimum's.
Source: `optimum.exporters.onnx.base.OnnxSeq2SeqConfigWithPast`, optimum-onnx. Why they are cut so:
`docs/decisions/0009-encoders-with-decoders.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from pipeline.errors import ExportError
from pipeline.runtimes.torch_decoder import AGREEMENT, KINDS
from pipeline.runtimes.torch_inputs import ModelInput
from pipeline.tasks import (
    BATCH_AXIS,
    DECODER,
    ENCODER,
    ENCODER_AXIS,
    PAST_AXIS,
    SEQUENCE_AXIS,
    TOTAL_AXIS,
    TensorSpec,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from pipeline.tasks import Task

MASK: Final = "attention_mask"
SOURCE_MASK: Final = "encoder_attention_mask"
IDS: Final = "input_ids"
FEATURES: Final = "input_features"
_ERRORS = (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLayout:
    """Which tensors go from an encoder to its decoder, and from one step to the next.

    Attributes:
        made: `present.N.encoder.key` and `.value`, as the encoder gives them.
        crossed: `past_key_values.N.encoder.key` and `.value`, as the decoder takes them.
        past, present: `past_key_values.N.decoder.*` and `present.N.decoder.*`.
        layers: How many layers the decoder has.
    """

    made: tuple[TensorSpec, ...]
    crossed: tuple[TensorSpec, ...]
    past: tuple[TensorSpec, ...]
    present: tuple[TensorSpec, ...]

    @property
    def layers(self) -> int:
        """How many layers keep keys and values."""
        return len(self.past) // len(KINDS)


class CrossEncoder(nn.Module):
    """The encoder with the part of the decoder's layers that reads the source and nothing else.

    A decoder step fills the cache of cross-attention; what else it computes reaches no output, so no
    graph has it.

    Args:
        model: The whole model, in evaluation mode.
        input_names: Names of the positional arguments of `forward`.
    """

    def __init__(self, model: PreTrainedModel, *, input_names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.input_names = input_names

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The last hidden state, then keys and values of the source for every decoder layer."""
        from transformers import DynamicCache, EncoderDecoderCache

        feeds = dict(zip(self.input_names, tensors, strict=True))
        model: Any = self.model
        states = model.get_encoder()(**feeds, return_dict=True).last_hidden_state
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        model.get_decoder()(
            input_ids=torch.zeros(states.shape[0], 1, dtype=torch.int64),
            encoder_hidden_states=states,
            past_key_values=cache,
            use_cache=True,
            return_dict=True,
        )
        layers = cache.cross_attention_cache.layers
        return (states, *(tensor for layer in layers for tensor in (layer.keys, layer.values)))


class CrossDecoder(nn.Module):
    """A decoder behind an encoder, with positional tensors in and a tuple of tensors out.

    Args:
        model: The whole model, in evaluation mode.
        layers: How many layers the decoder has.
        is_masked: It takes `encoder_attention_mask`.
    """

    def __init__(self, model: PreTrainedModel, *, layers: int, is_masked: bool) -> None:
        super().__init__()
        self.model = model
        self.layers = layers
        self.is_masked = is_masked

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits of the new tokens, then keys and values of all the decoder's tokens.

        Args:
            tensors: `input_ids`, int64 (batch, sequence); `encoder_attention_mask`, int64 (batch,
                source), where the model takes it; then for each layer its own keys and values, float32
                (batch, heads, past, head size), and those of the source (batch, heads, source, head size).
        """
        from transformers import DynamicCache, EncoderDecoderCache
        from transformers.modeling_outputs import BaseModelOutput

        ids, *rest = tensors
        mask = rest.pop(0) if self.is_masked else None
        own, cross = DynamicCache(), DynamicCache()
        for layer in range(self.layers):
            own.update(rest[4 * layer], rest[4 * layer + 1], layer)
            cross.update(rest[4 * layer + 2], rest[4 * layer + 3], layer)
        cache = EncoderDecoderCache(own, cross)
        # Also of a source that is being traced, whose length is a symbol.
        cache.is_updated = dict.fromkeys(range(self.layers), True)
        # The source is in the cache; of its states only the shape is asked for.
        keys = rest[2]
        states = keys.new_zeros(keys.shape[0], keys.shape[2], 1)
        given = {} if mask is None else {MASK: mask}
        result = self.model(
            **given,
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            decoder_input_ids=ids,
            past_key_values=cache,
            use_cache=True,
            return_dict=True,
        )
        present = [tensor for layer in own.layers for tensor in (layer.keys, layer.values)]
        return (result.logits, *present)


def find_pair(model: PreTrainedModel, sources: Sequence[ModelInput]) -> PairLayout:
    """Run a model once on a short source, and look at the caches that it leaves.

    Args:
        model: An encoder with a decoder.
        sources: What the encoder takes.

    Raises:
        ExportError: when the decoder does not keep keys and values of every token and of the source
            in every layer.
    """
    from transformers import DynamicCache, EncoderDecoderCache

    name = type(model).__name__
    sizes = {BATCH_AXIS: 2, SEQUENCE_AXIS: 5}
    feeds = {taken.spec.name: taken.example(sizes) for taken in sources}
    new = 3
    ids = torch.arange(2 * new).reshape(2, new) % model.config.vocab_size
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    try:
        with torch.no_grad():
            result = model(
                **feeds,
                decoder_input_ids=ids,
                past_key_values=cache,
                use_cache=True,
                return_dict=True,
            )
        states, filled = result.encoder_last_hidden_state, result.past_key_values
        own = [
            _sizes(layer, sizes[BATCH_AXIS], new) for layer in filled.self_attention_cache.layers
        ]
        cross = [
            _sizes(layer, sizes[BATCH_AXIS], states.shape[1])
            for layer in filled.cross_attention_cache.layers
        ]
    except _ERRORS as err:
        raise ExportError(
            f"{name} does not take a cache of keys and values beside its source's: {err}"
        ) from err
    if not own or len(own) != len(cross) or None in own or None in cross:
        raise ExportError(
            f"{name} keeps no cache of the keys and values of every token and of the source in every "
            "layer of its decoder, which the task needs",
            hint="models with states, with latent attention or without a cache cannot be converted",
        )
    is_free = SEQUENCE_AXIS in sources[0].spec.axes
    here = SEQUENCE_AXIS if is_free else int(states.shape[1])
    there = ENCODER_AXIS if is_free else int(states.shape[1])
    return PairLayout(
        made=_specs("present.{}.encoder.{}", cross, here),
        crossed=_specs("past_key_values.{}.encoder.{}", cross, there),
        past=_specs("past_key_values.{}.decoder.{}", own, PAST_AXIS),
        present=_specs("present.{}.decoder.{}", own, TOTAL_AXIS),
    )


def _specs(
    name: str, sizes: Sequence[tuple[int, int, int] | None], axis: str | int
) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            name=name.format(number, kind),
            axes=(BATCH_AXIS, size[0], axis, size[1 + place]),
            dtype="float32",
        )
        for number, size in enumerate(sizes)
        if size is not None
        for place, kind in enumerate(KINDS)
    )


def _sizes(layer: object, batch: int, length: int) -> tuple[int, int, int] | None:
    """Heads and the sizes of a key and a value; None when these are not of every token."""
    found = []
    for place in ("keys", "values"):
        tensor = getattr(layer, place, None)
        if not isinstance(tensor, torch.Tensor) or tensor.ndim != 4:
            return None
        if tensor.shape[0] != batch or tensor.shape[2] != length:
            return None
        found.append(tensor.shape)
    return int(found[0][1]), int(found[0][3]), int(found[1][3])


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Both components of one loaded model.

    Attributes:
        layout: The tensors between them.
        encoder, decoder: The modules.
        sources: What the encoder takes.
        takes: What the decoder takes.
        encoded, decoded: What they give.
    """

    layout: PairLayout
    encoder: CrossEncoder
    decoder: CrossDecoder
    sources: tuple[ModelInput, ...]
    takes: tuple[ModelInput, ...]
    encoded: tuple[TensorSpec, ...]
    decoded: tuple[TensorSpec, ...]

    def of(
        self, component: str
    ) -> tuple[nn.Module, tuple[ModelInput, ...], tuple[TensorSpec, ...]]:
        """Module, inputs and outputs of one of the two."""
        if component == ENCODER:
            return self.encoder, self.sources, self.encoded
        return self.decoder, self.takes, self.decoded


def cut_in_two(model: PreTrainedModel, task: Task, sources: tuple[ModelInput, ...]) -> Pair:
    """An encoder with a decoder as two modules that were held against the whole.

    Args:
        model: Loaded, in evaluation mode.
        task: A task with `parts`.
        sources: What the encoder takes.

    Raises:
        ExportError: when the model keeps no such cache, or gives other outputs with it.
    """
    layout = find_pair(model, sources)
    part = task.part(DECODER)
    is_masked = SOURCE_MASK in part.required
    limits = {IDS: model.config.vocab_size, SOURCE_MASK: 2}
    crossing = [
        spec
        for layer in range(layout.layers)
        for spec in (
            *layout.past[2 * layer : 2 * layer + 2],
            *layout.crossed[2 * layer : 2 * layer + 2],
        )
    ]
    states = task.part(ENCODER).outputs
    pair = Pair(
        layout=layout,
        encoder=CrossEncoder(
            model, input_names=tuple(taken.spec.name for taken in sources)
        ).eval(),
        decoder=CrossDecoder(model, layers=layout.layers, is_masked=is_masked).eval(),
        sources=sources,
        takes=(
            *(ModelInput(spec=spec, limit=limits[spec.name]) for spec in part.inputs),
            *(ModelInput(spec=spec) for spec in crossing),
        ),
        encoded=(*states, *layout.made),
        decoded=(*part.outputs, *layout.present),
    )
    try:
        require_pair_agreement(pair, model)
    except _ERRORS as err:
        raise ExportError(
            f"{type(model).__name__} cannot be run in two parts: {err}",
            hint="its decoder takes more than tokens, a mask of the source and a cache",
        ) from err
    return pair


def require_pair_agreement(pair: Pair, model: PreTrainedModel) -> None:
    """Refuse a model that gives other logits in two parts, with a cache or beside padding.

    A batch is run by the model as it is. Then its source by the encoder, and the beginning and the end
    of its target by the decoder, one after the other. The last source is padded; it is run alone too.

    Raises:
        ExportError: when they differ.
    """
    past, new, source = 4, 3, 9
    sizes = {BATCH_AXIS: 2, SEQUENCE_AXIS: source}
    feeds = {taken.spec.name: taken.example(sizes) for taken in pair.sources}
    ids = torch.arange(7, 7 + 2 * (past + new)).reshape(2, past + new) % model.config.vocab_size
    mask = feeds.get(MASK)

    def decode(
        rows: slice,
        tokens: slice,
        seen: torch.Tensor | None,
        own: Sequence[torch.Tensor],
        crossed: Sequence[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        states = [
            tensor
            for layer in range(pair.layout.layers)
            for tensor in (*own[2 * layer : 2 * layer + 2], *crossed[2 * layer : 2 * layer + 2])
        ]
        given = [] if seen is None else [seen]
        result: tuple[torch.Tensor, ...] = pair.decoder(ids[rows, tokens], *given, *states)
        return result

    def empty(rows: int) -> list[torch.Tensor]:
        shapes = [(int(s.axes[1]), int(s.axes[3])) for s in pair.layout.past]
        return [torch.zeros(rows, heads, 0, width) for heads, width in shapes]

    every, last = slice(None), slice(-1, None)
    differences = []
    with torch.no_grad():
        expected = model(**feeds, decoder_input_ids=ids, use_cache=False, return_dict=True).logits
        _, *crossed = pair.encoder(*feeds.values())
        first = decode(every, slice(past), mask, empty(2), crossed)
        second = decode(every, slice(past, None), mask, first[1:], crossed)
        in_steps = torch.cat([first[0], second[0]], dim=1)
        differences.append((in_steps - expected, "with a cache"))
        if mask is not None:
            length = int(mask[-1].sum())
            short = {name: tensor[last, :length] for name, tensor in feeds.items()}
            _, *crossed = pair.encoder(*short.values())
            alone = decode(last, every, short[MASK], empty(1), crossed)
            differences.append((alone[0] - expected[last], "beside padding"))
    largest = float(expected.abs().max())
    for tensor, how in differences:
        difference = float(tensor.abs().max())
        if not difference <= AGREEMENT * largest:
            raise ExportError(
                f"the model gives other logits {how} than without: {difference:.3g} apart, where the "
                f"largest is {largest:.3g}",
                hint="its decoder is not causal, or looks at more of the source than its keys and "
                "values; it cannot be exported in two parts",
            )


def longest_of(model: PreTrainedModel, component: str) -> int | None:
    """How many tokens one of the two has positions for; None when there is no limit.

    Encoders of sounds read one length, which is no limit of tokens.
    """
    config = model.config
    names = ("max_source_positions",) if component == ENCODER else ("max_target_positions",)
    for name in (*names, "max_position_embeddings"):
        size = getattr(config, name, None)
        if isinstance(size, int) and size > 0:
            return size
    return None


def sound_size(model: PreTrainedModel) -> tuple[int, int]:
    """Bins and frames of what an encoder of sounds reads: two frames make one position.

    Raises:
        ExportError: when the configuration does not say them.
    """
    bins = getattr(model.config, "num_mel_bins", None)
    positions = getattr(model.config, "max_source_positions", None)
    if not isinstance(bins, int) or not isinstance(positions, int):
        raise ExportError(
            f"{type(model).__name__} does not say the size of what it hears",
            where="config.json",
            hint="`num_mel_bins` and `max_source_positions` are needed, as Whisper has them",
        )
    return bins, 2 * positions
