"""An encoder and a decoder together write what the checkpoint would: with a cache, and in batches.

The limits and their reasons are those of `pipeline.checks.generation`. A target is read whole, token by
token, in chunks, in a batch whose shorter sources are padded, behind a cache whose rows were exchanged
with their sources, and at the end of the longest text. What the graph's own encoder made is fed
throughout, so a source that is lost between the two shows here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pipeline.checks.base import Check, Measured, PlannedCheck, Subject
from pipeline.checks.generation import GENERATION, GenerationLimits
from pipeline.stages.check_seq2seq import (
    CHECK_SEQ2SEQ,
    CHECKPOINT_PORT,
    ENCODER_PORT,
    MODEL_PORT,
    REFERENCE_PORT,
    SAMPLES_PORT,
    SOURCES_PORT,
    CheckSeq2SeqConfig,
)
from pipeline.targets.base import SourceRef
from pipeline.tasks import DECODER, ENCODER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.parity.types import GateResult

NAME: Final = "seq2seq"


class Seq2SeqLimits(GenerationLimits):
    """As of text generation."""


def _plan(subject: Subject, limits: Seq2SeqLimits) -> Iterator[PlannedCheck]:
    """Of the first graphs and of the delivered ones, of encoders with decoders."""
    if subject.component != DECODER or not subject.task.parts or subject.sources is None:
        return
    encoders = subject.models[ENCODER]
    pairs = ((subject.links[0], encoders[0]), (subject.links[-1], encoders[-1]))
    for link, encoder in {link.node: (link, encoder) for link, encoder in pairs}.values():
        yield PlannedCheck(
            link=link,
            config=CheckSeq2SeqConfig(
                task=subject.task.name,
                component=subject.component,
                optimizations=link.model.optimizations,
                longest=max(2, subject.profile["sequence"][2]),
                tokens=limits.tokens,
            ),
            inputs={
                MODEL_PORT: link.node,
                ENCODER_PORT: encoder.node,
                CHECKPOINT_PORT: SourceRef("checkpoint"),
                SAMPLES_PORT: subject.samples,
                SOURCES_PORT: subject.sources,
                REFERENCE_PORT: subject.reference,
            },
        )


def _judge(measured: Measured, limits: Seq2SeqLimits) -> tuple[GateResult, ...]:
    results = GENERATION.judge(measured, limits)
    return tuple(result.model_copy(update={"gate": NAME}) for result in results)


SEQ2SEQ = Check(name=NAME, stage=CHECK_SEQ2SEQ, plan=_plan, judge=_judge, is_run=True)
