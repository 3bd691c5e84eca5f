"""Measure a decoder in OpenVINO GenAI on this machine's CPU: batching, prefix cache, a draft.

The graph becomes a stateful IR first, as `convert export-openvino` makes it. In a process of its own it is
then asked what `pipeline.bench.openvino_launch` names. Requests begin as the evaluation samples do.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import Field

from pipeline.stages.base import MODEL_FILE, Footprint, Stage, StageConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.bench.openvino_job import OpenVinoJob
    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext

MODEL_PORT: Final = "model"
CHECKPOINT_PORT: Final = "checkpoint"
SAMPLES_PORT: Final = "samples"
DRAFT_PORT: Final = "draft"

QUESTION: Final = 8
"""Tokens of a question behind the prefix, and of the answers that are compared."""
_MODULE: Final = "pipeline.bench.openvino_launch"

Positive = Annotated[int, Field(ge=1)]


class BenchmarkOpenVinoConfig(StageConfig):
    """What is measured.

    Attributes:
        requests: How many there are; each has a quarter of `prompt` to all of it, and a quarter of
            `tokens` to all of them.
        batch: How many of them are a static batch.
        prompt: Tokens of the longest prompt.
        tokens: Most new tokens of a request.
        prefix: Tokens that all questions share.
        questions: How many of them a round has.
        rounds: How often each way is timed, after once that is not.
        assistant_tokens: How many tokens the draft proposes at a time.
        cache_gib: Size of the cache of blocks.
        seed: Of lengths and of the order of ways in a round.
    """

    requests: Annotated[int, Field(ge=2)] = 16
    batch: Positive = 8
    prompt: Positive
    tokens: Annotated[int, Field(ge=2)] = 32
    prefix: Positive
    questions: Positive = 4
    rounds: Annotated[int, Field(ge=2)] = 5
    assistant_tokens: Positive = 4
    cache_gib: Positive = 1
    seed: int = 0


def run(
    config: BenchmarkOpenVinoConfig,
    inputs: Mapping[str, Path],
    output: Path,
    context: StageContext,
) -> dict[str, JSON]:
    """Facts: a record for each question, `problems`, and the formulas beside the names.

    Raises:
        StageError: the process that measures crashed.
    """
    from pipeline.bench.measuring import run_measuring
    from pipeline.bench.openvino_job import OpenVinoAnswer
    from pipeline.bench.openvino_metrics import OPENVINO_FORMULAS, summarize_openvino

    del output
    folders, problem = _convert(inputs, context.scratch)
    if problem:
        return _problem(problem)
    job = make_job(config, inputs[SAMPLES_PORT], folders, context.threads)
    launch = context.scratch / "launch"
    launch.mkdir()
    total = config.rounds * (4 if job.draft else 3)
    rounds = itertools.count(1)
    answer = run_measuring(
        _MODULE,
        job.model_dump_json(),
        launch,
        threads=context.threads,
        on_line=lambda: context.progress(next(rounds), total, "rounds"),
    )
    made = OpenVinoAnswer.model_validate_json(answer)
    if made.record is None:
        return _problem(made.problem)
    found = summarize_openvino(
        made.record, new_tokens=sum(job.lengths), questions=config.questions
    )
    return {
        "problems": [],
        "threads": context.threads,
        "requests": len(job.prompts),
        "batch": config.batch,
        "prompt_tokens": [len(prompt) for prompt in job.prompts],
        "new_tokens": list(job.lengths),
        "prefix_tokens": config.prefix,
        "assistant_tokens": config.assistant_tokens,
        **found,
        "formulas": dict(OPENVINO_FORMULAS),
    }


def _problem(problem: str) -> dict[str, JSON]:
    return {"problems": [problem], "formulas": {}}


def make_job(
    config: BenchmarkOpenVinoConfig, samples: Path, folders: list[Path], threads: int
) -> OpenVinoJob:
    """The requests: as long as chance says, beginning as the samples do.

    Args:
        config: How many and how long.
        samples: The evaluation samples.
        folders: The model's IR, and the draft's if there is one.
        threads: Of OpenVINO.
    """
    import numpy as np

    from pipeline.bench.openvino_job import OpenVinoJob
    from pipeline.data.sample_set import load_samples
    from pipeline.stages.generation_facts import tokens_of

    found = load_samples(samples)
    texts = [tokens_of(found, index) for index in range(len(found))]
    stream = np.concatenate(texts)
    starts = np.cumsum([0, *map(len, texts)])[:-1]
    generator = np.random.default_rng(config.seed)

    def lengths(most: int) -> list[int]:
        return [int(each) for each in generator.integers(-(-most // 4), most + 1, config.requests)]

    prompts = tuple(
        _piece(stream, int(starts[number % len(starts)]), length)
        for number, length in enumerate(lengths(config.prompt))
    )
    places = itertools.count(config.prefix, QUESTION)
    tails = tuple(
        tuple(_piece(stream, next(places), QUESTION) for _ in range(config.questions))
        for _ in range(config.rounds + 1)
    )
    return OpenVinoJob(
        model=str(folders[0].resolve()),
        draft=str(folders[1].resolve()) if len(folders) > 1 else None,
        threads=threads,
        rounds=config.rounds,
        prompts=prompts,
        lengths=tuple(lengths(config.tokens)),
        batch=config.batch,
        pad=0,  # it is masked, and every vocabulary has it
        prefix=_piece(stream, 0, config.prefix),
        tails=tails,
        assistant_tokens=config.assistant_tokens,
        cache_gib=config.cache_gib,
        seed=config.seed,
    )


def _piece(stream: NDArray[np.int64], start: int, length: int) -> tuple[int, ...]:
    """Tokens from a place on; behind the end it begins again."""
    import numpy as np

    places = np.arange(start, start + length) % len(stream)
    return tuple(map(int, stream[places]))


def _convert(inputs: Mapping[str, Path], scratch: Path) -> tuple[list[Path], str]:
    """Model and draft as IR, both with the model's tokenizer; or why there is none.

    The draft's vocabulary is the model's: that is seen to before anything runs. What else its own
    tokenizer says must not make OpenVINO refuse the pair.
    """
    import shutil

    from pipeline.file_names import CONFIG_FILES, TOKENIZER_FILES
    from pipeline.runtimes.openvino_conversion import (
        convert_decoder,
        convert_tokenizer,
        first_line,
    )

    graphs = {"model": inputs[MODEL_PORT] / MODEL_FILE}
    if DRAFT_PORT in inputs:
        (graphs["draft"],) = inputs[DRAFT_PORT].glob("*.onnx")
    folders = []
    for what, graph in graphs.items():
        folder = scratch / what
        folder.mkdir()
        for name in (*CONFIG_FILES, *TOKENIZER_FILES):
            if (inputs[CHECKPOINT_PORT] / name).is_file():
                shutil.copyfile(inputs[CHECKPOINT_PORT] / name, folder / name)
        try:
            convert_decoder(graph, folder)
        except RuntimeError as error:
            return [], f"OpenVINO cannot convert the {what}'s graph: {first_line(error)}"
        try:
            convert_tokenizer(folder)
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            return [], f"OpenVINO cannot convert the tokenizer: {first_line(error)}"
        folders.append(folder)
    return folders, ""


BENCHMARK_OPENVINO = Stage(
    name="benchmark_openvino",
    version=3,
    # Two pipelines at a time, each with its weights in the order that the CPU wants.
    footprint=Footprint(base_mib=700, memory_per_weight=4.0, disk_per_weight=1.0),
    config_type=BenchmarkOpenVinoConfig,
    run=run,
    packages=(
        "numpy",
        "onnx",
        "onnx-ir",
        "openvino",
        "openvino-genai",
        "openvino-tokenizers",
        "scipy",
        "transformers",
    ),
    extra="openvino",
    machine=("cpu_model", "cpu_flags", "cores"),
    is_exclusive=True,
)
"""Ports `model`, `checkpoint`, `samples` and, of a draft, `draft` -> facts only."""
