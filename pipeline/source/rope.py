"""What `config.json` says of rotary embeddings whose frequencies go by the length of the text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

OF_LENGTH: Final = frozenset({"dynamic", "longrope", "su"})
"""Kinds with other frequencies for long texts; `su` is what `longrope` was called first."""
_SECTIONS: Final = ("rope_scaling", "rope_parameters")
"""Both names are in use."""


def short_positions(config: Mapping[str, object]) -> int | None:
    """How many positions have the frequencies of short texts, of a model with two sets (`longrope`).

    Beyond, keys that were kept are of the one set and new ones of the other, so that logits with a
    cache are not those without. transformers reads the whole text again there.

    Args:
        config: The checkpoint's `config.json`, or the part of its text model.

    Returns:
        None for a model with one set.
    """
    for section in _sections(config):
        if _kind(section, config) in {"longrope", "su"}:
            found = config.get("original_max_position_embeddings")
            found = found or section.get("original_max_position_embeddings")
            return found if isinstance(found, int) else None
    return None


def layers_that_differ(config: Mapping[str, object]) -> str:
    """A kind of `OF_LENGTH` that only some layers have; empty when none has."""
    for section in _sections(config):
        for part in section.values():
            if isinstance(part, dict) and (kind := _kind(part, config)) in OF_LENGTH:
                return kind
    return ""


def _sections(config: Mapping[str, object]) -> Iterator[dict[str, object]]:
    yield from (found for name in _SECTIONS if isinstance(found := config.get(name), dict))


def _kind(section: Mapping[str, object], config: Mapping[str, object]) -> str:
    kind = section.get("rope_type", section.get("type"))
    # Of Phi-3 the first checkpoints had `yarn` there, and never meant it.
    is_meant = kind != "yarn" or config.get("model_type") != "phi3"
    return str(kind) if is_meant else "longrope"
