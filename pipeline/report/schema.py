"""`report.json`, version 1: everything the report says, as typed frozen records.

The other forms (Markdown, JUnit, HTML) are rendered from this record and from nothing else.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field

from pipeline.bench.types import BenchmarkResult
from pipeline.parity.tolerances import Arithmetic
from pipeline.parity.types import GateResult, NoiseFloor, Parity
from pipeline.records import Frozen

SCHEMA_VERSION: Final = 1


class Failure(Frozen):
    """Why a stage failed: what the parent saw of the child process."""

    message: str
    hint: str = ""
    signal: str = ""
    last_lines: tuple[str, ...] = ()


NodeState = Literal["hit", "ran", "failed", "skipped"]


class NodeReport(Frozen):
    """One node of the plan in this run.

    Attributes:
        name: The node's address, such as `engine@rtx-fp16-sm89`.
        component: The model component it works on; empty for nodes that serve all.
        inputs: Names of the nodes it reads.
        reasons: Why it had to run; empty for a hit.
        wall_time_s: Of the run that made the result, this one or an earlier one.
        facts: What the stage says of its output (fusions that fired, coverage, layers...).
        is_diagnosis: It was run to explain a failure of the others; when it fails itself, that
            changes no verdict.
    """

    name: str
    stage: str
    component: str
    inputs: tuple[str, ...]
    state: NodeState
    key: str
    reasons: tuple[str, ...]
    wall_time_s: float | None
    peak_rss_mib: float | None
    facts: dict[str, Any]
    failure: Failure | None = None
    is_diagnosis: bool = False


class StageParity(Frozen):
    """Parity after one stage of a target's chain.

    Attributes:
        arithmetic: What the graph computes with, which says how far it may be from the checkpoint;
            None in reports that were written before it was recorded.
        failure: Why the graph, which was made, could not be run and compared; empty when it was.
        is_left_out: The recipe says that it is not to be run and compared.
    """

    node: str
    stage: str
    component: str
    parity: Parity | None
    not_run_reason: str = ""
    arithmetic: Arithmetic | None = None
    failure: str = ""
    is_left_out: bool = False


class CheckEntry(Frozen):
    """One check of one graph; what it measured stands in the facts of its node.

    Attributes:
        check: The check's name.
        node: The node that measured it.
        of: The node whose graph was looked at.
        stage: The stage of that node.
    """

    check: str
    node: str
    of: str
    stage: str
    component: str


class Finding(Frozen):
    """What a failed target's failures come down to.

    Attributes:
        target: The target's name.
        node: The first node of its chain that a failure accuses; empty when none does.
        stage: Its stage.
        layer: The layer in it, when one is known.
        sentence: All of it in words.
        gates: Metrics of the failed gates that accuse this node.
    """

    target: str
    node: str
    stage: str
    layer: str = ""
    sentence: str
    gates: tuple[str, ...] = ()


class EngineReport(Frozen):
    """What the builder said of one engine; parity of its device was not measured here."""

    node: str
    file: str
    compute_capability: str
    size_bytes: int
    facts: dict[str, Any]


class FileEntry(Frozen):
    """One delivered file."""

    path: str
    size_bytes: int
    sha256: str


class WeightPart(Frozen):
    """Stored numbers of a delivered model that one kind of operator reads, in one element type.

    Attributes:
        part: The operator that reads them (`MatMul`, `Gather`), or what else they are.
        dtype: ONNX's name of the element type, such as `float16`.
    """

    component: str
    part: str
    dtype: str
    size_bytes: int


class SampleSizes(Frozen):
    """How large the evaluation samples are along one axis.

    Attributes:
        axis: Its name, such as `sequence`.
        counts: (size, samples of that size), by size.
    """

    axis: str
    counts: tuple[tuple[int, int], ...]


class TargetReport(Frozen):
    """One target: its files, its parity by stage, its speed.

    Attributes:
        parity: In the order of the chain; the last one of each component is what gates judge.
        proxy: What stood in for the target when it was compared (`onnxruntime-cpu`), or empty.
        not_run_reason: Why the target could not be run on this machine; empty when it was.
        nodes: Names of the nodes that this target hangs on; when empty, renderers tell them by
            their names.
        weights: What the last model of each component is made of; empty when no stage said it.
        checks: What else was looked at.
        left_out_checks: Names of checks that the recipe leaves out and that would have looked at it.
    """

    name: str
    runtime: str
    precision: str
    files: tuple[FileEntry, ...]
    parity: tuple[StageParity, ...]
    proxy: str
    not_run_reason: str
    benchmark: BenchmarkResult | None
    engines: tuple[EngineReport, ...]
    nodes: tuple[str, ...] = ()
    weights: tuple[WeightPart, ...] = ()
    checks: tuple[CheckEntry, ...] = ()
    left_out_checks: tuple[str, ...] = ()


class TorchRun(Frozen):
    """The checkpoint in torch on this machine's GPU, in one way: a comparison that nothing judges.

    Attributes:
        variant: Its precision, and whether it is compiled; `compiled` alone is float32.
        parity: Against the reference in float32 on the CPU; None when it has no result.
        benchmark: Against torch in float32, eager mode, on the same GPU; None likewise.
    """

    variant: str
    component: str
    parity: Parity | None
    benchmark: BenchmarkResult | None


class WorstSample(Frozen):
    """A sample on which a target was farthest from the reference.

    Attributes:
        text: The sample's text, or its image's name.
        label: Its true answer in words; empty when it has none, or one for each token.
        image: Its picture as a `data:` URI; empty for text.
    """

    target: str
    output: str
    index: int
    text: str
    label: str = ""
    image: str = ""
    metric: str
    value: float


class Rejudged(Frozen):
    """That a report was judged again after its build, by `convert judge`; nothing was measured anew.

    Attributes:
        at: UTC, ISO 8601.
        recipe: The name of the file whose gates were applied; empty for those of the build.
        recipe_sha256: Of that file's content; empty likewise.
        stored_verdict: The verdict of the build.
        ignored: What else differs in that recipe from the build's and is not in these numbers.
    """

    at: str
    recipe: str
    recipe_sha256: str
    stored_verdict: Literal["passed", "failed", "error"]
    ignored: tuple[str, ...]


class Report(Frozen):
    """The whole report.

    Attributes:
        verdict: `passed`, `failed` (a gate) or `error` (a stage failed).
        reasons: One sentence for each thing that fails the build; empty when it passed.
        created_at: UTC, ISO 8601.
        source: `source`, `revision` and the digest of every file that was used.
        warnings: What fails nothing and should be known: samples in both sets, notices of stages.
        sample_sizes: Of the evaluation samples, for each axis that differs between them.
        noise_floors: What the checkpoint in float32 does to itself, by output.
        torch_runs: Of recipes that ask for them.
        findings: For each failed target, which stage and layer it comes down to.
        rejudged: None in an artifact: its report is the build's own.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    version: str
    verdict: Literal["passed", "failed", "error"]
    reasons: tuple[str, ...]
    created_at: str
    recipe: dict[str, Any]
    source: dict[str, Any]
    environment: dict[str, Any]
    gates: tuple[GateResult, ...]
    targets: tuple[TargetReport, ...]
    nodes: tuple[NodeReport, ...]
    worst_samples: tuple[WorstSample, ...]
    warnings: tuple[str, ...] = ()
    sample_sizes: tuple[SampleSizes, ...] = ()
    noise_floors: tuple[NoiseFloor, ...] = ()
    torch_runs: tuple[TorchRun, ...] = Field(default=(), exclude_if=lambda runs: not runs)
    findings: tuple[Finding, ...] = ()
    rejudged: Rejudged | None = None
