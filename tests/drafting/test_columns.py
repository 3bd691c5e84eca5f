"""Columns are found by their usual names; what is unclear is an error that lists them."""

from __future__ import annotations

import pytest

from pipeline.data.fields import pick_fields
from pipeline.drafting.columns import ColumnOptions, Columns, find_columns
from pipeline.errors import RecipeError
from pipeline.tasks import TASKS, find_task

NOTHING_SAID = ColumnOptions()

FOUND = [
    ("feature-extraction", ("text",), Columns(text="text")),
    ("feature-extraction", ("sentence1", "sentence2", "score"), None),
    ("feature-extraction", ("id", "Sentence"), Columns(text="Sentence")),
    ("text-classification", ("text", "label"), Columns(text="text", label="label")),
    ("text-classification", ("text", "title", "label"), Columns(text="text", label="label")),
    ("text-classification", ("review", "sentiment"), Columns(text="review", label="sentiment")),
    (
        "text-classification",
        ("premise", "hypothesis", "label", "idx"),
        Columns(text="premise", text_pair="hypothesis", label="label"),
    ),
    ("token-classification", ("id", "tokens", "ner_tags", "pos_tags"), None),
    ("token-classification", ("text", "tokens", "tags"), Columns(text="tokens", label="tags")),
    (
        "question-answering",
        ("id", "title", "context", "question", "answers"),
        Columns(text="question", text_pair="context", label="answers"),
    ),
    (
        "multiple-choice",
        ("sent1", "sent2", "ending10", "ending2", "ending1", "label"),
        Columns(
            text="sent1",
            text_pair="sent2",
            choices=("ending1", "ending2", "ending10"),
            label="label",
        ),
    ),
    (
        "multiple-choice",
        ("question", "choices", "answer"),
        Columns(text="question", choices="choices", label="answer"),
    ),
    ("image-classification", ("img", "label"), Columns(image="img", label="label")),
    ("image-feature-extraction", ("image", "label"), Columns(image="image")),
    ("fill-mask", ("content",), Columns(text="content")),
    ("text2text-generation", ("text", "target"), Columns(text="text", target="target")),
    (
        "text2text-generation",
        ("article", "highlights"),
        Columns(text="article", target="highlights"),
    ),
    (
        "automatic-speech-recognition",
        ("audio", "sentence", "speaker"),
        Columns(audio="audio", target="sentence"),
    ),
]


@pytest.mark.parametrize(("task", "present", "expected"), [row for row in FOUND if row[2]])
def test_usual_names_are_found(task: str, present: tuple[str, ...], expected: Columns) -> None:
    found = find_columns(find_task(task), present, NOTHING_SAID, "rows.csv")
    assert found == expected
    # What is found is what a recipe may say.
    assert set(pick_fields(find_task(task), found).columns) <= set(present)


def test_labels_of_words_are_preferred_to_parts_of_speech() -> None:
    present = ("id", "tokens", "ner_tags", "pos_tags")
    found = find_columns(find_task("token-classification"), present, NOTHING_SAID, "rows.csv")
    assert (found.text, found.label) == ("tokens", "ner_tags")


def test_of_a_pair_an_encoder_of_single_texts_is_not_given_one_by_a_guess() -> None:
    with pytest.raises(RecipeError) as caught:
        find_columns(
            find_task("feature-extraction"), ("question1", "sentence1"), NOTHING_SAID, "rows.csv"
        )
    assert "`question1`" in str(caught.value)
    assert "`sentence1`" in str(caught.value)


UNCLEAR = [
    ("text-classification", ("review", "comment", "label"), "--text COLUMN"),
    ("text-classification", ("text", "sentiment", "topic"), "--label COLUMN"),
    ("text-classification", ("first", "second"), "--text COLUMN"),
    ("text-classification", ("premise", "hypothesis", "sentence1", "sentence2"), "--text COLUMN"),
    ("question-answering", ("question", "answers"), "--text-pair COLUMN"),
    ("question-answering", ("context", "answers"), "--text COLUMN"),
    ("multiple-choice", ("question", "answer"), "--choices COLUMN"),
    ("multiple-choice", ("question", "choice1", "choice2", "ending1"), "--choices COLUMN"),
    ("image-classification", ("pixels", "label"), "--image COLUMN"),
]


@pytest.mark.parametrize(("task", "present", "option"), UNCLEAR)
def test_unclear_or_missing_columns_are_listed_with_the_option_that_helps(
    task: str, present: tuple[str, ...], option: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        find_columns(find_task(task), present, NOTHING_SAID, "rows.csv")
    assert caught.value.where == "rows.csv"
    assert option in caught.value.hint
    assert all(f"`{name}`" in caught.value.message for name in present)


def test_what_the_user_says_counts() -> None:
    present = ("review", "comment", "stars", "topic")
    given = ColumnOptions(text="comment", label="stars")
    found = find_columns(find_task("text-classification"), present, given, "rows.csv")
    assert found == Columns(text="comment", label="stars")


def test_labels_can_be_left_out() -> None:
    given = ColumnOptions(has_labels=False)
    found = find_columns(find_task("text-classification"), ("text", "label"), given, "rows.csv")
    assert found == Columns(text="text")


@pytest.mark.parametrize(
    ("task", "given", "words"),
    [
        ("text-classification", ColumnOptions(text="txet"), "there is no column `txet`"),
        ("text-classification", ColumnOptions(label="lable"), "there is no column `lable`"),
        ("fill-mask", ColumnOptions(label="label"), "has no answers"),
        ("text-classification", ColumnOptions(image="text"), "reads no `image`"),
        ("image-classification", ColumnOptions(text="text"), "reads no `text`"),
        ("token-classification", ColumnOptions(text_pair="text"), "reads no `text_pair`"),
    ],
)
def test_options_that_cannot_be_are_refused(task: str, given: ColumnOptions, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        find_columns(find_task(task), ("text", "label", "image"), given, "rows.csv")


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_the_columns_of_a_task_itself_are_found(task: object) -> None:
    from pipeline.tasks import Task

    assert isinstance(task, Task)
    present = tuple(task.columns.values())
    found = find_columns(task, present, NOTHING_SAID, "rows.csv")
    assert {getattr(found, field) for field in task.columns} == set(present)
