"""`convert check` of decoders, as a user calls it: from a file alone, and as GenAI's builder makes them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks.large_llama import SIZES, write_large_llama
from pipeline.drafting import CheckOptions, draft_check
from pipeline.errors import RecipeError
from pipeline.stages.export import EXPORT, ExportConfig
from tests.cli.commands import run_convert
from tests.decoders import TASK, build_tiny_llama
from tests.mutants.faults import decoding
from tests.mutants.surgery import Graph
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.decoders import TinyDecoder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tokenizer."""
    return write_large_llama(tmp_path_factory.mktemp("llama") / "checkpoint", SIZES["tiny"])


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> Path:
    folder = checkpoint.parent / "export"
    folder.mkdir()
    config = ExportConfig(task=TASK, component="model")
    context = RecordingContext(checkpoint.parent, threads=2)
    EXPORT.run(config, {"checkpoint": checkpoint}, folder, context)
    return folder


def check(home: Path, candidate: Path, checkpoint: Path) -> dict[str, Any]:
    done = run_convert(
        *("check", candidate, "--reference", checkpoint, "--samples", "6", "--json"), cwd=home
    )
    assert "Traceback" not in done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["exit_code"] == done.returncode
    return document | {"stderr": done.stderr}


def gates(document: dict[str, Any], verdict: str) -> set[str]:
    found = (gate for gate in document["report"]["gates"] if gate["verdict"] == verdict)
    return {gate["metric"].removeprefix("adopt.") for gate in found}


# --- refused before anything runs -----------------------------------------------------------


def refusal(home: Path, model: Path, reference: Path) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        draft_check(CheckOptions(candidate=str(model), reference=str(reference), store=home))
    assert caught.value.hint
    return caught.value


def test_a_decoder_of_another_checkpoint_is_refused(
    tiny_decoder: TinyDecoder, tmp_path: Path
) -> None:
    other = build_tiny_llama(tmp_path / "other", num_hidden_layers=3)
    error = refusal(tmp_path, tiny_decoder.root / "export/model.onnx", other)
    assert "2 layers, and the checkpoint has 3" in error.message


def test_a_merged_decoder_is_called_what_it_is(tiny_decoder: TinyDecoder, tmp_path: Path) -> None:
    model = onnx.load(tiny_decoder.root / "export/model.onnx")
    flag = helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1])
    model.graph.input.append(flag)
    onnx.save(model, tmp_path / "decoder_model_merged.onnx")
    reference = tiny_decoder.root / "checkpoint"
    error = refusal(tmp_path, tmp_path / "decoder_model_merged.onnx", reference)
    assert "merged of two decoders" in error.message


def test_logits_of_another_vocabulary_are_not_taken_for_hidden_states(
    tiny_decoder: TinyDecoder, tmp_path: Path
) -> None:
    """Though they are the only output of a graph without a cache."""
    other = build_tiny_llama(tmp_path / "other", vocab_size=98)
    model = onnx.load(tiny_decoder.root / "export/model.onnx")
    for values in (model.graph.input, model.graph.output):
        kept = [each for each in values if not each.name.startswith(("past", "present"))]
        del values[:]
        values.extend(kept)
    onnx.save(model, tmp_path / "plain.onnx")
    error = refusal(tmp_path, tmp_path / "plain.onnx", other)
    assert "97 tokens, and the checkpoint's vocabulary has 98" in error.message


# --- the whole command ----------------------------------------------------------------------


@pytest.mark.slow
def test_a_right_decoder_passes_and_its_damage_does_not(
    checkpoint: Path, exported: Path, tmp_path: Path
) -> None:
    document = check(tmp_path, exported / "model.onnx", checkpoint)
    assert document["exit_code"] == 0, document["stderr"]
    assert {"logits.left_padded.itself", "greedy.checkpoint"} <= gates(document, "passed")
    assert not gates(document, "not_run")
    damages: dict[str, Callable[[Graph], Any]] = {
        "logits.left_padded.itself": decoding.cache_mask_lost,
        "logits.prefill": decoding.rope_base,
        "logits.token_by_token.itself": decoding.positions_shifted_by_past,
    }
    for metric, damage in damages.items():
        graph = Graph.read(exported)
        damage(graph)
        (tmp_path / damage.__name__).mkdir()
        graph.write(tmp_path / damage.__name__)
        document = check(tmp_path, tmp_path / damage.__name__, checkpoint)
        assert document["exit_code"] == 1, damage.__name__
        assert metric in gates(document, "failed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "device"), [("fp32", "cpu"), ("int4", "cpu"), ("fp16", "cuda")]
)
def test_what_genais_builder_makes_is_checked(
    checkpoint: Path, tmp_path: Path, precision: str, device: str
) -> None:
    """Its attention counts tokens: padding in front is not asked for, and that is said."""
    pytest.importorskip("onnxruntime_genai")
    build = (sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint))
    options = ("-o", "made", "-p", precision, "-e", device, "-c", "cache")
    done = subprocess.run(
        [*build, *options], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    document = check(tmp_path, tmp_path / "made", checkpoint)
    # Of random weights, tokens are so nearly tied that 4 bits choose others.
    lost = {"logits.top1_agreement"} if precision == "int4" else set()
    assert gates(document, "failed") <= lost, document["stderr"]
    assert gates(document, "not_run") == {"logits.left_padded.itself", "logits.masks.itself"}
    assert {"logits.batched.itself", "cache.chunked.itself"} <= gates(document, "passed")
    assert "padding behind them only" in document["stderr"]
