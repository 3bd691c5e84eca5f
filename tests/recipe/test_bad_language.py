"""Every misuse of the recipe language is refused with exactly the text beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import ExitCode, RecipeError
from pipeline.recipe import load_recipes

BAD = Path(__file__).parent / "bad_language"
CASES = sorted(path.name for path in BAD.iterdir())


@pytest.mark.parametrize("name", CASES)
def test_a_misuse_is_refused_with_the_expected_text(
    name: str, update_goldens: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(BAD / name)  # so that messages name the files without this machine's path
    with pytest.raises(RecipeError) as caught:
        load_recipes("recipe.yaml")
    text = f"{caught.value}\n"
    expected = BAD / name / "expected.txt"
    if update_goldens:
        expected.write_text(text, encoding="utf-8")
    assert text == expected.read_text(encoding="utf-8")
    assert caught.value.exit_code is ExitCode.USAGE


def test_messages_do_not_speak_of_pydantic_or_python() -> None:
    texts = "".join(path.read_text(encoding="utf-8") for path in BAD.glob("*/expected.txt"))
    for word in ("Value error", "Input should", "pydantic", "Traceback", "dict", "tuple", "None"):
        assert word not in texts
