"""Tries quantised variants of a graph against the float graph itself, and remembers each result.

The reference is what the float graph computes for the same samples, not the checkpoint: what export
and fusion changed is no quantisation's fault. Samples run one by one, unpadded, so that no sample's
numbers depend on another's, and each with one thread, so that they do not depend on the machine's
cores. One session is in memory at a time; the float outputs lie on disk.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError
from safetensors.numpy import load_file, save_file

from pipeline.errors import StageError
from pipeline.hashing import tagged_digest
from pipeline.parity.compare import OUTPUT_DTYPES, vectors_last
from pipeline.parity.metrics import DistanceSums, sum_distances
from pipeline.parity.quality.answers import right_answers
from pipeline.records import Frozen
from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pipeline.data.sample_set import SampleSet
    from pipeline.graph.variants import Variants
    from pipeline.runtimes.base import Array
    from pipeline.runtimes.onnxruntime import Optimizations
    from pipeline.tasks import Answer

_TRIAL_TAG = "convert/trial/1"


class Trial(Frozen):
    """One variant against the float graph.

    Attributes:
        noise: RMSE over the root mean square of the float output, both over all samples; of several
            outputs the largest. None when an element is NaN or infinite.
        cosine_gap: 1 - mean cosine of all vectors; of several outputs the largest. None likewise,
            and when no output has vectors.
        drop: Share of right answers that the float graph has and this one has not, less those that
            only this one has. None when no answers are counted.
        size_bytes: Of the model on disk.
    """

    noise: float | None
    cosine_gap: float | None
    drop: float | None
    size_bytes: int


class Notes:
    """Results of trials that outlive a killed attempt; damaged ones are as good as none.

    Args:
        folder: Where they lie; None keeps none.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def find(self, key: str) -> Trial | None:
        """The result noted under a key."""
        if self._folder is None:
            return None
        try:
            return Trial.model_validate_json((self._folder / f"{key}.json").read_bytes())
        except (OSError, ValidationError):
            return None

    def write(self, key: str, trial: Trial) -> None:
        """Note a result. When that fails, it is only measured again next time."""
        if self._folder is None:
            return
        temporary = self._folder / f"{key}.{os.getpid()}.part"
        try:
            temporary.write_text(trial.model_dump_json(), encoding="utf-8")
            temporary.replace(self._folder / f"{key}.json")
        except OSError:
            temporary.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How variants are run.

    Attributes:
        optimizations: ONNX Runtime's graph optimisations.
        threads: Samples that run at the same time.
        answer: What labels say; None: answers are not counted.
    """

    optimizations: Optimizations
    threads: int
    answer: Answer | None = None


class Trials:
    """Runs variants on the same samples.

    Args:
        variants: What writes them.
        samples: Where the samples are.
        chosen: Which of them are used; at least one.
        scratch: An existing directory.
        setting: How they are run.
        notes: Results of an earlier attempt at exactly this.
    """

    def __init__(
        self,
        variants: Variants,
        samples: SampleSet,
        chosen: Sequence[int],
        *,
        scratch: Path,
        setting: Setting,
        notes: Notes,
    ) -> None:
        self._variants = variants
        self._samples = samples
        self._chosen = tuple(chosen)
        self._scratch = scratch
        self._setting = setting
        self._notes = notes
        self.measured = 0
        """Trials that were really run."""

    @property
    def chosen(self) -> tuple[int, ...]:
        """Places of the samples that are used, from the smallest to the largest."""
        return self._chosen

    def middle_feeds(self, names: Sequence[str]) -> dict[str, Array]:
        """The middle one of these samples, as a batch of one."""
        (sample,) = self._samples.read([self._chosen[len(self._chosen) // 2]])
        return {name: sample[name][None] for name in names}

    def run_float(self, model: Path) -> None:
        """Run the float graph; before any trial.

        Raises:
            StageError: when it cannot be run, or gives NaN or infinity.
        """
        self._for_each_sample(model, self._keep_expected)

    def run(self, given_back: frozenset[str], *, has_tables: bool = True) -> Trial:
        """The variant with these layers in float.

        Raises:
            QuantizationError: when a name is that of no layer.
            StageError: when ONNX Runtime cannot run it.
        """
        key = tagged_digest(_TRIAL_TAG, {"float": sorted(given_back), "tables": has_tables})
        known = self._notes.find(key)
        if known is None:
            folder = self._scratch / "variant"
            path, size_bytes = self._variants.write(given_back, folder, has_tables=has_tables)
            known = _merge(self._for_each_sample(path, self._compare), size_bytes)
            self._notes.write(key, known)
            self.measured += 1
        return known

    def _for_each_sample(
        self, model: Path, look: Callable[[int, dict[str, Array]], Any]
    ) -> list[Any]:
        """`look` at the outputs of every sample; results in their order, whatever ends first."""
        with (
            OnnxRuntimeRunner(
                model, optimizations=self._setting.optimizations, threads=1
            ) as runner,
            ThreadPoolExecutor(max_workers=self._setting.threads) as pool,
        ):
            names = [spec.name for spec in runner.inputs]

            def run_one(index: int) -> Any:
                (sample,) = self._samples.read([index])
                return look(index, runner.run({name: sample[name][None] for name in names}))

            return list(pool.map(run_one, self._chosen))

    def _expected_path(self, index: int) -> Path:
        return self._scratch / f"float-{index}.safetensors"

    def _keep_expected(self, index: int, outputs: dict[str, Array]) -> None:
        for name, array in outputs.items():
            if not np.isfinite(array).all():
                raise StageError(
                    f"output `{name}` of the float graph is NaN or infinite for sample {index}: "
                    "there is nothing that a quantised one could be compared with"
                )
        contiguous = {name: np.ascontiguousarray(array) for name, array in outputs.items()}
        save_file(contiguous, self._expected_path(index))

    def _compare(self, index: int, outputs: dict[str, Array]) -> _Seen:
        sums: dict[str, DistanceSums] = {}
        expected = load_file(self._expected_path(index))
        for name, array in outputs.items():
            if array.dtype.name in OUTPUT_DTYPES:
                candidate, reference = vectors_last(array[0]), vectors_last(expected[name][0])
                sums[name] = sum_distances(candidate, reference)
        label = self._samples.entries[index].label
        answers = lost = 0
        if self._setting.answer is not None and label is not None:
            ours, theirs = (
                right_answers(self._setting.answer, label, {k: v[0] for k, v in each.items()})
                for each in (outputs, expected)
            )
            answers, lost = ours.size, int(theirs.sum()) - int(ours.sum())
        return _Seen(sums=sums, answers=answers, lost=lost)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """One sample: distances by output, answers that count, and how many fewer of them are right."""

    sums: dict[str, DistanceSums]
    answers: int
    lost: int


def _merge(seen: Sequence[_Seen], size_bytes: int) -> Trial:
    noises: list[float | None] = []
    gaps: list[float | None] = []
    for name in seen[0].sums:
        metrics = sum((each.sums[name] for each in seen), DistanceSums()).metrics()
        noises.append(metrics.relative_l2)
        # Equal vectors may have a cosine of 1 + 1e-16.
        mean = metrics.cosine_similarity_mean
        if metrics.non_finite:
            gaps.append(None)
        elif mean is not None:
            gaps.append(max(0.0, 1.0 - mean))
    answers = sum(each.answers for each in seen)
    return Trial(
        noise=_largest(noises),
        cosine_gap=_largest(gaps),
        drop=sum(each.lost for each in seen) / answers if answers else None,
        size_bytes=size_bytes,
    )


def _largest(values: Sequence[float | None]) -> float | None:
    """The largest; None when there is none, or one cannot be told."""
    known = [value for value in values if value is not None]
    return max(known) if known and len(known) == len(values) else None


def as_square(noise: float | None) -> float:
    """Noise squared, which adds up where noises are independent; infinite when it is not finite."""
    return math.inf if noise is None else noise * noise


def share_of_noise(
    whole: float | None, alone: float | None, without: float | None, floor: float
) -> float | None:
    """Which share of the noise of a quantised graph is one layer's, in squares.

    The mean of what the layer adds when it is quantised first (alone) and when it is quantised last
    (after all others): the Shapley value from its two extremes. The first alone hides how layers add
    up, the second alone hides a layer beside another that is as bad.

    Source: L. S. Shapley, "A value for n-person games", 1953; noises that are independent add in
    squares (B. Widrow, I. Kollár, "Quantization Noise", 2008).

    Args:
        whole: Noise with all layers quantised.
        alone: With this one only.
        without: With all but this one; None: not known, `alone` is all there is to tell.
        floor: With no layer quantised (tables of embeddings may be).

    Returns:
        About 0 to 1; None when it cannot be told, because nothing is finite.
    """
    total = as_square(whole) - floor * floor
    first = as_square(alone)
    last = first if without is None else as_square(whole) - as_square(without)
    if not math.isfinite(total) or total <= 0 or not math.isfinite(first + last):
        return None
    return (first + last) / 2 / total
