"""Choose the layers that go back to float so that a quantisation keeps within a limit.

Ports `model` (the float graph that is quantised), `ranges` (of a static quantisation), `samples` (of
calibration, never those that the result is judged on) and `sensitivity`. Output: `repair.json`, which
the quantising stage reads (`pipeline.stages.given_back`).
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

from pydantic import Field, model_validator

from pipeline.stages.base import Footprint, Stage, StageConfig
from pipeline.stages.given_back import REPAIR_FILE
from pipeline.stages.variants import VariantConfig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pipeline.hashing import JSON
    from pipeline.parity.trials import Trial, Trials
    from pipeline.stages.base import StageContext

SENSITIVITY_PORT: Final = "sensitivity"
LIMITS: Final = ("max_drop", "max_noise", "max_cosine_gap")


class RepairOptions(StageConfig):
    """When layers are given back to float, and how many at most."""

    max_drop: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None,
        description="most right answers that may be lost against the float graph, as a share: 0.01 is "
        "one point; needs a `label` in `data.calibration`",
    )
    max_noise: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="largest RMSE against the float graph over the size of its outputs",
    )
    max_cosine_gap: Annotated[float, Field(gt=0, le=2)] | None = Field(
        default=None, description="largest 1 - mean cosine of the output vectors: 0.01 is 0.99"
    )
    max_layers: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="most layers that may go back to float; default: all"
    )
    samples: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=64, description="calibration samples that the limit must hold on"
    )
    time_limit_s: Annotated[float, Field(gt=0)] = Field(
        default=300.0,
        description="seconds after which no further choice is tried; the best until then is kept, "
        "and the gate says whether it is good enough",
    )

    @model_validator(mode="after")
    def _has_a_limit(self) -> Self:
        if all(getattr(self, name) is None for name in LIMITS):
            msg = f"needs one of {', '.join(LIMITS)}: nothing says what is to be repaired"
            raise ValueError(msg)
        return self


class RepairConfig(RepairOptions, VariantConfig):
    """The same of one quantisation.

    Attributes:
        task: Says what a label means.
    """

    task: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """A layer that may be given back, as the sensitivity ranked it."""

    name: str
    share: float | None
    products_share: float | None


@dataclass(slots=True, kw_only=True)
class _Search:
    """Looks for the first layers of a ranking that are enough, then for those among them that need be.

    Attributes:
        config: The limits.
        trials: What tries a choice.
        ranking: Layers, the worst first.
        deadline: On the monotonic clock.
        context: Is told how far it is.
    """

    config: RepairConfig
    trials: Trials
    ranking: Sequence[_Candidate]
    deadline: float
    context: StageContext
    tried: dict[frozenset[str], Trial] = field(default_factory=dict)
    is_out_of_time: bool = False

    def try_first(self, count: int) -> Trial | None:
        """The first `count` layers in float; None when the time is up."""
        return self.try_out(frozenset(layer.name for layer in self.ranking[:count]))

    def try_out(self, names: frozenset[str]) -> Trial | None:
        """These layers in float; None when the time is up, which the first trial never is."""
        if names not in self.tried:
            if self.tried and time.monotonic() > self.deadline:
                self.is_out_of_time = True
                return None
            self.tried[names] = self.trials.run(names)
            self.context.progress(len(self.tried), self._expected(), "trials")
        return self.tried[names]

    def _expected(self) -> int:
        """A guess: doubling, halving, and then one by one."""
        return max(len(self.tried) + 1, 3 * len(self.ranking).bit_length())

    def holds(self, trial: Trial | None) -> bool:
        return trial is not None and all(
            value is not None and value <= limit for _, value, limit in limits(self.config, trial)
        )

    def run(self) -> frozenset[str]:
        """The chosen layers; those of the best trial when no choice holds."""
        if self.holds(self.try_first(0)):
            return frozenset()
        # With all in float nothing would be left of what was asked for.
        most = min(len(self.ranking) - 1, self.config.max_layers or len(self.ranking))
        low, high = 0, min(1, most)
        # Twice as many each time, then halving: a greedy choice of n layers in 2 log2(n) trials.
        while not self.holds(self.try_first(high)):
            if high == most or self.is_out_of_time:
                return self._best()
            low, high = high, min(2 * high, most)
        while high - low > 1:
            middle = (low + high) // 2
            trial = self.try_first(middle)
            if self.holds(trial):
                high = middle
            elif trial is None:
                break
            else:
                low = middle
        return self._without_needless(self.ranking[:high])

    def _without_needless(self, chosen: Sequence[_Candidate]) -> frozenset[str]:
        """Quantise again, the least first, each layer without which the limit holds as well."""
        names = frozenset(layer.name for layer in chosen)
        for layer in reversed(chosen):
            fewer = names - {layer.name}
            if fewer and self.holds(self.try_out(fewer)):
                names = fewer
        return names

    def _best(self) -> frozenset[str]:
        """Of all that was tried, what is nearest to its limits; of equals, the fewest layers."""
        return min(self.tried, key=lambda names: (self._excess(self.tried[names]), len(names)))

    def _excess(self, trial: Trial) -> float:
        return max(
            float("inf") if value is None else value / max(limit, 1e-9)
            for _, value, limit in limits(self.config, trial)
        )


def limits(config: RepairOptions, trial: Trial) -> list[tuple[str, float | None, float]]:
    """(name, measured, limit) of every limit that was set."""
    measured = (trial.drop, trial.noise, trial.cosine_gap)
    return [
        (name, value, limit)
        for name, value in zip(LIMITS, measured, strict=True)
        if (limit := getattr(config, name)) is not None
    ]


def run(
    config: RepairConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> dict[str, JSON]:
    """Write `repair.json`; the facts are the same. A limit that is not reached is a result.

    Nothing is given back when the limit holds already. The gate `repair` judges what was reached.

    Raises:
        QuantizationError: when a limit cannot be measured: `max_drop` without labels, or
            `max_cosine_gap` without vectors.
        StageError: when ONNX Runtime cannot run a graph, or the sensitivity is of another graph.
    """
    from pipeline.stages.variants import open_trials, open_variants
    from pipeline.tasks import find_task

    deadline = time.monotonic() + config.time_limit_s
    variants = open_variants(config, inputs)
    answer = None if config.max_drop is None else find_task(config.task).answer
    trials = open_trials(variants, config, inputs, context, samples=config.samples, answer=answer)
    ranking = _read_ranking(inputs[SENSITIVITY_PORT])
    search = _Search(
        config=config, trials=trials, ranking=ranking, deadline=deadline, context=context
    )
    _require_measurable(config, trials.run(frozenset(layer.name for layer in ranking)))
    chosen = search.run()
    before, after = search.tried[frozenset()], search.tried[chosen]
    is_reached = search.holds(after)
    stopped = _why_stopped(search, chosen, is_reached=is_reached)
    if not is_reached:
        context.log(f"the limit of the repair was not reached: {stopped}")
    given_back = [layer for layer in ranking if layer.name in chosen]
    works = [layer.products_share for layer in given_back]
    facts: dict[str, JSON] = {
        "samples": len(trials.chosen),
        "limits": [
            {"limit": name, "allowed": limit, "before": old, "after": new}
            for (name, old, limit), (_, new, _) in zip(
                limits(config, before), limits(config, after), strict=True
            )
        ],
        "is_reached": is_reached,
        "stopped": stopped,
        "is_complete": not search.is_out_of_time,
        "trials": len(search.tried),
        "given_back": [{"layer": layer.name, "share": layer.share} for layer in given_back],
        "layers_total": len(ranking),
        "before": before.model_dump(mode="json"),
        "after": after.model_dump(mode="json"),
        "price": {
            "size_bytes": after.size_bytes - before.size_bytes,
            "size_ratio": after.size_bytes / before.size_bytes,
            "products_share": None if None in works else sum(work or 0.0 for work in works),
        },
    }
    (output / REPAIR_FILE).write_text(f"{json.dumps(facts, indent=1)}\n", encoding="utf-8")
    return facts


def _why_stopped(search: _Search, chosen: frozenset[str], *, is_reached: bool) -> str:
    config = search.config
    if is_reached and not chosen:
        return "the limit held without a repair"
    if search.is_out_of_time:
        found = "enough layers were found, and perhaps more than needed" if is_reached else ""
        return f"the time limit of {config.time_limit_s:g} s" + (f": {found}" if found else "")
    if is_reached:
        return "the limit holds, and would not with any one layer less"
    if config.max_layers is not None and config.max_layers < len(search.ranking) - 1:
        return f"more than {config.max_layers} layers would have to go back (`max_layers`)"
    return "the limit does not hold with all layers but one in float either"


def _require_measurable(config: RepairConfig, floats: Trial) -> None:
    """Refuse a limit that no trial can hold because it cannot be measured at all."""
    from pipeline.errors import QuantizationError

    if config.max_drop is not None and floats.drop is None:
        raise QuantizationError(
            "`max_drop` needs right answers to count, and no calibration sample has a label",
            where="quantization.repair.max_drop",
            hint="say which column holds the true answer (`data.calibration.label`), or limit "
            "`max_noise` or `max_cosine_gap` instead",
        )
    if config.max_cosine_gap is not None and floats.cosine_gap is None:
        raise QuantizationError(
            "`max_cosine_gap` needs outputs with vectors, and this model has none",
            where="quantization.repair.max_cosine_gap",
            hint="limit `max_noise` instead",
        )


def _read_ranking(directory: Path) -> tuple[_Candidate, ...]:
    from pipeline.errors import StageError
    from pipeline.stages.sensitivity import SENSITIVITY_FILE

    try:
        rows: list[dict[str, Any]] = json.loads(
            (directory / SENSITIVITY_FILE).read_text(encoding="utf-8")
        )["layers"]
        return tuple(
            _Candidate(name=row["layer"], share=row["share"], products_share=row["products_share"])
            for row in rows
        )
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise StageError(
            f"not the result of a sensitivity: {err}", where=SENSITIVITY_FILE
        ) from err


REPAIR = Stage(
    name="repair",
    version=1,
    footprint=Footprint(base_mib=170, memory_per_weight=3.0),
    config_type=RepairConfig,
    run=run,
    packages=("ml-dtypes", "numpy", "onnx", "onnx-ir", "onnxruntime"),
    extra="cpu",
    # The last bits depend on the instruction set.
    machine=("cpu_flags",),
    preload=("numpy", "onnxruntime", "pipeline.graph.variants", "pipeline.parity.trials"),
    # A trial is the same whatever it is held against.
    resumable=("time_limit_s", "max_layers", *LIMITS),
)
"""Ports `model`, `ranges`, `samples` and `sensitivity` -> `repair.json`."""
