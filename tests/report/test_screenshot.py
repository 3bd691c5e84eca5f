"""The page in a real browser: laid out within its width, dark where that is asked for."""

from __future__ import annotations

import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import pytest

from pipeline.report import render_html
from tests.report.example import example_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--hide-scrollbars",
)
WIDTH, HEIGHT = 900, 500


def chromium(tmp_path: Path, *arguments: str) -> str:
    page = tmp_path / "report.html"
    page.write_text(render_html(example_report("failed")))
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            *(CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}"),
            *(f"--window-size={WIDTH},{HEIGHT}", *arguments, page.as_uri()),
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


def test_the_browser_keeps_the_page_as_it_was_written(tmp_path: Path) -> None:
    dom = chromium(tmp_path, "--dump-dom")
    assert "<script" not in dom
    assert dom.count("<table") == render_html(example_report("failed")).count("<table")
