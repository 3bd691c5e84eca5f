"""Hold an encoder and a decoder together against themselves and the checkpoint, on the evaluation samples.

What one makes the other is fed, as users do; each alone is compared elsewhere. Graphs that cannot be run
so are a result, not a failure of this stage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import Field

from pipeline.stages.base import MODEL_FILE, Footprint, Stage, StageConfig
from pipeline.stages.generation_facts import Prefill, parting, record_fact, tokens_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from pipeline.data.sample_set import SampleSet
    from pipeline.hashing import JSON
    from pipeline.parity.decoding import Record
    from pipeline.runtimes.base import Array, Runner
    from pipeline.runtimes.seq2seq import SourcedDecoder
    from pipeline.stages.base import StageContext

MODEL_PORT = "model"
ENCODER_PORT = "encoder"
CHECKPOINT_PORT = "checkpoint"
SAMPLES_PORT = "samples"
SOURCES_PORT = "sources"
REFERENCE_PORT = "reference"
_ROUNDING: Final = frozenset({"DynamicQuantizeLinear", "QuantizeLinear"})
"""Operators that make integers of activations."""


class CheckSeq2SeqConfig(StageConfig):
    """How the graphs are run; fields as in `CheckGenerationConfig`."""

    task: str
    component: str
    optimizations: Literal["disabled", "all"]
    longest: Annotated[int, Field(ge=2)]
    texts: Annotated[int, Field(ge=2)] = 4
    read: Annotated[int, Field(ge=2)] = 24
    tokens: Annotated[int, Field(ge=1)] = 16


def run(
    config: CheckSeq2SeqConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> dict[str, JSON]:
    """Facts as those of `check_generation`.

    Raises:
        ExportError: when the checkpoint cannot be loaded.
        StageError: when torch cannot run the checkpoint, or ONNX Runtime cannot load a graph.
    """
    from pipeline.data.reference_set import load_reference
    from pipeline.data.sample_set import load_samples
    from pipeline.graph.files import load_graph_only
    from pipeline.graph.run_time_effects import least_float, nodes_with_scales_at_run_time
    from pipeline.graph.stand_in import write_stand_in
    from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner
    from pipeline.runtimes.torch_reference import TorchReferenceRunner
    from pipeline.tasks import DECODER, ENCODER

    del output
    samples, sources = load_samples(inputs[SAMPLES_PORT]), load_samples(inputs[SOURCES_PORT])
    work = _Work(config, samples, sources)
    folders = {}
    for port in (ENCODER_PORT, MODEL_PORT):
        scratch = context.scratch / port
        scratch.mkdir()
        folders[port] = write_stand_in(inputs[port], scratch, config.optimizations).model

    def graph(port: str) -> OnnxRuntimeRunner:
        return OnnxRuntimeRunner(
            folders[port] / MODEL_FILE,
            optimizations=config.optimizations,
            threads=context.threads,
            spins=False,
        )

    def checkpoint(component: str) -> TorchReferenceRunner:
        return TorchReferenceRunner(
            inputs[CHECKPOINT_PORT], task=config.task, component=component, threads=context.threads
        )

    prefill = Prefill(None, samples, load_reference(inputs[REFERENCE_PORT]))
    with (
        graph(ENCODER_PORT) as encoder,
        graph(MODEL_PORT) as decoder,
        checkpoint(ENCODER) as torch_encoder,
        checkpoint(DECODER) as torch_decoder,
    ):
        mine, theirs = _Bound(encoder, decoder), _Bound(torch_encoder, torch_decoder)
        found = work.compare(mine, theirs, prefill, context)
    graphs = [load_graph_only(inputs[port] / MODEL_FILE) for port in (ENCODER_PORT, MODEL_PORT)]
    operators = {node.op_type for graph in graphs for node in graph.graph.node}
    is_exact = (
        "DequantizeLinear" in operators
        and not operators & _ROUNDING
        and config.optimizations == "disabled"
    )
    floats = {least_float(graph) for graph in graphs}
    least = next((name for name in ("bfloat16", "float16") if name in floats), "float32")
    return {
        "problems": [found.problem] if found.problem else [],
        "texts": [{"sample": text.index, "tokens": len(text.tokens)} for text in work.texts],
        "longest": len(work.longest.tokens),
        "unit": prefill.unit,
        "vocabulary": prefill.vocabulary,
        "cache_bytes_per_token": found.bytes_per_token,
        "scales_at_run_time": [
            name for graph in graphs for name in nodes_with_scales_at_run_time(graph)
        ],
        "least_float": least,
        "cases": [record_fact(record, is_exact=is_exact) for record in found.records],
        "greedy": list(found.greedy),
        **prefill.facts(),
    }


class _Bound:
    """Two runners that make decoders of sources."""

    def __init__(self, encoder: Runner, decoder: Runner) -> None:
        self._runners = (encoder, decoder)

    def __call__(self, sources: Mapping[str, Array]) -> SourcedDecoder:
        from pipeline.runtimes.seq2seq import SourcedDecoder

        return SourcedDecoder(*self._runners, sources)


class _Found:
    """What `_Work.compare` found so far."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.greedy: list[dict[str, JSON]] = []
        self.problem = ""
        self.bytes_per_token = 0


class _Work:
    """Samples as texts with their sources."""

    def __init__(self, config: CheckSeq2SeqConfig, samples: SampleSet, sources: SampleSet) -> None:
        import numpy as np

        from pipeline.parity.pair_decoding import Sourced

        self._config = config
        self._samples = samples
        self._sources = sources
        tokens = {index: tokens_of(samples, index) for index in range(len(samples))}
        order = sorted(tokens, key=lambda index: (self._length(index), len(tokens[index]), index))
        order = [index for index in order if len(tokens[index]) > 1] or order
        places = np.linspace(0, len(order) - 1, config.texts).round().astype(int)
        self.texts = [
            Sourced(
                index=order[at],
                tokens=_read(tokens[order[at]], config),
                source=self._of(order[at]),
            )
            for at in places
        ]
        joined = np.concatenate([tokens[index] for index in order])
        self.longest = Sourced(
            index=-1, tokens=np.resize(joined, config.longest), source=self._of(order[-1])
        )

    def _of(self, index: int) -> dict[str, Array]:
        """What the encoder takes of a sample."""
        (sample,) = self._sources.read([index])
        return {name: a for name, a in sample.items() if not name.startswith("decoder_")}

    def _length(self, index: int) -> int:
        return int(next(iter(self._of(index).values())).shape[-1])

    def join(self, sources: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
        """One batch, padded behind."""
        from pipeline.data.batching import pad_batch

        specs = {name: self._sources.index.inputs[name] for name in sources[0]}
        return pad_batch(sources, specs)

    def compare(
        self, mine: _Bound, theirs: _Bound, prefill: Prefill, context: StageContext
    ) -> _Found:
        from pipeline.errors import PipelineError
        from pipeline.parity.pair_decoding import PairRecorder

        found, total, done = _Found(), len(self._samples) + 2 * len(self.texts) + 2, 0

        def advance() -> None:
            nonlocal done
            done += 1
            context.progress(done, total, "runs")

        for index in range(len(self._samples)):
            try:
                decoder = mine(self.join([self._of(index)]))
            except PipelineError as error:
                found.problem = f"the encoder's output cannot be used: {error.message}"
                return found
            found.bytes_per_token = decoder.bytes_per_token
            prefill.add(index, decoder)
            advance()
        recorder = PairRecorder(mine, self.join, self.texts, prefill.unit)
        recorder.run(self.longest, advance)
        found.records = [*prefill.records, *recorder.records]
        found.problem = next((record.problem for record in found.records if record.problem), "")
        if not found.problem:
            found.records.append(self._against_torch(mine, theirs, prefill.unit))
            self._greedy(mine, theirs, found, advance)
        return found

    def _against_torch(self, mine: _Bound, theirs: _Bound, unit: float) -> Record:
        """The end of the longest target, read with the cache, against the checkpoint."""
        from pipeline.parity.decoding import Record
        from pipeline.parity.generation import noise
        from pipeline.parity.pair_decoding import read_longest

        record = Record(case="longest", output="logits", against="torch")
        sources = self.join([self.longest.source])
        expected, _ = read_longest(theirs(sources), self.longest.tokens)
        _, stepped = read_longest(mine(sources), self.longest.tokens)
        record.add(-1, noise(stepped, expected, unit))
        return record

    def _greedy(
        self, mine: _Bound, theirs: _Bound, found: _Found, advance: Callable[[], None]
    ) -> None:
        """What is written for all sources together; where the checkpoint, and each alone, part."""
        import numpy as np

        from pipeline.errors import PipelineError
        from pipeline.runtimes.generation import GenerationOptions, generate, prefill

        count = min(self._config.tokens, self._config.longest - 1)
        starts = [text.tokens[:1].tolist() for text in self.texts]
        batch = self.join([text.source for text in self.texts])
        try:
            written = generate(mine(batch), starts, GenerationOptions(tokens=count)).tokens
            for text, tokens in zip(self.texts, written, strict=True):
                whole = np.array([[*text.tokens[:1].tolist(), *tokens[:-1]]], np.int64)
                alone = self.join([text.source])
                judges: dict[str, Any] = {"torch": theirs, "itself": mine}
                for name, judge in judges.items():
                    logits, _ = prefill(judge(alone), whole, np.ones_like(whole), keeps_all=True)
                    where = parting(logits[0], np.array(tokens))
                    found.greedy.append(
                        {"sample": text.index, "against": name, "prompt": 1, **where}
                    )
                advance()
        except PipelineError as error:
            found.problem = f"texts cannot be written: {error.message}"


def _read(tokens: Array, config: CheckSeq2SeqConfig) -> Array:
    """The beginning of a target; of one token alone, that twice: there must be a past."""
    import numpy as np

    return tokens[: config.read] if len(tokens) > 1 else np.resize(tokens, 2)


CHECK_SEQ2SEQ = Stage(
    name="check_seq2seq",
    version=2,
    footprint=Footprint(base_mib=450, memory_per_weight=4.5, keeps_outputs=False),
    config_type=CheckSeq2SeqConfig,
    run=run,
    packages=("ml-dtypes", "numpy", "onnx", "onnx-ir", "onnxruntime", "torch", "transformers"),
    extra="cpu",
    # Which of two tokens is the likelier may depend on the last bits.
    machine=("cpu_flags", "cores"),
    preload=("torch", "transformers", "onnxruntime"),
)
"""Ports `model` (of the decoder), `encoder`, `checkpoint`, `samples`, `sources` and `reference` -> facts."""
