"""How fast decoders write: every figure that people ask for, once, with its unit and its formula."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.report import render_html, render_terminal_summary
from pipeline.report.figures import TIMES as TIMES_SIGN
from pipeline.report.gate_groups import gate_groups
from pipeline.report.markdown import render_markdown
from pipeline.report.printable import printable
from pipeline.report.schema import CheckEntry, Report
from pipeline.report.writing import writing_of, writing_speeds
from tests.report.example import example_report

NODE = "benchmark_generation@fuse"
TIMES = {
    "batch": 1,
    "prompt": 32,
    "tokens": 16,
    "ttft_ms": 1.1823,
    "tpot_ms": 1.4968,
    "itl_p50_ms": 0.391,
    "itl_p99_ms": 10.94,
    "prefill_tokens_per_s": 27064.4,
    "decode_tokens_per_s": 668.07,
    "mbu": 0.1653,
    "mfu": 0.6218,
    "cache_bytes_per_token": 2048,
}
FACTS: dict[str, Any] = {
    "times": [TIMES, {**TIMES, "batch": 4, "decode_tokens_per_s": 1295.4}],
    "server": [],
    "batching": [{"sorted_over_unsorted": 1.417, "interval": [1.036, 1.938], "texts": 8}],
    "cold_start_s": 0.6456,
    "load_s": 0.0739,
    "peak_rss_mib": 109.8,
    "weight_bytes": 4064256,
    "cache_bytes_per_token": 2048,
    "flops_per_token": 2032128,
    "read_bytes_per_s": 16756366370.9,
    "formulas": {"mbu": "bytes of a step / tpot / read_bytes_per_s", "mfu": "<b>share</b>"},
}


NEAR: dict[str, Any] = {
    "perplexity": {
        "candidate": 5.4776,
        "reference": 5.4334,
        "ratio": 1.00813,
        "interval": [1.00388, 1.01224],
    },
    "divergence": {
        "kl_mean": 0.0077,
        "kl_max": 0.22,
        "top1": 0.94684,
        "top5": 1.0,
        "positions": 3104,
    },
}


def timed(facts: dict[str, Any], check: str = "generation_speed") -> Report:
    """The example, whose two targets for CPUs share a graph that was looked at."""
    report = example_report("passed").model_copy(deep=True)
    entry = CheckEntry(check=check, node=NODE, of="fuse", stage="x", component="model")
    for target in report.targets[:2]:
        object.__setattr__(target, "checks", (*target.checks, entry))
        object.__setattr__(target, "benchmark", None)
    node = report.nodes[0].model_copy(update={"name": NODE, "facts": facts})
    return report.model_copy(update={"nodes": (*report.nodes, node)})


def test_every_figure_is_there_once_and_has_a_unit() -> None:
    found = writing_of(printable(timed(FACTS)))
    assert found is not None
    tables = {table.title: table for table in found.tables}
    assert "Requests at random times" not in tables
    times = tables["Writing"]
    first = dict(zip(times.columns, times.rows[0], strict=True))
    assert first.pop("Target") == "cpu-fp32, cpu-int8"
    assert first == {
        "Texts>": "1",
        "Prompt>": "32",
        "New tokens>": "16",
        "ttft>": "1.18 ms",
        "tpot>": "1.50 ms",
        "itl p50>": "0.391 ms",
        "itl p99>": "10.9 ms",
        "Prefill tokens>": "27,064 /s",
        "Decode tokens>": "668 /s",
        "mbu>": "16.5 %",
        "mfu>": "62.2 %",
    }
    assert len(times.rows) == 2
    (sorted_row,) = tables["The texts in order of length"].rows
    assert "1.42x (1.04x to 1.94x)".replace("x", TIMES_SIGN) in sorted_row
    process = tables["A new process, and what this machine can do at best"]
    (row,) = process.rows
    assert row[1:] == (
        "73.9 ms",
        "646 ms",
        "110 MiB",
        "3.88 MiB",
        "2.00 KiB",
        "2.03 M",
        "16.8 GB/s",
    )


def test_every_form_of_the_report_shows_them() -> None:
    report = timed(FACTS)
    markdown, page = render_markdown(report), render_html(report)
    for text in (markdown, page):
        assert "16.5 %" in text
        assert "bytes of a step / tpot / read_bytes_per_s" in text
        assert text.count("668 tokens/s at batch 1, 1,295 at batch 4") == 2
        assert "<b>share" not in text
    assert 'href="#writing"' in page
    assert "668 tokens/s at batch 1" in render_terminal_summary(report)


def test_lengths_tell_what_was_timed_with_one_batch_apart() -> None:
    times = [
        {"batch": 1, "prompt": prompt, "tokens": 16, "decode_tokens_per_s": speed}
        for prompt, speed in ((32, 700.0), (128, 80.0))
    ]
    told = "700 tokens/s at batch 1 (32+16), 80.0 at batch 1 (128+16)"
    assert writing_speeds(timed({"times": times}))["cpu-fp32"] == told


@pytest.mark.parametrize(
    "facts",
    [
        {"perplexity": {"ratio": "x", "interval": [1]}, "divergence": 7},
        {"times": "none"},
        {"times": [{"batch": "x", "decode_tokens_per_s": float("nan")}], "formulas": [1]},
        {"batching": [{"interval": [1]}, {"interval": 3}], "server": {"a": 1}},
        {"flops_per_token": 1e40, "read_bytes_per_s": -5},
    ],
)
def test_facts_of_any_shape_are_rendered(facts: dict[str, Any]) -> None:
    for check in ("generation_speed", "generation"):
        report = timed(facts, check)
        assert render_html(report)
        assert render_markdown(report)
        assert "tokens/s" not in render_terminal_summary(report)


@pytest.mark.parametrize("check", ["generation", "seq2seq"])
def test_texts_beside_the_checkpoints_are_in_every_form(check: str) -> None:
    report = timed(NEAR, check)
    found = writing_of(printable(report))
    assert found is not None
    (table,) = found.tables
    (row,) = table.rows
    ratio = "1.0081x (1.0039x to 1.0122x)".replace("x", TIMES_SIGN)
    assert row == (
        *("cpu-fp32, cpu-int8", "5.478", "5.433", ratio),
        *("0.0077", "0.22", "94.68 %", "100.00 %", "3,104"),
    )
    assert {"perplexity", "kl"} <= {name for name, _ in found.formulas}
    for text in (render_markdown(report), render_html(report), render_terminal_summary(report)):
        assert ratio in text


def test_of_several_graphs_that_is_shown_which_is_delivered() -> None:
    """The export is looked at first."""
    report = timed(NEAR, "generation")
    first = report.nodes[0].model_copy(update={"name": "first", "facts": {}})
    entry = CheckEntry(check="generation", node="first", of="export", stage="x", component="model")
    for target in report.targets[:2]:
        object.__setattr__(target, "checks", (entry, *target.checks))
    report = report.model_copy(update={"nodes": (first, *report.nodes)})
    found = writing_of(printable(report))
    assert found is not None
    assert len(found.tables[0].rows) == 1


def test_nothing_measured_is_no_section() -> None:
    assert writing_of(printable(example_report("passed"))) is None
    assert 'id="writing"' not in render_html(example_report("passed"))
    assert 'id="writing"' not in render_html(timed({}))


def test_what_a_perplexity_takes_of_its_limit_is_counted_from_one() -> None:
    report = example_report("passed")
    gate = report.gates[0].model_copy(
        update={
            "gate": "generation",
            "metric": "fuse.perplexity",
            "measured": 1.01,
            "limit": "<= 1.05",
            "verdict": "passed",
        }
    )
    (held,) = gate_groups(report.model_copy(update={"gates": (gate,)})).held
    assert held.closest == pytest.approx(0.2)
