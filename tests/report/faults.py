"""A report with everything that finds a fault: stage gates, probes, checks, layers, findings.

By hand, so that it stays the same whatever the checks measure tomorrow. One MatMul has been wrong since
the fusion, so two of three targets fail; the third one holds.
"""

from __future__ import annotations

from typing import Any

from pipeline.parity.tolerances import TOLERANCES, Arithmetic
from pipeline.parity.types import (
    GateResult,
    Metrics,
    NoiseFloor,
    OutputParity,
    ProbeMetrics,
    SampleMetrics,
)
from pipeline.report.schema import (
    CheckEntry,
    Finding,
    NodeReport,
    Report,
    StageParity,
    TargetReport,
)
from tests.report.example import OUTPUTS, example_report, node, stage_parity

FLOORS = {"last_hidden_state": 2.4e-7, "sentence_embedding": 1.3e-7}
UNIT = 0.57
FAULTY = "fuse@cpu-fp32"
LAYER = "encoder.layer.3.attention.output.dense"
ERRORS: dict[str, tuple[float, Arithmetic]] = {
    "export": (2.7e-7, "float32"),
    "simplify": (2.9e-7, "float32"),
    FAULTY: (4.1e-3, "float32"),
    "quantize_dynamic@cpu-int8": (0.052, "quantized"),
    "cast@rtx-fp16": (1.1e-4, "float16"),
}
PROBES = {
    "rare_tokens": ("256 tokens from all of the vocabulary", 1.4),
    "longest": ("a text of 512 tokens, the longest allowed", 1.1),
    "left_padding": ("17 positions of padding on the left", 0.8),
    "token_types": ("the second half is another text", 6.5),
    "all_masked": ("every position is masked", 0.0),
}
CASES = {"repeated": 0.0, "batch": 1.1e-7, "padding": 2.2e-7}


def with_size(metrics: Metrics) -> Metrics:
    assert metrics.relative_l2 is not None
    return metrics.model_copy(update={"rmse": metrics.relative_l2 * UNIT, "reference_rms": UNIT})


def sized(output: OutputParity) -> OutputParity:
    samples = tuple(
        SampleMetrics(index=sample.index, metrics=with_size(sample.metrics))
        for sample in output.samples
    )
    return output.model_copy(update={"metrics": with_size(output.metrics), "samples": samples})


def link(name: str) -> StageParity:
    error, arithmetic = ERRORS[name]
    bare = stage_parity(name, error)
    assert bare.parity is not None
    outputs = tuple(sized(output) for output in bare.parity.outputs)
    probes = tuple(
        ProbeMetrics(
            index=index,
            kind=kind,
            text=text,
            output=output.name,
            metrics=None
            if kind == "all_masked"
            else with_size(
                output.samples[0].metrics.model_copy(update={"relative_l2": error * factor})
            ),
        )
        for index, (kind, (text, factor)) in enumerate(PROBES.items())
        for output in outputs
    )
    parity = bare.parity.model_copy(update={"outputs": outputs, "probes": probes})
    return bare.model_copy(update={"parity": parity, "arithmetic": arithmetic})


def stage_gates(target: TargetReport) -> tuple[GateResult, ...]:
    found = []
    for stage in target.parity:
        error, arithmetic = ERRORS[stage.node]
        for output in OUTPUTS:
            noise, limit = error * 6.5, TOLERANCES[arithmetic].limit(FLOORS[output])
            holds = noise <= limit
            found.append(
                GateResult(
                    gate="stages",
                    target=target.name,
                    metric=f"{stage.stage}.{output}.noise",
                    measured=noise,
                    limit=f"<= {limit:.3g}",
                    verdict="passed" if holds else "failed",
                    reason=""
                    if holds
                    else f"probe 3 (token types) is {noise / 2e-7:,.0f} times "
                    "as far from the checkpoint as float32 is from float64",
                    is_allowed=holds,
                    is_proxy=bool(target.proxy),
                    node=stage.node,
                    layer="" if holds else LAYER,
                )
            )
    return tuple(found)


def invariance(target: TargetReport, of: StageParity) -> tuple[GateResult, ...]:
    return tuple(
        GateResult(
            gate="invariance",
            target=target.name,
            metric=f"{of.stage}.{output}.{case}",
            measured=noise,
            limit="<= 1.92e-06",
            verdict="passed",
            reason="",
            is_allowed=True,
            node=of.node,
        )
        for output in OUTPUTS
        for case, noise in CASES.items()
    )


def check(name: str, of: StageParity) -> CheckEntry:
    return CheckEntry(
        check=name,
        node=f"{'compare_layers' if name == 'layers' else name}@{of.node.replace('@', '-')}",
        of=of.node,
        stage=of.stage,
        component=of.component,
    )


def layer_rows() -> list[dict[str, Any]]:
    """Forty values of a graph of six layers; from the twelfth on they are wrong."""
    parts = (
        "attention.self.query",
        "attention.self.value",
        "attention.output.dense",
        "output.dense",
    )
    rows = []
    for place in range(24):
        part, block = parts[place % 4], place // 4
        layer = f"encoder.layer.{block}.{part}"
        is_wrong = place >= 14
        rows.append(
            {
                "name": f"/encoder/layer.{block}/{part.replace('.', '/')}/MatMul_output_0",
                "operator": "MatMul",
                "node": f"/encoder/layer.{block}/{part.replace('.', '/')}/MatMul",
                "layer": layer,
                "noise": (3e-3 if is_wrong else 1.5e-7) * (1 + place / 24),
                "added": 2.9e-3 if place == 14 else 1e-8 * place,
                "cosine": 0.99991 if is_wrong else 1.0,
            }
        )
    return rows


def facts(name: str) -> dict[str, Any]:
    """What the node of a check says."""
    if name == "invariance":
        return {
            "cases": [
                {"output": output, "case": case, "noise": noise, "sample": 7}
                for output in OUTPUTS
                for case, noise in CASES.items()
            ]
        }
    if name == "layers":
        rows = layer_rows()
        return {
            "against": "simplify",
            "samples": 8,
            "unmatched": 11,
            "layers": rows,
            "worst": [rows[14]["name"], rows[23]["name"]],
            "first": rows[14]["name"],
        }
    return {"smallest": 41.5, "value": "/encoder/Add_output_0", "sample": 3}


def fault_report() -> Report:
    """The whole report."""
    base = example_report("passed")
    chains = {
        "cpu-fp32": ("export", "simplify", FAULTY),
        "cpu-int8": ("export", "simplify", FAULTY, "quantize_dynamic@cpu-int8"),
        "rtx-fp16": ("export", "simplify", "cast@rtx-fp16"),
    }
    targets, gates, nodes = [], [*base.gates], list[NodeReport]()
    for target in base.targets:
        links = tuple(link(name) for name in chains[target.name])
        checks = [check("invariance", links[0]), check("invariance", links[-1])]
        if FAULTY in chains[target.name]:
            checks.append(check("layers", links[2]))
        else:
            checks.append(check("headroom", links[-1]))
        told = target.model_copy(update={"parity": links, "checks": tuple(checks)})
        targets.append(told)
        gates += stage_gates(told)
        gates += [*invariance(told, links[0]), *invariance(told, links[-1])]
        nodes += [
            node(entry.node, (entry.of,), 2.1, 300.0, facts(entry.check))
            for entry in checks
            if entry.node not in {known.name for known in nodes}
        ]
    findings = tuple(
        Finding(
            target=name,
            node=FAULTY,
            stage="fuse",
            layer=LAYER,
            sentence=f"the fault is made by `{FAULTY}`, first in layer `{LAYER}`: "
            "fuse.last_hidden_state.noise must be <= 1.92e-06; probe 3 (token types) is 133,250 "
            "times as far from the checkpoint as float32 is from float64",
            gates=tuple(f"fuse.{output}.noise" for output in OUTPUTS),
        )
        for name in ("cpu-fp32", "cpu-int8")
    )
    broken = tuple(gate for gate in gates if not gate.is_allowed)
    return base.model_copy(
        update={
            "verdict": "failed",
            "reasons": tuple(f"{gate.target}: {gate.metric}: {gate.reason}" for gate in broken),
            "targets": tuple(targets),
            "gates": tuple(gates),
            "nodes": (*base.nodes, *nodes),
            "findings": findings,
            "noise_floors": tuple(
                NoiseFloor(
                    component="model", output=output, float64=floor, threads=floor / 3, samples=24
                )
                for output, floor in FLOORS.items()
            ),
        }
    )
