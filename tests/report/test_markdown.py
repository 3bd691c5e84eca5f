"""`report.md`: verdict first, small enough for a step summary, and closed to what it quotes."""

from __future__ import annotations

import functools
import re
from typing import get_args

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from pipeline.report import render_markdown
from pipeline.report.markdown import MAX_BYTES, escape
from pipeline.report.schema import Finding, Report
from tests.report.example import NO_DRIVER, Variant, example_report, image_report
from tests.report.faults import LAYER, fault_report
from tests.report.hostile import ALL, HUGE, hostile_report

GITHUB_LIMIT = 1024 * 1024
OWN_HTML = re.compile(r"</?(?:details|summary|strong)>|<br>")


def tokens(text: str) -> list[Token]:
    blocks = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    return [t for block in blocks for t in (block, *(block.children or ()))]


def skeleton(text: str) -> list[str]:
    """The structure of a text without its words: block kinds, in order."""
    return [t.type for t in tokens(text) if t.block and t.type != "inline"]


@functools.cache
def harmless_skeleton() -> list[str]:
    return skeleton(render_markdown(hostile_report("harmless")))


@pytest.mark.parametrize("variant", get_args(Variant))
def test_the_first_line_is_the_verdict_and_every_section_is_there(variant: Variant) -> None:
    text = render_markdown(example_report(variant))
    assert re.match(rf"# \S+ {variant.capitalize()}: minilm\n", text)
    for title in ("Targets", "Gates", "Parity", "Speed", "Fusions", "Worst samples", "Plan"):
        assert title in text
    assert text.count("<details>") == text.count("</details>") > 0
    assert text.endswith("\n")


def test_a_broken_gate_comes_before_those_that_hold() -> None:
    text = render_markdown(example_report("failed"))
    gates = text[text.index("## Gates") :]
    assert gates.index("❌ failed") < gates.index("✅ passed")
    assert "quantize_dynamic@" in gates[: gates.index("✅ passed")]


def test_what_was_not_run_is_not_marked_as_passed() -> None:
    text = render_markdown(example_report())
    row = next(line for line in text.splitlines() if line.startswith("| `rtx-fp16`"))
    assert "✅" not in row
    assert "(proxy)" in row
    assert f"not run, because {NO_DRIVER}" in row
    assert text.count("◌ not run (allowed)") == 2


def test_a_failed_stage_is_shown_with_its_log_and_hint() -> None:
    text = render_markdown(example_report("error"))
    section = text[text.index("## Failed stages") : text.index("## Gates")]
    assert "`engine@rtx-fp16-sm120` (SIGKILL)" in section
    assert "hint: the kernel's out-of-memory killer" in section
    assert "Building for compute capability 12.0" in section


@pytest.mark.parametrize("text", ALL, ids=ascii)
def test_quoted_text_cannot_change_the_structure(text: str) -> None:
    rendered = render_markdown(hostile_report(text))
    assert skeleton(rendered) == harmless_skeleton()
    for token in tokens(rendered):
        assert token.type not in {"link_open", "image"}
        if token.type in {"html_block", "html_inline"}:
            assert not re.search(r"<[^>]", OWN_HTML.sub("", token.content))
    assert "\x1b" not in rendered


@pytest.mark.parametrize("text", ALL, ids=ascii)
def test_what_github_would_link_or_notify_is_broken_up(text: str) -> None:
    shown = escape(text)
    assert not re.search(r"https?://|www\.\w|@\w|mailto:\w", shown)
    assert "\n" not in shown


def test_escaped_text_reads_as_it_was_written() -> None:
    text = "a|b `c` <d> *e* _f_ [g](h) \\ & &lt; #1 snake_case"
    inline = MarkdownIt("commonmark").parseInline(escape(text))[0]
    assert "".join(child.content for child in inline.children or ()) == text


def many(report: Report, count: int) -> Report:
    name = "|" * 600
    return report.model_copy(
        update={
            "gates": tuple(g.model_copy(update={"reason": name}) for g in report.gates) * count,
            "nodes": tuple(n.model_copy(update={"reasons": (name,)}) for n in report.nodes[:4])
            * count,
            "worst_samples": report.worst_samples * count,
        }
    )


def test_a_huge_report_is_cut_and_says_so() -> None:
    text = render_markdown(many(example_report("failed"), 120))
    assert len(text.encode()) <= MAX_BYTES < GITHUB_LIMIT
    assert "Cut here:" in text
    assert text.startswith("# ❌ Failed")
    assert text.count("<details>") == text.count("</details>")


def test_a_megabyte_name_stays_small() -> None:
    assert len(render_markdown(hostile_report(HUGE)).encode()) < 200_000


def test_quality_and_warnings_come_before_the_gates() -> None:
    text = render_markdown(image_report())
    above = text[: text.index("## Gates")]
    assert (
        "| `cpu-int8` | accuracy | 78.00 % | 80.50 % | 2.50 points | 0.50 to 5.50 points | 1 | 6 | 200 |"
        in above
    )
    assert "| `rtx-fp16` | accuracy (proxy) |" in above
    assert "2 of 53 layers were left in float" in above
    assert "golden retriever" in text
    assert "data:image" not in text


def test_findings_stand_first_with_stage_layer_and_the_worst_sample() -> None:
    text = render_markdown(fault_report())
    top = text[: text.index("## Targets")]
    assert "**cpu-fp32, cpu-int8**: the fault is made by" in top
    assert LAYER in top
    assert "4 gates fail for it" in top
    assert "worst sample of `cpu-fp32`, 17: Return True if all elements" in top
    assert top.count("\n- ") == 1


def test_only_what_fails_or_was_not_run_is_not_folded() -> None:
    text = render_markdown(fault_report())
    gates = text[text.index("## Gates") : text.index("<details><summary><strong>Gates that hold")]
    assert gates.count("❌ failed") == 4
    assert "✅" not in gates
    held = text[text.index("Gates that hold") :]
    assert held[: held.index("</details>")].count("✅ passed") == 62


def test_noise_probes_and_checks_have_their_tables() -> None:
    text = render_markdown(fault_report())
    assert "| `cpu-int8` | `quantize_dynamic@cpu-int8` | `last_hidden_state` | quantized |" in text
    row = next(line for line in text.splitlines() if line.startswith("| token types |"))
    assert "**0.0267** (13,953×)" in row  # noqa: RUF001
    assert "| `encoder.layer.3.attention.output.dense` departs first | MatMul | 15 |" in text
    assert "| padding | `last_hidden_state` | 2.2e-7 |" in text


def test_a_finding_that_no_gate_accuses_shows_the_numbers_it_rests_on() -> None:
    report = example_report("failed")
    finding = Finding(
        target="cpu-int8",
        node="quantize_dynamic@cpu-int8",
        stage="quantize_dynamic",
        sentence="no stage does worse than its arithmetic allows",
    )
    text = render_markdown(report.model_copy(update={"findings": (finding,)}))
    top = text[: text.index("## Targets")]
    assert "last_hidden_state.cosine_similarity is 0.9704755, the limit is &#62;= 0.99" in top
