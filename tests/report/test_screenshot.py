"""The page in a real browser: its charts are drawn, dark where asked for, nothing is requested."""

from __future__ import annotations

import html
import json
import re
import shutil
import struct
import subprocess
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline.report import render_html
from pipeline.report.scripts import load_scripts
from tests.report.example import TEXTS, example_report, image_report
from tests.report.faults import fault_report
from tests.report.hostile import MARKUP, hostile_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    # The browser's own requests, of which there are some all the same, find no host.
    *("--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
    "--virtual-time-budget=5000",
)
WIDTH, HEIGHT = 900, 500


def chromium(tmp_path: Path, *arguments: str, markup: str = "", fragment: str = "") -> str:
    page = tmp_path / "report.html"
    page.write_text(markup or render_html(example_report("failed")))
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            *(CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}"),
            *(f"--window-size={WIDTH},{HEIGHT}", *arguments),
            page.as_uri() + f"#{fragment}" * bool(fragment),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def pixels(path: Path) -> list[tuple[int, int, int]]:
    """All pixels of a PNG as Chromium writes it: 8 bits, RGB or RGBA, not interlaced."""
    content, offset, packed, header = path.read_bytes(), 8, b"", b""
    while offset < len(content):
        (length,) = struct.unpack_from(">I", content, offset)
        kind, body = content[offset + 4 : offset + 8], content[offset + 8 : offset + 8 + length]
        header = body if kind == b"IHDR" else header
        packed += body if kind == b"IDAT" else b""
        offset += length + 12
    width, _, depth, colour = struct.unpack_from(">IIBB", header)
    assert depth == 8
    step = {2: 3, 6: 4}[colour]
    raw, stride, before, found = zlib.decompress(packed), width * step, b"", []
    before = bytes(stride)
    for start in range(0, len(raw), stride + 1):
        line = unfiltered(raw[start], bytearray(raw[start + 1 : start + 1 + stride]), before, step)
        found += [(line[i], line[i + 1], line[i + 2]) for i in range(0, stride, step)]
        before = bytes(line)
    return found


def unfiltered(kind: int, line: bytearray, above: bytes, step: int) -> bytearray:
    """One row of a PNG without its filter (PNG specification, clause 9)."""
    for i in range(len(line)):
        left = line[i - step] if i >= step else 0
        corner = above[i - step] if i >= step else 0
        guess = (0, left, above[i], (left + above[i]) // 2, paeth(left, above[i], corner))[kind]
        line[i] = (line[i] + guess) & 255
    return line


def paeth(left: int, up: int, corner: int) -> int:
    guess = left + up - corner
    return min((left, up, corner), key=lambda value: abs(guess - value))


@pytest.mark.parametrize(("scheme", "is_dark"), [("1", False), ("0", True)])
def test_the_page_follows_the_colour_scheme_and_shows_its_verdict(
    scheme: str, is_dark: bool, tmp_path: Path
) -> None:
    image = tmp_path / "page.png"
    chromium(tmp_path, f"--screenshot={image}", f"--blink-settings=preferredColorScheme={scheme}")
    found = pixels(image)
    assert len(found) == WIDTH * HEIGHT
    corner = sum(found[0]) / 3
    assert corner < 60 if is_dark else corner > 230
    contrast = [pixel for pixel in found if abs(sum(pixel) / 3 - corner) > 90]
    assert len(contrast) > 4000, "the page looks empty"
    reddish = [p for p in found if p[0] > p[1] + 60 and p[0] > p[2] + 60]
    assert len(reddish) > 500, "the failed verdict is not visible on the first screen"


class Names(HTMLParser):
    """Which tags and attributes a page has."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def chart_states(dom: str) -> dict[str, str]:
    """Chart -> what became of it, or why it failed."""
    found = {}
    for tag in re.findall(r"<div [^>]*data-chart=[^>]*>", dom):
        values = dict(re.findall(r'data-(\w+)="([^"]*)"', tag))
        found[values["chart"]] = values.get("error", values.get("state", "not begun"))
    return found


def marks(dom: str, chart: str) -> int:
    """How many shapes a chart has."""
    start = dom.index(f'data-chart="{chart}"')
    body = dom[start : dom.index("</svg>", start)]
    return body.count("<path") + body.count("<rect") + body.count("<line")


def test_every_chart_is_drawn_and_the_rest_is_kept_as_it_was_written(tmp_path: Path) -> None:
    markup = render_html(example_report("failed"))
    dom = chromium(tmp_path, "--dump-dom", markup=markup)
    states = chart_states(dom)
    assert set(states) == {
        *("error:cpu-fp32", "error:cpu-int8", "error:rtx-fp16", "spread", "speedup", "size"),
        *("latency:1 × 32", "latency:8 × 128", "lengths:sequence"),  # noqa: RUF001
    }
    assert set(states.values()) == {"drawn"}
    least = {"spread": 6 * 60, "size": 20, "speedup": 12, "lengths:sequence": 10}
    for chart in states:
        assert marks(dom, chart) >= least.get(chart, 6), chart
    # A chart that is drawn takes the place of the one that needs no script.
    assert dom.count('class="either drawn"') + dom.count('class="either extra drawn"') == 7
    assert dom.count("<table") == markup.count("<table")


def test_every_chart_of_an_image_task_is_drawn_and_so_are_its_pictures(tmp_path: Path) -> None:
    dom = chromium(tmp_path, "--dump-dom", markup=render_html(image_report()))
    states = chart_states(dom)
    assert {"latency:batch 1", "latency:batch 8", "spread"} <= set(states)
    assert set(states.values()) == {"drawn"}
    assert dom.count('<img class="thumb" src="data:image/png;base64,') == 3


def test_the_charts_of_noise_and_of_layers_are_drawn(tmp_path: Path) -> None:
    dom = chromium(tmp_path, "--dump-dom", markup=render_html(fault_report()))
    states = chart_states(dom)
    assert set(states.values()) == {"drawn"}
    assert {f"noise:{target}" for target in ("cpu-fp32", "cpu-int8", "rtx-fp16")} <= set(states)
    assert not any(chart.startswith("error:") for chart in states)
    # A point, a limit and a band for each of two outputs after each of four stages.
    assert marks(dom, "noise:cpu-int8") >= 3 * 2 * 4
    (layers,) = (chart for chart in states if chart.startswith("layers:"))
    assert marks(dom, layers) >= 2 * 24


@pytest.mark.parametrize("width", [390, 1280])
def test_the_first_screen_says_verdict_stage_layer_and_sample(width: int, tmp_path: Path) -> None:
    # What stands on it is asked of the browser itself, by where the boxes are.
    script = (
        "<script>addEventListener('load', () => { const seen = [...document.querySelectorAll("
        "'.word, .finding strong, .finding a, .worst q')].filter(e => "
        "e.getBoundingClientRect().bottom < innerHeight).map(e => e.textContent.trim()); "
        "const wide = document.documentElement.scrollWidth - innerWidth; "
        "document.title = JSON.stringify([seen, wide]); });</script>"
    )
    bare = re.sub(r"<meta http-equiv[^>]*>", "", render_html(fault_report()))
    dom = chromium(
        tmp_path,
        *("--dump-dom", f"--window-size={width},{844 if width < 600 else 720}"),
        markup=bare.replace("</body>", f"{script}</body>"),
    )
    found = re.search("<title>(.*?)</title>", dom)
    assert found is not None
    seen, wide = json.loads(html.unescape(found[1]))
    assert wide <= 0, "the page scrolls sideways"
    first = fault_report().findings[0]
    for text in ("✕ Failed", "cpu-fp32, cpu-int8", first.node, first.layer, TEXTS[0]):
        assert text in seen


def test_a_link_to_a_folded_gate_opens_it(tmp_path: Path) -> None:
    report = fault_report()
    place = next(i for i, gate in enumerate(report.gates, 1) if gate.gate == "invariance")
    script = (
        "<script>addEventListener('load', () => setTimeout(() => { const row = document."
        "getElementById('gate-PLACE'); document.title = [row.closest('details').open, "
        "row.getBoundingClientRect().top < innerHeight].join(); }, 100));</script>"
    ).replace("PLACE", str(place))
    bare = re.sub(r"<meta http-equiv[^>]*>", "", render_html(report))
    page = bare.replace("</body>", f"{script}</body>")
    dom = chromium(tmp_path, "--dump-dom", markup=page, fragment=f"gate-{place}")
    assert "<title>true,true</title>" in dom


def test_a_folded_chart_has_its_width_when_it_is_opened(tmp_path: Path) -> None:
    report = fault_report()
    nodes = tuple(
        node.model_copy(update={"facts": node.facts | {"first": None}}) for node in report.nodes
    )
    calm = report.model_copy(update={"nodes": nodes, "findings": ()})
    script = (
        "<script>addEventListener('load', () => setTimeout(() => { const part = document."
        "querySelector('details[id^=layers]'); part.open = true; setTimeout(() => { document.title "
        "= part.querySelector('.chart svg').getBoundingClientRect().width; }, 300); }, 300));"
        "</script>"
    )
    bare = re.sub(r"<meta http-equiv[^>]*>", "", render_html(calm))
    dom = chromium(tmp_path, "--dump-dom", markup=bare.replace("</body>", f"{script}</body>"))
    assert set(chart_states(dom).values()) == {"drawn"}
    found = re.search("<title>([0-9.]+)</title>", dom)
    assert found is not None
    assert float(found[1]) > 0.8 * (WIDTH - 48)


@pytest.mark.parametrize("text", MARKUP[:6])
def test_a_hostile_text_in_a_chart_is_drawn_as_text(text: str, tmp_path: Path) -> None:
    dom = chromium(tmp_path, "--dump-dom", markup=render_html(hostile_report(text)))
    states = chart_states(dom)
    assert set(states.values()) == {"drawn"}
    bare = dom
    for script in load_scripts().texts:
        bare = bare.replace(script, "")
    bare = bare.replace('<form class="vega-bindings"></form>', "")  # Vega's own, empty
    assert bare.lower().count("<script") == 1 + len(load_scripts().texts)
    names = Names()
    names.feed(bare)
    assert not {name for name in names.attributes if name.startswith("on")}
    assert not names.tags & {"iframe", "object", "embed", "link", "base", "form"}


def test_without_scripts_the_plain_charts_stay(tmp_path: Path) -> None:
    # A policy that allows no script is what a strict server would send.
    markup = re.sub(r"script-src [^;]*; ", "", render_html(example_report("failed")))
    dom = chromium(tmp_path, "--dump-dom", markup=markup)
    assert set(chart_states(dom).values()) == {"not begun"}
    assert not re.search('class="[^"]*drawn', dom)
    assert dom.count('class="static"') == 4


def requested(log: Path) -> set[str]:
    """What a page wanted from the network; what the browser wants for itself is left out."""
    urls = re.findall(r'"url":\s*"(https?://[^"]*)', log.read_text())
    return {
        url for url in urls if not re.match(r"https?://[a-z0-9.-]+\.google(apis)?\.com[/:]", url)
    }


def test_no_request_leaves_the_page_and_the_policy_stops_one_that_tries(tmp_path: Path) -> None:
    address = "http://127.0.0.1:9/picture.png"
    markup = render_html(example_report("failed"))
    picture = f'<img src="{address}">'
    trying = markup.replace("<main>", f"<main>{picture}")
    open_to_all = re.sub(r"<meta http-equiv[^>]*>", "", trying)
    found = []
    for number, page in enumerate((markup, trying, open_to_all)):
        log = tmp_path / f"{number}.json"
        chromium(tmp_path, f"--log-net-log={log}", "--dump-dom", markup=page)
        found.append(requested(log))
    assert found == [set(), set(), {address}]


def test_a_printed_page_is_light_even_where_dark_is_asked_for(tmp_path: Path) -> None:
    printed = tmp_path / "page.pdf"
    scheme = "--blink-settings=preferredColorScheme=0"
    chromium(tmp_path, f"--print-to-pdf={printed}", "--no-pdf-header-footer", scheme)
    content = b""
    for part in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", printed.read_bytes(), re.DOTALL):
        try:
            content += zlib.decompress(part)
        except zlib.error:
            continue
    fills = {
        tuple(map(float, found))
        for found in re.findall(rb"([\d.]+) ([\d.]+) ([\d.]+) rg", content)
    }
    assert fills
    ink = (0x11 / 255,) * 3
    assert any(max(abs(a - b) for a, b in zip(fill, ink, strict=True)) < 0.01 for fill in fills)
    dark_paper = (0x16 / 255, 0x18 / 255, 0x1B / 255)
    assert not any(
        max(abs(a - b) for a, b in zip(fill, dark_paper, strict=True)) < 0.01 for fill in fills
    )
