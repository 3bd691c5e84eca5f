"""The recipe's schema: what a user may ask for, as frozen pydantic types.

No defaults for limits that decide a verdict: `gates` must be written out. Positions and spelling
hints are added by `pipeline.recipe.load`; this module knows nothing of YAML.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from pipeline.stages.export import ExportOptions
from pipeline.targets import AnyTarget

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
"""Used as a directory name: lower-case letters, digits, `.`, `_` and `-`."""

Positive = Annotated[int, Field(ge=1)]


class Strict(BaseModel):
    """Base of all recipe types: frozen, unknown keys refused, no coercion between types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelSpec(Strict):
    """The checkpoint, and what it is for."""

    source: Annotated[str, StringConstraints(min_length=1)] = Field(
        description="A directory (relative to the recipe), or `package:NAME/path`"
    )
    task: str = Field(description="The task, by its name or a synonym, e.g. feature-extraction")


class ShapeRange(Strict):
    """The smallest, the usual and the largest value of one named axis."""

    min: Positive
    opt: Positive
    max: Positive

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if not self.min <= self.opt <= self.max:
            msg = f"min <= opt <= max does not hold: {self.min}, {self.opt}, {self.max}"
            raise ValueError(msg)
        return self


class Shapes(Strict):
    """Ranges of the two named axes of every text input."""

    batch: ShapeRange
    sequence: ShapeRange


class DataSpec(Strict):
    """Where samples come from, how many, and how they are chosen."""

    source: Literal["builtin:stdlib-docstrings"] = Field(
        description="`builtin:stdlib-docstrings`: sentences from the docstrings of Python's "
        "standard library, no file needed"
    )
    samples: Annotated[int, Field(ge=1, le=100_000)]
    seed: int = 0


class Data(Strict):
    """The data sets of a recipe, by use."""

    evaluation: DataSpec


class Bound(Strict):
    """A limit on one number: at least one of the two ends."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _has_an_end(self) -> Self:
        if self.min is None and self.max is None:
            msg = "needs `min`, `max` or both"
            raise ValueError(msg)
        return self


class ParityGates(Strict):
    """Limits on the distance to the reference; each holds for every output of every target.

    Only what is written is judged. NaN, infinity and wrong shapes fail whatever is written.
    """

    cosine_similarity: Bound | None = Field(default=None, description="worst over all vectors")
    cosine_similarity_mean: Bound | None = None
    max_abs_diff: Bound | None = None
    mean_abs_diff: Bound | None = None
    relative_l2: Bound | None = None
    sqnr_db: Bound | None = None


class SpeedGate(Strict):
    """How fast a target must be against the checkpoint in torch, on this machine."""

    min_speedup_over_reference: Annotated[float, Field(gt=0)]
    margin: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.05, description="differences within this share count as the same speed"
    )


NotRun = Literal["device_parity", "speed"]


class Gates(Strict):
    """What must hold before an artifact is published."""

    parity: ParityGates
    speed: SpeedGate | None = None
    coverage: dict[str, Bound] = Field(
        default_factory=dict,
        description="limits on what the stages report, e.g. quantized_weights, fused_attention",
    )
    allow_not_run: tuple[NotRun, ...] = Field(
        default=(), description="gates that may stay unchecked where they cannot run"
    )


class Benchmark(Strict):
    """How speed is measured."""

    shapes: tuple[tuple[Positive, Positive], ...] = Field(
        default=((1, 32), (8, 128)), min_length=1, description="(batch, sequence) pairs"
    )
    launches: Annotated[int, Field(ge=3, le=50)] = 5
    threads: Positive | None = Field(default=None, description="default: all cores")


class Limits(Strict):
    """Limits of one stage; beyond them it is stopped and has failed."""

    time_s: Annotated[float, Field(gt=0)] = 3600.0
    memory_mib: Positive | None = None


class Recipe(Strict):
    """A whole recipe."""

    recipe: Literal[1] = Field(description="version of the recipe language")
    name: Name
    model: ModelSpec
    shapes: Shapes
    data: Data
    export: ExportOptions = ExportOptions()
    targets: tuple[AnyTarget, ...] = Field(min_length=1)
    gates: Gates
    benchmark: Benchmark = Benchmark()
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _targets_have_own_names(self) -> Self:
        names = [target.name for target in self.targets]
        for name in names:
            if names.count(name) > 1:
                msg = f"two targets are named `{name}`"
                raise ValueError(msg)
        return self
