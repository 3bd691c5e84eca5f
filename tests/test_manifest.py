from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import directory_files as module
from pipeline.errors import ArtifactError
from pipeline.hashing import tagged_digest
from pipeline.manifest import (
    MANIFEST_TAG,
    Manifest,
    ManifestEntry,
    check_directory,
    check_name,
    check_paths,
    scan_directory,
)

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


def entry(path: str, content: bytes = b"") -> ManifestEntry:
    sha256 = hashlib.sha256(content).hexdigest()
    return ManifestEntry(path=path, size_bytes=len(content), sha256=sha256)


def write_model(directory: Path) -> None:
    (directory / "onnx").mkdir()
    (directory / "onnx" / "model.onnx").write_bytes(b"graph")
    (directory / "onnx" / "model.onnx_data").write_bytes(bytes(5 << 20))  # enough for threads
    (directory / "config.json").write_bytes(b"{}")


def test_a_scan_lists_every_file_with_size_and_digest_sorted_by_path(tmp_path: Path) -> None:
    write_model(tmp_path)
    manifest = scan_directory(tmp_path)
    assert manifest.entries == (
        entry("config.json", b"{}"),
        entry("onnx/model.onnx", b"graph"),
        entry("onnx/model.onnx_data", bytes(5 << 20)),
    )
    assert manifest.size_bytes == 2 + 5 + (5 << 20)


def test_the_digest_is_that_of_the_tagged_canonical_entries(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    fields = [{"path": "a", "size_bytes": 0, "sha256": EMPTY_SHA256}]
    manifest = scan_directory(tmp_path)
    assert manifest.digest == tagged_digest("convert/manifest/1", fields)
    assert MANIFEST_TAG == "convert/manifest/1"


def test_the_digest_does_not_depend_on_the_order_of_creation_nor_on_time_or_mode(
    tmp_path: Path,
) -> None:
    digests = set()
    for number, names in enumerate((["a", "b"], ["b", "a"])):
        directory = tmp_path / str(number)
        directory.mkdir()
        for name in names:
            (directory / name).write_text(name)
        os.utime(directory / "a", (number, number))
        (directory / "b").chmod(0o400 + number)
        digests.add(scan_directory(directory).digest)
    assert len(digests) == 1


def test_a_manifest_is_read_back_from_its_own_text(tmp_path: Path) -> None:
    write_model(tmp_path)
    manifest = scan_directory(tmp_path)
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert Manifest.from_json(Manifest(entries=()).to_json()) == Manifest(entries=())


def test_version_1_of_the_format_stays_readable() -> None:
    text = (
        '{"files":[{"path":"model.onnx","sha256":"'
        + EMPTY_SHA256
        + '","size_bytes":0}],"manifest":1}\n'
    )
    manifest = Manifest.from_json(text)
    assert manifest.entries == (entry("model.onnx"),)
    assert manifest.digest == "244e4b03d9f9e494832abe5728e1e4d5eac8216e1afb117327f204663502a27a"


@pytest.mark.parametrize("bit", range(8))
def test_no_flipped_bit_in_the_text_is_read_as_the_same_manifest(bit: int, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"graph")
    manifest = scan_directory(tmp_path)
    text = manifest.to_json().encode()
    for position in range(len(text)):
        flipped = bytearray(text)
        flipped[position] ^= 1 << bit
        try:
            other = Manifest.from_json(flipped.decode())
        except (ArtifactError, UnicodeDecodeError):
            continue
        assert other.digest != manifest.digest


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "Expecting value"),
        ("[]", "expected an object"),
        ('{"manifest":2,"files":[]}', "format 2 is not known"),
        ('{"manifest":1,"files":{}}', "not a list"),
        ('{"manifest":1,"files":[1]}', "1 is not"),
        ('{"manifest": 1, "files": []}', "not canonical"),
        ('{"files":[],"files":[],"manifest":1}', "not canonical"),
        ("[" * 100_000, "recursion"),
        ('{"files":[{"path":1,"sha256":"","size_bytes":0}],"manifest":1}', "1 is not text"),
        ('{"files":[{"path":"a","sha256":"x","size_bytes":0}],"manifest":1}', "not a SHA-256"),
        ('{"files":[{"path":"a","sha256":"x","size_bytes":true}],"manifest":1}', "True of 'a'"),
        ('{"files":[{"path":"../a","sha256":"x","size_bytes":0}],"manifest":1}', "SHA-256"),
    ],
)
def test_text_that_is_not_a_manifest_is_refused_with_the_reason(text: str, problem: str) -> None:
    with pytest.raises(ArtifactError, match=problem):
        Manifest.from_json(text)


@pytest.mark.parametrize(
    ("paths", "problem"),
    [
        (["b", "a"], "not sorted"),
        (["a", "a"], "twice"),
        (["Model.onnx", "model.onnx"], "upper and lower case"),
        (["A/x", "a/y"], "'A' and 'a' differ only in upper and lower case"),
        (["a", "a/b"], "lies inside another file"),
        (["../a"], "not a file name"),
        (["/etc/passwd"], "not a file name"),
    ],
)
def test_entries_that_cannot_lie_beside_one_another_are_refused(
    paths: list[str], problem: str
) -> None:
    with pytest.raises(ArtifactError, match=problem):
        Manifest(entries=tuple(entry(path) for path in paths))


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "a\\b",
        "C:",
        "a\0b",
        "a\nb",
        "\x7f",
        "a?",
        'a"',
        "con",
        "NUL.txt",
        "com1",
        "LPT¹.onnx",
        "aux .json",
        "CONOUT$",
        "end.",
        "end ",
        "\ud800",
        "e\u0301",
        "x" * 256,
        "é" * 128,
    ],
)
def test_names_that_another_system_reads_differently_are_refused(name: str) -> None:
    assert check_name(name)


@pytest.mark.parametrize(
    "name", ["model.onnx", ".gitattributes", "a b", "é", "模型", "console", "com", "x" * 255, "-"]
)
def test_names_that_mean_the_same_everywhere_are_accepted(name: str) -> None:
    assert check_name(name) == ""
    assert check_paths([f"{name}/{name}"]) == ()


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text("abcdeé.-_ ", min_size=1, max_size=8).filter(lambda name: not check_name(name)),
        st.binary(max_size=20),
        max_size=6,
    )
)
def test_any_files_make_a_manifest_that_reads_back(files: dict[str, bytes]) -> None:
    manifest = Manifest(entries=tuple(entry(path, files[path]) for path in sorted(files)))
    assert Manifest.from_json(manifest.to_json()) == manifest


def make_symbolic_link(path: Path) -> None:
    (path / "link").symlink_to(path / "config.json")


def make_hard_link(path: Path) -> None:
    (path / "second").hardlink_to(path / "config.json")


def make_pipe(path: Path) -> None:
    os.mkfifo(path / "pipe")


def make_empty_directory(path: Path) -> None:
    (path / "cache" / "inner").mkdir(parents=True)


def make_bad_name(path: Path) -> None:
    (path / "aux.json").touch()


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (make_symbolic_link, "'link' is a symbolic link"),
        (make_hard_link, "2 hard links"),
        (make_pipe, "'pipe' is a pipe"),
        (make_empty_directory, "'cache/inner/' is an empty directory"),
        (make_bad_name, "is a device on Windows"),
    ],
)
def test_a_scan_refuses_what_a_manifest_cannot_hold(make, problem: str, tmp_path: Path) -> None:
    write_model(tmp_path)
    make(tmp_path)
    with pytest.raises(ArtifactError, match=problem) as caught:
        scan_directory(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_scan_refuses_a_link_to_a_directory_and_a_place_where_nothing_is(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(ArtifactError, match="symbolic link, not a directory"):
        scan_directory(tmp_path / "link")
    with pytest.raises(ArtifactError, match="ENOENT"):
        scan_directory(tmp_path / "nothing")


def test_a_file_that_grows_while_it_is_hashed_is_refused(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x")
    real = hashlib.file_digest

    def slow(file: object, name: str) -> object:
        digest = real(file, name)
        with path.open("ab") as late:  # as a child that outlived its stage would
            late.write(b"y")
        return digest

    monkeypatch.setattr(hashlib, "file_digest", slow)
    with pytest.raises(ArtifactError, match="changed while it was read"):
        scan_directory(tmp_path)


def test_large_files_are_hashed_in_threads(tmp_path: Path, monkeypatch) -> None:
    write_model(tmp_path)
    threads = set()
    real = module._hash_file

    def note(*arguments: object) -> object:
        threads.add(threading.current_thread().name.split("_")[0])
        return real(*arguments)

    monkeypatch.setattr(module, "_hash_file", note)
    scan_directory(tmp_path)
    assert threads == {"hash"}


def test_an_unchanged_directory_has_no_problems(tmp_path: Path) -> None:
    write_model(tmp_path)
    assert check_directory(tmp_path, scan_directory(tmp_path)) == ()


def test_a_check_names_every_difference_both_ways(tmp_path: Path) -> None:
    write_model(tmp_path)
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).write_bytes(b"12")
    manifest = scan_directory(tmp_path)
    twelve, thirteen = hashlib.sha256(b"12").hexdigest(), hashlib.sha256(b"13").hexdigest()
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "b").write_bytes(b"13")
    (tmp_path / "c").unlink()
    (tmp_path / "d").unlink()
    (tmp_path / "d").symlink_to("b")
    (tmp_path / "extra").touch()
    (tmp_path / "second").hardlink_to(tmp_path / "config.json")
    assert check_directory(tmp_path, manifest) == (
        "'a' has 3 bytes, not 2",
        f"'b' has SHA-256 {thirteen}, not {twelve}",
        "'c' is missing",
        "'config.json' has 2 hard links, so it can change behind our back",
        "'d' is a symbolic link, not a regular file",
        "'extra' is not in the manifest",
        "'second' has 2 hard links, so it can change behind our back",
    )


def test_ignored_files_may_be_there_or_not_and_hold_anything(tmp_path: Path) -> None:
    write_model(tmp_path)
    manifest = scan_directory(tmp_path)
    (tmp_path / "MANIFEST.json").write_text(manifest.to_json())
    assert check_directory(tmp_path, manifest) == ("'MANIFEST.json' is not in the manifest",)
    assert check_directory(tmp_path, manifest, ignore=frozenset({"MANIFEST.json"})) == ()


def test_a_directory_that_is_gone_or_is_a_file_is_a_problem_not_a_crash(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    manifest = Manifest(entries=(entry("a"),))
    assert check_directory(tmp_path / "gone", manifest) == (
        "cannot be read: No such file or directory (ENOENT)",
    )
    assert "it is a file, not a directory" in check_directory(tmp_path / "file", manifest)


def test_too_many_open_files_is_an_error_and_not_damage(tmp_path: Path, monkeypatch) -> None:
    write_model(tmp_path)
    manifest = scan_directory(tmp_path)

    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ArtifactError, match="EMFILE"):
        check_directory(tmp_path, manifest)


def test_the_text_is_json_that_other_programs_read(tmp_path: Path) -> None:
    (tmp_path / "é").write_bytes(b"x")
    document = json.loads(scan_directory(tmp_path).to_json())
    assert document["files"][0]["path"] == "é"
    assert document["files"][0]["size_bytes"] == 1
