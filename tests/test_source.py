"""Checkpoints: what is used, what is refused, and that changes are noticed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline.digest_memory import DigestMemory
from pipeline.errors import ArtifactError, EnvironmentMissing, ExitCode, RecipeError
from pipeline.source import Source, resolve_source
from pipeline.source.files import SourceFile

CONFIG = {"model_type": "bert", "architectures": ["BertModel"], "max_position_embeddings": 64}


def _checkpoint(path: Path, config: dict[str, object] | None = None) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    (path / "tokenizer.json").write_text("{}")
    save_file(
        {"weight": np.arange(12, dtype=np.float32).reshape(3, 4)}, path / "model.safetensors"
    )
    return path


def _resolve(path: Path, spec: str | None = None) -> Source:
    return resolve_source(
        spec or str(path),
        recipe_directory=path.parent,
        memory=DigestMemory(path.parent / "memory"),
    )


def test_only_files_on_the_allow_list_are_seen(tmp_path: Path) -> None:
    root = _checkpoint(tmp_path / "model")
    for name in ("modeling_evil.py", "training_args.bin", "rng_state.pth", "notes.txt"):
        (root / name).write_text("x")
    source = _resolve(root)
    assert set(source.files) == {"config.json", "tokenizer.json", "model.safetensors"}
    view = tmp_path / "view"
    view.mkdir()
    source.materialise("checkpoint", view)
    assert {path.name for path in view.iterdir()} == set(source.files)


def test_a_relative_path_starts_at_the_recipe(tmp_path: Path) -> None:
    root = _checkpoint(tmp_path / "model")
    assert _resolve(root, "model").root == root


def test_the_tokenizer_group_does_not_change_with_the_weights(tmp_path: Path) -> None:
    root = _checkpoint(tmp_path / "model")
    before = _resolve(root)
    save_file({"weight": np.ones((3, 4), dtype=np.float32)}, root / "model.safetensors")
    after = _resolve(root)
    assert after.group_digest("tokenizer") == before.group_digest("tokenizer")
    assert after.group_digest("checkpoint") != before.group_digest("checkpoint")


def test_a_change_during_the_run_is_noticed(tmp_path: Path) -> None:
    root = _checkpoint(tmp_path / "model")
    source = _resolve(root)
    source.require_unchanged()
    (root / "tokenizer.json").write_text('{"a": 1}')
    with pytest.raises(ArtifactError, match=r"`tokenizer.json` changed while"):
        source.require_unchanged()


def test_a_missing_checkpoint_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"no checkpoint directory `nowhere` \(looked at"
    ) as caught:
        _resolve(tmp_path / "model", "nowhere")
    assert caught.value.exit_code == ExitCode.USAGE


def test_a_package_that_is_not_installed_is_a_matter_of_the_environment(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentMissing, match="not installed") as caught:
        _resolve(tmp_path / "model", "package:no_such_package_here/model")
    assert caught.value.hint == "pip install no-such-package-here"


@pytest.mark.parametrize("spec", ["package:numpy/../../secret", "package:/etc", "package:a b/c"])
def test_a_package_path_cannot_leave_its_package(tmp_path: Path, spec: str) -> None:
    with pytest.raises(RecipeError, match="is not `package:NAME/path`"):
        _resolve(tmp_path / "model", spec)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    root = _checkpoint(tmp_path / "model")
    (root / "model.safetensors").unlink()
    (root / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(RecipeError, match="pickled weights only") as caught:
        _resolve(root)
    assert "safe_serialization=True" in caught.value.hint


def test_weights_in_gguf_are_refused(tmp_path: Path) -> None:
    root = _checkpoint(tmp_path / "model")
    (root / "model.safetensors").rename(root / "model-Q4_K_M.gguf")
    with pytest.raises(RecipeError, match="weights in GGUF only") as caught:
        _resolve(root)
    assert "safetensors" in caught.value.hint


@pytest.mark.parametrize("has_model", [False, True])
def test_an_adapter_is_never_left_out(tmp_path: Path, has_model: bool) -> None:
    root = _checkpoint(tmp_path / "model")
    (root / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    if not has_model:
        (root / "config.json").unlink()
        (root / "model.safetensors").rename(root / "adapter_model.safetensors")
    words = (
        "which would be left out" if has_model else "the checkpoint is an adapter of `org/base`"
    )
    with pytest.raises(RecipeError, match=words) as caught:
        _resolve(root)
    assert "merge_and_unload()" in caught.value.hint
    assert ("remove adapter_config.json" in caught.value.hint) == has_model


def test_weights_that_are_a_broken_link_are_named(tmp_path: Path) -> None:
    root = _checkpoint(tmp_path / "model")
    (root / "model.safetensors").unlink()
    (root / "model.safetensors").symlink_to("../blobs/0123")
    with pytest.raises(RecipeError, match="no weights") as caught:
        _resolve(root)
    assert "link to `../blobs/0123`" in caught.value.hint


def test_of_quantised_weights_those_in_floats_are_asked_for(tmp_path: Path) -> None:
    root = _checkpoint(
        tmp_path / "model", {**CONFIG, "quantization_config": {"quant_method": "awq"}}
    )
    with pytest.raises(RecipeError, match=r"quantised already \(.*method `awq`\)") as caught:
        _resolve(root)
    assert "in floats" in caught.value.hint


def test_no_weights_at_all_is_its_own_message(tmp_path: Path) -> None:
    root = _checkpoint(tmp_path / "model")
    (root / "model.safetensors").unlink()
    with pytest.raises(RecipeError, match="has no weights"):
        _resolve(root)


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_truncated_safetensors_are_found_before_anything_starts(tmp_path: Path, keep: int) -> None:
    root = _checkpoint(tmp_path / "model")
    path = root / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match=r"truncated|not a safetensors"):
        _resolve(root)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_what_git_left_in_place_of_a_large_file_is_named(tmp_path: Path, name: str) -> None:
    """A clone made without Git LFS."""
    root = _checkpoint(tmp_path / "model")
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4072896\n"
    (root / name).write_text(pointer)
    with pytest.raises(ArtifactError, match="pointer of Git LFS") as caught:
        _resolve(root)
    assert caught.value.where == str(root / name)
    assert "git lfs pull" in caught.value.hint


def test_a_header_that_is_not_json_is_damaged(tmp_path: Path) -> None:
    root = _checkpoint(tmp_path / "model")
    path = root / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[8:12] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="header is damaged"):
        _resolve(root)


def test_a_shard_outside_the_checkpoint_is_refused(tmp_path: Path) -> None:
    root = _checkpoint(tmp_path / "model")
    index = {"weight_map": {"weight": "../secret.safetensors"}}
    (root / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(RecipeError, match="not a safetensors file beside it"):
        _resolve(root)


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"_attn_implementation": "evil/kernel"}, "_attn_implementation"),
        ({"attn_implementation": "evil/kernel"}, "attn_implementation"),
        ({"_attn_implementation_internal": "evil/kernel"}, "_attn_implementation_internal"),
        ({"attn_implementation": {"text": "evil/kernel"}}, "attn_implementation"),
        ({"text_config": {"_attn_implementation": "evil/kernel"}}, "text_config._attn"),
        ({"parts": [{"trust_remote_code": True}]}, "parts.trust_remote_code"),
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"auto_map": {"AutoModel": "evil/repo--modeling.Evil"}}, "auto_map"),
        ({"auto_map": {"AutoTokenizer": ["evil/repo--tok.Evil", None]}}, "auto_map"),
        ({"custom_pipelines": {"x": {"impl": "evil.py"}}}, "custom_pipelines"),
        ({"model_file": "evil.py"}, "model_file"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"model_type": None}, "model_type"),
    ],
)
def test_a_config_that_asks_for_foreign_code_is_refused(
    tmp_path: Path, extra: dict[str, object], named: str
) -> None:
    root = _checkpoint(tmp_path / "model", {**CONFIG, **extra})
    with pytest.raises(RecipeError, match=r"config.json is refused") as caught:
        _resolve(root)
    assert f"`{named}" in caught.value.message


def test_a_harmless_config_passes(tmp_path: Path) -> None:
    extra = {
        "_attn_implementation": "sdpa",
        "auto_map": {"AutoModel": "modeling_x.X"},
        "quantization_config": None,
    }
    assert _resolve(_checkpoint(tmp_path / "model", {**CONFIG, **extra})).max_positions == 64


def test_a_config_without_end_is_refused(tmp_path: Path) -> None:
    deep: dict[str, object] = {}
    for _ in range(50):
        deep = {"nested": deep}
    with pytest.raises(RecipeError, match="nested deeper than 20"):
        _resolve(_checkpoint(tmp_path / "model", {**CONFIG, **deep}))


def test_the_longest_sequence_is_the_smaller_of_model_and_tokenizer(tmp_path: Path) -> None:
    root = _checkpoint(tmp_path / "model")
    (root / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 32}))
    assert _resolve(root).max_positions == 32
    (root / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 1e30}))
    assert _resolve(root).max_positions == 64


def test_the_memory_of_digests_is_never_stale(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    memory = DigestMemory(tmp_path / "memory.json")
    first = memory.digest(path)
    memory.save()
    path.write_bytes(b"two")  # same size, and within one tick of the clock
    assert DigestMemory(tmp_path / "memory.json").digest(path) != first


def test_a_damaged_memory_of_digests_is_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    expected = DigestMemory(tmp_path / "none").digest(path)
    for content in ("", "[]", "{", '{"a": 1}', '{"a": [1, 2, 3]}'):
        (tmp_path / "memory.json").write_text(content)
        assert DigestMemory(tmp_path / "memory.json").digest(path) == expected


def test_a_file_that_vanishes_while_it_is_looked_at_is_named(tmp_path: Path) -> None:
    """Somebody deletes a checkpoint while a plan is made."""
    memory = DigestMemory(tmp_path / "digests.json")
    with pytest.raises(ArtifactError, match=r"`model.safetensors` cannot be read: No such file"):
        SourceFile.of(tmp_path / "model.safetensors", memory)
