"""The explicit list of stages; a new stage is a new file here and a line in `STAGES`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.stages.adopt import ADOPT
from pipeline.stages.arrange_attention import ARRANGE_ATTENTION
from pipeline.stages.benchmark import (
    BENCHMARK,
    BENCHMARK_ENGINE,
    BENCHMARK_PROVIDER,
    BENCHMARK_TORCH,
)
from pipeline.stages.benchmark_generation import BENCHMARK_GENERATION
from pipeline.stages.benchmark_openvino import BENCHMARK_OPENVINO
from pipeline.stages.calibrate import CALIBRATE
from pipeline.stages.cast import CAST
from pipeline.stages.check_assignment import CHECK_ASSIGNMENT
from pipeline.stages.check_cast import CHECK_CAST
from pipeline.stages.check_companions import CHECK_COMPANIONS
from pipeline.stages.check_export import CHECK_EXPORT
from pipeline.stages.check_generation import CHECK_GENERATION
from pipeline.stages.check_packing import CHECK_PACKING
from pipeline.stages.check_quantization import CHECK_QUANTIZATION
from pipeline.stages.check_repair import CHECK_REPAIR
from pipeline.stages.check_seq2seq import CHECK_SEQ2SEQ
from pipeline.stages.choose_bits import CHOOSE_BITS
from pipeline.stages.compare_layers import COMPARE_LAYERS
from pipeline.stages.decoder_samples import DECODER_SAMPLES
from pipeline.stages.engine import ENGINE
from pipeline.stages.engine_tensorrt import ENGINE_TENSORRT
from pipeline.stages.export import EXPORT
from pipeline.stages.fuse import FUSE
from pipeline.stages.fuse_and_quantize import FUSE_AND_QUANTIZE
from pipeline.stages.fuse_attention import FUSE_ATTENTION
from pipeline.stages.headroom import HEADROOM
from pipeline.stages.invariance import INVARIANCE
from pipeline.stages.noise_floor import NOISE_FLOOR
from pipeline.stages.observe_products import OBSERVE_PRODUCTS
from pipeline.stages.pack_weights import PACK_WEIGHTS
from pipeline.stages.probes import PROBES
from pipeline.stages.provider_engine import PROVIDER_ENGINE
from pipeline.stages.quantize_dynamic import QUANTIZE_DYNAMIC
from pipeline.stages.quantize_static import QUANTIZE_STATIC
from pipeline.stages.quantize_weights import QUANTIZE_WEIGHTS
from pipeline.stages.reference import REFERENCE
from pipeline.stages.repair import REPAIR
from pipeline.stages.samples import SAMPLES
from pipeline.stages.scale_channels import SCALE_CHANNELS
from pipeline.stages.sensitivity import SENSITIVITY
from pipeline.stages.simplify import SIMPLIFY
from pipeline.stages.simplify_and_fuse import SIMPLIFY_AND_FUSE
from pipeline.stages.static_cache import STATIC_CACHE
from pipeline.stages.validate import VALIDATE
from pipeline.stages.validate_engine import VALIDATE_ENGINE
from pipeline.stages.validate_provider import VALIDATE_PROVIDER
from pipeline.stages.validate_torch import VALIDATE_TORCH

if TYPE_CHECKING:
    from pipeline.stages.base import AnyStage

STAGES: tuple[AnyStage, ...] = (
    SAMPLES,
    PROBES,
    DECODER_SAMPLES,
    REFERENCE,
    NOISE_FLOOR,
    EXPORT,
    ADOPT,
    SIMPLIFY,
    FUSE,
    SIMPLIFY_AND_FUSE,
    ARRANGE_ATTENTION,
    FUSE_ATTENTION,
    CALIBRATE,
    OBSERVE_PRODUCTS,
    SCALE_CHANNELS,
    CHOOSE_BITS,
    SENSITIVITY,
    REPAIR,
    QUANTIZE_DYNAMIC,
    CAST,
    QUANTIZE_STATIC,
    QUANTIZE_WEIGHTS,
    FUSE_AND_QUANTIZE,
    PACK_WEIGHTS,
    STATIC_CACHE,
    ENGINE,
    ENGINE_TENSORRT,
    VALIDATE,
    VALIDATE_ENGINE,
    PROVIDER_ENGINE,
    VALIDATE_PROVIDER,
    INVARIANCE,
    HEADROOM,
    CHECK_COMPANIONS,
    CHECK_EXPORT,
    CHECK_CAST,
    CHECK_GENERATION,
    CHECK_SEQ2SEQ,
    CHECK_QUANTIZATION,
    CHECK_PACKING,
    CHECK_REPAIR,
    CHECK_ASSIGNMENT,
    COMPARE_LAYERS,
    BENCHMARK,
    BENCHMARK_ENGINE,
    BENCHMARK_PROVIDER,
    VALIDATE_TORCH,
    BENCHMARK_TORCH,
    BENCHMARK_GENERATION,
    BENCHMARK_OPENVINO,
)
"""Every stage there is, in the order in which a chain may use them."""
