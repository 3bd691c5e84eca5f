"""What a chat template makes of a conversation, as `transformers` renders it and without its import.

Source: `transformers.utils.chat_template_utils._compile_jinja_template`, transformers 5.23.
"""

from __future__ import annotations

import datetime
import json
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import RecipeError
from pipeline.source.json_files import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from jinja2.ext import Extension
    from jinja2.parser import Parser

TEMPLATE_FILE: Final = "chat_template.jinja"
_OLD_FILE: Final = "special_tokens_map.json"
_SPECIAL: Final = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


def chat_template(folder: Path) -> str:
    """The template beside a tokenizer; empty when there is none.

    Of several named ones that of the name `default`.
    """
    if (folder / TEMPLATE_FILE).is_file():
        return (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
    if not (folder / "tokenizer_config.json").is_file():
        return ""
    said = read_json(folder / "tokenizer_config.json", "tokenizer_config.json").get(
        "chat_template"
    )
    if isinstance(said, list):
        said = next((one.get("template") for one in said if one.get("name") == "default"), "")
    return said if isinstance(said, str) else ""


def render_chat(folder: Path, messages: Sequence[Mapping[str, str]]) -> str:
    """Render a conversation, with the beginning of an answer at its end.

    Raises:
        RecipeError: there is no template, or it cannot be rendered.
    """
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    template = chat_template(folder)
    if not template:
        raise RecipeError("there is no chat template", where=str(folder))
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_answer_marks(), "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)  # noqa: DTZ005 - as transformers
    try:
        return environment.from_string(template).render(
            # As transformers: a template may ask whether they are none, and not whether they are defined.
            tools=None,
            documents=None,
            messages=messages,
            add_generation_prompt=True,
            **_special_tokens(folder),
        )
    # A template is a program, and whatever Python's operators raise comes out of it.
    except Exception as error:
        raise RecipeError(
            f"the chat template cannot be rendered: {error}",
            hint="correct it in the checkpoint, then build again; or leave the template out",
        ) from error


def _answer_marks() -> type[Extension]:
    """`{% generation %}`, with which templates mark for training what the model has answered."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class AnswerMarks(Extension):
        tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

        def parse(self, parser: Parser) -> nodes.Scope:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    return AnswerMarks


def _special_tokens(folder: Path) -> dict[str, str]:
    said = {}
    if (folder / "tokenizer_config.json").is_file():
        said = read_json(folder / "tokenizer_config.json", "tokenizer_config.json")
    # Older checkpoints have them in a file of their own, which transformers then reads too.
    if "added_tokens_decoder" not in said and (folder / _OLD_FILE).is_file():
        said |= read_json(folder / _OLD_FILE, _OLD_FILE)
    found = {}
    for name in _SPECIAL:
        value = said.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[name] = text
    return found


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    """jinja2's own escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _refuse(message: str) -> None:
    from jinja2.exceptions import TemplateError

    raise TemplateError(message)
