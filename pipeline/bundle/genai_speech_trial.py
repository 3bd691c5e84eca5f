"""Writes down noise with GenAI's Whisper and with our own loop, and compares; see `consumer.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.bundle.genai_speech import FILES
from pipeline.bundle.generation_settings import GenerationSettings
from pipeline.bundle.pairs import make_trial
from pipeline.bundle.same_tokens import first_difference
from pipeline.tasks import DECODER, ENCODER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.bundle.pairs import PairTrial


def run(question: Mapping[str, Any]) -> dict[str, Any]:
    """Try one bundle.

    Args:
        question: `folder`, and in `settings` the fields of `GenerationSettings`.

    Returns:
        `told` and `notes`, or `problem`.
    """
    import onnxruntime_genai as og

    folder, settings = Path(question["folder"]), question["settings"]
    known = GenerationSettings(**{**settings, "stops": tuple(settings["stops"])})
    trial = make_trial(folder / FILES[ENCODER], folder / FILES[DECODER], known)
    try:
        model = og.Model(str(folder))
        og.Tokenizer(model)
        theirs = [_write_down(og, model, source, trial) for source in trial.sources]
    except RuntimeError as err:
        return {"problem": f"it cannot load the bundle or generate: {err}"}
    problem = first_difference(trial.own, theirs, trial.stops)
    if problem:
        return {"problem": problem}
    told = (
        f"onnxruntime-genai {og.__version__}: the same {trial.length} tokens from "
        f"{len(trial.sources)} sounds"
    )
    return {"told": told, "notes": []}


def _write_down(og: Any, model: Any, source: Mapping[str, Any], trial: PairTrial) -> list[int]:
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(
        max_length=1 + trial.length, do_sample=False, num_beams=1, repetition_penalty=1.0
    )
    generator = og.Generator(model, parameters)
    tensors = og.NamedTensors()
    for name, array in source.items():
        tensors[name] = array
    generator.set_inputs(tensors)
    generator.append_tokens(np.array([[trial.starts]], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)[1:]]


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))  # noqa: T201 - the answer
