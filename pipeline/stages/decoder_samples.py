"""What the decoder behind an encoder is fed: its own tokens, and keys and values of the source.

Those come from the checkpoint's encoder in torch, so that encoder and decoder are each compared on what
the checkpoint itself would feed them; the check of the two together is another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.stages.base import Footprint, Stage, StageConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.data.sample_set import InputSpec, SampleSet, Tensor
    from pipeline.hashing import JSON
    from pipeline.runtimes.torch_reference import TorchReferenceRunner
    from pipeline.stages.base import StageContext
    from pipeline.tasks import Task

CHECKPOINT_PORT = "checkpoint"
SAMPLES_PORT = "samples"
MASK = "attention_mask"


class DecoderSamplesConfig(StageConfig):
    """For which task, and whether some tokens are in the cache already.

    Attributes:
        task: A task with `parts`.
        has_pasts: Samples have the beginning of their tokens in the cache: none, one, half of them,
            or all but the last, in turn. They can be run alone only, as no mask covers a past.
    """

    task: str
    has_pasts: bool = False


def run(
    config: DecoderSamplesConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> dict[str, JSON]:
    """Write a sample set for the decoder, in the order of the given one.

    Raises:
        ExportError: when the checkpoint cannot be loaded.
        StageError: when it cannot be run on a sample.
    """
    from pipeline.data.decoder_inputs import TARGET_IDS
    from pipeline.data.sample_set import SampleIndex, load_samples, save_samples
    from pipeline.data.take import sample_fingerprint
    from pipeline.runtimes.torch_reference import TorchReferenceRunner
    from pipeline.stages.reference import THREADS
    from pipeline.tasks import DECODER, ENCODER, SEQUENCE_AXIS, TOTAL_AXIS, find_task

    task = find_task(config.task)
    samples = load_samples(inputs[SAMPLES_PORT])
    given = samples.index.inputs[TARGET_IDS]
    total = len(samples) * (2 if config.has_pasts else 1)
    made: list[dict[str, Tensor]] = []
    with TorchReferenceRunner(
        inputs[CHECKPOINT_PORT], task=config.task, component=ENCODER, threads=THREADS
    ) as encoder:
        for index in range(len(samples)):
            made.append(_crossed(encoder, task, samples, index))
            context.progress(len(made), total, "samples")
    with TorchReferenceRunner(
        inputs[CHECKPOINT_PORT], task=config.task, component=DECODER, threads=THREADS
    ) as decoder:
        specs = _specs(decoder, given)
        feeds = []
        for index, crossed in enumerate(made):
            ids = samples.read([index])[0][TARGET_IDS]
            past = _past(index, len(ids)) if config.has_pasts else 0
            feeds.append(_fed(decoder, crossed, ids, past))
            if config.has_pasts:
                context.progress(len(samples) + len(feeds), total, "samples")
    entries = []
    for entry, sample in zip(samples.entries, feeds, strict=True):
        new = len(sample["input_ids"])
        past = next(t.shape[1] for name, t in sample.items() if name.endswith("decoder.key"))
        entries.append(
            entry.model_copy(
                update={
                    "extents": {SEQUENCE_AXIS: new} | ({TOTAL_AXIS: past + new} if past else {}),
                    "starts": {},  # the padding of a source is behind its mask
                    "text": f"{entry.text}, behind {past} tokens" if past else entry.text,
                    "fingerprint": sample_fingerprint(sample),
                }
            )
        )
    made_index = SampleIndex(
        source=samples.index.source,
        use=samples.index.use,
        seed=samples.index.seed,
        max_length=samples.index.max_length,
        inputs=specs,
        samples=tuple(entries),
    )
    fingerprint = save_samples(made_index, feeds, output)
    return {"samples": len(feeds), "inputs": sorted(specs), "fingerprint": fingerprint}


def _crossed(
    encoder: TorchReferenceRunner, task: Task, samples: SampleSet, index: int
) -> dict[str, Tensor]:
    """Mask, keys and values of one source, under the names by which a decoder takes them."""
    import numpy as np

    from pipeline.data.decoder_inputs import past_name
    from pipeline.tasks import DECODER, ENCODER

    (sample,) = samples.read([index])
    names = [spec.name for spec in task.part(ENCODER).inputs]
    found = encoder.run({name: sample[name][None] for name in names})
    crossed = {
        past_name(name): np.ascontiguousarray(array[0])
        for name, array in found.items()
        if name != "last_hidden_state"
    }
    if MASK in sample and len(task.part(DECODER).required) > 1:
        crossed["encoder_attention_mask"] = sample[MASK]
    return crossed


def _past(index: int, length: int) -> int:
    """None, one, half, all but the last, and again; at least one token is new."""
    return min((0, 1, length // 2, length - 1)[index % 4], length - 1)


def _fed(
    decoder: TorchReferenceRunner, crossed: Mapping[str, Tensor], ids: Tensor, past: int
) -> dict[str, Tensor]:
    """One sample: the tokens behind `past` of them."""
    import numpy as np

    from pipeline.data.decoder_inputs import past_name

    empty: dict[str, Tensor] = {}
    for spec in decoder.inputs:
        if spec.name.startswith("past_key_values.") and spec.name not in crossed:
            assert spec.shape is not None
            heads, width = spec.shape[1], spec.shape[3]
            assert isinstance(heads, int)
            assert isinstance(width, int)
            empty[spec.name] = np.zeros((heads, 0, width), np.float32)
    if not past:
        return {"input_ids": ids, **crossed, **empty}
    before = {"input_ids": ids[:past], **crossed, **empty}
    found = decoder.run({name: array[None] for name, array in before.items()})
    own = {
        past_name(name): np.ascontiguousarray(array[0])
        for name, array in found.items()
        if name != "logits"
    }
    return {"input_ids": ids[past:], **crossed, **own}


def _specs(decoder: TorchReferenceRunner, given: InputSpec) -> dict[str, InputSpec]:
    """What the inputs are; those of the source are as long as the source, where that varies."""
    from pipeline.data.sample_set import InputSpec
    from pipeline.tasks import BATCH_AXIS

    specs = {}
    for spec in decoder.inputs:
        assert spec.shape is not None
        axes = tuple(axis if isinstance(axis, str) else None for axis in spec.shape)
        assert axes[0] == BATCH_AXIS
        specs[spec.name] = InputSpec(
            dtype="int64" if spec.dtype == "int64" else "float32",
            axes=axes[1:],
            fill=given.fill if spec.name == "input_ids" else 0,
        )
    return specs


DECODER_SAMPLES = Stage(
    name="decoder_samples",
    version=1,
    footprint=Footprint(base_mib=450, memory_per_weight=1.05, keeps_outputs=True),
    config_type=DecoderSamplesConfig,
    run=run,
    packages=("numpy", "torch", "transformers"),
    # The last bits depend on the instruction set.
    machine=("cpu_flags",),
    preload=("torch", "transformers"),
)
"""Ports `checkpoint` and `samples` -> a sample set."""
