"""Chat templates: what `transformers` makes of a conversation, made without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.bundle.chat import render_chat
from pipeline.errors import RecipeError
from tests.trained.lm import byte_tokenizer

_MESSAGES = [{"role": "user", "content": "how <are> you?"}]
_LOOP = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
_ASK = "{% if add_generation_prompt %}<assistant>{% endif %}"


def _theirs(folder: Path) -> str:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return str(
        tokenizer.apply_chat_template(_MESSAGES, add_generation_prompt=True, tokenize=False)
    )


@pytest.mark.parametrize(
    "template",
    [
        # Marks for training, as in SmolLM3's.
        "{% for m in messages %}{%- generation -%}{{ m.content }}{%- endgeneration -%}{% endfor %}"
        + _ASK,
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% generation %}{% set ns.n = ns.n + 1 %}"
        "{% endgeneration %}{% endfor %}{{ ns.n }}" + _ASK,
        # Whether there are tools is asked by `is not none`.
        "{% if tools is not none %}{{ tools | tojson }}{% endif %}{{ documents is none }}" + _LOOP,
        "{{ bos_token }}" + _LOOP + "{{ eos_token }}{{ messages | tojson }}" + _ASK,
    ],
)
def test_templates_give_what_transformers_gives(tmp_path: Path, template: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    assert render_chat(tmp_path, _MESSAGES) == _theirs(tmp_path)


def test_special_tokens_may_be_in_a_file_of_their_own(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ bos_token }}" + _LOOP + "{{ eos_token }}"
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    said: dict[str, Any] = json.loads(path.read_text())
    moved = {key: said.pop(key) for key in ("bos_token", "eos_token") if key in said}
    assert moved
    path.write_text(json.dumps(said))
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({key: {"content": text, "lstrip": False} for key, text in moved.items()})
    )
    made = render_chat(tmp_path, _MESSAGES)
    assert made == _theirs(tmp_path)
    assert all(text in made for text in moved.values())


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content + 1 }}",
        "{% for m in messages %}{{ raise_exception('roles must alternate') }}{% endfor %}",
        "{% for m in messages %}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_template_that_fails_is_told(tmp_path: Path, template: str) -> None:
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(RecipeError, match="the chat template cannot be rendered"):
        render_chat(tmp_path, _MESSAGES)
