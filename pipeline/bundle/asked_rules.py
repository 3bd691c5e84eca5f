"""What a checkpoint's `generation_config.json` asks of tokens beside their logits.

Where that file is missing `config.json` is asked, as `transformers` 5.23 does.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

from pipeline.bundle.generation_settings import (
    GENERATION_FILE,
    contradiction,
    read_number,
    read_tokens,
)
from pipeline.runtimes.token_rules import PLAIN, TokenRules
from pipeline.source.json_files import read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.bundle.graphs import GraphTarget

_OTHERS: Final[dict[str, tuple[object, ...]]] = {
    "encoder_repetition_penalty": (1, 1.0),
    "encoder_no_repeat_ngram_size": (0,),
    "sequence_bias": (),
    "guidance_scale": (1, 1.0),
    "exponential_decay_length_penalty": (),
    "watermarking_config": (),
    "force_words_ids": (),
    "constraints": (),
    "remove_invalid_values": (False,),
    "renormalize_logits": (False,),
    "stop_strings": (),
    "penalty_alpha": (0, 0.0),
    "dola_layers": (),
    "diversity_penalty": (0, 0.0),
}
"""Keys that change what transformers writes and are not heeded here -> values that ask for nothing."""


def read_said(target: GraphTarget) -> dict[str, Any]:
    """What the checkpoint says of how its texts are written.

    Raises:
        ArtifactError: the file is no JSON object.
    """
    path = target.folder / GENERATION_FILE
    if path.is_file():
        return read_json(path, f"{target.name}/{GENERATION_FILE}")
    return dict(target.config)


def read_rules(said: dict[str, Any], vocabulary: int) -> TokenRules:
    """Its rules.

    Args:
        said: What `read_said` gave.
        vocabulary: Width of the logits.

    Raises:
        RecipeError: one of them makes no sense.
    """
    penalty = read_number(said, "repetition_penalty", 1.0)
    if penalty <= 0:
        raise contradiction(f"`repetition_penalty` cannot be {penalty}")
    forced_bos = read_tokens(said.get("forced_bos_token_id"), "forced_bos_token_id", vocabulary)
    return TokenRules(
        repetition_penalty=float(penalty),
        no_repeat_ngram_size=_count(said, "no_repeat_ngram_size"),
        bad_words=_words(said.get("bad_words_ids"), vocabulary),
        min_length=_count(said, "min_length"),
        min_new_tokens=_count(said, "min_new_tokens"),
        forced_bos=forced_bos[0] if forced_bos else None,
        forced_eos=read_tokens(said.get("forced_eos_token_id"), "forced_eos_token_id", vocabulary),
        # Tokens that the model does not have are not written anyway.
        suppress=_numbers(said, "suppress_tokens"),
        begin_suppress=_numbers(said, "begin_suppress_tokens"),
    )


def rule_names(rules: TokenRules) -> tuple[str, ...]:
    """Names in `generation_config.json` of the rules that ask for something."""
    names = {
        "bad_words": "bad_words_ids",
        "forced_bos": "forced_bos_token_id",
        "forced_eos": "forced_eos_token_id",
        "suppress": "suppress_tokens",
        "begin_suppress": "begin_suppress_tokens",
    }
    return tuple(
        names.get(field.name, field.name)
        for field in fields(rules)
        if getattr(rules, field.name) != getattr(PLAIN, field.name)
    )


def not_heeded(said: dict[str, Any]) -> tuple[str, ...]:
    """Keys that ask for what is not done here, in the order of the file."""
    return tuple(
        key
        for key, value in said.items()
        if key in _OTHERS and value is not None and value not in _OTHERS[key]
    )


def speech_start(
    said: dict[str, Any], start: int, detect: Callable[[Sequence[int]], Sequence[int]]
) -> list[list[int]]:
    """Tokens that Whisper's texts begin with: start, language, task, no timestamps.

    Source: `WhisperGenerationMixin._retrieve_init_tokens`. A checkpoint that says nothing of them, as any
    that is no Whisper, begins with the start alone.

    Args:
        said: What `read_said` gave.
        start: The decoder's first token.
        detect: Which of these languages each sound is in, as tokens, a token for each sound.

    Returns:
        For each sound its tokens, all of one length; one list alone where no language is detected.

    Raises:
        RecipeError: they make no sense.
    """
    language, task = said.get("language"), said.get("task")
    languages, tasks = _named(said, "lang_to_id"), _named(said, "task_to_id")
    behind: list[int | None] = []
    if language is None and task is None:
        behind = _forced(said)
    if language is not None:
        behind = [_language(language, languages)]
        if task is None and "transcribe" in tasks:
            task = "transcribe"
    starts = [[start]]
    if language is None and languages and (not behind or behind[0] is None):
        starts = [[start, found] for found in detect(sorted(languages.values()))]
    if task is not None:
        if task not in tasks:
            raise contradiction(f"`task` is {task!r}, which `task_to_id` does not have")
        behind.append(tasks[task])
    silent = said.get("no_timestamps_token_id")
    if isinstance(silent, int) and behind[-1:] != [silent]:
        behind.append(silent)
    return [[*each, *(token for token in behind if token is not None)] for each in starts]


def _language(said: object, languages: dict[str, int]) -> int:
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    name = str(said).lower()
    for known in (name, f"<|{name}|>", f"<|{TO_LANGUAGE_CODE.get(name)}|>"):
        if known in languages:
            return languages[known]
    raise contradiction(f"`language` is {said!r}, which `lang_to_id` does not have")


def _forced(said: dict[str, Any]) -> list[int | None]:
    pairs = said.get("forced_decoder_ids") or []
    tokens: list[int | None] = []
    for place, pair in enumerate(pairs, start=1):
        if not isinstance(pair, list) or len(pair) != 2 or pair[0] != place:
            raise contradiction(f"`forced_decoder_ids` has {pair!r} at place {place}")
        tokens.append(pair[1])
    return tokens


def _named(said: dict[str, Any], key: str) -> dict[str, int]:
    value = said.get(key) or {}
    if not isinstance(value, dict) or not all(isinstance(each, int) for each in value.values()):
        raise contradiction(f"`{key}` is no mapping of names to tokens")
    return value


def _count(said: dict[str, Any], key: str) -> int:
    value = read_number(said, key, 0)
    if value < 0 or value != int(value):
        raise contradiction(f"`{key}` cannot be {value}")
    return int(value)


def _numbers(said: dict[str, Any], key: str) -> tuple[int, ...]:
    value = said.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(type(each) is int for each in value):
        raise contradiction(f"`{key}` is no list of tokens: {value!r}")
    return tuple(value)


def _words(value: object, vocabulary: int) -> tuple[tuple[int, ...], ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(word, list) and word for word in value):
        raise contradiction(f"`bad_words_ids` is no list of lists of tokens: {value!r}")
    return tuple(read_tokens(word, "bad_words_ids", vocabulary) for word in value)
