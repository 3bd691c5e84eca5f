"""Calibration that saw the wrong thing: too few samples, other columns, ranges of other tensors.

No graph is wrong before these ranges are used, so the quantiser is the first that can be accused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.mutants.bench import Scene
from tests.mutants.catalogue import TEXTS, result_fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.calibration.ranges import TensorRange
    from pipeline.data.sample_set import Tensor

TARGETS = ("static", "rtx-int8")
ACCUSED = ("calibrate", "quantize_static", "samples")


@result_fault(
    "calibration",
    "ranges are of a single sample",
    stage="samples",
    node="samples@calibration",
    targets=TARGETS,
    accepts=ACCUSED,
)
def one_sample(scene: Scene) -> Mapping[str, Any]:
    return _rewritten(scene, lambda samples: samples[:1])


@result_fault(
    "calibration",
    "columns of the calibration data are shuffled: token ids in a random order of the vocabulary",
    stage="samples",
    node="samples@calibration",
    targets=TARGETS,
    accepts=ACCUSED,
    models=TEXTS,
)
def columns_shuffled(scene: Scene) -> Mapping[str, Any]:
    def shuffled(samples: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        for sample in samples:
            sample["input_ids"], sample["token_type_ids"] = (
                sample["token_type_ids"],
                np.minimum(sample["input_ids"], 1),
            )
        return samples

    return _rewritten(scene, shuffled)


@result_fault(
    "calibration",
    "calibration images are not normalised",
    stage="samples",
    node="samples@calibration",
    targets=TARGETS,
    accepts=ACCUSED,
    models=("digits",),
)
def not_normalised_images(scene: Scene) -> Mapping[str, Any]:
    def as_read(samples: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        return [{"pixel_values": s["pixel_values"] * 0.5 + 0.5} for s in samples]

    return _rewritten(scene, as_read)


@result_fault(
    "calibration",
    "the ranges of two tensors are in each other's place",
    stage="calibrate",
    targets=TARGETS,
    accepts=ACCUSED,
)
def ranges_swapped(scene: Scene) -> Mapping[str, Any]:
    def swapped(tensors: list[TensorRange]) -> list[TensorRange]:
        wide = max(range(len(tensors)), key=lambda place: tensors[place].magnitude)
        near = wide - 1 if wide else wide + 1
        fields = ("low", "high", "magnitude", "minimum", "maximum")
        one, two = ({f: getattr(tensors[p], f) for f in fields} for p in (wide, near))
        tensors[wide] = tensors[wide].model_copy(update=two)
        tensors[near] = tensors[near].model_copy(update=one)
        return tensors

    return _with_ranges(scene, swapped)


@result_fault(
    "calibration",
    "ranges end at half of what was seen, everywhere",
    stage="calibrate",
    targets=TARGETS,
    accepts=ACCUSED,
)
def ranges_halved(scene: Scene) -> Mapping[str, Any]:
    def halved(tensors: list[TensorRange]) -> list[TensorRange]:
        return [
            tensor.model_copy(
                update={name: getattr(tensor, name) * 0.5 for name in ("low", "high", "magnitude")}
            )
            for tensor in tensors
        ]

    return _with_ranges(scene, halved)


@result_fault(
    "calibration",
    "one range is eight times too wide: an outlier of a broken sample",
    stage="calibrate",
    targets=TARGETS,
    accepts=ACCUSED,
)
def range_of_outlier(scene: Scene) -> Mapping[str, Any]:
    def widened(tensors: list[TensorRange]) -> list[TensorRange]:
        place = len(tensors) // 2
        fields = ("low", "high", "magnitude")
        wide = {name: getattr(tensors[place], name) * 8 for name in fields}
        tensors[place] = tensors[place].model_copy(update=wide)
        return tensors

    return _with_ranges(scene, widened)


def _rewritten(
    scene: Scene, how: Callable[[list[dict[str, Tensor]]], list[dict[str, Tensor]]]
) -> Mapping[str, Any]:
    from pipeline.data.sample_set import load_samples, save_samples

    samples = load_samples(scene.good)
    changed = how(samples.read(range(len(samples))))
    index = samples.index.model_copy(update={"samples": samples.entries[: len(changed)]})
    save_samples(index, changed, scene.output)
    return scene.facts


def _with_ranges(
    scene: Scene, how: Callable[[list[TensorRange]], list[TensorRange]]
) -> Mapping[str, Any]:
    from pipeline.calibration.ranges import load_ranges, save_ranges

    ranges = load_ranges(scene.good)
    save_ranges(
        ranges.model_copy(update={"tensors": tuple(how(list(ranges.tensors)))}), scene.output
    )
    return scene.facts
