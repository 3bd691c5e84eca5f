"""Drafts: what they say, that what they say holds, and that a refused one leaves nothing behind."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

import pipeline
from pipeline.drafting import ColumnOptions
from pipeline.drafting.targets import block_size_of, parity_limits
from pipeline.errors import EnvironmentMissing, RecipeError
from pipeline.parity.gates import judge_parity
from pipeline.parity.metrics import sum_distances
from pipeline.parity.types import OutputParity, Parity
from pipeline.recipe import load_recipe
from pipeline.recipe.types import ParityGates
from pipeline.tasks import find_task
from tests.checkpoints import (
    build_multiple_choice,
    build_text_classifier,
)
from tests.drafting.data import (
    Drafter,
    sentence,
    write_images,
    write_reviews,
    write_rows,
)
from tests.fake_hub import REPOSITORY, FakeHub

Array = np.ndarray[Any, Any]


def test_a_sentence_encoder_without_data(draft: Drafter, sentence_encoder: Path) -> None:
    made = draft(sentence_encoder)
    recipe = load_recipe(made.path)
    assert recipe == made.recipe
    assert recipe.model.task == "feature-extraction"
    assert recipe.shapes.sequence is not None
    # The checkpoint has 128 positions.
    assert recipe.shapes.sequence.model_dump() == {"min": 2, "opt": 128, "max": 128}
    assert recipe.data.evaluation.source == "builtin:stdlib-docstrings"
    assert recipe.data.calibration is None
    assert recipe.gates.quality is None
    assert [target.name for target in recipe.targets][:2] == ["cpu-fp32", "cpu-int8"]
    assert "Replace them by your own" in made.path.read_text(encoding="utf-8")


def test_shapes_are_the_lengths_of_the_data(draft: Drafter, classifier: Path) -> None:
    rows = write_reviews(Path("reviews.jsonl"), 21)
    made = draft(classifier, data=str(rows))
    assert made.evaluation is not None
    lengths = made.evaluation.measured.lengths
    tokenizer = tokenizers.Tokenizer.from_file(str(classifier / "tokenizer.json"))
    texts = [json.loads(line)["review"] for line in rows.read_text().splitlines()]
    assert list(lengths) == sorted(len(tokenizer.encode(text).ids) for text in texts)
    sequence = made.recipe.shapes.sequence
    assert sequence is not None
    assert sequence.opt == -(-lengths[10] // 8) * 8
    assert sequence.max == -(-lengths[-1] // 8) * 8
    assert f"median {lengths[10]}" in made.path.read_text(encoding="utf-8")


def test_lengths_end_at_the_positions(draft: Drafter, classifier: Path) -> None:
    rows = write_rows(Path("long.jsonl"), [{"text": "a name " * 90}, {"text": "a"}])
    made = draft(classifier, data=str(rows))
    assert made.recipe.shapes.sequence is not None
    assert made.recipe.shapes.sequence.max == 128
    assert any("1 of 2 samples are longer" in note for note in made.notes)


def test_labels_are_used_when_they_are_classes_of_the_checkpoint(
    draft: Drafter, classifier: Path
) -> None:
    write_reviews(Path("reviews.jsonl"))
    given = ColumnOptions(text="review", label="stars")
    recipe = draft(classifier, data="reviews.jsonl", columns=given).recipe
    assert recipe.data.evaluation.label == "stars"
    assert recipe.gates.quality is not None
    assert recipe.gates.quality.drop is not None
    # One of 24 answers may be lost, for less cannot be counted.
    assert recipe.gates.quality.drop.max == pytest.approx(1 / 24, abs=1e-4)
    assert recipe.gates.quality.drop.max * 24 >= 1


def test_labels_that_do_not_fit_are_left_out_and_said_so(draft: Drafter, classifier: Path) -> None:
    rows = [{"text": f"{sentence(n)} {n}", "label": n % 5} for n in range(10)]
    write_rows(Path("reviews.jsonl"), rows)
    made = draft(classifier, data="reviews.jsonl")
    assert made.recipe.data.evaluation.label is None
    assert made.recipe.gates.quality is None
    assert any("holds class 3" in note for note in made.notes)
    assert "# Labels are not used" in made.path.read_text(encoding="utf-8")


def test_one_label_among_many_that_does_not_fit_is_found(draft: Drafter, classifier: Path) -> None:
    rows = [{"text": f"a {n}", "label": n % 3} for n in range(1500)]
    rows[-1]["label"] = 7
    write_rows(Path("reviews.jsonl"), rows)
    made = draft(classifier, data="reviews.jsonl")
    assert any("reviews.jsonl:1500" in note for note in made.notes)


def test_labels_that_the_user_names_must_fit(draft: Drafter, classifier: Path) -> None:
    write_reviews(Path("reviews.jsonl"), classes=5)
    with pytest.raises(RecipeError, match="holds class 3"):
        draft(classifier, data="reviews.jsonl", columns=ColumnOptions(label="stars"))
    assert not Path("recipe.yaml").exists()


def test_images_without_data_are_made_up(draft: Drafter, images: Path) -> None:
    recipe = draft(images).recipe
    assert recipe.data.evaluation.source == "builtin:synthetic-images"
    assert recipe.data.calibration is not None


def test_folders_that_are_no_classes_are_refused(draft: Drafter, images: Path) -> None:
    write_images(Path("pictures"), labels=("cat", "dog"))
    with pytest.raises(RecipeError, match="labels of the data are not classes") as caught:
        draft(images, data="pictures")
    assert "`cat`" in caught.value.message


def test_choices_are_counted(draft: Drafter, tmp_path: Path) -> None:
    build_multiple_choice(tmp_path / "choices")
    rows = [
        {"question": sentence(n), "choices": ["a", "b", "name"][: 2 + n % 2], "answer": n % 2}
        for n in range(9)
    ]
    write_rows(Path("choices.jsonl"), rows)
    recipe = draft("choices", data="choices.jsonl").recipe
    assert recipe.shapes.num_choices is not None
    assert recipe.shapes.num_choices.model_dump() == {"min": 2, "opt": 2, "max": 3}
    assert recipe.benchmark is not None
    assert recipe.benchmark.shapes == (
        (1, 2, recipe.shapes.sequence.opt),
        (8, 2, recipe.shapes.sequence.opt),
    )  # type: ignore[union-attr]
    assert recipe.data.evaluation.label == "answer"


def test_tables_of_all_kinds_are_read(draft: Drafter, classifier: Path) -> None:
    rows = [{"text": f"{sentence(n)} {n}", "label": n % 3} for n in range(6)]
    with Path("rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows)
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), "rows.parquet")
    write_rows(Path("rows.jsonl"), rows)
    drafts = [
        draft(classifier, f"{kind}.yaml", data=f"rows.{kind}")
        for kind in ("csv", "parquet", "jsonl")
    ]
    measured = [made.evaluation.measured for made in drafts if made.evaluation]
    assert len(measured) == 3
    assert measured[0] == measured[1] == measured[2]
    assert all(made.recipe.data.evaluation.label == "label" for made in drafts)


def test_calibration_data_of_its_own_brings_static_quantisation(
    draft: Drafter, classifier: Path
) -> None:
    write_reviews(Path("reviews.jsonl"))
    write_reviews(Path("more.jsonl"), 9)
    recipe = draft(classifier, data="reviews.jsonl", calibration="more.jsonl").recipe
    assert recipe.data.calibration is not None
    assert (recipe.data.calibration.samples, recipe.data.calibration.label) == (9, None)
    assert recipe.data.evaluation.samples == 24
    assert "cpu-int8-static" in [target.name for target in recipe.targets]


def test_too_few_samples_for_ranges_leave_static_quantisation_out(
    draft: Drafter, classifier: Path
) -> None:
    """A recipe with it would be written, run, and fail the check of its calibration."""
    write_reviews(Path("reviews.jsonl"))
    write_reviews(Path("more.jsonl"), 7)
    made = draft(classifier, data="reviews.jsonl", calibration="more.jsonl")
    assert "cpu-int8-static" not in [target.name for target in made.recipe.targets]
    assert (
        "8 calibration samples or more, and there would be 7" in made.left_out["cpu-int8-static"]
    )
    assert "--calibration" in made.left_out["cpu-int8-static"]


def test_what_stands_in_comments_works_too(draft: Drafter, classifier: Path) -> None:
    write_reviews(Path("reviews.jsonl"))
    made = draft(classifier, data="reviews.jsonl")
    lines = made.path.read_text(encoding="utf-8").splitlines()
    starts = ("# calibration:", "# - {", "# cpu-int8-static:", "#   ")
    uncommented = [
        line.replace("# ", "", 1) if line.strip().startswith(starts) else line for line in lines
    ]
    assert uncommented != lines
    made.path.write_text("\n".join(uncommented), encoding="utf-8")
    names = [target.name for target in load_recipe(made.path).targets]
    assert "cpu-int8-static" in names
    assert "cpu-int8-static" in load_recipe(made.path).gates.targets
    pipeline.plan(made.path)


def test_a_target_that_cannot_be_built_here_stands_in_a_comment(
    draft: Drafter, classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.engines import module

    hidden = dataclasses.replace(module.TENSORRT_RTX, import_name="not_installed_here")
    monkeypatch.setattr("pipeline.engines.targets.TENSORRT_RTX", hidden)
    made = draft(classifier)
    assert [target.name for target in made.recipe.targets] == ["cpu-fp32", "cpu-int8"]
    assert made.recipe.gates.allow_not_run == ()
    assert "pip install 'convert-pipeline[rtx]'" in made.left_out["rtx-fp16"]
    text = made.path.read_text(encoding="utf-8")
    assert "  # - {name: rtx-fp16" in text
    assert "pip install 'convert-pipeline[rtx]'" in " ".join(text.replace("  # ", "").split())


def test_the_other_tasks_that_fit_are_named(draft: Drafter, classifier: Path) -> None:
    assert draft(classifier).other_tasks == ("feature-extraction",)
    made = draft(classifier, "other.yaml", task="feature-extraction")
    assert made.other_tasks == ("text-classification",)
    assert made.recipe.model.task == "feature-extraction"


@pytest.mark.parametrize(
    ("task", "words"),
    [("text-clasification", "did you mean"), ("question-answering", "ForQuestionAnswering")],
)
def test_a_task_that_cannot_be_is_refused(
    draft: Drafter, classifier: Path, task: str, words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        draft(classifier, task=task)
    assert not Path("recipe.yaml").exists()


def test_when_no_task_fits_the_class_is_named(draft: Drafter, classifier: Path) -> None:
    shutil.copytree(classifier, "odd")
    config = json.loads(Path("odd/config.json").read_text())
    config |= {"architectures": ["OddForAudioThings"], "is_encoder_decoder": True}
    Path("odd/config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match="OddForAudioThings"):
        draft("./odd")


def test_a_decoder_that_cannot_be_is_not_taken_for_an_encoder(
    draft: Drafter, classifier: Path
) -> None:
    shutil.copytree(classifier, "states")
    config = json.loads(Path("states/config.json").read_text())
    config |= {"architectures": ["MambaForCausalLM"], "model_type": "mamba"}
    Path("states/config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match="keep a state") as caught:
        draft("./states")
    assert "--task feature-extraction" in caught.value.hint
    assert draft("./states", task="feature-extraction").other_tasks == ()


def test_a_sentence_encoder_saved_with_a_head_is_a_sentence_encoder(
    draft: Drafter, sentence_encoder: Path
) -> None:
    shutil.copytree(sentence_encoder, "mpnet")
    config = json.loads(Path("mpnet/config.json").read_text())
    config["architectures"] = ["BertForMaskedLM"]
    Path("mpnet/config.json").write_text(json.dumps(config))
    made = draft("mpnet")
    assert made.recipe.model.task == "feature-extraction"
    assert made.other_tasks == ("fill-mask",)


def test_paths_start_at_the_recipe(draft: Drafter, classifier: Path, tmp_path: Path) -> None:
    shutil.copytree(classifier, "models/org/Tiny Reviews")
    write_reviews(Path("data/a: b.jsonl"))
    Path("recipes").mkdir()
    made = draft("models/org/Tiny Reviews", "recipes/one.yaml", data="data/a: b.jsonl")
    assert made.recipe.model.source == "../models/org/Tiny Reviews"
    assert made.recipe.data.evaluation.source == "../data/a: b.jsonl"
    assert made.recipe.name == "tiny-reviews"
    # `org/name` alone would be on the hub.
    shutil.copytree(classifier, "org/name")
    assert draft("./org/name", "two.yaml").recipe.model.source == "./org/name"
    assert draft(classifier, "three.yaml").recipe.model.source == str(classifier)
    shutil.move(tmp_path / "recipes", tmp_path / "recipes-moved")
    pipeline.plan(tmp_path / "recipes-moved/one.yaml")


@pytest.mark.parametrize(
    "name", ["${HOME}.jsonl", "it's.jsonl", "a #b.jsonl", "\u00fc \u2028.jsonl"]
)
def test_odd_names_of_files_are_read_back(draft: Drafter, classifier: Path, name: str) -> None:
    write_reviews(Path(name))
    made = draft(classifier, data=name)
    assert made.recipe.data.evaluation.source == name
    pipeline.plan(made.path)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("", "is empty"),
        ("\n\n", "no rows"),
        ("[1]\n", "not an object"),
        ('{"first": "a"}\n', "no column has a usual name"),
        ('{"text": ""}\n', "column `text` is empty"),
        ('{"text": 3}\n', "a text is needed"),
        ('{"text": "a"}\n{"words": "b"}\n', "no column `text`"),
    ],
)
def test_bad_data_is_refused(draft: Drafter, classifier: Path, rows: str, words: str) -> None:
    Path("rows.jsonl").write_text(rows)
    with pytest.raises(RecipeError, match=words):
        draft(classifier, data="rows.jsonl")
    assert not Path("recipe.yaml").exists()
    assert not [path for path in Path().iterdir() if path.name.startswith(".")]


def test_a_row_that_is_wrong_is_named_once(draft: Drafter, classifier: Path) -> None:
    Path("folder").mkdir()
    Path("folder/rows.jsonl").write_text('{"text": "a"}\n{"text": ""}\n')
    with pytest.raises(RecipeError, match="is empty") as caught:
        draft(classifier, data="folder/rows.jsonl")
    assert caught.value.where == "folder/rows.jsonl:2"


def test_data_of_the_other_kind_is_refused(draft: Drafter, classifier: Path, images: Path) -> None:
    write_images(Path("pictures"))
    write_reviews(Path("reviews.jsonl"))
    with pytest.raises(RecipeError, match="reads texts"):
        draft(classifier, data="pictures")
    with pytest.raises(RecipeError, match="usual name of the image"):
        draft(images, data="reviews.jsonl")
    with pytest.raises(RecipeError, match="there is no file or folder"):
        draft(images, data="nowhere")


def test_an_existing_file_is_kept_unless_forced(draft: Drafter, sentence_encoder: Path) -> None:
    Path("recipe.yaml").write_text("mine")
    with pytest.raises(RecipeError, match="is there already"):
        draft(sentence_encoder)
    assert Path("recipe.yaml").read_text() == "mine"
    draft(sentence_encoder, must_replace=True)
    assert load_recipe("recipe.yaml").model.task == "feature-extraction"
    with pytest.raises(RecipeError, match="no folder"):
        draft(sentence_encoder, "nowhere/recipe.yaml")
    Path("folder").mkdir()
    with pytest.raises(RecipeError, match="is a folder"):
        draft(sentence_encoder, "folder", must_replace=True)


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("./nowhere", RecipeError),
        ("package:no_such_one/model", EnvironmentMissing),
        ("org/not-in-the-cache", EnvironmentMissing),
        ("ftp:thing", RecipeError),
    ],
)
def test_checkpoints_that_are_not_here(
    draft: Drafter, model: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(Path("cache").absolute()))
    with pytest.raises(error):
        draft(model)
    assert not Path("recipe.yaml").exists()


def test_words_that_no_recipe_can_say_are_refused(draft: Drafter, classifier: Path) -> None:
    with pytest.raises(RecipeError, match="control characters"):
        draft(classifier, data="a\nb.jsonl")
    rows = write_rows(Path("rows.jsonl"), [{"te\nxt": "a"}])
    with pytest.raises(RecipeError, match="control characters"):
        draft(classifier, data=str(rows), columns=ColumnOptions(text="te\nxt"))


def test_a_name_that_cannot_be_is_refused(draft: Drafter, sentence_encoder: Path) -> None:
    with pytest.raises(RecipeError, match="name"):
        draft(sentence_encoder, name="No Such Name")
    assert draft(sentence_encoder, name="mine").recipe.name == "mine"


def test_a_head_that_gives_one_number_is_judged_by_its_distance(
    draft: Drafter, tmp_path: Path
) -> None:
    build_text_classifier(tmp_path / "stars", labels=1)
    write_rows(Path("rows.jsonl"), [{"text": f"a {n}", "label": n / 10} for n in range(9)])
    made = draft("stars", data="rows.jsonl")
    assert made.recipe.gates.parity.cosine_similarity is None
    assert made.recipe.gates.parity.relative_l2 is not None
    assert made.recipe.gates.quality is None
    assert any("gives one number" in note for note in made.notes)


RIGHT = {"fp32": 1e-5, "fp16": 2e-3, "int8": 0.1}
"""Noise of a right conversion, as a share of the output."""


@pytest.mark.parametrize(
    ("config", "size"),
    [
        ({"hidden_size": 2048, "intermediate_size": 5632}, 64),
        ({"hidden_size": 96, "intermediate_size": 256}, 32),
        ({"hidden_size": 128, "num_attention_heads": 3, "head_dim": 32}, 32),
        ({"n_embd": 48}, 16),
        ({"text_config": {"hidden_size": 96}}, 32),
        ({}, 64),
    ],
)
def test_blocks_of_a_decoder_are_whole(config: dict[str, Any], size: int) -> None:
    assert block_size_of(config) == size


def _failed(precision: str, candidate: Array, reference: Array) -> list[str]:
    task = find_task("text-classification")
    metrics = sum_distances(candidate, reference, is_ranked=True).metrics()
    parity = Parity(
        outputs=(OutputParity(name="logits", is_ranked=True, metrics=metrics, samples=()),),
        problems=(),
        session="test",
        batch_size=8,
        samples_seen=len(reference),
    )
    gates = ParityGates.model_validate(parity_limits(task, precision))
    results = judge_parity(parity, gates, target="cpu", component="model", is_proxy=False)
    return [result.metric for result in results if result.verdict == "failed"]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_limits_pass_a_right_conversion_and_fail_wrong_ones(precision: str) -> None:
    generator = np.random.default_rng(0)
    reference = generator.standard_normal((500, 8))
    reference[np.arange(500), generator.integers(0, 8, 500)] += 4  # as sure as trained models are
    reference = reference.astype(np.float32)
    noise = generator.standard_normal(reference.shape).astype(np.float32)
    scale = float(np.abs(reference).mean())
    right = reference + RIGHT[precision] * scale * noise
    assert _failed(precision, right, reference) == []
    wrong = {
        "of another size": 1.5 * right,
        "of other samples": np.roll(right, 1, axis=0),
        "classes in another order": np.roll(right, 1, axis=1),
        "one sample in twenty wrong": np.where(np.arange(500)[:, None] % 20, right, -right),
        "noise": right + 0.5 * scale * noise,
        "nothing": np.zeros_like(right),
    }
    for what, candidate in wrong.items():
        assert _failed(precision, candidate.astype(np.float32), reference), what


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with the tiny classifier's files, and an empty cache."""
    from huggingface_hub import constants

    with FakeHub() as fake:
        template = fake.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", fake.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield fake


def test_a_checkpoint_on_a_hub_is_drafted_at_its_commit_without_its_weights(
    draft: Drafter, classifier: Path, hub: FakeHub
) -> None:
    commit = hub.push({path.name: path.read_bytes() for path in classifier.iterdir()})
    write_reviews(Path("reviews.jsonl"))
    given = ColumnOptions(label="stars")
    recipe = draft(REPOSITORY, data="reviews.jsonl", columns=given).recipe
    assert (recipe.model.source, recipe.model.revision) == (REPOSITORY, commit)
    assert recipe.name == "tiny"
    assert recipe.data.evaluation.label == "stars"
    assert not [name for name in hub.fetched if name.endswith(".safetensors")]
