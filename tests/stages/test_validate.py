"""Every gate of parity is failed here by a graph that is broken on purpose, run by ONNX Runtime."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

import pytest

from pipeline.errors import StageError
from pipeline.graph.files import load_ir_model, save_ir_model
from pipeline.graph.half import cast_to_half
from pipeline.graph.half_rules import BFLOAT16
from pipeline.parity.gates import judge_parity
from pipeline.parity.types import Parity
from pipeline.recipe.types import Bound, ParityGates
from pipeline.stages.validate import VALIDATE, ValidateConfig
from tests.parity.graphs import BROKEN, LENGTHS, write_graph, write_samples
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from pathlib import Path

GATES = ParityGates(cosine_similarity=Bound(min=0.999), relative_l2=Bound(max=0.001))
AS_PROBLEM = {
    "nan_in_one_sample": r"`last_hidden_state` has \d+ elements .* in 1 of 7 samples, first in sample 6",
    "sequence_of_one_size": r"`token_type_ids` is int64 \[batch, 17\], batch and sequence must be free",
    "batch_of_one": r"`input_ids` is int64 \[1, sequence\], batch and sequence must be free",
    "batch_flattened": r"`last_hidden_state` has shape \[1, 34, 8\] for a batch of 2",
    "output_renamed": r"output `sentence_embedding` is missing: the graph has `embedding`, `last",
    "integers": "`sentence_embedding` is int32, it must be float16 or float32",
    "token_axis_without_a_name": r"has shape \[17, 8\] where the reference has \[.*s43",
    "input_dropped": "input `attention_mask` is missing: the checkpoint takes it",
    "input_unknown": "input `position_ids` is unknown: the samples have `attention_mask`",
    "input_of_32_bits": "input `token_type_ids` is int32, the samples are int64",
}
AS_STAGE_FAILURE = {"batch_of_one_inside"}


def _validate(
    tmp_path: Path,
    model: Path,
    *,
    batch_size: int = 4,
    optimizations: Literal["disabled", "all"] = "all",
) -> Parity:
    data = write_samples(tmp_path / "data")
    output = tmp_path / "out"
    output.mkdir(parents=True)
    config = ValidateConfig(
        task="feature-extraction", optimizations=optimizations, batch_size=batch_size
    )
    inputs = {"model": model, "samples": data, "reference": data}
    context = RecordingContext(tmp_path)
    facts = VALIDATE.run(config, inputs, output, context)
    parity = Parity.model_validate_json((output / "parity.json").read_bytes())
    assert facts["problems"] == list(parity.problems)
    assert all(part["size_bytes"] > 0 for part in facts["weights"])
    return parity


def _is_passed(parity: Parity) -> bool:
    results = judge_parity(parity, GATES, target="cpu", component="model", is_proxy=False)
    return all(result.verdict == "passed" for result in results)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_a_graph_that_is_right_passes_in_every_batch_size(tmp_path: Path, batch_size: int) -> None:
    parity = _validate(tmp_path, write_graph(tmp_path / "model"), batch_size=batch_size)
    assert parity.problems == ()
    assert parity.samples_seen == len(LENGTHS)
    assert parity.batch_size == batch_size
    assert _is_passed(parity)


def test_every_sample_has_its_own_numbers_over_its_valid_tokens(tmp_path: Path) -> None:
    parity = _validate(tmp_path, write_graph(tmp_path / "model"))
    hidden, pooled = parity.outputs
    assert [sample.index for sample in hidden.samples] == list(range(len(LENGTHS)))
    assert [sample.metrics.elements for sample in hidden.samples] == [8 * n for n in LENGTHS]
    assert {sample.metrics.elements for sample in pooled.samples} == {8}
    assert hidden.metrics.elements == 8 * sum(LENGTHS)


@pytest.mark.parametrize("fault", sorted(set(BROKEN) - AS_STAGE_FAILURE))
def test_a_broken_graph_fails_the_gates(tmp_path: Path, fault: str) -> None:
    assert not _is_passed(_validate(tmp_path, write_graph(tmp_path / "model", fault)))


@pytest.mark.parametrize("fault", sorted(AS_PROBLEM))
def test_a_fault_of_kind_is_said_in_a_sentence(tmp_path: Path, fault: str) -> None:
    parity = _validate(tmp_path, write_graph(tmp_path / "model", fault))
    assert any(re.search(AS_PROBLEM[fault], problem) for problem in parity.problems), (
        parity.problems
    )


@pytest.mark.parametrize("fault", sorted(set(BROKEN) - AS_STAGE_FAILURE - set(AS_PROBLEM)))
def test_a_fault_of_numbers_is_no_problem_of_kind(tmp_path: Path, fault: str) -> None:
    assert _validate(tmp_path, write_graph(tmp_path / "model", fault)).problems == ()


def test_a_mask_that_is_ignored_is_found_only_because_batches_are_padded(tmp_path: Path) -> None:
    model = write_graph(tmp_path / "model", "mask_ignored")
    assert _is_passed(_validate(tmp_path, model, batch_size=1))


def test_a_sample_that_sees_its_neighbours_is_found_only_in_batches(tmp_path: Path) -> None:
    model = write_graph(tmp_path / "model", "other_sample_of_the_batch")
    assert _is_passed(_validate(tmp_path, model, batch_size=1))
    assert not _is_passed(_validate(tmp_path / "batches", model, batch_size=4))


def test_a_graph_that_cannot_run_in_batches_fails_with_the_runtimes_reason(tmp_path: Path) -> None:
    model = write_graph(tmp_path / "model", "batch_of_one_inside")
    with pytest.raises(StageError, match="Reshape") as caught:
        _validate(tmp_path, model)
    assert "a batch of 1 is built into it" in caught.value.message


def test_a_graph_that_cannot_run_at_all_is_not_said_to_run_alone(tmp_path: Path) -> None:
    model = write_graph(
        tmp_path / "model", edits=("Gather (words, input_ids)", "Gather (types, input_ids)")
    )
    with pytest.raises(StageError, match="out of data bounds") as caught:
        _validate(tmp_path, model)
    assert "built into" not in caught.value.message


def test_half_precision_outputs_are_compared(tmp_path: Path) -> None:
    edits = ("float[batch, 8] sentence_embedding", "float16[batch, 8] sentence_embedding")
    edits += ("sentence_embedding = Div (pooled, length)",)
    edits += ("mean = Div (pooled, length) sentence_embedding = Cast <to = 10> (mean)",)
    parity = _validate(tmp_path, write_graph(tmp_path / "model", edits=edits))
    assert parity.problems == ()
    assert _is_passed(parity)
    assert 0.0 < (parity.outputs[1].metrics.relative_l2 or 0.0) < 1e-3


def _bfloat16(tmp_path: Path, fault: str = "") -> Path:
    """A graph of the encoder in bfloat16."""
    source = write_graph(tmp_path / "float32", *([fault] if fault else []))
    model = load_ir_model(source / "model.onnx")
    cast_to_half(model, BFLOAT16)
    (tmp_path / "model").mkdir()
    save_ir_model(model, tmp_path / "model")
    return tmp_path / "model"


def test_a_bfloat16_graph_is_compared_and_the_session_says_how(tmp_path: Path) -> None:
    parity = _validate(tmp_path, _bfloat16(tmp_path), optimizations="disabled")
    assert parity.problems == ()
    assert parity.session.endswith("disabled, bfloat16 computed in float32 and rounded")
    for output in parity.outputs:
        assert 2**-12 < (output.metrics.relative_l2 or 0.0) < 2**-7


@pytest.mark.parametrize("fault", ["mask_ignored", "two_inputs_swapped", "wrong_pooling"])
def test_a_broken_bfloat16_graph_is_far_away(tmp_path: Path, fault: str) -> None:
    parity = _validate(tmp_path, _bfloat16(tmp_path, fault), optimizations="disabled")
    assert max(output.metrics.relative_l2 or 0.0 for output in parity.outputs) > 0.05


def test_bfloat16_for_users_of_onnx_runtime_is_refused_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"implementation for"):
        _validate(tmp_path, _bfloat16(tmp_path), optimizations="all")


def test_a_float32_graph_is_run_as_it_is(tmp_path: Path) -> None:
    parity = _validate(tmp_path, write_graph(tmp_path / "model"), optimizations="disabled")
    assert parity.session.endswith("optimizations disabled")


def test_a_graph_that_cannot_be_fed_leaves_every_output_without_numbers(tmp_path: Path) -> None:
    parity = _validate(tmp_path, write_graph(tmp_path / "model", "input_unknown"))
    assert parity.samples_seen == 0
    assert [output.metrics.elements for output in parity.outputs] == [0, 0]


def test_a_reference_of_other_samples_is_refused(tmp_path: Path) -> None:
    data = write_samples(tmp_path / "data")
    path = data / "reference.json"
    path.write_text(path.read_text().replace('"samples": 7', '"samples": 6'))
    model = write_graph(tmp_path / "model")
    inputs = {"model": model, "samples": data, "reference": data}
    config = ValidateConfig(task="feature-extraction", optimizations="disabled", batch_size=2)
    with pytest.raises(StageError, match="reference is of 6 samples, there are 7"):
        VALIDATE.run(config, inputs, tmp_path, RecordingContext(tmp_path))


def test_the_session_says_what_ran(tmp_path: Path) -> None:
    parity = _validate(tmp_path, write_graph(tmp_path / "model"))
    assert parity.session.startswith("onnxruntime 1.")
    assert parity.session.endswith("CPUExecutionProvider, optimizations all")
