"""A recipe that measures its decoders in OpenVINO GenAI: prompts, and in the slow test all of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.stages.benchmark_openvino import BenchmarkOpenVinoConfig, make_job
from pipeline.stages.samples import SAMPLES, SamplesConfig
from tests.decoders import build_tiny_llama
from tests.openvino_environment import PINS, convert, make_environment
from tests.recipes import write_recipe
from tests.stages.context import RecordingContext
from tests.trained.lm import byte_tokenizer

if TYPE_CHECKING:
    from pathlib import Path


def _checkpoint(path: Path, **changes: Any) -> Path:
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(path)
    return build_tiny_llama(path, vocab_size=len(tokenizer), max_position_embeddings=96, **changes)


def test_requests_are_mixed_and_the_same_every_time(tmp_path: Path) -> None:
    data, samples = tmp_path / "data", tmp_path / "samples"
    checkpoint = _checkpoint(tmp_path / "checkpoint")
    data.mkdir()
    samples.mkdir()
    texts = ("a good text", "better texts have more words")
    rows = [json.dumps({"text": text}) for text in texts]
    (data / "rows.jsonl").write_text("\n".join(rows))
    config = SamplesConfig(
        source="rows.jsonl",
        samples=2,
        seed=0,
        kind="jsonl",
        task="text-generation",
        use="evaluation",
        max_length=32,
    )
    context = RecordingContext(tmp_path)
    SAMPLES.run(config, {"tokenizer": checkpoint, "data": data}, samples, context)
    wanted = BenchmarkOpenVinoConfig(requests=8, prompt=20, prefix=40, questions=2, rounds=3)
    job = make_job(wanted, samples, [tmp_path], 1)
    assert job == make_job(wanted, samples, [tmp_path], 1)
    sizes = [len(prompt) for prompt in job.prompts]
    assert min(sizes) >= 5
    assert max(sizes) <= 20
    assert len(set(sizes)) > 2
    assert all(8 <= length <= 32 for length in job.lengths)
    # Half of the requests begin as one text does, half as the other.
    assert len({prompt[0] for prompt in job.prompts}) == 2
    assert len(job.prefix) == 40
    assert np.shape(job.tails) == (4, 2, 8)
    assert len({tail for number in job.tails for tail in number}) > 4


@pytest.mark.slow
def test_a_build_says_how_its_decoder_does_in_openvino(tmp_path: Path) -> None:
    python = make_environment(tmp_path, *PINS)
    model = _checkpoint(tmp_path / "checkpoint")
    other = _checkpoint(tmp_path / "other", num_hidden_layers=1)

    def build(name: str, source: Path, serving: dict[str, Any], **changes: Any) -> dict[str, Any]:
        checks = {"openvino_serving": {"tokens": 16, "requests": 4, "rounds": 2, **serving}}
        recipe = write_recipe(
            tmp_path / f"{name}.yaml",
            source,
            name=name,
            model={"source": str(source), "task": "text-generation"},
            gates={"parity": {"cosine_similarity": {"min": 0.8}}, "checks": checks},
            **changes,
        )
        places = ("--output", tmp_path / "artifacts", "--store", tmp_path / "store")
        done = convert(python, recipe, *places)
        (report,) = (tmp_path / "artifacts" / name).glob(
            "latest/report.json" if done.returncode == 0 else "failed/*/report.json"
        )
        found: dict[str, Any] = json.loads(report.read_text())
        return {"said": done.stderr + done.stdout, "code": done.returncode, **found}

    def measured(report: dict[str, Any]) -> dict[str, Any]:
        return {
            gate["metric"].partition(".")[2]: gate["measured"]
            for gate in report["gates"]
            if gate["gate"] == "openvino_serving"
        }

    first = build("small", other, {})
    assert first["code"] == 0, first["said"]
    alone = measured(first)
    assert alone["different_texts.batching"] == alone["different_texts.prefix"] == 0
    assert alone["different_texts.one_batch"] == 0
    assert alone["throughput_ratio"] > 0
    assert alone["prefix_speedup"] > 0
    assert "acceptance_rate" not in alone

    draft = tmp_path / "artifacts" / "small" / "latest" / "cpu-fp32"
    itself = measured(build("itself", other, {"draft": str(draft)}))
    # Of answers this short OpenVINO's own number of proposals leaves most out: the rate was 1.25.
    assert 0.95 < itself["acceptance_rate"] <= 1.0
    assert itself["different_texts.speculative"] == 0

    wanting = build("wanting", model, {"draft": str(draft), "acceptance_rate": 0.99})
    assert wanting["code"] == 1
    assert measured(wanting)["acceptance_rate"] < 0.9
    assert measured(wanting)["different_texts.speculative"] == 0
