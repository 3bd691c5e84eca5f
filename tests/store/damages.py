"""Ways in which a stored result goes bad after it was published."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.store import MANIFEST_FILE

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

    from pipeline.store import StageRecord

    Damage = Callable[[Path], object]


def iter_damages(
    record: StageRecord, other: StageRecord, rng: random.Random, flips: int
) -> Iterator[tuple[str, Damage]]:
    """Name and deed; each deed is given the `v1` directory of a fresh copy of the store."""
    tree, filed = f"trees/{record.tree}", f"ac/{record.key}.json"
    names = (filed, f"{tree}/{MANIFEST_FILE}", f"{tree}/model.onnx", f"{tree}/model.onnx_data")
    yield from _iter_structural(tree, f"trees/{other.tree}")
    yield "record of another key", lambda b: shutil.copy(b / f"ac/{other.key}.json", b / filed)
    yield "record is a link", lambda base: _replace_by_link(base / filed)
    for name in names:
        yield f"0 bytes of {name}", partial(_cut, name, 0)
        yield f"no last byte of {name}", partial(_cut, name, -1)
        yield f"longer {name}", partial(_lengthen, name)
        yield f"flip with the old time stamp in {name}", partial(_flip_unseen, rng, name)
    for _ in range(flips):
        name = rng.choice(names)
        yield f"flip in {name}", partial(_flip, rng, name)


def _iter_structural(tree: str, other_tree: str) -> Iterator[tuple[str, Damage]]:
    model, weights = f"{tree}/model.onnx", f"{tree}/model.onnx_data"
    yield "extra file", lambda base: (base / tree / "model-inferred.onnx").write_bytes(b"x")
    yield "extra directory", lambda base: (base / tree / "cache").mkdir()
    yield "missing file", lambda base: (base / weights).unlink()
    yield "missing empty file", lambda base: (base / tree / "tokenizer/vocab.txt").unlink()
    yield "missing manifest", lambda base: (base / tree / MANIFEST_FILE).unlink()
    yield "hard link", lambda base: (base / "elsewhere").hardlink_to(base / model)
    yield "symbolic link", lambda base: _replace_by_link(base / model)
    yield (
        "linked manifest",
        lambda base: (base / "elsewhere").hardlink_to(base / tree / MANIFEST_FILE),
    )
    yield "linked tree", lambda base: _replace_by_link(base / tree)
    yield "tree is a file", lambda base: (shutil.rmtree(base / tree), (base / tree).touch())
    yield "content of another tree", lambda base: _replace_tree(base / tree, base / other_tree)
    yield "swapped files", lambda base: _swap(base / model, base / weights)
    yield "pipe", lambda base: ((base / model).unlink(), os.mkfifo(base / model))
    yield "directory", lambda base: ((base / model).unlink(), (base / model).mkdir())


def _flip(rng: random.Random, name: str, base: Path) -> None:
    content = bytearray((base / name).read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    _overwrite(base / name, bytes(content))


def _flip_unseen(rng: random.Random, name: str, base: Path) -> None:
    """Same length, same modification time: only the bytes differ."""
    status = (base / name).stat()
    _flip(rng, name, base)
    os.utime(base / name, ns=(status.st_atime_ns, status.st_mtime_ns))


def _cut(name: str, end: int, base: Path) -> None:
    _overwrite(base / name, (base / name).read_bytes()[:end])


def _lengthen(name: str, base: Path) -> None:
    _overwrite(base / name, (base / name).read_bytes() + b"\n")


def _overwrite(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


def _replace_by_link(path: Path) -> None:
    elsewhere = next(p for p in path.parents if p.name == "v1") / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def _replace_tree(tree: Path, other: Path) -> None:
    shutil.rmtree(tree)
    shutil.copytree(other, tree)


def _swap(first: Path, second: Path) -> None:
    between = first.with_name("between")
    first.rename(between)
    second.rename(first)
    between.rename(second)
