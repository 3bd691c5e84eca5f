"""Every recipe of the corpus is refused with exactly the text beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import ExitCode, RecipeError
from pipeline.recipe import load_recipe

BAD = Path(__file__).parent / "bad"
RECIPES = sorted(path.name for path in BAD.glob("*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_bad_recipe_is_refused_with_the_expected_text(
    name: str, update_goldens: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(BAD)  # so that messages name the file without this machine's path
    with pytest.raises(RecipeError) as caught:
        load_recipe(name)
    text = f"{caught.value}\n"
    expected = BAD / name.replace(".yaml", ".expected")
    if update_goldens:
        expected.write_text(text, encoding="utf-8")
    assert text == expected.read_text(encoding="utf-8")
    assert caught.value.exit_code is ExitCode.USAGE


def test_no_expected_text_is_left_without_its_recipe() -> None:
    assert sorted(path.stem for path in BAD.glob("*.expected")) == sorted(
        Path(name).stem for name in RECIPES
    )


def test_messages_do_not_speak_of_pydantic_or_python() -> None:
    texts = "".join(path.read_text(encoding="utf-8") for path in BAD.glob("*.expected"))
    for word in ("Value error", "Input should", "pydantic", "Traceback", "dict", "tuple", "None"):
        assert word not in texts
