"""Rounds of OpenVINO GenAI -> figures with intervals, a control and the formulas. Pure."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Final

from pipeline.bench.statistics import log_mean_interval, noise_floor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.bench.openvino_job import Comparison, OpenVinoRecord
    from pipeline.hashing import JSON

OPENVINO_FORMULAS: Final[Mapping[str, str]] = {
    "static_tokens_per_s": "new tokens that were asked for / time in which static batches write them; "
    "what a batch writes until its longest text is done does not count",
    "continuous_tokens_per_s": "the same tokens / time in which continuous batching writes them",
    "throughput_ratio": "time of static batches / time of continuous batching, geometric mean over rounds",
    "one_batch_ratio": "the same against one static batch of all requests, so that as many run together; "
    "it costs the most memory and the longest wait",
    "ttft_ms": "time to the first token of one question behind the shared prefix, the cache off",
    "cached_ttft_ms": "the same with the prefix cache on, once the prefix is in it",
    "prefix_speedup": "time of all first tokens, cache off / cache on, geometric mean over rounds",
    "acceptance_rate": "tokens of the draft that the model accepted / those that it accepted or rejected",
    "draft_speedup": "time of the model alone / time with its draft, one text at a time, geometric mean "
    "over rounds",
    "noise_floor": "how far from 1 the same ratio comes out for the first way against itself",
}
"""Name -> formula. Ratios have 95 % intervals over rounds (Student's t on logarithms). Acceptance is that of
Leviathan et al., Fast Inference from Transformers via Speculative Decoding, 2023, counted token by token.
"""


def summarize_openvino(
    record: OpenVinoRecord, *, new_tokens: int, questions: int
) -> dict[str, JSON]:
    """What the record says.

    Args:
        record: Of a launch with two rounds or more.
        new_tokens: That all requests ask for together.
        questions: That share the prefix, of each round.
    """
    batching, prefix = record.batching, record.prefix
    found: dict[str, JSON] = {
        "version": record.version,
        "load_s": record.load_s,
        "peak_rss_mib": record.peak_rss_mib,
        "batching": {
            "static_tokens_per_s": new_tokens / median(each.base_s for each in batching.rounds),
            "continuous_tokens_per_s": new_tokens
            / median(each.other_s for each in batching.rounds),
            "throughput_ratio": _ratio(batching),
            **_tokens(batching),
        },
        "one_batch": {"one_batch_ratio": _ratio(record.one_batch), **_tokens(record.one_batch)},
        "prefix": {
            "ttft_ms": median(each.base_s for each in prefix.rounds) / questions * 1e3,
            "cached_ttft_ms": median(each.other_s for each in prefix.rounds) / questions * 1e3,
            "prefix_speedup": _ratio(prefix),
            **_tokens(prefix),
        },
        "speculative": None,
    }
    if record.speculative is not None:
        found["speculative"] = {
            "drafted": record.drafted,
            "accepted": record.accepted,
            "acceptance_rate": record.accepted / record.drafted if record.drafted else 0.0,
            "draft_speedup": _ratio(record.speculative),
            **_tokens(record.speculative),
        }
    return found


def _ratio(comparison: Comparison) -> dict[str, JSON]:
    value, interval = log_mean_interval([each.base_s / each.other_s for each in comparison.rounds])
    control = [each.base_s / each.control_s for each in comparison.rounds]
    return {
        "value": value,
        "low": interval.low,
        "high": interval.high,
        "noise_floor": noise_floor(control),
        "rounds": [each.model_dump() for each in comparison.rounds],
    }


def _tokens(comparison: Comparison) -> dict[str, JSON]:
    return {
        "compared": comparison.compared,
        "differences": [each.model_dump(mode="json") for each in comparison.differences],
    }
