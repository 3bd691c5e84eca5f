"""One model laid over another: what it names wins, and all it leaves out stays as it is below."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel

M = TypeVar("M", bound=BaseModel)


def overlaid(base: M, over: M) -> M:
    """`base` with everything that `over` was given, key by key at every depth, as `extends` merges.

    Nothing, a value and a list replace what is below. Where nothing is below, defaults are filled in.
    """
    update = {}
    for name in over.model_fields_set:
        below, value = getattr(base, name), getattr(over, name)
        is_mapping = isinstance(value, BaseModel) and type(below) is type(value)
        update[name] = overlaid(below, value) if is_mapping else value
    return base.model_copy(update=update)
