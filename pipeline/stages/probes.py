"""Make the probes: inputs that show what usual samples do not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeVar

from pydantic import Field

from pipeline.stages.base import Footprint, Stage, StageConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext

_Value = TypeVar("_Value")

SAMPLES_PORT = "samples"
TOKENIZER_PORT = "tokenizer"
MOST_SAMPLES = 64
"""Evaluation samples that probes are made from."""


class ProbesConfig(StageConfig):
    """For which task, and how long texts may be.

    Attributes:
        task: The task.
        lengths: Smallest and largest number of tokens; None for images.
        seed: Of the choice of rare tokens.
    """

    task: str
    lengths: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    seed: Annotated[int, Field(ge=0)] = 0


def run(
    config: ProbesConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> dict[str, JSON]:
    """Write a sample set of probes; facts count them by kind.

    Raises:
        StageError: when the samples are damaged.
    """
    from collections import Counter
    from dataclasses import replace

    import numpy as np

    from pipeline.data.decoder_inputs import POSITIONS, TARGET_IDS, completed, is_cache
    from pipeline.data.pair_probes import sound_probes, with_targets
    from pipeline.data.probes import image_probes, text_probes
    from pipeline.data.sample_set import SampleEntry, SampleIndex, load_samples, save_samples
    from pipeline.tasks import DERIVED_AXES, find_task

    samples = load_samples(inputs[SAMPLES_PORT])
    some = samples.read(range(min(MOST_SAMPLES, len(samples))))
    generator = np.random.default_rng(config.seed)
    facts: dict[str, JSON] = {}
    task = find_task(config.task)
    made = {name for name in samples.index.inputs if task.has_cache and is_cache(name)}
    lengths = config.lengths or (1, 1)
    if task.modality == "image":
        probes = list(image_probes(some, generator=generator))
    else:
        vocabulary = _vocabulary(inputs[TOKENIZER_PORT])
        if vocabulary is None:
            vocabulary = 1 + max(
                int(sample[name].max())
                for sample in some
                for name in ("input_ids", TARGET_IDS)
                if name in sample
            )
            warning = (
                "`config.json` says no `vocab_size`: probes hold no tokens but those of samples"
            )
            facts["warnings"] = [warning]
        facts["vocabulary"] = vocabulary
        derived = {*made, POSITIONS, TARGET_IDS}
        probes = list(
            sound_probes(some, vocabulary=vocabulary, lengths=lengths, generator=generator)
            if task.modality == "audio"
            else text_probes(
                [_without(sample, derived) for sample in some],
                _without(samples.index.inputs, derived),
                vocabulary=vocabulary,
                lengths=lengths,
                generator=generator,
            )
        )
    if task.parts and task.modality == "text":
        probes = with_targets(probes, int(some[0][TARGET_IDS][0]), lengths[1])
    elif task.has_cache and not task.parts:
        caches = {name: some[0][name] for name in sorted(made)}
        probes = [replace(probe, tensors=completed(probe.tensors, caches)) for probe in probes]
    context.log(f"{len(probes)} probes made from {len(some)} samples")
    entries = []
    for number, probe in enumerate(probes):
        extents = {
            axis: size
            for name, spec in samples.index.inputs.items()
            for axis, size in zip(spec.axes, probe.tensors[name].shape, strict=True)
            if axis is not None and axis not in DERIVED_AXES
        }
        entries.append(
            SampleEntry(
                index=number,
                text=probe.text,
                extents=extents,
                kind=probe.kind,
                starts=dict(probe.starts),
                compared=probe.compared,
            )
        )
    index = SampleIndex(
        source="probes",
        use="probes",
        seed=config.seed,
        max_length=config.lengths[1] if config.lengths else None,
        inputs=samples.index.inputs,
        samples=tuple(entries),
    )
    save_samples(index, [probe.tensors for probe in probes], output)
    return facts | {"probes": len(probes), "kinds": dict(Counter(probe.kind for probe in probes))}


def _without(tensors: Mapping[str, _Value], names: set[str]) -> dict[str, _Value]:
    """What tells tokens apart; the rest follows from it."""
    return {name: value for name, value in tensors.items() if name not in names}


def _vocabulary(checkpoint: Path) -> int | None:
    """Rows of the embedding table by `config.json`; None when it does not say."""
    import json

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    for part in (config, config.get("text_config")):
        size = part.get("vocab_size") if isinstance(part, dict) else None
        if isinstance(size, int) and size > 0:
            return size
    return None


PROBES = Stage(
    name="probes",
    version=2,
    footprint=Footprint(base_mib=120),
    config_type=ProbesConfig,
    run=run,
    packages=("numpy",),
    preload=("numpy",),
)
"""Ports `samples` and `tokenizer` -> a sample set."""
