"""What a comparison with the reference measured, and what a gate said: plain frozen data.

All numbers are raw, computed in float64, so that limits can be changed and judged again without a
rebuild. The JSON form of `Parity` is `parity.json`, the output of the `validate` stage.
"""

from __future__ import annotations

from typing import Final, Literal

from pipeline.records import Frozen


class Metrics(Frozen):
    """Distance of a candidate's tensor to the reference's, over all valid positions.

    A vector is the last axis of the tensor (a token's hidden state, a sentence's embedding, a
    sample's logits), and of a feature map (channels, height, width) the channels at one place.
    Padding is left out. A number that cannot be computed (candidate not finite, reference zero,
    vectors of one element) is None, and the counts say why.

    Attributes:
        cosine_similarity: The smallest over all vectors, in [-1, 1].
        cosine_similarity_mean: The mean over all vectors.
        max_abs_diff: The largest absolute difference of two elements.
        mean_abs_diff: The mean absolute difference.
        relative_l2: ||candidate - reference|| / ||reference||, both over everything.
        sqnr_db: -20 log10(relative_l2), decibels; None when there is no difference at all.
        top1_agreement: Share of the vectors whose largest element is in the same place; None for
            outputs of which that says nothing.
        non_finite: How many of the candidate's elements are NaN or infinite.
        elements: How many elements were compared.
        rmse: Root of the mean squared difference.
        reference_rms: Root of the mean square of the reference.
    """

    cosine_similarity: float | None
    cosine_similarity_mean: float | None
    max_abs_diff: float | None
    mean_abs_diff: float | None
    relative_l2: float | None
    sqnr_db: float | None
    top1_agreement: float | None = None
    non_finite: int
    elements: int
    rmse: float | None = None
    reference_rms: float | None = None


class SampleMetrics(Frozen):
    """The same, of one sample alone; `index` is its place in the sample set."""

    index: int
    metrics: Metrics


class OutputParity(Frozen):
    """One output of the graph against the reference's output of the same name.

    Attributes:
        is_ranked: The place of the largest element is what users read, as of logits.
    """

    name: str
    is_ranked: bool = False
    metrics: Metrics
    samples: tuple[SampleMetrics, ...]


class ProbeMetrics(Frozen):
    """One output of one probe, an input that was made to show what usual samples do not.

    Attributes:
        index: The probe's place in the probes' set.
        kind: What it is made to show, such as `left_padding`.
        text: What it is, for people.
        output: The output's name.
        metrics: None when the checkpoint itself gives no finite number here, so that nothing can
            be compared.
    """

    index: int
    kind: str
    text: str
    output: str
    metrics: Metrics | None


class NoiseFloor(Frozen):
    """How far the checkpoint in float32 is from itself, for one output.

    The unit is the root mean square of the output over all samples that were looked at, so that a
    sample whose output happens to be small does not count for more.

    Attributes:
        component: The model component.
        output: The output's name.
        float64: Largest over samples and probes of RMSE(float32, float64) over that unit.
        threads: The same of one thread against several, both float32.
        samples: How many samples and probes were looked at.
    """

    component: str
    output: str
    float64: float
    threads: float
    samples: int


class Quality(Frozen):
    """How well a graph does its task, beside the checkpoint on the same samples.

    Attributes:
        metric: A name of `pipeline.parity.quality.names`: `accuracy` (classes, choices),
            `token_accuracy`, `exact_match` (first and last token of an answer), `f1_macro`...
        samples: Samples that were asked.
        answers: Answers that were counted: tokens with a label, entities, else one a sample.
        score: In [0, 1], larger is better (`spearman`: [-1, 1]).
        reference_score: The checkpoint's.
        drop: `reference_score - score`: 0.005 is half a point.
        drop_low, drop_high: 95 % confidence interval of the drop; None in reports that were written
            before it was computed.
        gained: Answers (samples, where an answer is more than right or wrong) that are better here
            than in the checkpoint.
        lost: Those that are worse.
    """

    metric: str
    samples: int
    answers: int
    score: float
    reference_score: float
    drop: float
    drop_low: float | None = None
    drop_high: float | None = None
    gained: int
    lost: int


class Parity(Frozen):
    """One graph against the reference, on the evaluation samples.

    Attributes:
        outputs: By output; every output of the reference is there.
        problems: Sentences that make the candidate wrong whatever the limits are: an output is
            missing, a shape or dtype differs, an element is NaN or infinite.
        session: How the graph was run, e.g. `onnxruntime 1.31.1 CPUExecutionProvider, all`.
        batch_size: Samples a run.
        samples_seen: How many samples were compared.
        qualities: All figures of the task that could be computed.
        quality: Only in reports that were written before there were several: the task's own.
        probes: Each output of each probe; not part of `outputs`.
    """

    outputs: tuple[OutputParity, ...]
    problems: tuple[str, ...]
    session: str
    batch_size: int
    samples_seen: int
    qualities: tuple[Quality, ...] = ()
    quality: Quality | None = None
    probes: tuple[ProbeMetrics, ...] = ()

    def figures(self) -> tuple[Quality, ...]:
        """All figures of the task."""
        return self.qualities or ((self.quality,) if self.quality is not None else ())

    def figure(self, metric: str) -> Quality | None:
        """The figure of this name; None when it was not computed."""
        return next((found for found in self.figures() if found.metric == metric), None)


GateVerdict = Literal["passed", "failed", "not_run"]


SENSELESS: Final = "where it can be asked"
"""The limit of what makes no sense for a graph, such as chunks of a decoder without a cache: `not_run`."""


class GateResult(Frozen):
    """What one gate said about one target.

    Attributes:
        gate: `parity`, `stages`, `device_parity`, `quality`, `speed`, `coverage`, or the name of a
            check.
        target: The target's name.
        metric: What was limited, such as `sentence_embedding.cosine_similarity`.
        measured: The number that was judged; None when there is none.
        limit: The limit in words, `>= 0.99`.
        verdict: `not_run` is not a pass; `is_allowed` says whether the recipe accepts it.
        reason: One sentence: why it failed, or why it was not run.
        is_allowed: False when this result fails the build.
        is_proxy: The number stands in for one that could not be measured here.
        node: The node whose output was judged, when the gate tells it: the one a failure accuses.
        layer: The layer of it that a failure accuses, when the gate tells it.
    """

    gate: str
    target: str
    metric: str
    measured: float | None
    limit: str
    verdict: GateVerdict
    reason: str
    is_allowed: bool
    is_proxy: bool = False
    node: str = ""
    layer: str = ""
