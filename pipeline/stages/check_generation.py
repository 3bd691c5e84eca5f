"""Hold a decoder with its cache against itself and against the checkpoint, on the evaluation samples.

A graph that cannot be run so is a result, not a failure of this stage.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import Field

from pipeline.stages.base import EXTERNAL_DATA_FILE, MODEL_FILE, Footprint, Stage, StageConfig
from pipeline.stages.generation_facts import Prefill, not_asked, parting, record_fact, tokens_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.data.sample_set import SampleSet
    from pipeline.graph.stand_in import StandIn
    from pipeline.hashing import JSON
    from pipeline.parity.decoding import Manner, Record, Text
    from pipeline.runtimes.decoder import Decoder
    from pipeline.runtimes.ort_cacheless import OrtCachelessDecoder
    from pipeline.runtimes.ort_decoder import OrtDecoder
    from pipeline.stages.base import StageContext

MODEL_PORT = "model"
CHECKPOINT_PORT = "checkpoint"
SAMPLES_PORT = "samples"
REFERENCE_PORT = "reference"
_ROUNDING: Final = frozenset({"DynamicQuantizeLinear", "QuantizeLinear"})
"""Operators that make integers of activations."""


class CheckGenerationConfig(StageConfig):
    """How the graph is run.

    Attributes:
        task, component: Of the checkpoint.
        optimizations: As in `validate`.
        longest: Tokens of the longest text there may be, past and new ones.
        texts: How many samples are read with a cache, spread over their lengths.
        read: Tokens of each of these at most: a text that is read token by token takes its time.
        tokens: How many tokens a text is continued by.
        written: Texts of a graph with weights in few bits that are read once more by the graph as it is
            written: ONNX Runtime's own optimisations round activations to 8 bits beside such weights.
        written_read: Tokens of each of these; weights are made float again at every step.
        outputs: What is held against the checkpoint; None: all that it gives, the cache too.
    """

    task: str
    component: str
    optimizations: Literal["disabled", "all"]
    longest: Annotated[int, Field(ge=2)]
    texts: Annotated[int, Field(ge=1)] = 6
    read: Annotated[int, Field(ge=2)] = 32
    tokens: Annotated[int, Field(ge=1)] = 16
    written: Annotated[int, Field(ge=1)] = 2
    written_read: Annotated[int, Field(ge=2)] = 8
    outputs: tuple[str, ...] | None = None


def run(
    config: CheckGenerationConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> dict[str, JSON]:
    """Facts: noises of every case, divergence, perplexity and where greedy continuations part.

    Raises:
        ExportError: when the checkpoint cannot be loaded.
        StageError: when torch cannot run the checkpoint, or ONNX Runtime cannot load the graph.
    """
    import torch

    from pipeline.data.reference_set import load_reference
    from pipeline.data.sample_set import load_samples
    from pipeline.graph.decoder_manner import counts_its_mask, keeps_cache
    from pipeline.graph.files import load_graph_only
    from pipeline.graph.run_time_effects import least_float, nodes_with_scales_at_run_time
    from pipeline.graph.stand_in import write_stand_in
    from pipeline.parity.decoding import DecodingRecorder, Manner

    del output
    torch.set_float32_matmul_precision("highest")
    torch.set_num_threads(context.threads)
    samples, reference = load_samples(inputs[SAMPLES_PORT]), load_reference(inputs[REFERENCE_PORT])
    texts, longest = _texts(samples, config), _longest(samples, config.longest)
    stand_in = write_stand_in(inputs[MODEL_PORT], context.scratch, config.optimizations)
    graph = load_graph_only(inputs[MODEL_PORT] / MODEL_FILE)
    manner = Manner(has_cache=keeps_cache(graph), pads_left=not counts_its_mask(graph))
    with _opened(config, inputs[CHECKPOINT_PORT], stand_in, context, manner) as opened:
        decoder, checkpoint = opened
        prefill = Prefill(decoder, samples, reference, config.outputs)
        advance = _steps(context, len(samples) + 3 * len(texts) + 2 + len(texts))
        for index in range(len(samples)):
            prefill.add(index)
            advance()
        recorder = DecodingRecorder(decoder, texts, prefill.unit, manner)
        recorder.run(longest, advance)
        records = [*prefill.records, *recorder.records]
        greedy: list[dict[str, JSON]] = []
        problem = next((record.problem for record in records if record.problem), "")
        if not problem:
            records.append(_against_torch(decoder, checkpoint, longest, prefill.unit))
            greedy, problem = _greedy(decoder, checkpoint, texts, config, manner, advance)
        bytes_per_token = decoder.bytes_per_token
    # Weights in few bits beside float activations: nothing is rounded but sums.
    operators = {node.op_type for node in graph.graph.node}
    is_exact = "DequantizeLinear" in operators and not operators & _ROUNDING
    is_plain = config.optimizations == "disabled"
    cases = [record_fact(record, is_exact=is_exact and is_plain) for record in records]
    if is_exact and not is_plain and not problem:
        model = stand_in.model / MODEL_FILE
        with _runner(model, "disabled", context.threads, manner) as decoder:
            cases += _as_written(decoder, texts, config, manner, prefill.unit)
    return {
        "problems": [problem] if problem else [],
        "texts": [{"sample": text.index, "tokens": len(text.tokens)} for text in texts],
        "longest": len(longest),
        "unit": prefill.unit,
        "vocabulary": prefill.vocabulary,
        "cache_bytes_per_token": bytes_per_token,
        "scales_at_run_time": list(nodes_with_scales_at_run_time(graph)),
        "least_float": least_float(graph),
        "cases": cases,
        "greedy": greedy,
        "not_run": not_asked(manner),
        **prefill.facts(),
    }


@contextlib.contextmanager
def _opened(
    config: CheckGenerationConfig,
    checkpoint: Path,
    graph: StandIn,
    context: StageContext,
    manner: Manner,
) -> Iterator[tuple[OrtDecoder | OrtCachelessDecoder, Decoder]]:
    """The graph and the checkpoint, ready to be run; of large ones the weights stay in their files."""
    from pipeline.runtimes.checkpoint_decoder import CheckpointDecoder
    from pipeline.runtimes.mapped_pages import few_pages
    from pipeline.runtimes.torch_streamed import at_hand, load_streamed

    loaded = load_streamed(
        checkpoint, config.task, config.component, scratch=context.scratch, log=context.log
    )
    model = graph.model / MODEL_FILE
    opened = _runner(model, config.optimizations, context.threads, manner).leaving_weights(
        is_wanted=graph.leaves_weights
    )
    with at_hand(loaded), few_pages([graph.model / EXTERNAL_DATA_FILE]), opened as decoder:
        yield decoder, CheckpointDecoder(loaded)


def _runner(
    model: Path, optimizations: Literal["disabled", "all"], threads: int, manner: Manner
) -> OrtDecoder | OrtCachelessDecoder:
    """The graph, not loaded yet."""
    from pipeline.runtimes.ort_cacheless import OrtCachelessDecoder
    from pipeline.runtimes.ort_decoder import OrtDecoder

    kind = OrtDecoder if manner.has_cache else OrtCachelessDecoder
    return kind(model, optimizations=optimizations, threads=threads)


def _steps(context: StageContext, total: int) -> Callable[[], None]:
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        context.progress(done, total, "runs")

    return advance


def _as_written(
    decoder: Decoder,
    texts: Sequence[Text],
    config: CheckGenerationConfig,
    manner: Manner,
    unit: float,
) -> list[dict[str, JSON]]:
    """The last texts once more, by the graph without optimisations."""
    from dataclasses import replace

    from pipeline.parity.decoding import DecodingRecorder

    shorter = [
        replace(text, tokens=text.tokens[: max(2, config.written_read - number)])
        for number, text in enumerate(texts[-config.written :])
    ]
    recorder = DecodingRecorder(decoder, shorter, unit, manner)
    recorder.run(None, lambda: None)
    return [
        record_fact(record, is_exact=True) | {"against": "as_written"}
        for record in recorder.records
    ]


def _texts(samples: SampleSet, config: CheckGenerationConfig) -> list[Text]:
    """Samples from the shortest to the longest, and the beginnings of those that are too long."""
    import numpy as np

    from pipeline.parity.decoding import Text

    tokens = {index: tokens_of(samples, index) for index in range(len(samples))}
    order = sorted(tokens, key=lambda index: (len(tokens[index]), index))
    # A text of one token has nothing to be read behind a past.
    order = [index for index in order if len(tokens[index]) > 1] or order
    places = np.linspace(0, len(order) - 1, min(config.texts, len(order))).round().astype(int)
    chosen = [(order[at], tokens[order[at]][: config.read]) for at in places]
    if len(chosen) == 1:
        chosen *= 2
    # Of unlike lengths, so that there is padding when they are read together.
    return [
        Text(index=index, tokens=found[: max(2, len(found) - number)])
        for number, (index, found) in enumerate(chosen)
    ]


def _longest(samples: SampleSet, length: int) -> NDArray[np.int64]:
    """All samples one after the other, as often as it takes."""
    import numpy as np

    joined = np.concatenate([tokens_of(samples, index) for index in range(len(samples))])
    return np.resize(joined, length)


def _against_torch(
    decoder: Decoder, checkpoint: Decoder, longest: NDArray[np.int64], unit: float
) -> Record:
    """The end of the longest text, read with the cache, against the checkpoint that reads it whole."""
    from pipeline.parity.decoding import Record, read_longest
    from pipeline.parity.generation import noise

    record = Record(case="longest", output="logits", against="torch")
    expected, _ = read_longest(checkpoint, longest, is_whole=True)
    _, found = read_longest(decoder, longest)
    record.add(-1, noise(found, expected, unit))
    return record


def _greedy(
    decoder: Decoder,
    checkpoint: Decoder,
    texts: Sequence[Text],
    config: CheckGenerationConfig,
    manner: Manner,
    advance: Callable[[], None],
) -> tuple[list[dict[str, JSON]], str]:
    """Continue the first half of each text; where the checkpoint, and the graph without a cache, part.

    Both are given what the graph wrote: as far as they agree they would have written the same, so the
    first token on which they differ is where their own continuations part.
    """
    import numpy as np

    from pipeline.errors import PipelineError
    from pipeline.runtimes.generation import GenerationOptions, generate, prefill

    prompts = [text.tokens[: max(1, len(text.tokens) // 2)].tolist() for text in texts]
    room = config.longest - max(len(prompt) for prompt in prompts)
    if room < 1:
        return [], ""
    count = min(config.tokens, room)
    facts: list[dict[str, JSON]] = []
    try:
        options = GenerationOptions(tokens=count)
        batches = [prompts] if manner.pads_left else [[prompt] for prompt in prompts]
        written = [row for batch in batches for row in generate(decoder, batch, options).tokens]
        for text, prompt, tokens in zip(texts, prompts, written, strict=True):
            whole = np.array([[*prompt, *tokens[:-1]]], np.int64)
            for name, judge in (("torch", checkpoint), ("itself", decoder)):
                logits, _ = prefill(judge, whole, np.ones_like(whole), keeps_all=True)
                found = parting(logits[0, len(prompt) - 1 :], np.array(tokens))
                facts.append(
                    {"sample": text.index, "against": name, "prompt": len(prompt), **found}
                )
            advance()
    except PipelineError as error:
        return facts, f"texts cannot be continued: {error.message}"
    return facts, ""


CHECK_GENERATION = Stage(
    name="check_generation",
    version=4,
    footprint=Footprint(
        base_mib=450,
        memory_per_weight=3.5,
        memory_outside=0.0,
        memory_per_largest=4.0,
        runs_model=True,
    ),
    config_type=CheckGenerationConfig,
    run=run,
    packages=("ml-dtypes", "numpy", "onnx", "onnx-ir", "onnxruntime", "torch", "transformers"),
    extra="cpu",
    # Which of two tokens is the likelier may depend on the last bits.
    machine=("cpu_flags", "cores"),
    preload=("torch", "transformers", "onnxruntime"),
)
"""Ports `model`, `checkpoint`, `samples` and `reference` -> facts only."""
