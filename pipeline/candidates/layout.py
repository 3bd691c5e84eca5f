"""Which file of a folder is the model, and where its tokenizer lies: the layouts that tools write.

* Optimum: `model.onnx` beside `config.json` and the tokenizer; `model_optimized.onnx` and
  `model_quantized.onnx` after its later steps.
* transformers.js: `onnx/model.onnx`, `onnx/model_quantized.onnx`, `onnx/model_fp16.onnx` and others,
  with everything else one folder above. sentence-transformers keep theirs the same way.
* Olive: `model_config.json` names the file in `config.onnx_file_name`, or in `config.model_path`
  (olive/cli/base.py of microsoft/Olive, 2026); older ones have it in a folder `model`.
* Ours: a target's folder of an artifact, `model.onnx` beside everything else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pipeline.candidates.names import quoted
from pipeline.errors import ArtifactError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterator

MODEL_FOLDERS: Final = frozenset({"onnx", "model"})
"""Folders that hold models only; what belongs to them lies one above."""

OLIVE_FILE: Final = "model_config.json"
MAX_LISTED: Final = 12
MAX_SETTINGS_BYTES: Final = 1 << 20
_COMPANIONS: Final = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "preprocessor_config.json",
    "modules.json",
)
"""One of these beside the model says that its other files are there too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a candidate lies.

    Attributes:
        model: The `.onnx` file, or the engine.
        companions: The folder of its tokenizer and configuration; None when there are none.
    """

    model: Path
    companions: Path | None


def find_place(
    path: Path, file: str | None = None, *, where: str = "", said_by: str = "--file"
) -> Place:
    """The model that a path means.

    Args:
        path: An `.onnx` file, an engine, or a folder.
        file: Which of the folder's models, relative to it.
        where: What messages call the place, such as an option or a position in a recipe.
        said_by: What says which file, for messages.

    Raises:
        RecipeError: there is none, or there are several and `file` does not say which.
        ArtifactError: a link leads out of the folder.
    """
    if path.is_file():
        if file is not None:
            raise RecipeError(
                f"`{path}` is a file, and `{file}` is to be one of its files", where=where
            )
        if path.suffix not in {".onnx", ".engine"}:
            raise RecipeError(
                f"`{path}` is neither an ONNX model (.onnx) nor an engine (.engine)",
                where=where,
                hint=_hint_of_suffix(path.suffix),
            )
        return Place(model=path, companions=_companions(path))
    if not path.is_dir():
        raise RecipeError(f"there is no file or folder `{path}`", where=where)
    model = path / file if file is not None else _choose(path, where, said_by)
    if file is not None and (Path(file).is_absolute() or ".." in Path(file).parts):
        raise RecipeError(f"`{file}` leads out of `{path}`", where=where)
    if not model.is_file():
        raise RecipeError(
            f"there is no file `{file}` in `{path}`", where=where, hint=_listing(path, said_by)
        )
    require_inside(model, path)
    return Place(model=model, companions=_companions(model))


def _hint_of_suffix(suffix: str) -> str:
    if suffix in {".pt", ".pth", ".bin", ".pkl"}:
        return "a pickle runs code when it is loaded, so it never is; export it to ONNX"
    if suffix == ".ort":
        return "ONNX Runtime's own format cannot be looked into; check the .onnx it was made from"
    return ""


def _choose(folder: Path, where: str, said_by: str) -> Path:
    named = _named_by_olive(folder)
    if named is not None:
        return named
    models = list(_models(folder))
    if len(models) == 1:
        return models[0]
    if not models:
        raise RecipeError(
            f"there is no ONNX model in `{folder}`",
            where=where,
            hint="name the .onnx file, or the folder that holds it",
        )
    raise RecipeError(
        f"there are {len(models)} models in `{folder}`",
        where=where,
        hint=_listing(folder, said_by),
    )


def _models(folder: Path) -> Iterator[Path]:
    """The models of a folder and of those in it; what starts with a dot is not looked at."""
    for pattern in ("*.onnx", "*/*.onnx"):
        for path in sorted(folder.glob(pattern)):
            if path.is_file() and not any(
                p.startswith(".") for p in path.relative_to(folder).parts
            ):
                yield path


def _listing(folder: Path, said_by: str) -> str:
    names = [path.relative_to(folder).as_posix() for path in _models(folder)]
    if not names:
        return ""
    more = ", ..." if len(names) > MAX_LISTED else ""
    shown = ", ".join(quoted(name).strip("`") for name in names[:MAX_LISTED])
    return f"say which one with {said_by}: {shown}{more}"


def _named_by_olive(folder: Path) -> Path | None:
    """The file that Olive's own description names, when it is there."""
    path = folder / OLIVE_FILE
    try:
        if not path.is_file() or path.stat().st_size > MAX_SETTINGS_BYTES:
            return None
        config = json.loads(path.read_bytes()).get("config")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    if not isinstance(config, dict):
        return None
    for name in (config.get("onnx_file_name"), config.get("model_path")):
        # The path is that of the machine it was made on: only its last part says something here.
        last = Path(name).name if isinstance(name, str) else ""
        for found in (folder / last, folder / "model" / last):
            if last.endswith(".onnx") and found.is_file():
                return found
    return None


def _companions(model: Path) -> Path | None:
    folders = [model.parent]
    if model.absolute().parent.name in MODEL_FOLDERS:
        folders.append(model.absolute().parent.parent)
    for folder in folders:
        if any((folder / name).is_file() for name in _COMPANIONS):
            return folder
    return None


def require_inside(file: Path, root: Path) -> Path:
    """The file itself, links followed, which must not lead out of a folder.

    The hub's cache is made of links from `snapshots/<commit>/` to `blobs/`; these are let through.

    Raises:
        ArtifactError: it does.
    """
    real, home = file.resolve(), root.resolve()
    if real.is_relative_to(home):
        return real
    for parent in home.parents:
        if parent.name == "snapshots" and real.parent == parent.parent / "blobs":
            return real
    raise ArtifactError(
        f"{quoted(file.name)} is a link that leads out of the folder, to {real}",
        where=str(root),
        hint="put the file itself there if you trust it",
    )
