"""`report.sarif`: SARIF 2.1.0, what code scanning shows beside the recipe.

Source: OASIS, Static Analysis Results Interchange Format 2.1.0 with errata 01. One rule for findings
and one for each kind of gate; one result for each finding, on the recipe's line of its target, and then
one for each gate that fails or was not run; a failed stage is a notification of the tool. A gate that
holds is no result: services would open an alert for it.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pipeline.report.places import gate_key_path, target_key_path
from pipeline.report.printable import printable
from pipeline.report.summary import blame, failed_nodes, headline, is_build_breaking

if TYPE_CHECKING:
    from pipeline.parity.types import GateResult
    from pipeline.report.places import Place, Places
    from pipeline.report.schema import Finding, NodeReport, Report

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)

FINDING_ID = "finding/stage"

RECIPE_FILE = "recipe.yaml"
"""Beside the report; what results point at where the recipe's own file is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a kind of gate looks for; `text` says it, `help` what is behind it."""

    name: str
    text: str
    help: str


FINDING = Rule(
    name="StageComputesWrong",
    text="A target's failures come down to what one stage made.",
    help="Of all nodes that failed gates accuse it is the first in the target's chain: what was made "
    "from its output shows the same fault again.",
)
"""The rule of findings; it is the first one."""

RULES = {
    "parity": Rule(
        name="OutputsDiffer",
        text="A target's outputs are too far from the checkpoint's.",
        help="The outputs of every target are compared with those of the checkpoint in torch "
        "float32, on the recipe's evaluation samples. The report shows what each stage added.",
    ),
    "device_parity": Rule(
        name="NotComparedOnItsDevice",
        text="A target could not be compared on the device that it is made for.",
        help="The graph was run on this machine's CPU in its place. Build where the device is, or "
        "list `device_parity` in `gates.allow_not_run`.",
    ),
    "quality": Rule(
        name="RightAnswersLost",
        text="A target gives fewer right answers than the recipe asks for.",
        help="Answers are counted on the evaluation samples that have a label, beside those of the "
        "checkpoint.",
    ),
    "stages": Rule(
        name="StageBeyondItsArithmetic",
        text="A stage's graph is farther from the checkpoint than its arithmetic allows.",
        help="The limit is a multiple of the checkpoint's own noise floor, of float32 against float64; "
        "`gates.stages` replaces it.",
    ),
    "invariance": Rule(
        name="NeighboursOrPaddingMatter",
        text="A sample comes out differently alone, in a batch, or with padding.",
        help="A graph is compared with itself; `gates.checks.invariance` holds the limits.",
    ),
    "generation": Rule(
        name="GeneratesOtherText",
        text="A decoder with its cache does not give the logits that it must give.",
        help="A text is read in several ways and compared with the text read whole, and with the "
        "checkpoint; `gates.checks.generation` holds the limits.",
    ),
    "seq2seq": Rule(
        name="WritesOtherTextOfASource",
        text="An encoder and its decoder do not give the logits that they must give together.",
        help="A target is read in several ways behind its source and compared with the target read "
        "whole, and with the checkpoint; `gates.checks.seq2seq` holds the limits.",
    ),
    "generation_speed": Rule(
        name="WritesTooSlowly",
        text="A decoder writes fewer tokens a second than the recipe asks for.",
        help="The reference loop is timed on this machine's CPU; "
        "`gates.checks.generation_speed` holds the limit.",
    ),
    "openvino_serving": Rule(
        name="ServedWorse",
        text="A decoder writes other tokens, or fewer a second, in OpenVINO GenAI than it must.",
        help="Continuous batching, a prefix cache and a draft are timed on this machine's CPU; "
        "`gates.checks.openvino_serving` holds the limits.",
    ),
    "quantization": Rule(
        name="QuantisedWrong",
        text="A quantised graph is not its float graph in fewer bits.",
        help="Scales, weights and structure are compared with the graph that was quantised; "
        "`gates.checks.quantization` holds the limits.",
    ),
    "packing": Rule(
        name="PackedWrong",
        text="A graph with packed weights is not what packing makes of the quantised graph.",
        help="It is packed once more, and nodes and stored tensors are compared; "
        "`gates.checks.packing` holds the limits.",
    ),
    "assignment": Rule(
        name="ProductsOnCpu",
        text="A provider for GPUs leaves matrix products of the graph to the CPU.",
        help="ONNX Runtime says nothing of it when the graph runs; `gates.checks.assignment` holds "
        "the limits.",
    ),
    "headroom": Rule(
        name="Float16Overflows",
        text="A value of the graph comes too near to the largest number of float16.",
        help="Measured in float32, because this machine would not overflow; "
        "`gates.checks.headroom` holds the limits.",
    ),
    "cast": Rule(
        name="CastWrong",
        text="A graph in float16 or bfloat16 is not the graph that it was cast from.",
        help="Weights and structure are compared with the graph before the cast; "
        "`gates.checks.cast` holds the limits.",
    ),
    "repair": Rule(
        name="RepairDidNotReachItsLimit",
        text="Giving layers back to float did not bring the error below what was asked for.",
        help="`quantization.repair` of the target holds the limit.",
    ),
    "companions": Rule(
        name="CompanionDiffers",
        text="A file beside the model, such as its tokenizer, is not the checkpoint's.",
        help="Tokenizer, processor, labels and pooling are compared with those of the checkpoint.",
    ),
    "speed": Rule(
        name="TooSlow",
        text="A target is too slow, or nothing sure can be said of its speed.",
        help="Target and checkpoint are timed in the same launches on one machine; the whole "
        "interval of the speed-up must lie above the limit.",
    ),
    "coverage": Rule(
        name="StageDidTooLittle",
        text="A stage reached less than the recipe asks for, such as weights that are quantised.",
        help="Stages report what they reached. A name that no stage reports fails as well.",
    ),
}
"""By kind of gate."""


def render_sarif(report: Report, places: Places | None = None) -> str:
    """The report as SARIF 2.1.0: indented JSON, ASCII, one newline at the end.

    Args:
        report: The report.
        places: Where the recipe's keys are written; None: results point at the recipe that lies
            beside the report, without a line.
    """
    shown = printable(report)
    kinds = list(dict.fromkeys((*RULES, *(gate.gate for gate in shown.gates))))
    results = [_finding(shown, finding, places) for finding in shown.findings]
    results += [
        _result(shown, gate, 1 + kinds.index(gate.gate), places)
        for gate in shown.gates
        if gate.verdict != "passed"
    ]
    notifications = [_notification(node) for node in failed_nodes(shown)]
    if shown.verdict != "passed" and not notifications and not any(map(_breaks, results)):
        reasons = "; ".join(shown.reasons) or headline(shown)
        notifications.append({"level": "error", "message": {"text": reasons}})
    run: dict[str, Any] = {
        "tool": {"driver": _driver(shown, kinds)},
        "automationDetails": {"id": f"convert/{shown.name}/{shown.version}"},
        "columnKind": "unicodeCodePoints",
        "invocations": [
            {
                "executionSuccessful": shown.verdict != "error",
                "toolExecutionNotifications": notifications,
            }
        ],
        "results": results,
        "properties": {"verdict": shown.verdict, "version": shown.version},
    }
    document = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _breaks(result: dict[str, Any]) -> bool:
    return bool(result["level"] == "error")


def _driver(report: Report, kinds: list[str]) -> dict[str, Any]:
    rules = [_rule(FINDING_ID, FINDING), *(_rule(f"gate/{kind}", _of(kind)) for kind in kinds)]
    driver: dict[str, Any] = {"name": "convert", "rules": rules}
    packages = report.environment.get("packages")
    version = packages.get("convert-pipeline") if isinstance(packages, dict) else None
    return driver | ({"version": version} if isinstance(version, str) and version else {})


def _of(kind: str) -> Rule:
    return RULES.get(kind) or Rule(name=kind, text=f"A gate of kind {kind}.", help="")


def _rule(identity: str, rule: Rule) -> dict[str, Any]:
    return {
        "id": identity,
        "name": rule.name,
        "shortDescription": {"text": rule.text},
        "fullDescription": {"text": f"{rule.text} {rule.help}".rstrip()},
        "help": {"text": rule.help or rule.text},
        "defaultConfiguration": {"level": "error"},
    }


def _finding(report: Report, finding: Finding, places: Places | None) -> dict[str, Any]:
    accused = {"target": finding.target, "stage": finding.stage, "layer": finding.layer}
    identity = "\n".join((report.name, "finding", *accused.values()))
    place = places(target_key_path(report, finding.target)) if places else None
    logical = [_module(finding.target)]
    told = ((finding.node, "function"), (finding.layer, "member"))
    logical += [{"name": name, "kind": kind} for name, kind in told if name]
    return {
        "ruleId": FINDING_ID,
        "ruleIndex": 0,
        "kind": "fail",
        "level": "error",
        "message": {"text": f"{finding.target}: {finding.sentence}"},
        "locations": [{"physicalLocation": _physical(place), "logicalLocations": logical}],
        "partialFingerprints": {"finding/v1": hashlib.sha256(identity.encode()).hexdigest()},
        "properties": {**accused, "node": finding.node, "gates": list(finding.gates)},
    }


def _result(report: Report, gate: GateResult, rule: int, places: Places | None) -> dict[str, Any]:
    is_broken = is_build_breaking(gate)
    measured = gate.measured
    properties: dict[str, Any] = {
        "target": gate.target,
        "metric": gate.metric,
        "limit": gate.limit,
        "verdict": gate.verdict,
        "is_allowed": gate.is_allowed,
        "is_proxy": gate.is_proxy,
    }
    if measured is not None and math.isfinite(measured):
        properties["measured"] = measured
    properties |= {"node": gate.node} if gate.node else {}
    properties |= {"layer": gate.layer} if gate.layer else {}
    identity = "\n".join((report.name, gate.gate, gate.target, gate.metric))
    return {
        "ruleId": f"gate/{gate.gate}",
        "ruleIndex": rule,
        # `open`: there was not enough to decide; only a failure may have a level (3.27.10).
        "kind": "fail" if is_broken else "open",
        "level": "error" if is_broken else "none",
        "message": {"text": gate_sentence(report, gate)},
        "locations": [_location(report, gate, places)],
        "partialFingerprints": {"gate/v1": hashlib.sha256(identity.encode()).hexdigest()},
        "properties": properties,
    }


def gate_sentence(report: Report, gate: GateResult) -> str:
    """What a gate found, in a sentence that needs nothing around it."""
    target = f"{gate.target}: " if gate.target else ""
    if gate.verdict == "not_run":
        return f"{target}{gate.gate} gate: {gate.metric} was not run: {gate.reason}"
    reason = gate.reason or f"it is {gate.measured!r}"
    who = blame(report, gate)
    told = f"{target}{gate.gate} gate: {gate.metric} must be {gate.limit}: {reason}"
    return f"{told} ({who})" if who else told


def _location(report: Report, gate: GateResult, places: Places | None) -> dict[str, Any]:
    place = places(gate_key_path(report, gate)) if places else None
    return {"physicalLocation": _physical(place), "logicalLocations": [_module(gate.target)]}


def _module(target: str) -> dict[str, str]:
    return {"name": target or "all targets", "kind": "module"}


def _physical(place: Place | None) -> dict[str, Any]:
    if place is None:
        return {"artifactLocation": {"uri": RECIPE_FILE}}
    return {
        "artifactLocation": {"uri": quote(place.file)},
        "region": {"startLine": place.line, "startColumn": place.column},
    }


def _notification(node: NodeReport) -> dict[str, Any]:
    failure = node.failure
    message = failure.message if failure else "the stage failed"
    return {
        "level": "error",
        "descriptor": {"id": f"stage/{node.stage}"},
        "message": {"text": f"`{node.name}` failed: {message}"},
    }
