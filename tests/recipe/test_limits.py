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

RECIPE = """
name: m-${a}
recipe: 1
model: {source: "m${a}", task: feature-extraction}
shapes: {batch: {min: 1, opt: 8, max: 32}}
data: {evaluation: {source: "builtin:stdlib-docstrings", samples: 64}}
gates: {parity: {cosine_similarity: {min: 0.9}}}
"""
MANY = ", ".join(map(str, range(250)))
LANGUAGE_BOMBS = {
    "laughs": f"vars: {{a0: {'x' * 10}"
    + "".join(f", a{i}: '{f'${{a{i - 1}}}' * 10}'" for i in range(1, 15))
    + "}\nname: ${a14}\n",
    "long-circle": "vars:\n"
    + "".join(f"  a{i}: ${{a{i + 1}}}\n" for i in range(2_000))
    + "name: ${a0}\n",
    "many-names": f"vars: {{n: {'x' * 9_000}}}\n" + "name: [" + '"${n}", ' * 4_000 + "]\n",
    "unknown-variables": "vars: {"
    + "".join(f"variable{i}: 1, " for i in range(800))
    + "}\nname: ["
    + "".join(f'"${{variably{i}}}", ' for i in range(1_500))
    + "]\n",
    "open-variables": f"name: '{'${' * 120_000}'\n",
    "wide-matrix": "matrix: {axes: {" + "".join(f"a{i}: [1, 2], " for i in range(1_000)) + "}}\n",
    "excludes": f"matrix: {{axes: {{a: [{MANY}]}}, exclude: [{'{b: 1}, ' * 1_500}]}}\n",
    "excludes-nothing": f"matrix: {{axes: {{a: [{MANY}]}}, exclude: [{'{a: x}, ' * 1_500}]}}\n",
    "includes": f"matrix: {{axes: {{a: [{MANY}]}}, include: [{'{b: 1}, ' * 1_500}]}}\n",
    "matrix-of-matrices": f"matrix: {{axes: {{a: [{MANY}]}}}}{RECIPE}"
    f"targets: [{{matrix: {{axes: {{b: [{MANY}]}}}}, name: x}}]\n",
    "many-matrices": f"matrix: {{axes: {{a: [{MANY}]}}}}{RECIPE}"
    f"targets: [{'{matrix: {axes: {b: [1]}}}, ' * 500}]\n",
    "wrong-in-all": f"matrix: {{axes: {{a: [{MANY}]}}}}{RECIPE}targets: [{'{runtime: x}, ' * 60}]\n",
    "matrix-with-variables": f"vars: {{{''.join(f'v{i}: 1, ' for i in range(2_000))}}}\n"
    f"matrix: {{axes: {{a: [{MANY}]}}}}{RECIPE}targets: 7\n",
    "extends-again": f"extends: [{'laughs.yaml, ' * 2_000}]\n",
    "extends-itself": "extends: extends-itself.yaml\n",
    "extends-a-device": "extends: /dev/zero\n",
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


def test_every_bomb_of_the_language_is_refused_within_the_limits(tmp_path: Path) -> None:
    for name, content in LANGUAGE_BOMBS.items():
        (tmp_path / f"{name}.yaml").write_text(content, encoding="utf-8")
    found = refusals(tmp_path)
    assert set(found) == {f"{name}.yaml" for name in LANGUAGE_BOMBS}
    assert "LOADED" not in found.values()
    assert found["laughs.yaml"] == "the text gets longer than 10,000 characters"
    assert found["many-names.yaml"].startswith("variables and matrices make more text")
    assert found["long-circle.yaml"] == "variables refer to each other more than 20 deep"
    assert found["wide-matrix.yaml"] == "a matrix has at most 256 combinations"
    for name in ("matrix-of-matrices", "many-matrices"):
        assert found[f"{name}.yaml"].startswith("the matrices make more than 50,000 values"), name


def test_the_largest_recipes_that_are_allowed_load_within_the_limits(tmp_path: Path) -> None:
    targets = "".join(
        f'  - {{name: "t{i}", runtime: onnxruntime, precision: fp32}}\n' for i in range(40)
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(f"matrix: {{axes: {{a: [{MANY}]}}}}{RECIPE}targets:\n{targets}")
    assert refusals(tmp_path) == {"recipe.yaml": "LOADED"}


def test_the_corpus_is_refused_within_the_limits(tmp_path: Path) -> None:
    for path in BAD.glob("*.yaml"):
        shutil.copy(path, tmp_path)
    found = refusals(tmp_path)
    assert len(found) == len(list(BAD.glob("*.yaml"))) >= 45
    assert "LOADED" not in found.values()
