"""Negative controls: one mistake in a copy of the store, and an attack that must find it.

A suite that passes on the store means something only because it fails on these.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import pipeline

PACKAGE = Path(pipeline.__file__).parent
TESTS = Path(__file__).parent
COPIED = ("digest_memory.py", "directory_files.py", "errors.py", "hashing.py", "manifest.py")
"""What the store needs beside its own package."""


@dataclass(frozen=True)
class Mutant:
    """`old` stands exactly once in `file` and becomes `new`."""

    name: str
    attack: str
    file: str
    old: str
    new: str


MUTANTS = (
    Mutant(
        "files are not synced",
        "power_cut",
        "store/trees.py",
        "for path in written:\n            files.sync(path)",
        "for path in written:\n            pass",
    ),
    Mutant(
        "the manifest is not synced",
        "power_cut",
        "store/trees.py",
        "files.sync(output / MANIFEST_FILE)",
        "pass",
    ),
    Mutant(
        "directories of a tree are not synced",
        "power_cut",
        "store/trees.py",
        "files.sync(directory)",
        "pass",
    ),
    Mutant(
        "the name of a tree is not synced",
        "power_cut",
        "store/trees.py",
        "files.sync(self._layout.trees)",
        "pass",
    ),
    Mutant(
        "the record is not synced", "power_cut", "store/store.py", "files.sync(temporary)", "pass"
    ),
    Mutant(
        "the name of the record is not synced",
        "power_cut",
        "store/store.py",
        "files.sync(self._layout.records)",
        "pass",
    ),
    Mutant(
        "VERSION is not synced", "power_cut", "store/layout.py", "files.sync(temporary)", "pass"
    ),
    Mutant(
        "the record comes before its tree",
        "kill",
        "store/store.py",
        "self._trees.publish(output, manifest)\n            return self._publish_record(record, output.parent)",
        "filed = self._publish_record(record, output.parent)\n            self._trees.publish(output, manifest)\n            return filed",
    ),
    Mutant(
        "the record is written in place",
        "kill",
        "store/store.py",
        "temporary = private / RECORD_FILE",
        "temporary = target",
    ),
    Mutant(
        "the manifest is written after the rename",
        "kill",
        "store/trees.py",
        "self._rename(output, manifest.digest)",
        "(output / MANIFEST_FILE).rename(output.parent / 'm'); self._rename(output, manifest.digest);"
        " files.replace(output.parent / 'm', self._layout.tree(manifest.digest) / MANIFEST_FILE)",
    ),
    Mutant(
        "any failed rename means that someone was first",
        "fail",
        "store/trees.py",
        "                if err.errno not in TAKEN:\n                    raise\n",
        "                if err.errno not in TAKEN:\n                    return\n",
    ),
    Mutant(
        "whoever was first is believed",
        "kill",
        "store/trees.py",
        "if self.open(digest) is not None:",
        "if target.exists():",
    ),
    Mutant(
        "a failure leaves its file behind",
        "fail",
        "store/layout.py",
        "temporary.unlink(missing_ok=True)",
        "pass",
    ),
    Mutant(
        "trees are not hashed when opened",
        "damage",
        "store/trees.py",
        "or not self.problems(digest)",
        "or True",
    ),
    Mutant(
        "what was verified once is never looked at again",
        "damage",
        "store/trees.py",
        "self._verified.get(digest) == stamp",
        "digest in self._verified",
    ),
    Mutant(
        "a manifest may belong to another tree",
        "damage",
        "store/trees.py",
        "if manifest.digest != digest:",
        "if False:",
    ),
    Mutant(
        "a tree may hold more than its manifest",
        "damage",
        "manifest.py",
        'problems.append(f"{name!r} is not in the manifest")',
        "pass",
    ),
    Mutant(
        "a file may have other names",
        "damage",
        "directory_files.py",
        "if status.st_nlink != 1:",
        "if False:",
    ),
    Mutant(
        "damage is not set aside",
        "damage",
        "store/trees.py",
        "if path.lstat().st_ino == inode:",
        "if False:",
    ),
    Mutant(
        "the checksum of a record is not compared",
        "damage",
        "store/records.py",
        "if not is_canonical:",
        "if False:",
    ),
    Mutant(
        "a record may be filed under another key",
        "damage",
        "store/records.py",
        "if record.key != key:",
        "key = record.key\n    if False:",
    ),
    Mutant(
        "workspaces share a name",
        "race",
        "store/workspace.py",
        "return os.urandom(16).hex()",
        "return '0' * 32",
    ),
    Mutant(
        "a free lock means that the maker is gone",
        "race",
        "store/workspace.py",
        "if _is_locked_by_other(lease) or not _is_abandoned(path):",
        "if _is_locked_by_other(lease):",
    ),
    Mutant(
        "the last record wins",
        "race",
        "store/store.py",
        "files.rename_new(temporary, target)",
        "files.replace(temporary, target)",
    ),
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_an_attack_finds_the_mistake(mutant: Mutant, fast_path: Path) -> None:
    found = _first_violation(mutant.attack, fast_path, mutant)
    assert found, f"`{mutant.attack}` does not notice that {mutant.name}"


def test_an_unchanged_copy_passes(fast_path: Path) -> None:
    assert not _first_violation("fail", fast_path)


def _first_violation(attack: str, directory: Path, mutant: Mutant | None = None) -> str:
    """Run an attack as a program against a copy of the package."""
    copy = directory / "copy"
    (copy / "pipeline").mkdir(parents=True)
    (copy / "pipeline" / "__init__.py").touch()  # the real one imports more than the store needs
    for name in COPIED:
        shutil.copy(PACKAGE / name, copy / "pipeline")
    shutil.copytree(PACKAGE / "store", copy / "pipeline" / "store")
    shutil.copytree(TESTS, copy / "tests" / "store")
    (copy / "tests" / "__init__.py").touch()
    if mutant is not None:
        path = copy / "pipeline" / mutant.file
        assert path.read_text().count(mutant.old) == 1, f"{mutant.name}: no longer fits the source"
        path.write_text(path.read_text().replace(mutant.old, mutant.new))
    work = directory / "work"
    work.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.store.attacks", attack, str(work)],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert f"under attack: {copy}/" in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
    return done.stdout
