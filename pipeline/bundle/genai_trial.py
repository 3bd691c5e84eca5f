"""Generates text with ONNX Runtime GenAI and with our own loop, and compares; see `consumer.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.bundle.same_tokens import PROMPTS, TOKENS, first_difference, own_tokens, prompts_of

TEXT: Final = (
    "def read(path):\n    return [x for x in open(path)]  # na\u00efve \u6771\u4eac 3.14, don't"
)
"""Words, numbers, spaces in a row, a contraction, two scripts: where tokenizers differ."""
_CHAT: Final = ({"role": "user", "content": "What is 2 + 2?"},)
_CHAT_HINT: Final = (
    "GenAI has a template engine of its own: give the checkpoint a plainer template that both render alike "
    "(marks such as `{% generation %}` are for training), or none, then build again"
)


def run(question: dict[str, Any]) -> dict[str, Any]:
    """Try one bundle.

    Returns:
        `told` and `notes`, or `problem` and perhaps `hint`.
    """
    import onnxruntime_genai as og

    folder = Path(question["folder"])
    try:
        model = og.Model(str(folder))
        tokenizer = og.Tokenizer(model)
        ids = [int(token) for token in tokenizer.encode(TEXT)]
    except RuntimeError as err:
        return {"problem": f"it cannot load the bundle: {err}"}
    problem, notes = _compare_tokenizer(folder, ids)
    if problem:
        return {"problem": problem}
    if question["has_chat"]:
        problem = _compare_chat(folder, tokenizer)
        if problem:
            return {"problem": problem, "hint": _CHAT_HINT}
    prompts = prompts_of(question["vocabulary"], question["positions"])
    length = min(TOKENS, question["positions"] - max(map(len, prompts)))
    try:
        theirs = [_generate(og, model, prompt, length) for prompt in prompts]
    except RuntimeError as err:
        return {"problem": f"it cannot generate: {err}"}
    own = own_tokens(folder / "model.onnx", prompts, length, question["stops"], question["pad"])
    problem = first_difference(own, theirs, question["stops"])
    if problem:
        return {"problem": problem}
    told = f"onnxruntime-genai {og.__version__}: the same {length} tokens after {PROMPTS} prompts"
    return {"told": told, "notes": notes}


def _generate(og: Any, model: Any, prompt: list[int], length: int) -> list[int]:
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(
        max_length=len(prompt) + length, do_sample=False, num_beams=1, repetition_penalty=1.0
    )
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.array(prompt, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)[len(prompt) :]]


def _compare_tokenizer(folder: Path, ids: list[int]) -> tuple[str, list[str]]:
    """What is wrong with its token ids of the text, and what users should know."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    expected = tokenizer.encode(TEXT, add_special_tokens=False).ids
    if ids != expected:
        at = next(
            (n for n, (a, b) in enumerate(zip(ids, expected, strict=False)) if a != b),
            min(len(ids), len(expected)),
        )
        return (
            f"its tokenizer makes other tokens of {TEXT!r}: {ids[at : at + 3]} instead of "
            f"{expected[at : at + 3]} at {at}"
        ), []
    whole = tokenizer.encode(TEXT).ids
    if whole == expected:
        return "", []
    added = [token for token in whole if token not in expected]
    return "", [
        f"the model's own tokenizer adds the tokens {added} to a text, GenAI's adds none: add them"
    ]


def _compare_chat(folder: Path, tokenizer: Any) -> str:
    """What is wrong with what it makes of the chat template."""
    from pipeline.bundle.chat import render_chat

    expected = render_chat(folder, _CHAT)
    try:
        made = tokenizer.apply_chat_template(json.dumps(_CHAT), add_generation_prompt=True)
    except RuntimeError as err:
        return f"it cannot apply the chat template: {err}"
    if made != expected:
        return f"its chat template gives {made!r} instead of {expected!r}"
    return ""


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))  # noqa: T201 - the answer
