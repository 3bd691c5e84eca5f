"""What pydantic found, in words for the user: one table from its error types to sentences."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.engines.facts_file import SHA256_PATTERN
from pipeline.recipe import schema as schemas
from pipeline.recipe.problems import format_key_path, shorten
from pipeline.recipe.scalars import resolve_plain
from pipeline.recipe.types import FACT_PATTERN, NAME_PATTERN, PRINTABLE_PATTERN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pipeline.hashing import JSON
    from pipeline.recipe.problems import KeyPath
    from pipeline.recipe.schema import Schema

PATTERN_WORDS: Mapping[str, str] = {
    NAME_PATTERN: "a name has up to 64 lower-case letters, digits, `.`, `_` and `-`, and starts "
    "with a letter or digit",
    FACT_PATTERN: "a name has lower-case letters, digits and `_`, and starts with a letter",
    PRINTABLE_PATTERN: "it must not be empty or hold control characters",
    SHA256_PATTERN: "a SHA-256 digest has 64 of `0` to `9` and `a` to `f`",
}
"""What the patterns of the schema mean."""

NO_RTX_TARGET: Mapping[str, str] = {
    "sm70": "V100",
    "sm72": "Jetson Xavier",
    "sm87": "Jetson Orin",
    "sm90": "H100, H200",
    "sm100": "B200",
    "sm103": "B300",
    "sm110": "Jetson Thor",
}
"""Real GPUs that TensorRT-RTX does not target, by compute capability.

Source: https://developer.nvidia.com/cuda-gpus; refusals of 87, 90, 100, 103 and 110 seen with
TensorRT-RTX 1.7.1.
"""

_BOOLEAN_WORDS = {"yes": True, "on": True, "y": True, "no": False, "off": False, "n": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One error of pydantic, placed in the recipe and in its schema.

    Attributes:
        kind: Pydantic's error type, or `union` when no branch of a plain union fits.
        path: Key path; ends with the key itself when it is missing or unknown.
        value: What the recipe has there.
        text: How it is written, when that is not the value itself.
        parent: The mapping or list around it in the recipe.
        schema: What is allowed there.
        parent_schema: What is allowed around it.
        context: Pydantic's details, such as the limit.
        message: Pydantic's own words.
        is_key: The key itself is refused, not its value.
    """

    kind: str
    path: KeyPath
    value: Any
    text: str
    parent: Any
    schema: Schema
    parent_schema: Schema
    context: Mapping[str, Any]
    message: str
    is_key: bool

    @property
    def found(self) -> str:
        """What the recipe has there, short and on one line."""
        match self.value:
            case None:
                return "nothing"
            case dict():
                return "a mapping" if self.value else "an empty mapping"
            case list():
                return "a list" if self.value else "an empty list"
            case _:
                return f"`{shorten(self.text or schemas.flow_text(self.value))}`"

    def meant_key(self) -> str | None:
        """The valid key, not used yet, that an unknown key is nearest to."""
        valid = schemas.properties(self.parent_schema)
        return nearest(str(self.path[-1]), [key for key in valid if key not in self.parent])


def wording(fault: Fault) -> str:
    """One line that says what is wrong and what would be right."""
    if fault.path == ("recipe",) and fault.kind == "literal_error":
        version = schemas.flow_text(schemas.choices(fault.schema)[0])
        return f"recipes of version {version} are read here, not {fault.found}"
    if "compute_capability" in fault.path[-2:] and fault.kind == "literal_error":
        return _compute_capability(fault)
    say = WORDING.get(fault.kind)
    # A type that nobody has met yet still has its place; a test keeps this from happening.
    return say(fault) if say else fault.message


def hint_for(fault: Fault) -> str:
    """What to do about it, where the line that says what is wrong has no room for it."""
    if "compute_capability" in fault.path[-2:] and fault.kind in {"literal_error", "tuple_type"}:
        return _hint_for_capability(fault)
    meant = getattr(fault.context.get("error"), "hint", "")
    return f"{format_key_path(fault.path)}: {meant}" if meant else ""


def _hint_for_capability(fault: Fault) -> str:
    found = _as_target(fault.text or fault.value)
    targets = schemas.choices(_item_schema(fault.schema))
    if found in targets:
        return ""  # the line itself says how to write it
    if found in NO_RTX_TARGET:
        return (
            f"for {NO_RTX_TARGET[found]} take `runtime: tensorrt`, and build on such a GPU, or "
            "`runtime: onnxruntime` with `provider: cuda`"
        )
    return (
        "nvidia-smi --query-gpu=name,compute_cap --format=csv says what a GPU has: 8.9 is `sm89`"
    )


def nearest(word: str, options: Iterable[str]) -> str | None:
    """The option that a misspelt word most likely means, or nothing."""
    import difflib

    plain = {_folded(option): option for option in options}
    matches = difflib.get_close_matches(_folded(word[:64]), plain, n=1, cutoff=0.6)
    return plain[matches[0]] if matches else None


def _folded(word: str) -> str:
    return word.lower().replace("-", "_").replace(" ", "_")


def _unknown_key(fault: Fault) -> str:
    if meant := fault.meant_key():
        return f"unknown key - did you mean `{meant}`?"
    key = str(fault.path[-1])
    if home := _home(key, fault):
        return f"unknown key here - it belongs in {home}"
    if runtimes := _other_runtimes(key, fault):
        own = schemas.flow_text(fault.parent.get("runtime"))
        return f"a target of `runtime: {own}` has no such key; {runtimes} has it"
    keys = ", ".join(f"`{each}`" for each in schemas.properties(fault.parent_schema))
    return (
        f"unknown key; the keys here are {keys}" if keys else "unknown key; none is allowed here"
    )


def _home(key: str, fault: Fault) -> str:
    """The mapping that has this key: one inside the mapping where it stands, or the recipe."""
    for name, inner in schemas.properties(fault.parent_schema).items():
        whole = schemas.resolve(inner)
        forms = [whole, *map(schemas.resolve, whole.get("oneOf", ()))]
        if any(key in schemas.properties(form) for form in forms):
            return f"`{format_key_path((*fault.path[:-1], name))}`"
    root = schemas.locate(()).schema
    return "the recipe itself, not indented" if key in schemas.properties(root) else ""


def _other_runtimes(key: str, fault: Fault) -> str:
    """The runtimes whose targets have a key that this target's has not."""
    if len(fault.path) != 3 or fault.path[0] != "targets" or not isinstance(fault.parent, dict):
        return ""
    targets = schemas.resolve(schemas.properties(schemas.locate(()).schema)["targets"])
    branches = targets["items"]["discriminator"]["mapping"]
    return " or ".join(
        f"`runtime: {name}`"
        for name, reference in branches.items()
        if key in schemas.properties(schemas.resolve({"$ref": reference}))
    )


def _missing(fault: Fault) -> str:
    if isinstance(fault.path[-1], int):
        return f"needs {schemas.expected(fault.parent_schema)}, found {_count(fault.parent)}"
    example = schemas.example(fault.path[-1], fault.schema)
    text = f"missing key `{fault.path[-1]}`"
    return f"{text}, for example `{example}`" if example else text


def _wrong_type(fault: Fault) -> str:
    needs = schemas.expected(fault.schema)
    meant = _meant_value(fault)
    suggestion = f" - did you mean `{meant}`?" if meant else ""
    return f"needs {needs}, found {fault.found}{suggestion}"


def _meant_value(fault: Fault) -> str:
    """How a value of the wrong type would be written right, where that is plain to see."""
    options = [schemas.resolve(option) for option in fault.schema.get("anyOf", ())]
    meant = (_meant_by(fault, schema) for schema in options or [fault.schema])
    return next((shorten(schemas.flow_text(each)) for each in meant if each is not None), "")


def _meant_by(fault: Fault, schema: Schema) -> JSON:
    value: JSON = fault.value
    match schema.get("type"), value:
        case "boolean", str() if value.lower() in _BOOLEAN_WORDS | {"true": 1, "false": 0}:
            return (_BOOLEAN_WORDS | {"true": True, "false": False})[value.lower()]
        case "integer" | "number", str() if not schemas.resolves_to_itself(value):
            return _as_number(value, whole=schema["type"] == "integer")
        case "integer", float() if value.is_integer():
            return int(value)
        case "string", bool() | int() | float() if not schemas.choices(schema):
            return fault.text
        case "array", str() | int() | float():
            return _as_list(fault, schema)
        case _:
            return None


def _as_list(fault: Fault, schema: Schema) -> JSON:
    """The list of one item that a lone value was meant for; None where no item may be like that."""
    choices = schemas.choices(_item_schema(schema))
    if not choices or fault.value in choices:
        return [fault.value]
    if fault.path[-1] == "compute_capability":
        target = _as_target(fault.text or fault.value)
        return [target] if target in choices else None
    meant = nearest(str(fault.value), [str(choice) for choice in choices])
    return [meant] if meant else None


def _item_schema(schema: Schema) -> Schema:
    """Of a list's items; of anything else itself."""
    items: Schema = schemas.resolve(schema["items"]) if "items" in schema else schema
    return items


def _as_target(value: object) -> str:
    """`8.9`, `89` and `compute_89` -> `sm89`."""
    return "sm" + "".join(each for each in str(value) if each in "0123456789")


def _as_number(text: str, *, whole: bool) -> int | float | None:
    try:
        value = resolve_plain(text)
    except ValueError:
        return None
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return None
    return value


def _not_listed(fault: Fault) -> str:
    options = [schemas.flow_text(option) for option in schemas.choices(fault.schema)]
    if not options:
        options = [each.strip(" '") for each in str(fault.context["expected_tags"]).split(",")]
    word = schemas.flow_text(fault.value) if _is_scalar(fault.value) else ""
    meant = nearest(word, options) if word and len(options) > 1 else None
    listed = ", ".join(f"`{option}`" for option in options)
    needs = listed if len(options) == 1 else f"one of {listed}"
    suggestion = f" - did you mean `{meant}`?" if meant else ""
    return f"needs {needs}, found {fault.found}{suggestion}"


def _compute_capability(fault: Fault) -> str:
    targets = schemas.choices(fault.schema)
    listed = ", ".join(str(target) for target in targets)
    meant = _as_target(fault.text or fault.value)
    if meant in targets:
        return f"needs a compute capability such as `sm89`, found {fault.found} - did you mean `{meant}`?"
    if gpu := NO_RTX_TARGET.get(meant):
        return f"TensorRT-RTX does not target `{meant}` ({gpu}); it targets {listed}"
    return f"TensorRT-RTX does not target {fault.found}; it targets {listed}"


def _limit(words: str, name: str) -> Callable[[Fault], str]:
    def say(fault: Fault) -> str:
        limit = fault.context[name]
        shown = f"{limit:g}" if isinstance(limit, float) else str(limit)
        return f"needs {words} {shown}, found {fault.found}"

    return say


def _length(words: str, name: str) -> Callable[[Fault], str]:
    def say(fault: Fault) -> str:
        if fault.schema.get("maxItems", -1) == fault.schema.get("minItems"):
            needs = schemas.expected(fault.schema)
        else:
            limit = fault.context[name]
            needs = f"{words} {limit} {'item' if limit == 1 else 'items'}"
        return f"needs {needs}, found {_count(fault.value)}"

    return say


def _text_length(words: str, name: str) -> Callable[[Fault], str]:
    def say(fault: Fault) -> str:
        return f"needs {words} {fault.context[name]} characters, found {len(fault.value)}"

    return say


def _pattern(fault: Fault) -> str:
    pattern = str(fault.context["pattern"])
    meaning = PATTERN_WORDS.get(pattern, f"it must match `{pattern}`")
    if fault.is_key:
        return f"the key cannot be used: {meaning}"
    slug = fault.value.lower().replace(" ", "-").replace("/", "-")
    is_name = pattern == NAME_PATTERN and re.fullmatch(NAME_PATTERN.strip("^$"), slug)
    suggestion = f" - did you mean `{slug}`?" if is_name else ""
    return f"{fault.found} cannot be used: {meaning}{suggestion}"


def _validator(fault: Fault) -> str:
    return str(fault.context["error"])


def _is_scalar(value: JSON) -> bool:
    return value is not None and not isinstance(value, dict | list)


def _count(value: JSON) -> str:
    return str(len(value)) if isinstance(value, dict | list) and value else "none"


WORDING: Mapping[str, Callable[[Fault], str]] = {
    "extra_forbidden": _unknown_key,
    "missing": _missing,
    **dict.fromkeys(
        (
            "bool_type",
            "dict_type",
            "finite_number",
            "float_type",
            "int_from_float",
            "int_type",
            "list_type",
            "model_attributes_type",
            "model_type",
            "none_required",
            "string_type",
            "tuple_type",
            "union",
        ),
        _wrong_type,
    ),
    **dict.fromkeys(("enum", "literal_error", "union_tag_invalid"), _not_listed),
    "greater_than": _limit("more than", "gt"),
    "greater_than_equal": _limit("at least", "ge"),
    "less_than": _limit("less than", "lt"),
    "less_than_equal": _limit("at most", "le"),
    "multiple_of": _limit("a multiple of", "multiple_of"),
    "too_short": _length("at least", "min_length"),
    "too_long": _length("at most", "max_length"),
    "string_too_short": _text_length("at least", "min_length"),
    "string_too_long": _text_length("at most", "max_length"),
    "string_pattern_mismatch": _pattern,
    "value_error": _validator,
    "assertion_error": _validator,
}
"""Pydantic's error type (and `union`) -> how to say it."""
