"""No recipe, however hostile, takes more than a second or 200 MiB: asserted by hard limits."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

BAD = Path(__file__).parent / "bad"
LOADER = Path(__file__).with_name("limited_loads.py")

DEEP = 100_000
"""Enough to crash a recursive parser; 200 kB of text, so below the limit of size."""

BOMBS: dict[str, str | bytes] = {
    "aliases": "a0: &a0 [x, x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 40)),
    "ten-megabytes": b"a: " + b"x" * 10_000_000,
    "binary": random.Random(0).randbytes(200_000),
    "deep-flow-lists": "[" * DEEP,
    "deep-flow-mappings": "{" * DEEP,
    "deep-flow-mixed": "{a: [" * (DEEP // 3),
    "deep-block-lists": "- " * DEEP,
    "deep-block-keys": "? " * DEEP,
    "deep-indent": "".join(f"{' ' * i}a:\n" for i in range(700)),
    "wide-list": "[" + "1, " * 80_000 + "]",
    "wide-mapping": "".join(f"k{i}: v\n" for i in range(25_000)),
    "unknown-keys": "".join(f"k{i}: v\n" for i in range(2_400)),
    "equal-keys": "k: v\n" * 2_400,
    "near-keys": "".join(f"shape{i}: v\n" for i in range(2_400)),
    "long-key": "x" * 200_000 + ": 1\n",
    "long-quoted-key": "? '" + "shapes" * 40_000 + "'\n: 1\n",
    "long-quoted-text": 'name: "' + "x " * 125_000 + '"',
    "long-number": "recipe: " + "9" * 250_000,
    "long-float": "recipe: 0." + "9" * 250_000,
    "open-quote": 'name: "' + "x\n " * 80_000,
    "escapes": 'name: "' + "\\x41" * 60_000 + '"',
    "comments": "#\n" * 120_000,
    "directives": "%a\n" * 80_000,
    "documents": "---\n" * 60_000,
    "anchors": "&a " * 80_000,
    "tags": "!a " * 80_000,
    "closing": "]" * DEEP,
    "wrong-targets": "targets: [" + "{runtime: x}, " * 1_500 + "]",
    "wrong-numbers": "a: [" + ".nan, " * 4_900 + "]",
}


def refusals(directory: Path) -> dict[str, str]:
    """File name -> first line of the refusal, from a child process with hard limits."""
    done = subprocess.run(
        [sys.executable, str(LOADER), str(directory)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"went beyond a limit at: {done.stdout[-200:]}\n{done.stderr}"
    return dict(line.split(": ", 1) for line in done.stdout.splitlines())


def test_every_bomb_is_refused_within_the_limits(tmp_path: Path) -> None:
    for name, content in BOMBS.items():
        raw = content.encode() if isinstance(content, str) else content
        (tmp_path / f"{name}.yaml").write_bytes(raw)
    found = refusals(tmp_path)
    assert set(found) == {f"{name}.yaml" for name in BOMBS}
    assert "LOADED" not in found.values()
    assert found["aliases.yaml"].startswith("anchors")
    assert {found[f"{name}.yaml"] for name in BOMBS if name.startswith("deep-")} == {
        "nested more than 20 deep",
        "a key must be text, not a mapping",  # `? ? ?`: a key of a key of a key
    }
    assert found["wide-list.yaml"] == "a recipe has at most 5,000 keys and values"


def test_the_corpus_is_refused_within_the_limits(tmp_path: Path) -> None:
    for path in BAD.glob("*.yaml"):
        shutil.copy(path, tmp_path)
    found = refusals(tmp_path)
    assert len(found) == len(list(BAD.glob("*.yaml"))) >= 45
    assert "LOADED" not in found.values()
