"""What a recipe may say under `gates.checks`: for each check its limits, or null to leave it out."""

from __future__ import annotations

from pydantic import Field

from pipeline.checks.assignment import AssignmentLimits
from pipeline.checks.base import Limits
from pipeline.checks.cast import CastLimits
from pipeline.checks.companions import CompanionLimits
from pipeline.checks.export import ExportLimits
from pipeline.checks.generation import GenerationLimits
from pipeline.checks.generation_speed import GenerationSpeedLimits  # noqa: TC001  (pydantic reads it)
from pipeline.checks.headroom import HeadroomLimits
from pipeline.checks.invariance import InvarianceLimits
from pipeline.checks.layers import LayerLimits
from pipeline.checks.openvino_serving import OpenVinoServingLimits  # noqa: TC001  (pydantic reads it)
from pipeline.checks.packing import PackingLimits
from pipeline.checks.quantization import QuantizationLimits
from pipeline.checks.repair import RepairGate
from pipeline.checks.sensitivity import SensitivityLimits
from pipeline.checks.seq2seq import Seq2SeqLimits


class CheckLimits(Limits):
    """Limits of every check; a check that is null is not run, and the report says so."""

    companions: CompanionLimits | None = Field(
        default=CompanionLimits(),
        description="tokenizer, processor and configuration beside a model from elsewhere",
    )
    invariance: InvarianceLimits | None = Field(
        default=InvarianceLimits(),
        description="the same sample alone, in batches, with padding, and again",
    )
    generation: GenerationLimits | None = Field(
        default=GenerationLimits(),
        description="of text generation: a text token by token, in chunks, with padding in front "
        "and behind any past, against the text read whole, and that against the checkpoint",
    )
    seq2seq: Seq2SeqLimits | None = Field(
        default=Seq2SeqLimits(),
        description="of encoders with decoders: the same of both graphs together, with sources padded",
    )
    generation_speed: GenerationSpeedLimits | None = Field(
        default=None,
        description="of text generation, when it is there: ttft, tpot, itl and tokens a second of "
        "what is delivered, by the reference loop on this machine's CPU",
    )
    openvino_serving: OpenVinoServingLimits | None = Field(
        default=None,
        description="of text generation, when it is there: OpenVINO GenAI on this machine's CPU, "
        "continuous batching against static batches, a prefix cache, a draft model",
    )
    export: ExportLimits | None = Field(
        default=ExportLimits(),
        description="the exported parameters against the checkpoint's, bit by bit, and the opset",
    )
    cast: CastLimits | None = Field(
        default=CastLimits(),
        description="graph and numbers in 16 bits against the float32 ones, exactly",
    )
    headroom: HeadroomLimits | None = Field(
        default=HeadroomLimits(),
        description="how far values of a float16 graph are below the end of float16",
    )
    quantization: QuantizationLimits | None = Field(
        default=QuantizationLimits(),
        description="weights, scales and graph of a quantised model against the float model, exactly",
    )
    packing: PackingLimits | None = Field(
        default=PackingLimits(),
        description="weights packed for ONNX Runtime's own operator against what packing makes, exactly",
    )
    repair: RepairGate | None = Field(
        default=RepairGate(), description="a repair that was asked for has reached its limit"
    )
    assignment: AssignmentLimits | None = Field(
        default=AssignmentLimits(),
        description="nodes that a provider for GPUs leaves to the CPU, matrix products above all",
    )
    layers: LayerLimits | None = Field(
        default=LayerLimits(),
        description="what each layer of a quantised graph adds to the difference; after a failure "
        "those of all graphs",
    )
    sensitivity: SensitivityLimits | None = Field(
        default=SensitivityLimits(),
        description="after a failure: what each layer of a quantised graph loses by its 8 bits",
    )
