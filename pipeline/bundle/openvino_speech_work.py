"""Converts a Whisper with OpenVINO and writes down sounds with OpenVINO GenAI; see `consumer.py`.

GenAI makes its spectrograms itself, so sounds are given as samples, and our own loop hears them through
the checkpoint's feature extractor.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.bundle.openvino_speech import DETECTED
from pipeline.bundle.same_tokens import FAR_ELSE, NEAR_TIE, PROMPTS, TOKENS, first_difference
from pipeline.data.prepare.sounds import FEATURES, load_extractor
from pipeline.errors import ArtifactError
from pipeline.runtimes.openvino_conversion import EXACT, convert_tokenizer, first_line
from pipeline.runtimes.openvino_pair import convert_pair

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pipeline.runtimes.generation import Generation
    from pipeline.runtimes.seq2seq import SourcedDecoder

    Sound = NDArray[np.float32]

_PITCHES: Final = (110.0, 523.0, 1865.0)
_LOUDNESS: Final = 0.3


def run(question: dict[str, Any]) -> dict[str, Any]:
    """Convert and try.

    Returns:
        `told` and `notes`, or `problem`.
    """
    folder = Path(question["folder"])
    try:
        convert_pair(Path(question["encoder"]), Path(question["decoder"]), folder)
    except (RuntimeError, ArtifactError) as err:
        return {"problem": f"it cannot convert the graphs: {first_line(err)}"}
    try:
        convert_tokenizer(folder)
    except (RuntimeError, ValueError, TypeError, AttributeError) as err:
        return {"problem": f"it cannot convert the tokenizer: {first_line(err)}"}
    return try_speech(question)


def try_speech(question: Mapping[str, Any]) -> dict[str, Any]:
    """Write down sounds with what lies in a folder, and with the artifact's graphs.

    Texts are continued behind their end, as untrained and noisy ones end soon. Only tokens that the
    checkpoint suppresses are left out; other rules are switched off in both.

    Args:
        question: `encoder`, `decoder`: the artifact's graphs. `folder`. `positions`, `pad`, `stops`,
            `suppress_tokens`, `begin_suppress_tokens`, `precision`. `start`, `languages`, `language`
            and `task`, as of `SpeechStart`.

    Returns:
        As `run`.
    """
    import openvino_genai

    folder = Path(question["folder"])
    extractor = load_extractor(folder)
    sounds = make_sounds(int(extractor.n_samples), int(extractor.sampling_rate))
    length = min(TOKENS, question["positions"] - len(question["start"]))
    try:
        texts, heard, stops = _write_down(folder, sounds, question, length)
    except RuntimeError as err:
        return {"problem": f"it cannot generate: {first_line(err)}"}
    if stops != set(question["stops"]):
        return {"problem": f"it ends texts with {sorted(stops)}, not with {question['stops']}"}
    spectrograms = [
        np.asarray(
            extractor(sound, sampling_rate=extractor.sampling_rate, return_tensors="np")[FEATURES],
            np.float32,
        )
        for sound in sounds
    ]
    own = _own_texts(question, spectrograms, heard, length)
    problem = (
        own if isinstance(own, str) else first_difference(own, texts, (), near=_near(question))
    )
    if problem:
        return {"problem": problem}
    version = openvino_genai.__version__.split("-")[0]
    return {
        "told": f"openvino-genai {version}: the same {length} tokens from {len(sounds)} sounds",
        "notes": [],
    }


def make_sounds(samples: int, rate: int) -> list[Sound]:
    """Tones with noise within [-1, 1], float32, the same ones every time.

    Args:
        samples: What the model hears at most; the last sound is as long.
        rate: Samples a second.
    """
    generator = np.random.default_rng(0)
    sounds = []
    for number in range(PROMPTS):
        time = np.arange(samples * (number + 1) // PROMPTS) / rate
        tone = np.sin(2 * np.pi * _PITCHES[number] * time) * np.cos(2 * np.pi * 1.7 * time)
        noise = generator.standard_normal(len(time)) * 0.2
        sounds.append((_LOUDNESS * (tone + noise)).clip(-1, 1).astype(np.float32))
    return sounds


def _write_down(
    folder: Path, sounds: list[Sound], question: Mapping[str, Any], length: int
) -> tuple[list[list[int]], list[str], set[int]]:
    """GenAI's new tokens, the languages that it hears, and the tokens that end its texts."""
    import openvino_genai

    class Collector(openvino_genai.StreamerBase):  # type: ignore[misc]  # it has no types
        def __init__(self) -> None:
            super().__init__()
            self.tokens: list[int] = []

        def write(self, token: Any) -> Any:
            self.tokens += [int(one) for one in token] if hasattr(token, "__len__") else [token]
            return openvino_genai.StreamingStatus.RUNNING

        def end(self) -> None:
            pass

    pipeline = openvino_genai.WhisperPipeline(folder, "CPU", **EXACT)
    config = _configure(pipeline, question, length)
    texts, heard = [], []
    for sound in sounds:
        collector = Collector()
        heard.append(str(pipeline.generate(sound.tolist(), config, collector).language))
        texts.append(collector.tokens)
    return texts, heard, {int(token) for token in config.stop_token_ids}


def _configure(pipeline: Any, question: Mapping[str, Any], length: int) -> Any:
    config = pipeline.get_generation_config()
    config.max_new_tokens, config.ignore_eos = length, True
    config.do_sample, config.num_beams = False, 1
    config.repetition_penalty, config.min_new_tokens = 1.0, 0
    if question["language"] is not None:
        config.language = question["language"]
    if question["task"] is not None and question["languages"]:
        config.task = question["task"]
    return config


def _own_texts(
    question: Mapping[str, Any], spectrograms: list[Sound], heard: list[str], length: int
) -> list[Generation] | str:
    """What our own loop makes of the artifact's graphs, or why it hears another language."""
    from pipeline.runtimes.generation import GenerationOptions, generate
    from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner
    from pipeline.runtimes.seq2seq import SourcedDecoder
    from pipeline.runtimes.token_rules import TokenRules

    options = GenerationOptions(
        tokens=length,
        pad=question["pad"],
        keeps_logits=True,
        rules=TokenRules(
            suppress=tuple(question["suppress_tokens"]),
            begin_suppress=tuple(question["begin_suppress_tokens"]),
        ),
    )
    texts = []
    with (
        OnnxRuntimeRunner(Path(question["encoder"]), threads=1) as encoder,
        OnnxRuntimeRunner(Path(question["decoder"]), threads=1) as decoder,
    ):
        for spectrogram, language in zip(spectrograms, heard, strict=True):
            bound = SourcedDecoder(encoder, decoder, {FEATURES: spectrogram})
            start = list(question["start"])
            if DETECTED in start:
                found, problem = _detected(bound, question, language)
                if problem:
                    return problem
                start[start.index(DETECTED)] = found
            texts.append(generate(bound, [start], options))
    return texts


def _detected(
    bound: SourcedDecoder, question: Mapping[str, Any], language: str
) -> tuple[int, str]:
    """The token of the language that GenAI hears, and what is wrong when ours hears another."""
    from pipeline.runtimes.generation import GenerationOptions, generate

    languages: dict[str, int] = question["languages"]
    theirs = next((token for name, token in languages.items() if _bare(name) == language), None)
    if theirs is None:
        return 0, f"it hears the language {language!r}, which the checkpoint does not name"
    options = GenerationOptions(tokens=1, pad=question["pad"], keeps_logits=True)
    logits = generate(bound, [[question["start"][0]]], options).logits[0][0]
    ours = max(languages.values(), key=lambda token: float(logits[token]))
    margin = float(logits[ours] - logits[theirs]) / float(np.abs(logits).max())
    if margin > _near(question):
        return 0, f"it hears the language of token {theirs}, and ours is {ours}"
    return theirs, ""


def _near(question: Mapping[str, Any]) -> float:
    """Margin of a tie.

    GenAI's spectrograms are sums in another order too, so values of 8 bits and of fp16 fall to the other
    side of a rounding.
    """
    return NEAR_TIE if question["precision"] == "fp32" else FAR_ELSE


def _bare(name: str) -> str:
    return name.strip("<|>")


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))  # noqa: T201 - the answer
