"""Plans for encoders with decoders: what is planned, and what is refused before anything runs."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.build import BuildOptions, open_store, prepare_plan
from pipeline.errors import RecipeError
from pipeline.recipe import load_recipe_file
from tests.pairs import SPEECH, TEXTS, build_pair, write_pairs, write_sounds
from tests.recipes import FP32, INT8, RTX, write_recipe

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.planning import Plan

STATIC = {
    "name": "cpu-static",
    "runtime": "onnxruntime",
    "precision": "int8",
    "quantization": {"mode": "static"},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_pair(tmp_path_factory.mktemp("pair") / "checkpoint")


def _plan(tmp_path: Path, source: Path, task: str = TEXTS, **changes: Any) -> Plan:
    data = write_pairs(tmp_path / "pairs.jsonl")
    changes.setdefault("data", {"evaluation": {"source": str(data), "samples": 4}})
    changes["model"] = {"source": str(source), "task": task}
    path = write_recipe(tmp_path / "recipe.yaml", source, **changes)
    return prepare_plan(load_recipe_file(path), open_store(BuildOptions(store=tmp_path / "store")))


def _edited(tmp_path: Path, checkpoint: Path, name: str, **values: Any) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    document = json.loads((copy / name).read_text())
    document |= values
    kept = {key: value for key, value in document.items() if value is not None}
    (copy / name).write_text(json.dumps(kept))
    return copy


def test_both_parts_are_made_and_checked_apart_and_together(
    tmp_path: Path, checkpoint: Path
) -> None:
    plan = _plan(tmp_path, checkpoint, targets=[FP32, INT8])
    names = {node.name for node in plan.nodes}
    assert names >= {"export.encoder", "export.decoder", "reference.encoder", "reference.decoder"}
    assert names >= {"decoder_samples.decoder", "decoder_samples.decoder@probes"}
    (target, _) = plan.targets
    assert set(target.chain.deliverables) == {"encoder", "decoder"}
    together = [check for check in target.checks if check.check == "seq2seq"]
    assert [check.component for check in together] == ["decoder"] * 2
    for check in together:
        ports = {
            port: plan.nodes[ref.node].name
            for port, ref in plan.nodes[check.node.node].inputs.items()
            if hasattr(ref, "node")
        }
        # The first graph of one with the first of the other, the delivered with the delivered.
        assert ports["model"] == ports["encoder"].replace("encoder", "decoder")
        assert (ports["samples"], ports["sources"]) == ("decoder_samples.decoder", "samples")


def test_source_and_past_are_no_axes_of_a_recipe(tmp_path: Path, checkpoint: Path) -> None:
    assert _plan(tmp_path, checkpoint).task.axes == ("batch", "sequence")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (RTX, "no targets of runtime `tensorrt-rtx`"),
        (STATIC, "hold keys and values of the source"),
    ],
)
def test_what_needs_ranges_of_a_cache_is_refused(
    tmp_path: Path, checkpoint: Path, target: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        _plan(tmp_path, checkpoint, targets=[target])


def test_a_checkpoint_that_says_no_first_token_is_refused(
    tmp_path: Path, checkpoint: Path
) -> None:
    copy = _edited(tmp_path, checkpoint, "config.json", decoder_start_token_id=None)
    (copy / "generation_config.json").unlink()
    with pytest.raises(RecipeError, match="with which token its decoder begins") as caught:
        _plan(tmp_path, copy)
    assert "decoder_start_token_id" in caught.value.hint


def test_files_that_contradict_each_other_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    copy = _edited(tmp_path, checkpoint, "generation_config.json", decoder_start_token_id=7)
    with pytest.raises(RecipeError, match=r"config.json says 256, generation_config.json says 7"):
        _plan(tmp_path, copy)


def test_a_checkpoint_without_a_tokenizer_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    copy = _edited(tmp_path, checkpoint, "config.json")
    (copy / "tokenizer.json").unlink()
    with pytest.raises(RecipeError, match="has no tokenizer"):
        _plan(tmp_path, copy)


def test_a_model_for_texts_does_not_listen(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(RecipeError, match="needs an audio model") as caught:
        _plan(tmp_path, checkpoint, task=SPEECH)
    assert TEXTS in caught.value.hint


def test_a_decoder_alone_is_refused_with_the_task_that_fits(
    tmp_path: Path, checkpoint: Path
) -> None:
    with pytest.raises(RecipeError, match="is an encoder with a decoder") as caught:
        _plan(tmp_path, checkpoint, task="text-generation")
    assert TEXTS in caught.value.hint


def _gates(**speed: Any) -> dict[str, Any]:
    parity = {"cosine_similarity": {"min": 0.5}}
    return {"parity": parity, "checks": {"generation_speed": speed}}


def test_both_delivered_graphs_are_timed_together(tmp_path: Path, checkpoint: Path) -> None:
    plan = _plan(tmp_path, checkpoint, targets=[INT8], gates=_gates(batching={}))
    (target,) = plan.targets
    (timed,) = [check for check in target.checks if check.check == "generation_speed"]
    assert timed.component == "decoder"
    node = plan.nodes[timed.node.node]
    ports = {port: plan.nodes[ref.node].name for port, ref in node.inputs.items()}  # type: ignore[union-attr]
    assert ports["model"].replace("decoder", "encoder") == ports["encoder"]
    assert ports["samples"] == "samples"
    assert node.config.batching.tokens == 32  # type: ignore[attr-defined]


def test_what_is_not_timed_behind_an_encoder_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    asked = {"requests_per_s": 1.0, "ttft_ms": 10.0, "tpot_ms": 10.0}
    with pytest.raises(RecipeError, match=r"`generation_speed.server` is of decoders alone"):
        _plan(tmp_path, checkpoint, gates=_gates(server=asked))
    sounds = write_sounds(tmp_path / "sounds")
    heard = build_pair(tmp_path / "whisper", "whisper")
    data = {"evaluation": {"source": str(sounds), "samples": 4, "audio": "audio"}}
    with pytest.raises(RecipeError, match="sorts by length"):
        _plan(tmp_path, heard, SPEECH, data=data, gates=_gates(batching={}))
