from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from pipeline.data.batching import iter_batches
from pipeline.data.sample_set import NO_LABEL, SampleSet
from pipeline.errors import RecipeError, StageError
from tests.data.prepared import make_samples, minilm, write_checkpoint, write_lines

INPUTS = ("attention_mask", "input_ids", "token_type_ids")
CONTEXT = "The library reads a file. It was written in 1969 by Kernighan. It has no bugs."


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint")


@pytest.fixture(scope="module")
def auto_tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(minilm(), local_files_only=True)


def _make(
    tmp_path: Path, checkpoint: Path, task: str, *rows: object, **settings: Any
) -> tuple[SampleSet, dict[str, Any]]:
    write_lines(tmp_path / "a.jsonl", *rows)
    return make_samples(tmp_path, checkpoint, "a.jsonl", task=task, **settings)


def _tokens(tokenizer: Any, samples: SampleSet, index: int) -> list[str]:
    (sample,) = samples.read([index])
    tokens: list[str] = tokenizer.convert_ids_to_tokens(sample["input_ids"].ravel().tolist())
    return tokens


# --- texts ------------------------------------------------------------------------------------


def test_pairs_are_those_of_transformers(
    tmp_path: Path, checkpoint: Path, auto_tokenizer: Any
) -> None:
    rows = [{"a": "It rains.", "b": CONTEXT}, {"a": CONTEXT, "b": "It rains."}]
    samples, facts = _make(
        tmp_path, checkpoint, "text-classification", *rows, text="a", text_pair="b",
        stage={"max_length": 20},
    )  # fmt: skip
    for row, sample in zip(rows, samples.read([0, 1]), strict=True):
        wanted = auto_tokenizer(row["a"], row["b"], truncation="longest_first", max_length=20)
        assert {name: sample[name].tolist() for name in INPUTS} == dict(wanted)
        assert 1 in sample["token_type_ids"]
    assert samples.entries[0].text == f"It rains. | {CONTEXT}"
    assert facts["cut_at_max_length"] == 2


def test_a_task_reads_no_columns_that_are_not_its_own(tmp_path: Path, checkpoint: Path) -> None:
    for task, column in (
        ("text-classification", {"image": "a"}),
        ("text-classification", {"choices": "a"}),
        ("token-classification", {"text_pair": "a"}),
        ("fill-mask", {"label": "a"}),
    ):
        (name,) = column
        with pytest.raises(RecipeError, match=f"`{name}` is `a`, and task `{task}`"):
            _make(tmp_path, checkpoint, task, {"text": "x"}, **column)


# --- words ------------------------------------------------------------------------------------

WORDS = ["My", "name", "is", "Wolfgang", "and", "I", "live-in", "Berlin", "."]
TAGS = ["O", "O", "O", "PER", "O", "O", "O", "LOC", "O"]
NAMES = {"0": "O", "1": "PER", "2": "LOC"}


def _byte_level(directory: Path, *, trim: bool) -> Path:
    """A byte-level tokenizer as RoBERTa has it, which sees a space before a word."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(special_tokens=special, vocab_size=400)
    tokenizer.train_from_iterator([" ".join(WORDS), CONTEXT] * 3, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=trim, add_prefix_space=False
    )
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"model_type": "roberta", "vocab_size": 400, "type_vocab_size": 1, "id2label": NAMES}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"pad_token": "<pad>", "mask_token": {"content": "<mask>"}})
    )
    return directory


def test_the_first_token_of_each_word_carries_its_class(
    tmp_path: Path, auto_tokenizer: Any
) -> None:
    checkpoint = write_checkpoint(tmp_path / "named", id2label=NAMES)
    samples, facts = _make(
        tmp_path, checkpoint, "token-classification",
        {"tokens": WORDS, "tags": TAGS}, text="tokens", label="tags",
    )  # fmt: skip
    wanted = auto_tokenizer(WORDS, is_split_into_words=True)
    owners, classes = wanted.word_ids(), []
    for place, owner in enumerate(owners):
        is_first = owner is not None and owner not in owners[:place]
        classes.append(["O", "PER", "LOC"].index(TAGS[owner]) if is_first else NO_LABEL)
    assert samples.read([0])[0]["input_ids"].tolist() == wanted["input_ids"]
    assert samples.entries[0].label == tuple(classes)
    assert owners.count(6) > 1  # `live-in` is several tokens
    assert facts["labels"]["classes"] == {"LOC": 1, "O": 7, "PER": 1}


@pytest.mark.parametrize("trim", [True, False])
def test_words_are_found_by_tokenizers_that_count_the_space(tmp_path: Path, trim: bool) -> None:
    checkpoint = _byte_level(tmp_path / "bytes", trim=trim)
    rows = {"tokens": WORDS, "tags": list(range(len(WORDS)))}
    config = json.loads((checkpoint / "config.json").read_text())
    config["id2label"] = {str(number): f"class {number}" for number in range(len(WORDS))}
    (checkpoint / "config.json").write_text(json.dumps(config))
    samples, _ = _make(
        tmp_path, checkpoint, "token-classification", rows, text="tokens", label="tags"
    )
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    label = samples.entries[0].label
    assert isinstance(label, tuple)
    starts = [place for place, value in enumerate(label) if value != NO_LABEL]
    assert [label[place] for place in starts] == list(range(len(WORDS)))
    ids = samples.read([0])[0]["input_ids"]
    for word, start, end in zip(WORDS, starts, [*starts[1:], len(ids) - 1], strict=True):
        assert tokenizer.decode(ids[start:end].tolist()).strip() == word


def test_words_beyond_the_limit_lose_their_classes(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "named", id2label=NAMES)
    rows = [{"tokens": WORDS, "tags": TAGS}, {"tokens": WORDS, "tags": None}]
    samples, facts = _make(
        tmp_path, checkpoint, "token-classification", *rows,
        text="tokens", label="tags", stage={"max_length": 5},
    )  # fmt: skip
    assert samples.entries[0].label == (NO_LABEL, 0, 0, 0, NO_LABEL)
    assert samples.entries[1].label is None
    assert facts["labels"]["labelled"] == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": WORDS, "tags": TAGS[:-1]}, "9 words in column `tokens` and 8 labels"),
        ({"tokens": WORDS, "tags": "O"}, "a list with a label for each word"),
        ({"tokens": ["a", ""], "tags": ["O", "O"]}, "as word 2"),
        ({"tokens": ["a", 5], "tags": ["O", "O"]}, "holds the number `5` as word 2"),
        ({"tokens": [], "tags": []}, "holds no words"),
        ({"tokens": "My name", "tags": ["O", "O"]}, "holds one text, and labels are for words"),
        ({"tokens": ["a"], "tags": ["MISC"]}, "labels of the data are not classes"),
        ({"tokens": ["a"], "tags": [7]}, "holds class 7"),
    ],
)
def test_words_and_labels_must_fit(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    checkpoint = write_checkpoint(tmp_path / "named", id2label=NAMES)
    with pytest.raises(StageError, match=message) as caught:
        _make(tmp_path, checkpoint, "token-classification", row, text="tokens", label="tags")
    assert caught.value.where == "a.jsonl:1"


def test_a_text_without_labels_is_enough_for_tokens(tmp_path: Path, checkpoint: Path) -> None:
    samples, _ = _make(tmp_path, checkpoint, "token-classification", {"text": "My name."})
    assert samples.entries[0].label is None


# --- spans ------------------------------------------------------------------------------------

SQUAD = {"text": ["1969", "in 1969"], "answer_start": [CONTEXT.index("1969")] * 2}


@pytest.mark.parametrize(
    "answer", [SQUAD, "1969", ["1969"], [{"text": " 1969", "answer_start": 43}], {"text": "1969"}]
)
def test_an_answer_becomes_its_first_and_last_token(
    tmp_path: Path, checkpoint: Path, auto_tokenizer: Any, answer: object
) -> None:
    row = {"question": "When was it written?", "context": CONTEXT, "answers": answer}
    samples, facts = _make(tmp_path, checkpoint, "question-answering", row, label="answers")
    label = samples.entries[0].label
    assert isinstance(label, tuple)
    first, last = label
    assert _tokens(auto_tokenizer, samples, 0)[first : last + 1] == ["1969"]
    wanted = auto_tokenizer(row["question"], CONTEXT)
    assert samples.read([0])[0]["token_type_ids"].tolist() == wanted["token_type_ids"]
    assert facts["labels"] == {"labelled": 1, "unlabelled_because": {}}


def test_an_answer_of_many_tokens_keeps_its_ends(
    tmp_path: Path, checkpoint: Path, auto_tokenizer: Any
) -> None:
    row = {"question": "Who?", "context": CONTEXT, "answers": "by Kernighan"}
    samples, _ = _make(tmp_path, checkpoint, "question-answering", row, label="answers")
    label = samples.entries[0].label
    assert isinstance(label, tuple)
    tokens = _tokens(auto_tokenizer, samples, 0)[label[0] : label[1] + 1]
    assert auto_tokenizer.convert_tokens_to_string(tokens) == "by kernighan"
    assert len(tokens) > 2


@pytest.mark.parametrize("trim", [True, False])
def test_answers_are_found_by_tokenizers_that_count_the_space(tmp_path: Path, trim: bool) -> None:
    checkpoint = _byte_level(tmp_path / "bytes", trim=trim)
    row = {"question": "Who?", "context": CONTEXT, "answers": "Kernighan"}
    samples, _ = _make(
        tmp_path, checkpoint, "question-answering", row, label="answers", stage={"max_length": 99}
    )
    label = samples.entries[0].label
    assert isinstance(label, tuple)
    ids = samples.read([0])[0]["input_ids"][label[0] : label[1] + 1]
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    assert tokenizer.decode(ids.tolist()).strip() == "Kernighan"
    assert "token_type_ids" not in samples.input_names


def test_only_the_passage_is_cut_and_lost_answers_are_counted(
    tmp_path: Path, checkpoint: Path, auto_tokenizer: Any
) -> None:
    rows = [
        {"question": "Who wrote it?", "context": CONTEXT, "answers": "Kernighan"},
        {"question": "Who wrote it?", "context": CONTEXT, "answers": {"text": [], "answer_start": []}},
        {"question": "Who wrote it?", "context": CONTEXT, "answers": "library"},
    ]  # fmt: skip
    samples, facts = _make(
        tmp_path,
        checkpoint,
        "question-answering",
        *rows,
        label="answers",
        stage={"max_length": 14},
    )
    assert [entry.label is None for entry in samples.entries] == [True, True, False]
    assert facts["labels"]["unlabelled_because"] == {
        "the answer was cut off": 1,
        "there is no answer": 1,
    }
    assert facts["cut_at_max_length"] == 3
    assert _tokens(auto_tokenizer, samples, 0)[:6] == ["[CLS]", "who", "wrote", "it", "?", "[SEP]"]
    with pytest.raises(StageError, match=r"the answer was cut off \(1\)") as caught:
        _make(
            tmp_path, checkpoint, "question-answering", rows[0],
            label="answers", stage={"max_length": 14},
        )  # fmt: skip
    assert "shapes.sequence.max" in caught.value.hint


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("1970", "is not in the passage"),
        ({"text": ["1969"], "answer_start": [3]}, "at character 3 of the passage"),
        ({"text": ["1969"], "answer_start": ["x"]}, "a whole number is needed"),
        ({"answer_start": [3]}, "an answer has a `text`"),
        (5, "an answer is a text"),
    ],
)
def test_an_answer_that_is_not_in_the_passage_is_refused(
    tmp_path: Path, checkpoint: Path, answer: object, message: str
) -> None:
    row = {"question": "When?", "context": CONTEXT, "answers": answer}
    with pytest.raises(StageError, match=message) as caught:
        _make(tmp_path, checkpoint, "question-answering", row, label="answers")
    assert caught.value.where == "a.jsonl:1"


def test_a_question_that_leaves_no_room_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    row = {"question": CONTEXT, "context": "Short."}
    with pytest.raises(StageError, match="cannot be cut to 8 tokens") as caught:
        _make(tmp_path, checkpoint, "question-answering", row, stage={"max_length": 8})
    assert caught.value.where == "a.jsonl:1"


# --- choices ----------------------------------------------------------------------------------

QUESTION = {
    "text": "He opens the book.",
    "choices": ["He reads.", "He swims in the cold sea.", "It rains."],
}


def test_choices_are_rows_of_one_length(
    tmp_path: Path, checkpoint: Path, auto_tokenizer: Any
) -> None:
    fewer = QUESTION | {"choices": QUESTION["choices"][:2], "label": "He reads."}
    samples, facts = _make(
        tmp_path, checkpoint, "multiple-choice", QUESTION | {"label": 2}, fewer,
        label="label", stage={"num_choices": 4},
    )  # fmt: skip
    wanted = auto_tokenizer(
        [QUESTION["text"]] * 3, QUESTION["choices"], padding=True, return_tensors="np"
    )
    first, _ = samples.read([0, 1])
    for name in INPUTS:
        np.testing.assert_array_equal(first[name], wanted[name])
    assert [entry.label for entry in samples.entries] == [2, 0]
    assert samples.entries[1].extents == {"num_choices": 2, "sequence": 16}
    assert facts["choices"]["max"] == 3
    (batch,) = iter_batches(samples, 4)
    assert batch.feeds["input_ids"].shape == (2, 3, 16)
    row = batch.indices.index(1)
    assert not batch.feeds["attention_mask"][row, 2].any()


def test_choices_may_be_columns_with_a_common_beginning(
    tmp_path: Path, checkpoint: Path, auto_tokenizer: Any
) -> None:
    row = {
        "sent1": "He opens the book.",
        "sent2": "He",
        "e0": "reads.",
        "e1": "swims.",
        "label": 0,
    }
    samples, _ = _make(
        tmp_path, checkpoint, "multiple-choice", row, text="sent1", text_pair="sent2",
        choices=["e0", "e1"], label="label", stage={"num_choices": 2},
    )  # fmt: skip
    text = auto_tokenizer.decode(samples.read([0])[0]["input_ids"][1], skip_special_tokens=True)
    assert text == "he opens the book. he swims."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": ["a"] * 5}, "has 5 choices, there may be 2 to 4"),
        ({"choices": ["a"]}, "has 1 choices"),
        ({"choices": "a"}, "a list of texts is needed"),
        ({"choices": ["a", None]}, "as a choice, a text is needed"),
        ({"label": 3}, "says choice 3, there are 0 to 2"),
        ({"label": -1}, "says choice -1"),
        ({"label": "nothing"}, "not one of the choices"),
        ({"label": True}, "not one of the choices"),
        ({"choices": ["1", "0", "2"], "label": "1"}, "a place or the text of choice 0"),
    ],
)
def test_choices_that_do_not_fit_are_refused(
    tmp_path: Path, checkpoint: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(StageError, match=message) as caught:
        _make(
            tmp_path, checkpoint, "multiple-choice", QUESTION | {"label": 0} | change,
            label="label", stage={"num_choices": 4},
        )  # fmt: skip
    assert caught.value.where == "a.jsonl:1"


def test_the_right_choice_may_be_a_class_of_the_data_set(tmp_path: Path, checkpoint: Path) -> None:
    import datasets

    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "choices": datasets.List(datasets.Value("string")),
            "label": datasets.ClassLabel(names=["0", "1", "2"]),  # as SWAG has it
        }
    )
    rows = [QUESTION | {"label": 2}, QUESTION | {"label": -1}]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved")
    samples, _ = make_samples(
        tmp_path, checkpoint, "datasets:saved", task="multiple-choice", label="label",
        stage={"num_choices": 4},
    )  # fmt: skip
    assert [entry.label for entry in samples.entries] == [2, None]


# --- masks ------------------------------------------------------------------------------------


def test_some_tokens_are_hidden_whatever_the_seed_is(
    tmp_path: Path, checkpoint: Path, auto_tokenizer: Any
) -> None:
    rows = [{"text": CONTEXT}, {"text": "Yes"}, {"text": "It [MASK] today, and that is all."}]
    made = [_make(tmp_path, checkpoint, "fill-mask", *rows, seed=seed) for seed in (0, 1)]
    (samples, facts), (_, other) = made
    # Equal texts of evaluation and calibration are found out by their tensors.
    assert facts["fingerprint"] == other["fingerprint"]
    tokens = [_tokens(auto_tokenizer, samples, index) for index in range(3)]
    whole = auto_tokenizer(CONTEXT)["input_ids"]
    assert tokens[0].count("[MASK]") == round(0.15 * (len(whole) - 2))
    assert tokens[0][0] == "[CLS]"
    assert tokens[0][-1] == "[SEP]"
    assert tokens[1] == ["[CLS]", "[MASK]", "[SEP]"]
    assert tokens[2].count("[MASK]") == 1


def test_a_tokenizer_without_a_mask_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (checkpoint / name).unlink()
    with pytest.raises(StageError, match="names no mask token"):
        _make(tmp_path, checkpoint, "fill-mask", {"text": "a"})


# --- built-in texts ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task", ["fill-mask", "multiple-choice", "question-answering", "token-classification"]
)
def test_every_task_on_text_can_do_without_data(
    tmp_path: Path, checkpoint: Path, task: str
) -> None:
    samples, facts = make_samples(
        tmp_path, checkpoint, "builtin:stdlib-docstrings", task=task, samples=8,
        stage={"num_choices": 4 if task == "multiple-choice" else None},
    )  # fmt: skip
    assert len(samples) == 8
    assert facts["repeated"] == 0
