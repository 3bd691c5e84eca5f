"""What the checks of generation say of themselves in facts: noises, divergence, where choices part."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.data.reference_set import ReferenceSet
    from pipeline.data.sample_set import SampleSet
    from pipeline.hashing import JSON
    from pipeline.parity.decoding import Manner, Record
    from pipeline.parity.generation import Divergence
    from pipeline.runtimes.decoder import Decoder

PAST, PRESENT = "past_key_values", "present"


class Prefill:
    """Every sample read whole, against what the checkpoint made of it.

    Args:
        decoder: The graph; None when each sample brings its own.
        samples: All samples.
        reference: Their logits, and the tensors of the cache when they were kept.
        outputs: Those of them that are compared; None: all that there are.
    """

    def __init__(
        self,
        decoder: Decoder | None,
        samples: SampleSet,
        reference: ReferenceSet,
        outputs: Sequence[str] | None = None,
    ) -> None:
        from pipeline.parity.decoding import Record

        self._decoder = decoder
        self._samples = samples
        self._reference = reference
        self._names = tuple(
            name for name in reference.index.outputs if outputs is None or name in outputs
        )
        self._divergences: dict[int, Divergence] = {}
        self._worst: dict[int, int] = {}
        self._errors: dict[str, list[float]] = {}
        self._squares: dict[str, list[tuple[float, int]]] = {}
        self._logits = Record(case="prefill", output="logits", against="torch")
        self._cache = Record(case="prefill", output="cache", against="torch")
        self.vocabulary = 0

    def add(self, index: int, decoder: Decoder | None = None) -> None:
        """Run one sample.

        Args:
            index: Which.
            decoder: What it is run by where each sample has its own, as behind an encoder.
        """
        import numpy as np

        from pipeline.errors import PipelineError
        from pipeline.parity.generation import compare_logits, noise, worst_position
        from pipeline.runtimes.generation import prefill

        tokens = tokens_of(self._samples, index)
        decoder = decoder or self._decoder
        assert decoder is not None
        try:
            logits, cache = prefill(
                decoder, tokens[None], np.ones_like(tokens)[None], keeps_all=True
            )
        except PipelineError as error:
            self._logits.problem = self._logits.problem or f"sample {index}: {error.message}"
            return
        read = self._reference.read([index], self._names)
        expected = {name: found[0] for name, found in read.items()}
        made = {
            name.replace(PAST, PRESENT): array[0] for name, array in decoder.read(cache).items()
        }
        made["logits"] = logits[0]
        absent = [f"`{name}`" for name in expected if name not in made]
        if absent:
            self._logits.problem = f"the checkpoint has outputs that it lacks: {', '.join(absent)}"
            return
        for name, array in expected.items():
            self._errors.setdefault(name, []).append(noise(made[name], array, 1.0))
            size = float(np.square(array, dtype=np.float64).sum())
            self._squares.setdefault(name, []).append((size, array.size))
        self._logits.samples.append(index)
        self.vocabulary = logits.shape[-1]
        if logits[0].shape == expected["logits"].shape and np.isfinite(logits).all():
            self._divergences[index] = compare_logits(logits[0], expected["logits"], tokens)
            self._worst[index] = worst_position(logits[0], expected["logits"])
        elif logits[0].shape != expected["logits"].shape:
            shapes = f"{list(logits[0].shape)} where it must be {list(expected['logits'].shape)}"
            self._logits.problem = f"logits of sample {index} have shape {shapes}"
        else:
            self._logits.problem = (
                f"logits of sample {index} have elements that are NaN or infinite"
            )

    @property
    def unit(self) -> float:
        """Root mean square of the checkpoint's logits, all samples together."""
        return self._unit("logits")

    def _unit(self, name: str) -> float:
        squares = self._squares.get(name, [])
        elements = sum(size for _, size in squares)
        return (sum(square for square, _ in squares) / elements) ** 0.5 if elements else 0.0

    @property
    def records(self) -> tuple[Record, ...]:
        """Of the logits, and of the cache when the reference has it."""
        self._logits.noises = [
            error / (self.unit or 1.0) for error in self._errors.get("logits", [])
        ]
        worst = [(0.0, "")] * len(self._logits.noises)
        cached = [name for name in self._errors if name != "logits"]
        for name in cached:
            unit = self._unit(name) or 1.0
            worst = [
                max(pair, (error / unit, name.replace(PRESENT, PAST)))
                for pair, error in zip(worst, self._errors[name], strict=True)
            ]
        if not cached:
            return (self._logits,)
        self._cache.samples = self._logits.samples
        self._cache.noises = [value for value, _ in worst]
        self._cache.tensor = max(worst, default=(0.0, ""))[1]
        return (self._logits, self._cache)

    def facts(self) -> dict[str, JSON]:
        """Divergence, agreement and perplexity; empty when nothing could be compared."""
        import numpy as np

        from pipeline.parity.generation import perplexity

        if not self._divergences:
            return {"divergence": None, "perplexity": None}
        texts = list(self._divergences.values())
        kl = np.concatenate([text.kl for text in texts])
        places = [
            (index, at) for index, text in self._divergences.items() for at in range(len(text.kl))
        ]
        margins = np.concatenate([text.margins for text in texts])
        disagreed = ~np.concatenate([text.top1 for text in texts])
        worst, widest = places[int(kl.argmax())], places[int(margins.argmax())]
        found = perplexity(texts)
        errors = self._logits.noises
        farthest = self._logits.samples[errors.index(max(errors))]
        return {
            "divergence": {
                "positions": len(kl),
                "kl_mean": float(kl.mean()),
                "kl_max": float(kl.max()),
                "kl_at": {"sample": worst[0], "position": worst[1]},
                "noise_at": {"sample": farthest, "position": self._worst.get(farthest, 0)},
                "top1": 1.0 - float(disagreed.mean()),
                "top5": float(np.concatenate([text.top5 for text in texts]).mean()),
                "margin_max": float(margins.max()),
                "margin_at": {"sample": widest[0], "position": widest[1]},
            },
            "perplexity": None
            if found is None
            else {
                "reference": found.reference,
                "candidate": found.candidate,
                "ratio": found.ratio,
                "interval": [found.low, found.high],
                "tokens": found.tokens,
            },
        }


def parting(logits: NDArray[np.float32], tokens: NDArray[np.int64]) -> dict[str, JSON]:
    """How many tokens are those of the logits, and by how much the first other one is less likely."""
    import numpy as np

    wanted = logits.argmax(axis=-1)
    differing = np.flatnonzero(wanted != tokens)
    found: dict[str, JSON] = {"tokens": len(tokens)}
    if not differing.size:
        return found | {"agreed": len(tokens), "margin": None}
    at = int(differing[0])
    margin = float(logits[at, wanted[at]]) - float(logits[at, tokens[at]])
    return found | {
        "agreed": at,
        "token": int(tokens[at]),
        "expected": int(wanted[at]),
        "margin": margin,
    }


def record_fact(record: Record, *, is_exact: bool) -> dict[str, JSON]:
    """A record as JSON; `is_exact`: nothing in the graph rounds but sums."""
    from pipeline.parity.decoding import finite

    return {
        "case": record.case,
        "output": record.output,
        "against": record.against,
        "noises": [finite(value) for value in record.noises],
        "samples": list(record.samples),
        "tensor": record.tensor,
        "problem": record.problem,
        "is_exact": is_exact,
    }


def not_asked(manner: Manner) -> list[JSON]:
    """Cases that make no sense for a graph, each with the reason."""
    absent: list[JSON] = []
    if not manner.has_cache:
        why = "the graph keeps no keys and values"
        absent += [{"case": case, "reason": why} for case in ("chunked", "reordered")]
    if not manner.pads_left:
        why = "GroupQueryAttention counts the tokens of a text, and takes padding behind them only"
        instead = {
            "left_padded": "texts of one length were read together instead",
            "masks": "probes with padding in front, or holes in the mask, were left out",
        }
        absent += [{"case": case, "reason": f"{why}; {what}"} for case, what in instead.items()]
    return absent


def tokens_of(samples: SampleSet, index: int) -> NDArray[np.int64]:
    """The tokens of a sample, without padding."""
    (sample,) = samples.read([index])
    found: NDArray[np.int64] = sample["input_ids"]
    return found
