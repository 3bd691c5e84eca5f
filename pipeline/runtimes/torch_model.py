"""A checkpoint as one torch module with named tensors in and out: what is exported and compared.

The export stage traces this module and the reference runtime runs it, so both mean the same by
"the model". Weights come from safetensors only, code of the checkpoint is never run, and a
parameter that the checkpoint does not have is an error unless no output depends on it.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import nn

from pipeline.errors import ExportError
from pipeline.runtimes.sentence_pooling import SentencePooling, load_sentence_pooling
from pipeline.runtimes.torch_checkpoint import (
    require_config,
    require_floats,
    require_safetensors,
    require_shapes,
)
from pipeline.runtimes.torch_decoder import CachedDecoder, find_cache, require_cache_agreement
from pipeline.runtimes.torch_inputs import (
    ModelInput,
    example_sizes,
    inputs_taken,
    longest_sequence,
)
from pipeline.runtimes.torch_mapped import (
    MappedCheckpoint,
    MappedWeights,
    NotMappedError,
    map_checkpoint,
)
from pipeline.runtimes.torch_rope import make_rope_traceable
from pipeline.runtimes.torch_seq2seq import cut_in_two, longest_of, sound_size
from pipeline.tasks import BATCH_AXIS, SENTENCE_EMBEDDING, Task, TensorSpec, find_task

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from transformers import PreTrainedModel


class NamedOutputs(nn.Module):
    """A model of `transformers` with positional tensors in and a tuple of tensors out.

    Args:
        model: The model, in evaluation mode.
        input_names: Names of the positional arguments of `forward`.
        output_names: Fields of the model's output, in the order they are returned.
        pooling: Appends the pooled sentence vector to the outputs when given.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        input_names: tuple[str, ...],
        output_names: tuple[str, ...],
        pooling: SentencePooling | None,
    ) -> None:
        super().__init__()
        self.model = model
        self.input_names = input_names
        self.output_names = output_names
        self.pooling = pooling

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the model on tensors in the order of `input_names`."""
        feeds = dict(zip(self.input_names, tensors, strict=True))
        result = self.model(**feeds, return_dict=True)
        outputs = [result[name] for name in self.output_names]
        if self.pooling is not None:
            outputs.append(self.pooling(outputs[0], feeds["attention_mask"]))
        return tuple(outputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchComponent:
    """One component of a checkpoint in torch, float32, on the CPU, in evaluation mode.

    Attributes:
        module: Maps positional tensors, in the order of `input_names`, to a tuple of float32
            tensors in the order of `output_names`.
        takes: Each input with its axes, dtype and limits.
        outputs: Name and named axes of each output.
        max_sequence: The longest sequence there are positions for; None when there is no limit,
            as for images.
        unused_parameters: Parameters that the checkpoint lacks and no output depends on.
        ignored_weights: Tensors of the checkpoint that this model has no parameter for, such as the
            head of another task, or layers beyond `num_hidden_layers`.
        mapped: Where the numbers of weights are that were left in the checkpoint's files; None when
            all are in memory. Of a stand-in the module itself has only the shapes: run it within
            `mapped.at_hand`.
    """

    module: nn.Module
    takes: tuple[ModelInput, ...]
    outputs: tuple[TensorSpec, ...]
    max_sequence: int | None
    unused_parameters: tuple[str, ...]
    ignored_weights: tuple[str, ...]
    mapped: MappedWeights | None = None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Name, named axes and dtype of each input."""
        return tuple(taken.spec for taken in self.takes)

    @property
    def id_limits(self) -> dict[str, int]:
        """Input name -> its integers are below this number."""
        return {taken.spec.name: taken.limit for taken in self.takes if taken.limit is not None}

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, in the order of the module's positional arguments."""
        return tuple(spec.name for spec in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in the order of the module's result."""
        return tuple(spec.name for spec in self.outputs)

    @property
    def axes(self) -> dict[str, tuple[str | int, ...]]:
        """Input or output name -> its leading axes (`batch`, `sequence`)."""
        return {spec.name: spec.axes for spec in (*self.inputs, *self.outputs)}

    def example(self, **sizes: int) -> tuple[torch.Tensor, ...]:
        """Fresh example inputs in the order of `input_names`, with padding in the last row.

        Every call makes new tensors, all with different values: torch 2.13 merges two inputs into
        one when they are the same tensor.

        Args:
            sizes: Size of a named axis, such as `batch` or `sequence`, where not the usual one.
        """
        return tuple(taken.example(example_sizes(sizes)) for taken in self.takes)


def load_torch_model(
    checkpoint: Path,
    task: str,
    component: str,
    *,
    attention: str | None = None,
    scratch: Path | None = None,
    is_run: bool = True,
) -> TorchComponent:
    """Load one component of a checkpoint for a task.

    Args:
        checkpoint: A directory with `config.json` and `*.safetensors`, and for images what
            prepares them, `preprocessor_config.json`.
        task: Name or synonym of a task of `pipeline.tasks`.
        component: One of the task's components.
        attention: `eager` or `sdpa`; None leaves the choice to `transformers`.
        scratch: A directory for files that take no room, which must last as long as the result.
            When it is given, the numbers of weights stay in the checkpoint where that is possible:
            see `TorchComponent.mapped`.
        is_run: Whether to run what was loaded; false for a caller that calls `require_runnable` itself.

    Raises:
        RecipeError: when there is no such task.
        StageError: when nothing says how large images are.
        ExportError: when weights are missing, damaged or incomplete, or the model does not have
            the inputs and outputs of the task.
    """
    found = find_task(task)
    if component not in found.components:
        raise ExportError(
            f"task `{found.name}` has no component `{component}`; it has "
            f"{', '.join(found.components)}"
        )
    require_config(checkpoint)
    require_safetensors(checkpoint)
    if scratch is not None:
        with contextlib.suppress(NotMappedError):
            mapping = map_checkpoint(checkpoint, scratch)
            try:
                return _load(checkpoint, found, component, attention, mapping, is_run=is_run)
            except ExportError:
                if not mapping.is_stand_in:
                    raise  # otherwise it may be for a weight that is not where it is used
    return _load(checkpoint, found, component, attention, None, is_run=is_run)


def _load(
    checkpoint: Path,
    found: Task,
    component: str,
    attention: str | None,
    mapping: MappedCheckpoint | None,
    *,
    is_run: bool,
) -> TorchComponent:
    source = checkpoint if mapping is None else mapping.directory
    model, loading = _load_pretrained(source, found, attention)
    require_floats(checkpoint, model)
    model.requires_grad_(requires_grad=False)
    mapped = None if mapping is None else mapping.match(model, loading.missing)
    with contextlib.nullcontext() if mapped is None else mapped.at_hand(model):
        loaded = _component(checkpoint, found, component, model, loading)
    loaded = replace(loaded, mapped=mapped)
    if is_run or loading.missing:  # what a weight has influence on is asked of a run
        require_runnable(loaded)
    _require_no_influence(loaded, model, loading)
    return loaded


def _component(
    checkpoint: Path, found: Task, component: str, model: PreTrainedModel, loading: _Loading
) -> TorchComponent:
    """The part of a loaded model that is asked for."""
    pooling = load_sentence_pooling(checkpoint) if found.name == "feature-extraction" else None
    fixed = sound_size(model) if found.modality == "audio" else _image_size(checkpoint, found)
    takes = inputs_taken(model, found, fixed)
    outputs = found.outputs
    if pooling is not None:
        outputs = (*outputs, TensorSpec(name=SENTENCE_EMBEDDING, axes=(BATCH_AXIS,)))
    module: nn.Module
    if found.parts:
        module, takes, outputs = cut_in_two(model, found, takes).of(component)
    elif found.has_cache:
        cache = find_cache(model)
        takes = (*takes, *(ModelInput(spec=spec) for spec in cache.inputs))
        outputs = (*outputs, *cache.outputs)
        module = CachedDecoder(model, layers=cache.layers).eval()
    else:
        module = NamedOutputs(
            model,
            input_names=tuple(taken.spec.name for taken in takes),
            output_names=tuple(spec.name for spec in found.outputs),
            pooling=pooling,
        ).eval()
    return TorchComponent(
        module=module,
        takes=takes,
        outputs=outputs,
        max_sequence=_max_sequence(model, found, component),
        unused_parameters=tuple(sorted(loading.missing)),
        ignored_weights=loading.ignored,
    )


@dataclass(frozen=True, kw_only=True)
class _Loading:
    """What did not match: parameters without weights, and weights without parameters."""

    missing: frozenset[str]
    ignored: tuple[str, ...]


def _load_pretrained(
    checkpoint: Path, task: Task, attention: str | None
) -> tuple[PreTrainedModel, _Loading]:
    """Return the model and the names of the parameters that are not in the checkpoint."""
    import transformers  # seconds: only when a checkpoint is really loaded
    from huggingface_hub.errors import StrictDataclassError

    transformers.logging.set_verbosity_error()  # its report of missing weights is ours to make
    transformers.logging.disable_progress_bar()
    chosen = {} if attention is None else {"attn_implementation": attention}
    auto_class = getattr(transformers, task.auto_class)
    try:
        model, loading = auto_class.from_pretrained(
            checkpoint,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below: transformers names none of them
            **chosen,
        )
    except StrictDataclassError as err:
        raise ExportError(" ".join(str(err).split()), where="config.json") from err
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as err:
        reason = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
        raise ExportError(
            f"`transformers.{task.auto_class}` cannot load the checkpoint: {reason}"
        ) from err
    require_shapes(loading["mismatched_keys"])
    used = model.config._attn_implementation  # noqa: SLF001  (the one place that says it)
    if attention is not None and used != attention:
        raise ExportError(
            f"config.json asks for attention `{used}`, which overrides `{attention}`",
            where="config.json",
            hint="remove `_attn_implementation` and `attn_implementation` from config.json",
        )
    model.config.use_cache = False
    make_rope_traceable(model)
    return model.eval(), _Loading(
        missing=frozenset(loading["missing_keys"]),
        ignored=tuple(sorted(loading["unexpected_keys"])),
    )


def _max_sequence(model: PreTrainedModel, task: Task, component: str) -> int | None:
    if task.parts:
        return longest_of(model, component)
    return longest_sequence(model) if task.modality == "text" else None


def _image_size(checkpoint: Path, task: Task) -> tuple[int, int, int] | None:
    if task.modality != "image":
        return None
    from pipeline.data.image_size import image_size

    return image_size(checkpoint)


def require_runnable(loaded: TorchComponent) -> None:
    """Run the module, so that a model without the task's outputs fails here, by name.

    A decoder is run with and without a past, which have to agree.

    Raises:
        ExportError: when it cannot be run, or a decoder's outputs differ.
    """
    try:
        with _at_hand(loaded):
            if isinstance(loaded.module, CachedDecoder):
                require_cache_agreement(loaded)
                return
            with torch.no_grad():
                loaded.module(*loaded.example())
    except (KeyError, TypeError, AttributeError) as err:
        raise ExportError(
            f"the model does not have the outputs {', '.join(loaded.output_names)}: {err!r}"
        ) from err
    except (ValueError, RuntimeError, IndexError) as err:
        shapes = ", ".join(f"`{taken.spec.name}` {list(taken.shape)}" for taken in loaded.takes)
        raise ExportError(f"the model cannot be run on {shapes}: {err}") from err


def _at_hand(loaded: TorchComponent) -> contextlib.AbstractContextManager[None]:
    """While weights that were left in files can be computed with."""
    mapped = loaded.mapped
    return contextlib.nullcontext() if mapped is None else mapped.at_hand(loaded.module)


def _require_no_influence(loaded: TorchComponent, model: nn.Module, loading: _Loading) -> None:
    """Refuse weights that were made up at random, unless no output depends on them.

    Whether an output depends on a parameter is asked of autograd, which knows the computation:
    a missing parameter that gets no gradient from any output, not even a zero one, is unused
    (such as the pooler of a checkpoint that was saved without one).
    """
    missing = loading.missing
    if not missing:
        return
    tensors = dict(model.named_buffers())
    tensors.update(model.named_parameters(remove_duplicate=False))
    unknown = sorted(name for name in missing if name not in tensors)
    names = sorted(missing.difference(unknown))
    floating = [name for name in names if tensors[name].is_floating_point()]
    bad = [*unknown, *(name for name in names if name not in floating)]
    for name in floating:
        tensors[name].requires_grad_(True)
    outputs = loaded.module(*loaded.example())
    total = torch.stack([output.sum() for output in outputs]).sum()
    gradients: Sequence[torch.Tensor | None] = [None] * len(floating)
    if floating and total.requires_grad:
        gradients = torch.autograd.grad(
            total, [tensors[name] for name in floating], allow_unused=True
        )
    for name in floating:
        tensors[name].requires_grad_(False)
    bad += [name for name, grad in zip(floating, gradients, strict=True) if grad is not None]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise ExportError(
            f"the checkpoint lacks weights that the outputs depend on: {', '.join(bad[:3])}{more}; "
            "they would be random",
            hint="check that the task is the one the checkpoint was trained for"
            + (
                f", and the names of its weights: the model has none such as `{loading.ignored[0]}`"
                if loading.ignored
                else ""
            ),
        )
