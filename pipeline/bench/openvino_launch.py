"""Measures OpenVINO GenAI in a process of its own: `python -m pipeline.bench.openvino_launch JOB RECORD`.

Three questions, each a comparison of two ways to do the same work, in rounds of shuffled order with a
second run of the first way as control:

* requests of mixed lengths in static batches (`LLMPipeline`, padded in front, written until the longest
  is done) against continuous batching (`ContinuousBatchingPipeline`, paged attention);
* the first token behind a long prefix that all questions share, without and with a prefix cache;
* one text at a time by the model alone against the model with a draft that proposes tokens.

Everything is computed in float32, so that all ways must write the same tokens. Each finished round is a
line on standard output.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.bench.openvino_job import (
    Comparison,
    Difference,
    OpenVinoAnswer,
    OpenVinoJob,
    OpenVinoRecord,
    Round,
)
from pipeline.runtimes.openvino_conversion import EXACT, first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.bench.openvino_job import Tokens

_SHOWN: Final = 4
_QUESTION_TOKENS: Final = 8
"""New tokens of the questions whose texts are compared; only the first is timed."""


def main(arguments: list[str]) -> int:
    """Read the job, measure, write the answer; the exit status."""
    job_file, answer_file = map(Path, arguments)
    job = OpenVinoJob.model_validate_json(job_file.read_bytes())
    try:
        answer = OpenVinoAnswer(record=measure(job))
    except RuntimeError as error:
        answer = OpenVinoAnswer(problem=f"OpenVINO GenAI cannot run it: {first_line(error)}")
    answer_file.write_text(answer.model_dump_json(), encoding="utf-8")
    return 0


def measure(job: OpenVinoJob) -> OpenVinoRecord:
    """Answer all questions, one after the other, so that few pipelines are in memory at once.

    Raises:
        RuntimeError: OpenVINO cannot load or run the model.
    """
    import openvino_genai

    from pipeline.bench.generation_launch import peak_rss_mib

    random = Random(job.seed)  # noqa: S311  (no secret)
    begun = time.perf_counter()
    continuous = _Continuous(job)
    load_s = time.perf_counter() - begun
    batching, one_batch = _compare_batching(job, continuous, random)
    prefix = _compare_prefix(job, continuous, random)
    speculative, drafted, accepted = None, 0, 0
    if job.draft is not None:
        drafting = _Continuous(job, draft=job.draft)
        speculative = _compare(
            lambda _: continuous.write_alone(), lambda _: drafting.write_alone(), job, random
        )
        drafted, accepted = drafting.count()
    return OpenVinoRecord(
        version=openvino_genai.__version__.split("-")[0],
        load_s=load_s,
        batching=batching,
        one_batch=one_batch,
        prefix=prefix,
        speculative=speculative,
        drafted=drafted,
        accepted=accepted,
        peak_rss_mib=peak_rss_mib(),
    )


class _Static:
    """Batches whose requests begin and end together."""

    def __init__(self, job: OpenVinoJob) -> None:
        import openvino_genai

        self._job = job
        self._pipeline = openvino_genai.LLMPipeline(
            job.model,
            "CPU",
            ATTENTION_BACKEND="SDPA",
            INFERENCE_NUM_THREADS=job.threads,
            **EXACT,
        )

    def write(self, batch: int) -> list[Tokens]:
        """All requests, so many at a time."""
        import openvino
        import openvino_genai

        made: list[Tokens] = []
        job = self._job
        for start in range(0, len(job.prompts), batch):
            prompts = job.prompts[start : start + batch]
            lengths = job.lengths[start : start + batch]
            longest = max(map(len, prompts))
            ids = np.full((len(prompts), longest), job.pad, np.int64)
            mask = np.zeros_like(ids)
            for row, prompt in enumerate(prompts):
                ids[row, longest - len(prompt) :] = prompt
                mask[row, longest - len(prompt) :] = 1
            inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(mask))
            rows = self._pipeline.generate(inputs, _options(max(lengths))).tokens
            made += [
                tuple(map(int, row))[:length] for row, length in zip(rows, lengths, strict=True)
            ]
        return made


class _Continuous:
    """Requests that join and leave as they come and end, with a cache of blocks."""

    def __init__(
        self, job: OpenVinoJob, *, has_prefix_cache: bool = False, draft: str | None = None
    ) -> None:
        import openvino_genai

        self._job = job
        self._draft = draft
        self._last: list[Any] = []
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = job.cache_gib
        scheduler.enable_prefix_caching = has_prefix_cache
        options: dict[str, Any] = {"INFERENCE_NUM_THREADS": job.threads, **EXACT}
        own = dict(options)
        if draft is not None:
            own["draft_model"] = openvino_genai.draft_model(draft, "CPU", **options)
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            job.model, scheduler, "CPU", own
        )

    def write(self, prompts: Sequence[Tokens], lengths: Sequence[int]) -> list[Tokens]:
        """All requests, which are there at once."""
        import openvino

        options = [_options(length) for length in lengths]
        if self._draft is not None:
            for each in options:
                each.num_assistant_tokens = self._job.assistant_tokens
        made = self._pipeline.generate(
            [openvino.Tensor(np.array([prompt], np.int64)) for prompt in prompts], options
        )
        if self._draft is not None:
            self._last += made
        return [tuple(map(int, each.m_generation_ids[0])) for each in made]

    def write_alone(self) -> list[Tokens]:
        """One request after the other."""
        self._last = []
        return [
            text
            for prompt, length in zip(self._job.prompts, self._job.lengths, strict=True)
            for text in self.write([prompt], [length])
        ]

    def count(self) -> tuple[int, int]:
        """Tokens of the draft that were judged and that were accepted, when `write_alone` ran last.

        OpenVINO counts what the draft proposed only in rounds that do not end a text, and what was accepted
        in all: of short texts more would be accepted than was proposed.
        """
        metrics = [each.extended_perf_metrics for each in self._last]
        accepted = sum(each.get_num_accepted_tokens() for each in metrics)
        rejected = sum(each.get_num_rejected_tokens() for each in metrics)
        return accepted + rejected, accepted


def _options(tokens: int) -> Any:
    import openvino_genai

    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.do_sample, config.ignore_eos = tokens, False, True
    return config


def _compare_batching(
    job: OpenVinoJob, continuous: _Continuous, random: Random
) -> tuple[Comparison, Comparison]:
    """Against batches of the usual size, and against one batch of all."""
    static = _Static(job)

    def against(batch: int) -> Comparison:
        return _compare(
            lambda _: static.write(batch),
            lambda _: continuous.write(job.prompts, job.lengths),
            job,
            random,
        )

    return against(job.batch), against(len(job.prompts))


def _compare_prefix(job: OpenVinoJob, plain: _Continuous, random: Random) -> Comparison:
    """The first token of each question; the texts of the questions of round 0, which fill the cache."""
    cached = _Continuous(job, has_prefix_cache=True)

    def ask(pipeline: _Continuous, number: int) -> list[Tokens]:
        tokens = _QUESTION_TOKENS if number == 0 else 1
        return [
            text
            for tail in job.tails[number]
            for text in pipeline.write([job.prefix + tail], [tokens])
        ]

    return _compare(
        lambda number: ask(plain, number), lambda number: ask(cached, number), job, random
    )


def _compare(
    base: Callable[[int], list[Tokens]],
    other: Callable[[int], list[Tokens]],
    job: OpenVinoJob,
    random: Random,
) -> Comparison:
    """Round 0 is for comparing and not timed."""
    ours, theirs = base(0), other(0)
    rounds = []
    for number in range(1, job.rounds + 1):
        ways = {"base_s": base, "other_s": other, "control_s": base}
        names = random.sample(sorted(ways), len(ways))
        seconds = {}
        for name in names:
            begun = time.perf_counter()
            ways[name](number)
            seconds[name] = time.perf_counter() - begun
        rounds.append(Round(**seconds))
        sys.stdout.write("round\n")
        sys.stdout.flush()
    return Comparison(
        rounds=tuple(rounds), compared=len(ours), differences=differences(ours, theirs)
    )


def differences(ours: Sequence[Tokens], theirs: Sequence[Tokens]) -> tuple[Difference, ...]:
    """Each text that is not the same, and where it parts first."""
    found = []
    for number, (one, two) in enumerate(zip(ours, theirs, strict=True)):
        if one == two:
            continue
        pairs = zip(one, two, strict=False)
        at = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(two)))
        end = at + _SHOWN
        found.append(Difference(request=number, at=at, base=one[at:end], other=two[at:end]))
    return tuple(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
