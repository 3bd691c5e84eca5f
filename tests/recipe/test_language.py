"""`extends`, `vars` and `matrix`: what they make, and where what they made says it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import RecipeError
from pipeline.recipe import LoadedRecipe, load_recipe, load_recipe_file, load_recipes

BASE = """\
recipe: 1
name: base
model: {source: ../models/m, task: feature-extraction}
shapes:
  batch: {min: 1, opt: 8, max: 32}
  sequence: {min: 2, opt: 128, max: 512}
data:
  evaluation: {source: "builtin:stdlib-docstrings", samples: 64}
targets:
  - {name: cpu-fp32, runtime: onnxruntime, precision: fp32}
gates:
  parity: {cosine_similarity: {min: 0.9}}
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with `shared/base.yaml`; it is the current one."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/base.yaml").write_text(BASE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load_all(text: str, **variables: Any) -> tuple[LoadedRecipe, ...]:
    Path("recipe.yaml").write_text(text, encoding="utf-8")
    return load_recipes("recipe.yaml", variables)


def load_one(text: str, **variables: Any) -> LoadedRecipe:
    (loaded,) = load_all(text, **variables)
    return loaded


def refusal(text: str, **variables: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        load_all(text, **variables)
    return str(caught.value)


# --- extends --------------------------------------------------------------------------------


def test_mappings_merge_and_everything_else_replaces(files: Path) -> None:
    recipe = load_one(
        """\
extends: shared/base.yaml
name: mine
shapes: {sequence: {max: 256}}
targets:
  - {name: other, runtime: onnxruntime, precision: fp32}
gates: {parity: {sqnr_db: {min: 20}}}
benchmark: null
"""
    ).recipe
    assert recipe.name == "mine"
    assert recipe.shapes.batch.max == 32
    assert recipe.shapes.sequence is not None
    assert (recipe.shapes.sequence.opt, recipe.shapes.sequence.max) == (128, 256)
    assert [target.name for target in recipe.targets] == ["other"]
    assert recipe.gates.parity.cosine_similarity is not None
    assert recipe.gates.parity.sqnr_db is not None
    assert recipe.benchmark is None


def test_chains_and_lists_of_recipes_are_read_the_last_one_wins(files: Path) -> None:
    (files / "shared/long.yaml").write_text(
        "extends: base.yaml\nshapes: {sequence: {max: 1024}}\nname: long\n", encoding="utf-8"
    )
    (files / "few.yaml").write_text(
        "data: {evaluation: {samples: 8}}\nname: few\n", encoding="utf-8"
    )
    loaded = load_one("extends: [shared/long.yaml, few.yaml]\n")
    assert loaded.recipe.name == "few"
    assert loaded.recipe.shapes.sequence is not None
    assert loaded.recipe.shapes.sequence.max == 1024
    assert loaded.recipe.data.evaluation.samples == 8
    assert [path.name for path in loaded.files] == [
        "recipe.yaml",
        "long.yaml",
        "base.yaml",
        "few.yaml",
    ]


def test_every_value_knows_its_file(files: Path) -> None:
    loaded = load_one("extends: shared/base.yaml\nshapes: {sequence: {max: 256}}\n")
    assert loaded.where("shapes", "sequence", "max") == "recipe.yaml:2:26: shapes.sequence.max"
    assert (
        loaded.where("shapes", "sequence", "opt") == "shared/base.yaml:6:27: shapes.sequence.opt"
    )
    assert loaded.where("limits", "time_s") == "recipe.yaml:1:1: limits.time_s"
    assert loaded.error("no", "model", "source").where == "shared/base.yaml:3:17: model.source"


def test_relative_paths_start_at_the_file_they_stand_in(files: Path) -> None:
    own = load_one("extends: shared/base.yaml\nmodel: {source: m}\n")
    assert own.directory("model", "source") == Path()
    base = load_one("extends: shared/base.yaml\nmodel: {task: feature-extraction}\n")
    assert base.directory("model", "source") == Path("shared")
    plain = load_recipe_file("shared/base.yaml")
    assert plain.directory("model", "source") == Path("shared")
    assert plain.directory("limits", "time_s") == Path("shared")


def test_a_path_that_begins_with_a_variable_starts_where_the_variable_is_set(files: Path) -> None:
    base = Path("shared/base.yaml")
    base.write_text(
        BASE.replace("../models/m", '"${models}/m"') + "vars: {models: a}\n", encoding="utf-8"
    )
    assert load_recipe_file(base).directory("model", "source") == Path("shared")
    over = "extends: shared/base.yaml\nvars: {models: b}\n"
    assert load_one(over).directory("model", "source") == Path()
    (files / "elsewhere").mkdir()
    Path("elsewhere/recipe.yaml").write_text("extends: ../shared/base.yaml\n", encoding="utf-8")
    given = load_recipe_file("elsewhere/recipe.yaml", {"models": "c"})
    assert given.recipe.model.source == "c/m"
    assert given.directory("model", "source") == Path()


# --- vars -----------------------------------------------------------------------------------


def with_vars(variables: str, **changes: str) -> str:
    text = BASE
    for old, new in changes.items():
        text = text.replace({"samples": "samples: 64", "name": "name: base"}[old], new)
    return f"vars: {variables}\n{text}"


def test_a_whole_scalar_keeps_the_type_and_a_part_of_text_is_text(files: Path) -> None:
    text = with_vars("{n: 0x10, m: 1.0}", samples='samples: "${n}"', name="name: v${n}-${m}")
    recipe = load_one(text).recipe
    assert recipe.data.evaluation.samples == 16
    assert recipe.name == "v0x10-1.0"  # as it is written
    assert "needs a whole number" in refusal(with_vars("{n: 1}", samples='samples: "${n}6"'))


def test_variables_may_use_variables_and_two_dollars_escape(files: Path) -> None:
    text = with_vars('{a: x, b: "${a}-y", c: "${b}"}', name="name: ${c}-${a}")
    assert load_one(text).recipe.name == "x-y-x"
    escaped = BASE.replace("../models/m", '"a$${b}$$c/${v}"') + "vars: {v: '$$1'}\n"
    assert load_one(escaped).recipe.model.source == "a${b}$$c/$$1"


def test_an_unused_variable_is_fine_and_an_extending_recipe_overrides(files: Path) -> None:
    base = Path("shared/base.yaml")
    base.write_text(with_vars("{n: 8, unused: 1}", samples='samples: "${n}"'), encoding="utf-8")
    over = "extends: shared/base.yaml\nvars: {n: 16}\n"
    assert load_one("extends: shared/base.yaml\n").recipe.data.evaluation.samples == 8
    assert load_one(over).recipe.data.evaluation.samples == 16
    assert load_one(over, n="24").recipe.data.evaluation.samples == 24
    assert load_one(over, n=32).recipe.data.evaluation.samples == 32


def test_a_value_from_outside_stays_text_where_the_recipe_has_text(files: Path) -> None:
    text = with_vars("{revision: abc, n: 8, must: }", name="name: m-${revision}-${must}")
    assert load_one(text, revision="1234567", must="1e3").recipe.name == "m-1234567-1e3"
    # What it has is meant: no variable of a variable from outside.
    assert """`"m-${n}-x"` cannot be used""" in refusal(text, revision="${n}", must="x")


def test_a_value_from_outside_for_no_variable_is_refused(files: Path) -> None:
    assert refusal(BASE, n="1").startswith("--var n: there is no variable `n`; the recipe defines")
    assert "did you mean `length`?" in refusal(with_vars("{length: 1}"), lenght="1")
    assert refusal(with_vars("{n: 1}"), n=".inf").startswith("--var n: `.inf` is not a number")
    matrix = "matrix: {axes: {n: [1, 2]}}\n" + BASE.replace("name: base", "name: m${n}")
    assert "`n` is given with `--var`, and this matrix sets it" in refusal(matrix, n="1")


def test_an_error_in_a_replaced_value_names_the_variable(files: Path) -> None:
    text = with_vars("{n: many}", samples='samples: "${n}"')
    assert "found `many` (`${n}` is set at recipe.yaml:1:11)" in refusal(text)
    assert "found `lots` (`${n}` is set with `--var`)" in refusal(text, n="lots")


@pytest.mark.parametrize("value", [None, [1], {"a": 1}, float("nan"), 2**63, "a\nb", "\udc80"])
def test_a_value_from_outside_that_no_recipe_could_have_is_refused(
    files: Path, value: Any
) -> None:
    assert refusal(with_vars("{n: 1}"), n=value).startswith("--var n: ")


# --- matrix ---------------------------------------------------------------------------------


def matrix_of(axes: str, rest: str = "") -> list[dict[str, Any]]:
    """The combinations of a matrix, as the recipes that it makes say them."""
    text = f"matrix: {{axes: {axes}{rest}}}\n" + BASE.replace("name: base", "name: ${name}")
    named = f"vars: {{name: {'-'.join(f'${{{axis}}}' for axis in 'ab')!r}, a: z, b: z}}\n"
    return [dict(loaded.values) for loaded in load_all(named + text)]


def test_the_first_axis_turns_slowest(files: Path) -> None:
    assert matrix_of("{a: [x, y], b: [1, 2]}") == [
        {"a": "x", "b": 1},
        {"a": "x", "b": 2},
        {"a": "y", "b": 1},
        {"a": "y", "b": 2},
    ]


def test_exclude_matches_parts_and_does_not_mix_types(files: Path) -> None:
    assert matrix_of("{a: [x, y], b: [1, 2]}", ", exclude: [{a: x}]") == [
        {"a": "y", "b": 1},
        {"a": "y", "b": 2},
    ]
    two = matrix_of("{a: [x, y], b: [1, 2]}", ", exclude: [{a: x}, {a: x, b: 1}, {a: y, b: 2}]")
    assert two == [{"a": "y", "b": 1}]
    numbers = matrix_of("{a: [1, true, 1.0, '1']}", ", exclude: [{a: 1}]")
    assert [value["a"] for value in numbers] == [True, 1.0, "1"]
    assert [type(value["a"]) for value in numbers] == [bool, float, str]


def test_include_adds_to_what_it_agrees_with_or_makes_its_own(files: Path) -> None:
    assert matrix_of(
        "{a: [x, y]}", ", include: [{b: 1}, {a: x, extra: 2}, {a: x, b: 3}, {a: z, b: 4}]"
    ) == [
        {"a": "x", "b": 3, "extra": 2},
        {"a": "y", "b": 1},
        {"a": "z", "b": 4},
    ]


def test_an_excluded_combination_can_be_included_again(files: Path) -> None:
    assert matrix_of("{a: [x, y]}", ", exclude: [{a: x}], include: [{a: x, b: 1}]") == [
        {"a": "y"},
        {"a": "x", "b": 1},
    ]


def test_a_matrix_of_includes_alone(files: Path) -> None:
    text = "matrix:\n  include:\n    - {a: x, n: 1}\n    - {a: y, n: 2}\n"
    loaded = load_all(
        text + BASE.replace("name: base", "name: ${a}").replace("samples: 64", 'samples: "${n}"')
    )
    assert [(each.recipe.name, each.recipe.data.evaluation.samples) for each in loaded] == [
        ("x", 1),
        ("y", 2),
    ]


TARGETS = """\
extends: shared/base.yaml
vars: {tool: onnxslim}
targets:
  - {name: first, runtime: onnxruntime, precision: fp32}
  - matrix:
      axes: {capability: [sm89, sm120], tool: [onnxsim, "${tool}"]}
      exclude: [{capability: sm89, tool: onnxsim}]
    name: rtx-${capability}-${tool}
    runtime: tensorrt-rtx
    precision: fp16
    compute_capability: ["${capability}"]
    simplify: {tool: "${tool}"}
  - {name: last, runtime: onnxruntime, precision: fp32}
"""


def test_a_target_with_a_matrix_is_several_targets_in_its_place(files: Path) -> None:
    loaded = load_one(TARGETS)
    assert [target.name for target in loaded.recipe.targets] == [
        "first",
        "rtx-sm89-onnxslim",
        "rtx-sm120-onnxsim",
        "rtx-sm120-onnxslim",
        "last",
    ]
    assert loaded.target_values[2] == {"capability": "sm120", "tool": "onnxsim"}
    assert loaded.target_values[4] == {}
    assert loaded.where("targets", 3, "name") == "recipe.yaml:8:11: targets[1].name"
    assert loaded.where("targets", 4, "name") == "recipe.yaml:13:12: targets[2].name"


def test_both_matrices_together(files: Path) -> None:
    loaded = load_all(
        "matrix: {axes: {size: [8, 16]}}\nname: n${size}\n"
        + TARGETS.replace("rtx-${capability}-${tool}", "rtx-${capability}-${tool}-${size}")
    )
    assert [each.recipe.name for each in loaded] == ["n8", "n16"]
    assert [dict(each.values) for each in loaded] == [{"size": 8}, {"size": 16}]
    assert loaded[1].recipe.targets[1].name == "rtx-sm89-onnxslim-16"


def test_one_recipe_is_asked_for_and_there_are_several(files: Path) -> None:
    text = "matrix: {axes: {n: [1, 2]}}\n" + BASE.replace("name: base", "name: m${n}")
    Path("recipe.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"makes 2 recipes \(`m1`, `m2`\)") as caught:
        load_recipe("recipe.yaml")
    assert "convert_all" in caught.value.hint


# --- what is kept ---------------------------------------------------------------------------


def test_what_is_kept_loads_alone_as_the_same_recipe(files: Path) -> None:
    for number, loaded in enumerate(
        load_all("matrix: {axes: {n: [1, 2]}}\nname: m${n}\n" + TARGETS)
    ):
        kept = Path(f"kept{number}.yaml")
        kept.write_bytes(loaded.content)
        assert load_recipe(kept) == loaded.recipe
        assert loaded.content.startswith(
            b"# Written out by convert from `recipe.yaml`, `base.yaml`."
        )
        assert str(files).encode() not in loaded.content


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30))
def test_any_text_survives_being_written_out(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.mktemp("kept") / "recipe.yaml"
    with_variable = BASE.replace("../models/m", '"${written}"')
    path.write_text("vars: {written: }\n" + with_variable, encoding="utf-8")
    try:
        loaded = load_recipe_file(path, {"written": text})
    except RecipeError:  # it reads as a number
        return
    assert loaded.recipe.model.source == text
    path.write_bytes(loaded.content)
    assert load_recipe(path) == loaded.recipe
