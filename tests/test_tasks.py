from __future__ import annotations

import pytest

from pipeline.errors import RecipeError
from pipeline.tasks import TASKS, check_task, find_task

BERT = {"architectures": ["BertModel"], "vocab_size": 100, "model_type": "bert"}
CLASSIFIER = BERT | {"architectures": ["BertForSequenceClassification"]}


@pytest.mark.parametrize("name", ["sentence-similarity", "default", "feature-extraction"])
def test_a_synonym_finds_the_task(name: str) -> None:
    assert find_task(name).name == "feature-extraction"


def test_a_misspelt_task_names_the_nearest_one() -> None:
    with pytest.raises(RecipeError, match="did you mean `text-classification`") as caught:
        find_task("text-clasification")
    assert "feature-extraction" in caught.value.hint


def test_no_name_means_two_tasks() -> None:
    names = [name for task in TASKS for name in (task.name, *task.synonyms)]
    assert len(names) == len(set(names))


def test_every_encoder_can_extract_features() -> None:
    check_task(BERT, find_task("feature-extraction"))
    check_task(CLASSIFIER, find_task("feature-extraction"))


def test_a_checkpoint_with_the_head_fits() -> None:
    check_task(CLASSIFIER, find_task("text-classification"))


def test_a_checkpoint_without_the_head_is_refused_with_tasks_that_fit() -> None:
    with pytest.raises(RecipeError, match="saved as BertModel") as caught:
        check_task(BERT, find_task("text-classification"))
    assert caught.value.hint == "tasks that fit this checkpoint: feature-extraction"


def test_a_checkpoint_of_images_is_refused() -> None:
    with pytest.raises(RecipeError, match="needs a text model"):
        check_task({"architectures": ["ViTModel"]}, find_task("feature-extraction"))


def test_an_encoder_with_a_decoder_is_refused() -> None:
    config = {"architectures": ["T5Model"], "vocab_size": 9, "is_encoder_decoder": True}
    with pytest.raises(RecipeError, match="needs one encoder"):
        check_task(config, find_task("feature-extraction"))


T5 = {"architectures": ["T5ForConditionalGeneration"], "vocab_size": 9, "is_encoder_decoder": True}
WHISPER = T5 | {"architectures": ["WhisperForConditionalGeneration"], "num_mel_bins": 80}


def test_encoders_with_decoders_have_tasks_of_their_own() -> None:
    check_task(T5, find_task("translation"))
    check_task(WHISPER, find_task("automatic-speech-recognition"))
    with pytest.raises(RecipeError, match="listens") as caught:
        check_task(WHISPER, find_task("summarization"))
    assert caught.value.hint.endswith("automatic-speech-recognition")
    with pytest.raises(RecipeError, match="says no `is_encoder_decoder: true`"):
        check_task(CLASSIFIER, find_task("translation"))


def test_axes_of_a_task_are_those_of_all_its_parts() -> None:
    assert find_task("automatic-speech-recognition").axes == ("batch", "sequence")
    assert find_task("automatic-speech-recognition").part("encoder").inputs[0].axes == ("batch",)
