"""Checkpoints on a hub: real HTTP to a small hub on this machine, and everything that goes wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from pipeline.digest_memory import DigestMemory
from pipeline.errors import ArtifactError, DigestMismatch, EnvironmentMissing, RecipeError
from pipeline.source import Source, fetch_source, resolve_source
from pipeline.source.hub_cache import HubCache
from tests.fake_hub import REPOSITORY, FakeHub

CONFIG = {"model_type": "bert", "architectures": ["BertModel"], "max_position_embeddings": 64}
WEIGHTS = "model.safetensors"


def _weights(seed: int) -> bytes:
    values = np.random.default_rng(seed).standard_normal((64, 64)).astype(np.float32)
    return bytes(save({"weight": values}))


def _files(**changes: bytes) -> dict[str, bytes]:
    return {
        "config.json": json.dumps(CONFIG).encode(),
        "tokenizer.json": b"{}",
        "1_Pooling/config.json": b'{"pooling_mode": ["mean"]}',
        WEIGHTS: _weights(0),
        "pytorch_model.bin": b"\x80\x04.",
        "modeling_evil.py": b"raise SystemExit",
        "README.md": b"# Tiny",
    } | changes


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with one repository, and an empty cache; the library is told as the environment would."""
    from huggingface_hub import constants

    with FakeHub() as fake:
        fake.push(_files())
        monkeypatch.setattr(constants, "ENDPOINT", fake.endpoint)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            fake.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield fake


def _resolve(tmp_path: Path, spec: str = REPOSITORY, revision: str | None = None) -> Source:
    return resolve_source(
        spec,
        recipe_directory=tmp_path,
        memory=DigestMemory(tmp_path / "memory"),
        revision=revision,
        where="recipe.yaml:3:3: model.source",
        where_revision="recipe.yaml:4:3: model.revision",
    )


def _fetch(tmp_path: Path, source: Source) -> Source:
    return fetch_source(source, DigestMemory(tmp_path / "memory"))


def _go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def _take_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the library ask where nobody listens."""
    from huggingface_hub import constants

    from pipeline.source import hub_client

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(hub_client, "PAUSES_S", (0.01,))


def _cached_files(tmp_path: Path) -> set[str]:
    cache = HubCache(tmp_path / "cache" / "models--org--tiny")
    return {path.name for path in (cache.folder / "blobs").glob("*")}


# --- the good case --------------------------------------------------------------------------


def test_a_branch_becomes_a_commit_and_weights_wait(tmp_path: Path, hub: FakeHub) -> None:
    source = _resolve(tmp_path)
    assert source.revision == hub.branches["main"]
    assert source.root.name == source.revision
    assert source.absent == (WEIGHTS,)
    assert source.notes == ()
    assert hub.fetched == {"config.json", "tokenizer.json", "1_Pooling/config.json"}
    with pytest.raises(ValueError, match="must be fetched first"):
        source.materialise("checkpoint", tmp_path / "view")


def test_fetched_files_are_those_of_the_hub_and_change_no_key(
    tmp_path: Path, hub: FakeHub
) -> None:
    planned = _resolve(tmp_path)
    source = _fetch(tmp_path, planned)
    assert source.absent == ()
    assert source.group_digest("checkpoint") == planned.group_digest("checkpoint")
    files = hub.commits[source.revision]
    view = tmp_path / "view"
    view.mkdir()
    source.materialise("checkpoint", view)
    for name, file in source.files.items():
        assert (view / name).read_bytes() == files[name]
        assert not file.path.is_symlink()  # the memory of digests knows the file, not a link
    source.require_unchanged()
    assert set(source.files) == {
        "config.json", "tokenizer.json", "1_Pooling/config.json", WEIGHTS
    }  # fmt: skip
    assert not hub.fetched & {"pytorch_model.bin", "modeling_evil.py", "README.md"}


def test_sharded_weights_are_those_that_the_index_names(tmp_path: Path, hub: FakeHub) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    files = _files() | {
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-1.safetensors": _weights(1),
        "model-2.safetensors": _weights(2),
        "model-3.safetensors": _weights(3),
    }
    hub.push(files)
    source = _fetch(tmp_path, _resolve(tmp_path))
    assert {name for name in source.files if name.endswith(".safetensors")} == {
        "model-1.safetensors",
        "model-2.safetensors",
    }
    assert "model-3.safetensors" not in hub.fetched


@pytest.mark.parametrize("spec", [f"hub:{REPOSITORY}", REPOSITORY])
def test_a_tag_and_a_commit_are_revisions_too(tmp_path: Path, hub: FakeHub, spec: str) -> None:
    old = hub.push(_files(), "v1.0")
    hub.push(_files(**{WEIGHTS: _weights(7)}))
    assert _resolve(tmp_path, spec, "v1.0").revision == old
    assert _resolve(tmp_path, spec, old).revision == old
    assert _resolve(tmp_path, spec).revision != old


def test_a_cached_commit_needs_no_network(tmp_path: Path, hub: FakeHub) -> None:
    commit = hub.branches["main"]
    _fetch(tmp_path, _resolve(tmp_path, revision=commit))
    hub.requests.clear()
    source = _fetch(tmp_path, _resolve(tmp_path, revision=commit))
    assert source.absent == ()
    assert hub.requests == []


def test_the_token_goes_to_the_hub_and_not_to_where_it_redirects(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    _fetch(tmp_path, _resolve(tmp_path))
    assert set(hub.tokens["hub"]) == {"Bearer hf_secret"}
    assert hub.tokens["storage"] == []


def test_what_is_fetched_is_said(tmp_path: Path, hub: FakeHub) -> None:
    lines: list[str] = []
    source = resolve_source(
        REPOSITORY,
        recipe_directory=tmp_path,
        memory=DigestMemory(tmp_path / "memory"),
        note=lines.append,
    )
    _fetch(tmp_path, source)
    assert lines[0].startswith("fetching 3 files, 0.0 MB, of org/tiny at")
    assert lines[1].startswith("fetching 1 file, ")
    assert hub.endpoint in lines[1]


# --- a branch that moves --------------------------------------------------------------------


def test_a_moved_branch_changes_the_keys_of_what_changed(tmp_path: Path, hub: FakeHub) -> None:
    before = _fetch(tmp_path, _resolve(tmp_path))
    hub.push(_files(**{WEIGHTS: _weights(7)}))
    after = _fetch(tmp_path, _resolve(tmp_path))
    assert after.revision != before.revision
    assert after.group_digest("tokenizer") == before.group_digest("tokenizer")
    assert after.group_digest("checkpoint") != before.group_digest("checkpoint")
    before.require_unchanged()  # the old commit stays in the cache


# --- offline --------------------------------------------------------------------------------


def test_offline_a_branch_is_what_the_cache_knows_and_that_is_said(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = _fetch(tmp_path, _resolve(tmp_path))
    hub.push(_files(**{WEIGHTS: _weights(7)}))
    hub.requests.clear()
    _go_offline(monkeypatch)
    source = _fetch(tmp_path, _resolve(tmp_path))
    assert source.revision == online.revision
    assert len(source.notes) == 1
    assert "`main` of org/tiny was not looked up" in source.notes[0]
    assert online.revision in source.notes[0]
    assert hub.requests == []


def test_offline_a_commit_needs_no_note(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.branches["main"]
    _fetch(tmp_path, _resolve(tmp_path, revision=commit))
    _go_offline(monkeypatch)
    assert _resolve(tmp_path, revision=commit).notes == ()


@pytest.mark.parametrize("revision", [None, "0" * 40])
def test_offline_with_nothing_cached_is_a_matter_of_the_environment(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    _go_offline(monkeypatch)
    with pytest.raises(EnvironmentMissing, match="HF_HUB_OFFLINE is set, and the cache") as caught:
        _resolve(tmp_path, revision=revision)
    assert "hf download org/tiny" in caught.value.hint
    assert caught.value.where.startswith("recipe.yaml:3")
    assert hub.requests == []


def test_offline_with_half_a_commit_names_what_is_missing(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = _resolve(tmp_path)
    _go_offline(monkeypatch)
    offline = _resolve(tmp_path)
    assert offline.group_digest("checkpoint") == planned.group_digest("checkpoint")
    with pytest.raises(EnvironmentMissing, match=f"{WEIGHTS} of org/tiny at .* must be fetched"):
        _fetch(tmp_path, offline)


def test_offline_a_cache_of_the_hubs_own_tool_will_do(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fetch(tmp_path, _resolve(tmp_path))
    folder = tmp_path / "cache" / "models--org--tiny"
    (folder / "convert").rename(folder / "trees")  # where `hf download` keeps the same list
    _go_offline(monkeypatch)
    assert _resolve(tmp_path).absent == ()


def test_a_damaged_list_of_files_is_asked_for_again(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = _resolve(tmp_path).revision
    path = tmp_path / "cache" / "models--org--tiny" / "convert" / f"{commit}.json"
    for content in (
        "",
        "[]",
        "{",
        '{"format_version": 9}',
        '{"format_version": 1, "files": {"a": 1}}',
    ):
        path.write_text(content)
        hub.requests.clear()
        assert _resolve(tmp_path, revision=commit).absent == (WEIGHTS,)
        assert any("/api/models/" in request for request in hub.requests)
    path.write_text("")
    _go_offline(monkeypatch)
    with pytest.raises(EnvironmentMissing, match="does not have the list of files"):
        _resolve(tmp_path, revision=commit)


# --- the hub is down ------------------------------------------------------------------------


def test_a_hub_that_is_down_is_a_matter_of_the_environment(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    _take_down(monkeypatch)
    with pytest.raises(EnvironmentMissing, match="cannot be reached") as caught:
        _resolve(tmp_path)
    assert "HF_ENDPOINT" in caught.value.hint


def test_a_hub_that_is_down_does_not_matter_for_a_cached_commit(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.branches["main"]
    _fetch(tmp_path, _resolve(tmp_path, revision=commit))
    _take_down(monkeypatch)
    assert _resolve(tmp_path, revision=commit).absent == ()


def test_a_hub_that_is_down_is_never_silently_replaced_by_the_cache(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = _fetch(tmp_path, _resolve(tmp_path)).revision
    _take_down(monkeypatch)
    with pytest.raises(EnvironmentMissing, match="cannot be reached") as caught:
        _resolve(tmp_path)
    assert f"write `revision: {cached}`, or set HF_HUB_OFFLINE=1" in caught.value.hint


def test_an_outage_is_waited_for_a_little(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.source import hub_client

    monkeypatch.setattr(hub_client, "PAUSES_S", (0.01, 0.01))
    hub.status = (503, "")
    with pytest.raises(EnvironmentMissing, match="cannot be reached, or broke off"):
        _resolve(tmp_path)
    assert len(hub.requests) == 3


# --- what the hub refuses -------------------------------------------------------------------


def test_an_unknown_revision_points_at_the_revision(tmp_path: Path, hub: FakeHub) -> None:
    with pytest.raises(RecipeError, match="has no revision `v9`") as caught:
        _resolve(tmp_path, revision="v9")
    assert caught.value.where == "recipe.yaml:4:3: model.revision"


def test_an_unknown_commit_is_an_unknown_revision(tmp_path: Path, hub: FakeHub) -> None:
    with pytest.raises(RecipeError, match="has no revision `0000"):
        _resolve(tmp_path, revision="0" * 40)


def test_an_unknown_repository_may_be_a_directory_or_private(tmp_path: Path, hub: FakeHub) -> None:
    with pytest.raises(RecipeError, match="there is no checkpoint `models/typo`") as caught:
        _resolve(tmp_path, "models/typo")
    assert "`./models/typo`" in caught.value.hint
    assert "HF_TOKEN" in caught.value.hint
    assert caught.value.where.startswith("recipe.yaml:3")


@pytest.mark.parametrize("status", [(401, ""), (403, "")])
def test_a_hub_that_lets_nobody_in_asks_for_a_token(
    tmp_path: Path, hub: FakeHub, status: tuple[int, str]
) -> None:
    hub.status = status
    with pytest.raises(EnvironmentMissing, match=rf"\(status {status[0]}\): none is given") as err:
        _resolve(tmp_path)
    assert "hf auth login" in err.value.hint


def test_a_token_that_is_not_enough_is_said_to_be(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.status = (403, "")
    with pytest.raises(EnvironmentMissing, match="the token is not enough") as caught:
        _resolve(tmp_path)
    assert "hf_secret" not in str(caught.value)


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository_says_how_to_open_it(tmp_path: Path, hub: FakeHub, status: int) -> None:
    hub.download_status = (status, "GatedRepo")  # its list of files is public
    with pytest.raises(EnvironmentMissing, match="is gated, and none is given") as caught:
        _resolve(tmp_path)
    assert f"accept its conditions at {hub.endpoint}/org/tiny" in caught.value.hint


@pytest.mark.parametrize("status", [401, 403])
def test_files_that_may_not_be_read_are_a_matter_of_the_token(
    tmp_path: Path, hub: FakeHub, status: int
) -> None:
    hub.download_status = (status, "")
    with pytest.raises(EnvironmentMissing, match=f"status {status}"):
        _resolve(tmp_path)


def test_a_server_that_is_no_hub_is_told_apart(tmp_path: Path, hub: FakeHub) -> None:
    hub.commits[hub.branches["main"]] = {}
    hub.branches["main"] = "not-a-commit"
    hub.commits["not-a-commit"] = {}
    with pytest.raises(EnvironmentMissing, match="is not that of a hub") as caught:
        _resolve(tmp_path)
    assert "HF_ENDPOINT" in caught.value.hint


# --- damage ---------------------------------------------------------------------------------


def _flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    ("name", "digest"), [(WEIGHTS, "SHA-256"), ("tokenizer.json", "git id")], ids=["lfs", "git"]
)
def test_content_that_is_not_the_hubs_is_refused_and_not_kept(
    tmp_path: Path, hub: FakeHub, name: str, digest: str
) -> None:
    hub.body[name] = _flipped(_files()[name])
    with pytest.raises(DigestMismatch, match=f"`{name}` of org/tiny .*its {digest} is") as caught:
        _fetch(tmp_path, _resolve(tmp_path))
    assert "taken out of the cache" in caught.value.hint
    hub.body.clear()
    assert _fetch(tmp_path, _resolve(tmp_path)).absent == ()  # the next run starts clean


def test_a_cached_file_that_was_damaged_later_is_noticed(tmp_path: Path, hub: FakeHub) -> None:
    source = _fetch(tmp_path, _resolve(tmp_path))
    blob = source.files[WEIGHTS].path
    blob.write_bytes(_flipped(blob.read_bytes()))
    with pytest.raises(DigestMismatch, match="SHA-256"):
        _resolve(tmp_path)
    assert not blob.exists()
    assert _fetch(tmp_path, _resolve(tmp_path)).absent == ()


def test_another_size_than_announced_is_refused_and_not_kept(tmp_path: Path, hub: FakeHub) -> None:
    hub.announced_size[WEIGHTS] = len(_files()[WEIGHTS]) + 10
    source = _resolve(tmp_path)
    kept = _cached_files(tmp_path)
    with pytest.raises(ArtifactError, match="with another size than announced"):
        _fetch(tmp_path, source)
    assert _cached_files(tmp_path) == kept
    hub.announced_size.clear()
    assert _fetch(tmp_path, source).absent == ()


def test_another_size_than_listed_is_refused_and_not_kept(tmp_path: Path, hub: FakeHub) -> None:
    source = _resolve(tmp_path)
    hub.announced_size[WEIGHTS] = len(_files()[WEIGHTS]) - 10
    hub.body[WEIGHTS] = _files()[WEIGHTS][:-10]
    kept = _cached_files(tmp_path)
    with pytest.raises(DigestMismatch, match="bytes instead of"):
        _fetch(tmp_path, source)
    assert _cached_files(tmp_path) == kept


def test_a_transfer_that_breaks_is_taken_up_again(tmp_path: Path, hub: FakeHub) -> None:
    hub.breaks[WEIGHTS] = 1
    source = _fetch(tmp_path, _resolve(tmp_path))
    assert source.absent == ()
    assert sum(WEIGHTS in request for request in hub.requests if request[:3] == "GET") == 2


def test_a_transfer_that_breaks_every_time_leaves_nothing(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    source = _resolve(tmp_path)
    kept = _cached_files(tmp_path)
    hub.breaks[WEIGHTS] = 100
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the library's pauses between attempts
    with pytest.raises(EnvironmentMissing, match="broke off"):
        _fetch(tmp_path, source)
    assert _cached_files(tmp_path) == kept
    hub.breaks.clear()
    assert _fetch(tmp_path, source).absent == ()


def test_weights_that_are_no_safetensors_are_found(tmp_path: Path, hub: FakeHub) -> None:
    hub.push(_files(**{WEIGHTS: b"\x80\x04 a pickle under a good name"}))
    with pytest.raises(ArtifactError, match="not a safetensors file"):
        _fetch(tmp_path, _resolve(tmp_path))


# --- what is never fetched ------------------------------------------------------------------


def test_a_repository_with_pickles_only_is_refused_and_nothing_is_fetched(
    tmp_path: Path, hub: FakeHub
) -> None:
    files = _files()
    del files[WEIGHTS]
    hub.push(files)
    with pytest.raises(RecipeError, match="pickled weights only"):
        _resolve(tmp_path)
    assert hub.fetched == set()


def test_names_that_climb_out_are_never_asked_for(tmp_path: Path, hub: FakeHub) -> None:
    evil = {
        "../config.json": b"{}",
        "1_a/../../config.json": b"{}",
        "1_a/b/config.json": b"{}",
        "a/1_b/config.json": b"{}",
        "/etc/tokenizer.json": b"{}",
        "1_/../tokenizer.json": b"{}",
    }
    hub.push(_files() | evil)
    source = _fetch(tmp_path, _resolve(tmp_path))
    assert set(source.files) == {
        "config.json", "tokenizer.json", "1_Pooling/config.json", WEIGHTS
    }  # fmt: skip
    assert hub.fetched == set(source.files)


def test_a_shard_that_climbs_out_is_refused(tmp_path: Path, hub: FakeHub) -> None:
    index = {"weight_map": {"weight": "../../secret.safetensors"}}
    evil = {"model.safetensors.index.json": json.dumps(index).encode()}
    hub.push(_files() | evil | {"../../secret.safetensors": _weights(1)})
    with pytest.raises(RecipeError, match="not a safetensors file beside it"):
        _resolve(tmp_path)


def test_a_config_that_asks_for_code_is_refused_before_the_weights(
    tmp_path: Path, hub: FakeHub
) -> None:
    config = CONFIG | {"auto_map": {"AutoModel": "evil/repo--modeling.Model"}}
    hub.push(_files(**{"config.json": json.dumps(config).encode()}))
    with pytest.raises(RecipeError, match="auto_map"):
        _resolve(tmp_path)
    assert WEIGHTS not in hub.fetched


# --- which kind a source is -----------------------------------------------------------------


def test_a_directory_that_looks_like_a_hub_name_must_be_told_apart(
    tmp_path: Path, hub: FakeHub
) -> None:
    root = tmp_path / REPOSITORY
    for name in ("config.json", "tokenizer.json", WEIGHTS):
        root.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(_files()[name])
    with pytest.raises(RecipeError, match="can be a directory, which is there, or") as caught:
        _resolve(tmp_path)
    assert caught.value.hint == "write `./org/tiny` or `hub:org/tiny`"
    assert _resolve(tmp_path, "./org/tiny").revision == ""
    assert _resolve(tmp_path, "hub:org/tiny").revision == hub.branches["main"]


def test_only_a_hub_has_revisions(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="only a checkpoint on a hub has revisions") as caught:
        _resolve(tmp_path, "./somewhere", "main")
    assert caught.value.where == "recipe.yaml:4:3: model.revision"


@pytest.mark.parametrize("spec", ["hf://org/name", "s3:bucket/model", "hugging-face:org/name"])
def test_an_unknown_kind_of_source_names_the_known_ones(tmp_path: Path, spec: str) -> None:
    with pytest.raises(RecipeError, match=r"is no kind of source, only: `package:`, `hub:`"):
        _resolve(tmp_path, spec)


@pytest.mark.parametrize(
    "spec", ["hub:", "hub:a/b/c", "hub:../x", "hub:a/..", "hub:a--b/c", "hub:-a/b", "hub:a/b\n"]
)
def test_names_that_no_hub_has_are_refused_here(tmp_path: Path, hub: FakeHub, spec: str) -> None:
    with pytest.raises(RecipeError, match="is no name of a checkpoint on a hub"):
        _resolve(tmp_path, spec)
    assert hub.requests == []


@pytest.mark.parametrize("revision", ["../../x", "a//b", "/main", "main/", "a b", "-x", "a..b"])
def test_revisions_that_git_does_not_allow_are_refused_here(
    tmp_path: Path, hub: FakeHub, revision: str
) -> None:
    with pytest.raises(RecipeError, match="is no branch, tag or commit"):
        _resolve(tmp_path, revision=revision)
    assert hub.requests == []


# --- as a user meets it ---------------------------------------------------------------------


def _environment(tmp_path: Path, endpoint: str) -> dict[str, str]:
    variables = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "0",
        "CONVERT_STORE": str(tmp_path / "store"),
    }
    variables.pop("HF_TOKEN", None)
    return variables


def _convert(
    tmp_path: Path, endpoint: str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        env=_environment(tmp_path, endpoint) | environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def _hub_files(checkpoint: Path) -> dict[str, bytes]:
    return {
        path.relative_to(checkpoint).as_posix(): path.read_bytes()
        for path in checkpoint.rglob("*")
        if path.is_file()
    }


def _write_recipe(tmp_path: Path, **model: Any) -> Path:
    from tests.recipes import write_recipe

    model = {"source": REPOSITORY, "task": "feature-extraction"} | model
    gates = {"parity": {"cosine_similarity": {"min": 0.5}}}
    return write_recipe(tmp_path / "recipe.yaml", "", model=model, gates=gates)


def test_a_build_from_a_hub_records_the_commit_and_a_moved_branch_is_explained(
    tmp_path: Path, hub: FakeHub, sentence_encoder: Path, store: Path
) -> None:
    from tests.recipes import forget

    forget(store, "fuse")  # the others are hits: results of the same files in a directory
    first = hub.push(_hub_files(sentence_encoder))
    recipe = str(_write_recipe(tmp_path))

    planned = _convert(tmp_path, hub.endpoint, "plan", recipe, "--explain")
    assert planned.returncode == 0, planned.stderr
    assert "run   fuse" in planned.stdout
    assert "hit   export" in planned.stdout
    assert WEIGHTS not in hub.fetched

    built = _convert(tmp_path, hub.endpoint, recipe, "--json")
    assert built.returncode == 0, built.stderr
    assert WEIGHTS in hub.fetched
    asked = [request for request in hub.requests if "/api/" in request]
    assert set(asked) == {f"GET /api/models/{REPOSITORY}/revision/main?blobs=true"}
    assert len(asked) == 2  # one a command
    assert "of org/tiny at" in built.stderr
    assert json.loads(built.stdout)["report"]["source"]["revision"] == first

    offline = _convert(tmp_path, hub.endpoint, recipe, "--json", "--quiet", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert json.loads(offline.stdout)["is_up_to_date"] is True
    assert (
        f"note: HF_HUB_OFFLINE is set: `main` of {REPOSITORY} was not looked up" in offline.stderr
    )

    changed = _hub_files(sentence_encoder)
    changed["tokenizer_config.json"] += b"\n"
    changed["generation_config.json"] = b"{}"
    del changed["special_tokens_map.json"]
    assert hub.push(changed) != first
    explained = _convert(tmp_path, hub.endpoint, "plan", recipe, "--explain")
    assert "because `tokenizer_config.json` of the checkpoint has changed" in explained.stdout
    assert "because `generation_config.json` of the checkpoint is new" in explained.stdout
    assert "because `special_tokens_map.json` of the checkpoint is gone" in explained.stdout
    assert "`model.safetensors` of the checkpoint" not in explained.stdout

    # A commit that changes no file that is used needs no stage again, and yet is another artifact.
    hub.push(_hub_files(sentence_encoder) | {"README.md": b"news"})
    built = _convert(tmp_path, hub.endpoint, recipe, "--json")
    document = json.loads(built.stdout)
    assert "results were in the store" in built.stderr
    assert document["is_up_to_date"] is False
    assert document["report"]["source"]["revision"] == hub.branches["main"]


def test_ctrl_c_ends_a_transfer_at_once_and_leaves_nothing(tmp_path: Path, hub: FakeHub) -> None:
    hub.stalls = {"tokenizer.json"}
    recipe = str(_write_recipe(tmp_path))
    # A shell's job in the background ignores Ctrl-C, and so would what it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "plan", recipe],
        env=_environment(tmp_path, hub.endpoint),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, before)
    assert hub.has_stalled.wait(30)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not list((tmp_path / "cache").rglob("*.incomplete"))


def test_errors_have_their_exit_codes_and_no_traceback(tmp_path: Path, hub: FakeHub) -> None:
    cases = [
        ({"revision": "v9"}, {}, 2, "model.revision: `org/tiny` on"),
        ({"source": "hub:org/none"}, {}, 2, "model.source: there is no checkpoint `org/none`"),
        ({}, {"HF_HUB_OFFLINE": "1"}, 4, "the cache does not have `main` of org/tiny"),
    ]
    for model, environment, code, message in cases:
        recipe = str(_write_recipe(tmp_path, **model))
        done = _convert(tmp_path, hub.endpoint, recipe, **environment)
        assert done.returncode == code, done.stderr
        assert message in done.stderr
        assert "hint: " in done.stderr
        assert "Traceback" not in done.stderr


def test_a_cached_commit_does_not_even_load_the_client(tmp_path: Path, hub: FakeHub) -> None:
    commit = hub.branches["main"]
    _fetch(tmp_path, _resolve(tmp_path, revision=commit))
    code = f"""
import sys
from pathlib import Path
from pipeline.digest_memory import DigestMemory
from pipeline.source import resolve_source
assert "huggingface_hub" not in sys.modules
source = resolve_source({REPOSITORY!r}, recipe_directory=Path(), revision={commit!r},
                        memory=DigestMemory(Path("memory")))
assert source.absent == ()
print([name for name in ("httpx2", "huggingface_hub.hf_api") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "cache")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == "[]", done.stderr
