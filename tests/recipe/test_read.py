from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.errors import RecipeError
from pipeline.recipe import load_recipe

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"


def refusal(path: Path | str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "r.yaml: the file is empty\n\nhint: start it with `recipe: 1`"),
        (b"   \n\n", "r.yaml: the file is empty\n\nhint: start it with `recipe: 1`"),
        (b"a: 1\nb: \0\n", "r.yaml:2:4: not text: character U+0000 cannot stand in a recipe"),
        (b"\x7fELF\x02\x01", "r.yaml:1:1: not text: character U+007F cannot stand in a recipe"),
        ("a: 1\r\nb: 'é\x07'\r\n".encode(), "r.yaml:2:6: not text: character U+0007 cannot"),
        ("a: \ufeff1".encode(), "r.yaml:1:4: not text: character U+FEFF cannot"),
        ("é: 1\nb: ".encode() + b"\xff\n", "r.yaml:2:4: not UTF-8 text: byte 0xff cannot"),
        (b"name: caf\xe9\n", "r.yaml:1:10: not UTF-8 text: byte 0xe9 cannot"),
        (b"\xef\xbb\xbfrecipe: 1\n", "r.yaml: the file is UTF-8 with a byte order mark"),
        ("recipe: 1\n".encode("utf-16"), "r.yaml: the file is UTF-16; a recipe is UTF-8"),
        (b"#" * (256 * 1024 + 1), "r.yaml: a recipe has at most 256 KiB"),
        (b"a: " + b"x" * 10_000_000, "r.yaml: a recipe has at most 256 KiB"),
        (b"PK\x03\x04" + bytes(range(128)), "r.yaml:1:3: not text: character U+0003"),
    ],
)
def test_bytes_that_are_no_recipe_say_why(
    content: bytes, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_bytes(content)
    assert refusal("r.yaml").startswith(expected)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    assert refusal(path) == f"{path}: there is no such file"


def test_a_directory_names_a_recipe_inside(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").touch()
    (tmp_path / "a.yaml").touch()
    expected = (
        f"this is a directory, not a recipe\n\nhint: give a file, such as `{tmp_path}/a.yaml`"
    )
    assert refusal(tmp_path) == f"{tmp_path}: {expected}"


def test_a_path_below_a_file_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot be read: Not a directory" in refusal(tmp_path / "file" / "recipe.yaml")


def test_a_path_with_a_nul_cannot_be_read() -> None:
    assert "cannot be read" in refusal("recipe\0.yaml")


def test_a_device_or_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert refusal(pipe) == f"{pipe}: this is not a regular file"
    assert refusal("/dev/zero") == "/dev/zero: this is not a regular file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.touch(mode=0)
    assert refusal(path) == f"{path}: cannot be read: Permission denied"


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_every_line_ending_loads_alike(ending: str, tmp_path: Path) -> None:
    copy = tmp_path / "recipe.yaml"
    text = QUICKSTART.read_text(encoding="utf-8")
    copy.write_bytes(text.replace("\n", ending).encode())
    assert load_recipe(copy) == load_recipe(QUICKSTART)
