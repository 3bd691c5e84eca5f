"""Labels are certain: they come from Python's grammar, and the splits do not touch."""

from __future__ import annotations

import ast

import torch

from tests.trained.answers import ask
from tests.trained.snippets import _read_node
from tests.trained.standard_library import SourceText, rank, read_files
from tests.trained.tokens import read_lines
from tests.trained.training import SPECIAL_TOKENS, batch_by_length, train_tokenizer


def test_tokens_are_labelled_by_their_neighbours() -> None:
    (line,) = read_lines("x = self.size + round(2.5, 'a b')  # why\n")
    assert dict(zip(line.tokens, line.labels, strict=True)) == {
        "x": "NAME",
        "=": "OP",
        "self": "NAME",
        ".": "OP",
        "size": "ATTRIBUTE",
        "+": "OP",
        "round": "CALL",
        "(": "OP",
        "2.5": "NUMBER",
        ",": "OP",
        "'a b'": "STRING",
        ")": "OP",
        "# why": "COMMENT",
    }


def test_a_called_attribute_is_a_call_and_a_keyword_stays_one() -> None:
    (line,) = read_lines("return not (a.b())\n")
    assert line.labels == ("KEYWORD", "KEYWORD", "OP", "NAME", "OP", "CALL", "OP", "OP", "OP")


def test_lines_with_f_strings_are_left_out() -> None:
    lines = read_lines("a = f'{b}'\nc = rF'd'\ne = 'f'\n")
    assert [line.tokens[0] for line in lines] == ["e"]


def test_each_kind_of_snippet_is_found() -> None:
    source = '''
def join(a, *b):
    """Join all of it.

    More words.
    """
    if not b:
        raise ValueError("nothing %s to join" % a)
    print(a, b)
'''
    found = {
        label: text for node in ast.walk(ast.parse(source)) for text, label in _read_node(node)
    }
    assert found == {
        "docstring": "Join all of it.",
        "signature": "join(a, *b)",
        "error": "nothing %s to join",
        "call": "print(a, b)",
    }


def test_the_answers_to_a_question_are_in_the_passage() -> None:
    (node,) = ast.parse('def join(self, a, bc):\n    """Join\n    them."""').body
    assert isinstance(node, ast.FunctionDef)
    samples = ask(node)
    assert {sample.context for sample in samples} == {"join(a, bc): Join them."}
    found = {sample.question: sample.context[sample.start : sample.end] for sample in samples}
    assert found == {
        "What is the function called?": "join",
        "What is the first parameter?": "a",
        "What is the last parameter?": "bc",
        "What does it do?": "Join them.",
    }


def test_a_function_without_parameters_or_description_is_not_asked_about() -> None:
    for text in ('def a():\n    """Be."""', "def a(b):\n    pass"):
        (node,) = ast.parse(text).body
        assert isinstance(node, ast.FunctionDef)
        assert ask(node) == []


def test_the_split_is_by_file_and_by_name_alone() -> None:
    names = [f"module{index}.py" for index in range(400)]
    sources = [SourceText(name, "", ast.Module([], [])) for name in names]
    is_test = [source.is_for_tests for source in sources]
    assert 0.1 < sum(is_test) / len(is_test) < 0.2
    assert is_test == [SourceText(name, "x", ast.Module([], [])).is_for_tests for name in names]


def test_files_come_in_an_order_that_is_always_the_same() -> None:
    files = read_files()
    names = [next(files).name for _ in range(5)]
    assert names == sorted(names, key=rank)
    assert all(not name.startswith(("test/", "encodings/")) for name in names)


def test_batches_hold_each_sample_once_and_are_of_like_length() -> None:
    lengths = [5, 1, 9, 1, 5, 9, 3]
    torch.manual_seed(0)
    batches = batch_by_length(lengths, 2, shuffled=True)
    assert sorted(index for batch in batches for index in batch) == list(range(7))
    assert all(abs(lengths[batch[0]] - lengths[batch[-1]]) <= 4 for batch in batches)
    assert batch_by_length(lengths, 3, shuffled=False) == [[1, 3, 6], [0, 4, 2], [5]]


def test_a_tokenizer_learns_the_same_pieces_each_time() -> None:
    # The trainer of `tokenizers` alone does not: it numbers characters in the order of a hash map.
    texts = next(read_files()).text.splitlines()
    vocabularies = [
        train_tokenizer(texts, vocabulary=500, lowercase=True, max_length=16).get_vocab()
        for _ in range(4)
    ]
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)
    assert [vocabularies[0][token] for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
