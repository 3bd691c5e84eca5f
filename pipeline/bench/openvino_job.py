"""What a process that measures OpenVINO GenAI is told, and what it answers: records that travel as JSON."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

Tokens = tuple[int, ...]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OpenVinoJob(_Frozen):
    """What is measured; see `pipeline.bench.openvino_launch`.

    Attributes:
        model: Folder of the model as IR, with its tokenizer.
        draft: The same of a draft; None for none.
        threads: Of OpenVINO.
        rounds: How often each is timed, after once that is not.
        prompts: Tokens of each request.
        lengths: New tokens of each request.
        batch: Requests of one static batch.
        pad: What fills up shorter prompts of a static batch.
        prefix: What all questions begin with.
        tails: Of each round, and one round more that is for comparing, what follows it in each question.
        assistant_tokens: How many tokens the draft proposes at a time.
        cache_gib: Size of the cache of blocks.
        seed: Of the orders within rounds.
    """

    model: str
    draft: str | None
    threads: int
    rounds: int
    prompts: tuple[Tokens, ...]
    lengths: tuple[int, ...]
    batch: int
    pad: int
    prefix: Tokens
    tails: tuple[tuple[Tokens, ...], ...]
    assistant_tokens: int
    cache_gib: int
    seed: int


class Round(_Frozen):
    """Seconds of the same work in two ways, and of the first way once more.

    Attributes:
        base_s: The way that the other is held against.
        other_s: The other.
        control_s: The first way again.
    """

    base_s: float
    other_s: float
    control_s: float


class Difference(_Frozen):
    """Where two ways to write one text part.

    Attributes:
        request: Which text.
        at: Number of the first new token that differs.
        base: Tokens of the one way from there, a few.
        other: Of the other.
    """

    request: int
    at: int
    base: Tokens
    other: Tokens


class Comparison(_Frozen):
    """Two ways to do the same work."""

    rounds: tuple[Round, ...]
    compared: int
    differences: tuple[Difference, ...]


class OpenVinoRecord(_Frozen):
    """What came of it.

    Attributes:
        version: Of OpenVINO GenAI.
        load_s: Until the pipeline with paged attention is ready.
        batching: Base is static batches, other is continuous batching, which takes all requests at once.
        one_batch: The same with all requests as one static batch, so that as many run together.
        prefix: Base is without, other is with a prefix cache, each for the first token of all questions.
        speculative: Base is the model alone, other is with its draft; None without a draft.
        drafted: Tokens of the draft that the model accepted or rejected, in the requests that were compared.
        accepted: Those that the model took.
        peak_rss_mib: None where the system does not tell it.
    """

    version: str
    load_s: float
    batching: Comparison
    one_batch: Comparison
    prefix: Comparison
    speculative: Comparison | None
    drafted: int
    accepted: int
    peak_rss_mib: float | None


class OpenVinoAnswer(_Frozen):
    """The record, or why there is none."""

    record: OpenVinoRecord | None = None
    problem: str = ""
