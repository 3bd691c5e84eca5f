"""Checks of a checkpoint's files before any library opens them.

A `config.json` can make transformers fetch and run code: a kernel named in `attn_implementation`
(even against an explicit argument, transformers 5.23), code of another repository in `auto_map`, a
nested `trust_remote_code`. Nothing of that kind is let through; no failure ever lowers this bar.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pipeline.errors import ArtifactError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

MAX_DEPTH = 20
# CVE-2026-4372 and what its fix left open: a `/` in these names a repository with kernels.
ATTENTION_KEYS = frozenset(
    {
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_internal",
        "_attn_implementation_autoset",
    }
)
# CVE-2026-5241 and relatives: keys that only serve to have foreign code run.
FORBIDDEN_KEYS = frozenset(
    {"trust_remote_code", "custom_pipelines", "model_file", "kernel_config"}
)
MAX_HEADER_BYTES = 100_000_000
"""Largest header the safetensors format allows."""
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def check_config(config: Mapping[str, Any], *, where: str) -> Mapping[str, Any]:
    """Refuse a `config.json` that asks for code from elsewhere, or that is not a model's.

    Raises:
        RecipeError: naming every key that is refused and why.
    """
    problems = [
        problem
        for path, key, value in _walk(config, "", 0, where)
        if (problem := _problem_of(path, key, value))
    ]
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        problems.append("`model_type` is missing: transformers cannot know the architecture")
    is_quantised = config.get("quantization_config") is not None
    if is_quantised:
        problems.append(f"the checkpoint is quantised already{_method_of(config)}")
    if problems:
        raise RecipeError(
            "config.json is refused: " + "; ".join(problems),
            where=where,
            hint="give the checkpoint that it was made from, in floats: a recipe says itself what is "
            "quantised, and how"
            if is_quantised
            else "remove these keys from a copy of the checkpoint if you know it works without",
        )
    return config


def _method_of(config: Mapping[str, Any]) -> str:
    said = config["quantization_config"]
    method = said.get("quant_method") if isinstance(said, dict) else None
    return f" (`quantization_config`, method `{method}`)" if method else " (`quantization_config`)"


def _walk(
    value: Mapping[str, Any], path: str, depth: int, where: str
) -> Iterator[tuple[str, str, Any]]:
    if depth > MAX_DEPTH:
        raise RecipeError(f"config.json is nested deeper than {MAX_DEPTH} levels", where=where)
    for key, item in value.items():
        here = f"{path}.{key}" if path else str(key)
        yield here, str(key), item
        for nested in item if isinstance(item, list) else [item]:
            if isinstance(nested, dict):
                yield from _walk(nested, here, depth + 1, where)


def _problem_of(path: str, key: str, value: object) -> str:
    if key in FORBIDDEN_KEYS:
        return f"`{path}` lets the checkpoint choose code to run"
    if key in ATTENTION_KEYS:
        values = value.values() if isinstance(value, dict) else [value]
        if any(isinstance(item, str) and "/" in item for item in values):
            return f"`{path}: {value}` names a kernel from a hub"
    if key == "auto_map" and isinstance(value, dict):
        for item in value.values():
            names = item if isinstance(item, list) else [item]
            if any(isinstance(name, str) and "--" in name for name in names):
                return f"`{path}` names code of another repository: {item}"
    return ""


def check_is_content(path: Path) -> None:
    """Check that a file is not what git leaves in its place where its large files were not fetched.

    The format is laid out in https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md.

    Raises:
        ArtifactError: it is a pointer of Git LFS.
    """
    with path.open("rb") as file:
        if not file.read(len(_LFS_POINTER)).startswith(_LFS_POINTER):
            return
    raise ArtifactError(
        "this is a pointer of Git LFS and not the file itself",
        where=str(path),
        hint="fetch it with `git lfs pull` where it was cloned",
    )


def check_safetensors(path: Path) -> None:
    """Check that a safetensors file is whole: header sound, tensors inside the file, no hole.

    Reads the header only. The format is laid out in
    https://github.com/huggingface/safetensors#format.

    Raises:
        ArtifactError: truncated, or not a safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or not 2 <= length <= MAX_HEADER_BYTES:
            raise ArtifactError("this is not a safetensors file", where=str(path))
        header_bytes = file.read(length)
    if len(header_bytes) < length:
        raise ArtifactError("the file is truncated inside its header", where=str(path))
    try:
        header = json.loads(header_bytes)
        ends = [
            int(entry["data_offsets"][1])
            for name, entry in header.items()
            if name != "__metadata__"
        ]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ArtifactError("the safetensors header is damaged", where=str(path)) from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        state = "truncated" if size < expected else "longer than its header says"
        raise ArtifactError(
            f"the file is {state}: {size:,} bytes instead of {expected:,}",
            where=str(path),
            hint="fetch the checkpoint again",
        )
