"""Engines in reports: the picture has every layer in its colour, and strange facts break nothing."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.report import figures
from pipeline.report.engines import MAX_LAYERS, Engine, engines_of
from pipeline.report.html import render_html
from pipeline.report.markdown import render_markdown
from pipeline.report.schema import Report
from tests.report.example import example_report


def _engine(**changes: Any) -> Engine:
    return engines_of(_report(**changes))[0]


def _report(**changes: Any) -> Report:
    """The example with other facts of its engines."""
    report = example_report("passed")
    targets = tuple(
        target.model_copy(
            update={
                "engines": tuple(
                    engine.model_copy(update={"facts": {**engine.facts, **changes}})
                    for engine in target.engines
                )
            }
        )
        for target in report.targets
    )
    return report.model_copy(update={"targets": targets})


def _layer(role: str, precision: str, profile: int = 0) -> dict[str, Any]:
    return {"name": "any", "role": role, "precision": precision, "profile": profile}


def test_every_layer_has_the_colour_of_what_it_computes_in() -> None:
    rows = [_layer("product", "int8"), _layer("attention", "fp16"), _layer("copy", "int64")]
    picture = _engine(layer_rows=rows).picture
    assert picture is not None
    assert [(box.role, box.precision) for box in picture.boxes] == [
        ("product", "int8"),
        ("attention", "fp16"),
        ("copy", "none"),
    ]
    assert picture.legend == (("fp16", 1), ("int8", 1), ("none", 1))
    assert picture.said == "3 layers: 1 product, 1 attention, 1 copy"
    heights = [box.height for box in picture.boxes]
    assert heights[0] == heights[1] > heights[2]


def test_layers_go_on_in_the_next_row_and_stay_inside() -> None:
    picture = _engine(layer_rows=[_layer("other", "fp16")] * 150).picture
    assert picture is not None
    assert len({box.y for box in picture.boxes}) == 2
    assert max(box.x for box in picture.boxes) + picture.box_width <= picture.width
    assert max(box.y + box.height for box in picture.boxes) <= picture.height


def test_a_layer_is_as_large_in_the_picture_of_every_engine() -> None:
    few, many = (_engine(layer_rows=[_layer("product", "fp16")] * count) for count in (3, 300))
    assert few.picture is not None
    assert many.picture is not None
    assert (few.picture.width, few.picture.box_width) == (
        many.picture.width,
        many.picture.box_width,
    )
    assert few.picture.height < many.picture.height


def test_of_several_profiles_the_first_is_drawn() -> None:
    rows = [_layer("product", "fp16", number) for number in (0, 0, 1, 1)]
    engine = _engine(layer_rows=rows)
    assert engine.picture is not None
    assert len(engine.picture.boxes) == 2
    assert engine.picture.said == "2 layers of profile 0: 2 product"
    assert engine.layers is not None
    assert engine.layers.total == 4


@pytest.mark.parametrize(
    "rows", [[], "text", [{"name": "old"}], [_layer("product", "fp16")] * (MAX_LAYERS + 1)]
)
def test_without_usable_layers_there_is_no_picture(rows: Any) -> None:
    assert _engine(layer_rows=rows).picture is None


def test_what_matters_is_said_first_in_both_forms() -> None:
    facts = {"attention_blocks": 6, "fused_attention": 5, "copy_layers": 1, "widened_weights": 2}
    report = _report(**facts)
    widened = "2 weights are written out as floats"
    for said in ("5 of 6 attentions in one kernel", "1 copy or reformat", widened):
        assert said in render_html(report)
        assert said in render_markdown(report)


def test_profiles_say_what_each_input_may_be_fed() -> None:
    engine = _engine()
    (row,) = engine.profiles
    assert (row.tensor, row.dtype) == ("input_ids", "int64")
    assert (row.smallest, row.largest) == (f"1{figures.TIMES}8", f"32{figures.TIMES}512")
    broken = _engine(profiles=[{"inputs": {"input_ids": "?", "mask": [1, [2], None]}}, 3])
    assert [row.tensor for row in broken.profiles] == ["mask"]


def test_the_page_is_drawn_without_scripts() -> None:
    page = render_html(_report())
    assert page.count('class="layer"') >= 24
    assert 'class="dot"' in page
    assert _engine().target == "rtx-fp16"
