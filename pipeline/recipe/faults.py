"""Pydantic's validation errors -> problems of a recipe: one for each cause, at its place."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.recipe import schema as schemas
from pipeline.recipe.problems import Problem
from pipeline.recipe.types import InvalidAt
from pipeline.recipe.wording import Fault, hint_for, nearest, wording

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

    from pipeline.recipe.events import Document
    from pipeline.recipe.problems import KeyPath
    from pipeline.recipe.schema import Schema

OTHER_TYPE = frozenset(
    {
        "bool_type",
        "dict_type",
        "float_type",
        "int_from_float",
        "int_type",
        "list_type",
        "literal_error",
        "model_type",
        "none_required",
        "string_type",
        "tuple_type",
    }
)
"""Errors that say of a value that it is of another kind altogether."""

MAX_COMPARED_KEYS = 50
"""Unknown keys that are compared with missing ones; a hostile file has thousands."""


def find_problems(
    error: ValidationError, document: Document, prefix: KeyPath = ()
) -> list[Problem]:
    """All causes, those of the document included; consequences of another cause are left out.

    Args:
        error: What pydantic found.
        document: Where it found it.
        prefix: Key path of what was validated.
    """
    faults = [
        fault
        for details in error.errors(include_url=False, include_input=False)
        if details["type"] != "default_factory_not_called"  # for lack of another, faulty field
        and not _only_counts_valid(fault := _fault(details, document, prefix))
    ]
    faults = _without_misspelt(_one_for_each_place(faults))
    hidden = [problem.path for problem in document.problems if problem.hides_value]
    return [
        *document.problems,
        *(_problem(fault, document) for fault in faults if not _follows(fault.path, hidden)),
    ]


def _fault(details: ErrorDetails, document: Document, prefix: KeyPath) -> Fault:
    """One error of pydantic, with what the recipe and its schema say about the place."""
    kind, location = details["type"], (*prefix, *details["loc"])
    context: Mapping[str, Any] = details.get("ctx", {})
    is_key = kind != "extra_forbidden" and location[-1:] == ("[key]",)
    if is_key:
        location = location[:-1]
    located = schemas.locate(location)
    path, schema = located.path, located.schema
    if isinstance(cause := context.get("error"), InvalidAt):
        path = (*path, *cause.key_path)
    if kind == "union_tag_invalid":
        path = (*path, _tag_key(context))
        schema = _tag_schema(schema)
    fault = Fault(
        kind=kind,
        path=path,
        value=_value(document, path),
        text=document.texts.get(path, ""),
        parent=_value(document, path[:-1]),
        schema=schema,
        parent_schema=located.parent,
        context=context,
        message=details["msg"],
        is_key=is_key,
    )
    return _missing_tag(fault) if kind == "union_tag_not_found" else fault


def _missing_tag(fault: Fault) -> Fault:
    """A union whose branch is not said: a missing key, or a misspelt one."""
    tag = _tag_key(fault.context)
    branches = [schemas.resolve(branch) for branch in fault.schema["oneOf"]]
    known = {key: inner for branch in branches for key, inner in branch["properties"].items()}
    parent_schema = {"type": "object", "properties": known}
    parent = fault.value if isinstance(fault.value, dict) else {}
    inner = replace(
        fault, parent=parent, parent_schema=parent_schema, schema=_tag_schema(fault.schema)
    )
    for key in list(parent)[:MAX_COMPARED_KEYS]:
        if key not in known and nearest(key, [tag]):
            return replace(inner, kind="extra_forbidden", path=(*fault.path, key))
    return replace(inner, kind="missing", path=(*fault.path, tag))


def _tag_key(context: Mapping[str, Any]) -> str:
    return str(context["discriminator"]).strip("'")


def _tag_schema(union: Schema) -> Schema:
    return {"type": "string", "enum": list(union["discriminator"]["mapping"])}


def _one_for_each_place(faults: Iterable[Fault]) -> list[Fault]:
    """The branches of a plain union each complain about the same value: that is one cause.

    Where one branch only misses a limit, the value is meant for it.
    """
    places: dict[tuple[KeyPath, bool], list[Fault]] = {}
    for fault in faults:
        places.setdefault((fault.path, fault.is_key), []).append(fault)
    return [_of_branches(group) for group in places.values()]


def _of_branches(faults: Sequence[Fault]) -> Fault:
    if len(faults) == 1:
        return faults[0]
    fitting = [fault for fault in faults if fault.kind not in OTHER_TYPE]
    return fitting[0] if len(fitting) == 1 else replace(faults[0], kind="union")


def _only_counts_valid(fault: Fault) -> bool:
    """Pydantic calls a list too short when items of it are wrong: it does not count those."""
    if fault.kind != "too_short" or not isinstance(fault.value, list):
        return False
    return len(fault.value) >= int(fault.context["min_length"])


def _without_misspelt(faults: Sequence[Fault]) -> list[Fault]:
    """Drop a missing key when an unknown key beside it is that key, misspelt."""
    missing = {fault.path for fault in faults if fault.kind == "missing"}
    unknown = [fault for fault in faults if fault.kind == "extra_forbidden"]
    if missing:
        for fault in unknown[:MAX_COMPARED_KEYS]:
            if meant := fault.meant_key():
                missing.discard((*fault.path[:-1], meant))
    return [fault for fault in faults if fault.kind != "missing" or fault.path in missing]


def _follows(path: KeyPath, hidden: Iterable[KeyPath]) -> bool:
    """Whether what is said of `path` is only due to a value that could not be read."""
    return any(path[: len(other)] == other or other[: len(path)] == path for other in hidden)


def _problem(fault: Fault, document: Document) -> Problem:
    path = fault.path
    if fault.kind == "missing":
        # It stands nowhere: what lacks it is where to look, and what the line is about.
        path = path[:-1]
        position = document.position(path)
    elif fault.is_key or fault.kind == "extra_forbidden":
        position = document.keys[path]
    else:
        position = document.position(path)
    origin = document.origin(path)
    note = f" ({origin.note})" if origin.note else ""
    return Problem(
        position=position,
        path=origin.path,
        text=lambda: wording(fault) + note,
        hint=hint_for(fault),
        kind=f"{fault.kind} {fault.path[-1]}" if fault.kind == "missing" else fault.kind,
        combination=origin.combination,
    )


def _value(document: Document, path: KeyPath) -> Any:
    try:
        return document.at(path)
    except KeyError:
        return None
