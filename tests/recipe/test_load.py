from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import RecipeError
from pipeline.recipe import dump_recipe, load_recipe, load_recipe_file

RECIPES = Path(__file__).parents[2] / "recipes"
QUICKSTART = RECIPES / "quickstart.yaml"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_the_recipes_we_ship_load(path: Path) -> None:
    assert load_recipe(path).recipe == 1


def test_a_loaded_recipe_says_where_its_values_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(RECIPES.parent)
    loaded = load_recipe_file("recipes/quickstart.yaml")
    lines = QUICKSTART.read_text(encoding="utf-8").splitlines()
    assert loaded.content == QUICKSTART.read_bytes()

    where = loaded.where("shapes", "sequence", "max")
    file, line, column, path = where.split(":")
    assert file == "recipes/quickstart.yaml"
    assert lines[int(line) - 1][int(column) - 1 :].startswith("512")
    assert path == " shapes.sequence.max"

    line, column = loaded.where("shapes").split(":")[1:3]
    assert lines[int(line) - 1][int(column) - 1 :].startswith("shapes:")
    # A default is written nowhere: the nearest mapping around it is.
    assert loaded.where("shapes", "other", 3) == f"{file}:{line}:{column}: shapes.other[3]"
    assert loaded.where("limits", "time_s") == f"{file}:1:1: limits.time_s"


def test_an_error_of_a_later_check_points_at_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(RECIPES)
    loaded = load_recipe_file("quickstart.yaml")
    error = loaded.error("the model has 256 positions", "name", hint="lower it")
    assert str(error) == (
        "quickstart.yaml:2:7: name: the model has 256 positions\n\nhint: lower it"
    )


def test_a_loaded_recipe_cannot_be_changed() -> None:
    loaded = load_recipe_file(QUICKSTART)
    with pytest.raises(FrozenInstanceError):
        loaded.content = b""  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        loaded.recipe.name = "other"  # type: ignore[misc]


def test_loading_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pipeline.recipe import load_recipe; load_recipe(sys.argv[1]);"
        "heavy = {'torch', 'transformers', 'onnx', 'onnxruntime', 'numpy', 'jsonschema'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(QUICKSTART)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


printable = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufeff\ufffe\uffff"),
    min_size=1,
    max_size=20,
)
names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)
finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=1e-300, max_value=1e300)
axis = st.lists(st.integers(1, 2**31 - 1), min_size=3, max_size=3).map(
    lambda ends: dict(zip(("min", "opt", "max"), sorted(ends), strict=True))
)
bound = st.one_of(
    st.builds(lambda low: {"min": low}, finite),
    st.builds(lambda high: {"max": high}, finite),
    st.tuples(finite, finite).map(lambda ends: {"min": min(ends), "max": max(ends)}),
)
ort = st.fixed_dictionaries(
    {"runtime": st.just("onnxruntime"), "name": names},
    optional={
        "simplify": st.fixed_dictionaries({"tool": st.sampled_from(["onnxsim", "onnxslim"])})
    },
)
fp32 = ort.map(lambda target: target | {"precision": "fp32"})
int8 = st.tuples(ort, st.booleans()).map(
    lambda pair: (
        pair[0]
        | {"precision": "int8", "quantization": {"mode": "dynamic", "per_channel": pair[1]}}
    )
)
rtx = st.fixed_dictionaries(
    {
        "runtime": st.just("tensorrt-rtx"),
        "name": names,
        "precision": st.just("fp16"),
        "compute_capability": st.lists(
            st.sampled_from(["sm75", "sm80", "sm86", "sm89", "sm120", "sm121"]),
            min_size=1,
            unique=True,
        ),
    }
)
recipes = st.fixed_dictionaries(
    {
        "recipe": st.just(1),
        "name": names,
        "model": st.fixed_dictionaries({"source": printable, "task": printable}),
        "shapes": st.fixed_dictionaries({"batch": axis, "sequence": axis}),
        "data": st.fixed_dictionaries(
            {
                "evaluation": st.fixed_dictionaries(
                    {
                        "source": st.just("builtin:stdlib-docstrings"),
                        "samples": st.integers(1, 100_000),
                    },
                    optional={"seed": st.integers(0, 2**32 - 1)},
                )
            }
        ),
        "targets": st.lists(
            st.one_of(fp32, int8, rtx), min_size=1, max_size=4, unique_by=lambda one: one["name"]
        ),
        "gates": st.fixed_dictionaries(
            {
                "parity": st.fixed_dictionaries(
                    {"sqnr_db": st.fixed_dictionaries({"min": finite})},
                    optional={"relative_l2": st.fixed_dictionaries({"max": finite})},
                )
            },
            optional={
                "speed": st.builds(lambda least: {"min_speedup_over_reference": least}, positive),
                "coverage": st.dictionaries(
                    st.from_regex(r"[a-z][a-z0-9_]*", fullmatch=True), bound, max_size=3
                ),
                "allow_not_run": st.lists(st.sampled_from(["device_parity", "speed"])),
            },
        ),
    },
    optional={
        "benchmark": st.fixed_dictionaries({}, optional={"launches": st.integers(3, 50)}),
        "limits": st.fixed_dictionaries({}, optional={"time_s": positive}),
    },
)


@settings(max_examples=40, deadline=None)
@given(recipes, st.booleans())
def test_loading_a_dumped_recipe_gives_an_equal_recipe(
    tmp_path_factory: pytest.TempPathFactory, document: dict[str, Any], is_ascii: bool
) -> None:
    path = tmp_path_factory.mktemp("dump") / "recipe.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    recipe = load_recipe(path)
    dumped = dump_recipe(recipe)
    path.write_text(json.dumps(dumped, ensure_ascii=is_ascii), encoding="utf-8")
    assert load_recipe(path) == recipe
    assert dump_recipe(load_recipe(path)) == dumped


def test_a_dump_has_all_defaults_filled_in() -> None:
    dumped = dump_recipe(load_recipe(QUICKSTART))
    assert dumped["limits"] == {"time_s": 3600.0, "memory_mib": None, "stages": {}}
    assert dumped["benchmark"]["launches"] == 5  # type: ignore[index,call-overload]
    json.dumps(dumped, allow_nan=False)


def test_an_error_survives_the_way_between_processes(tmp_path: Path) -> None:
    import pickle

    path = tmp_path / "recipe.yaml"
    path.write_text("recipe: 2\nname: A\n", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
