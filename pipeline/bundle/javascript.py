"""What was written for transformers.js is loaded by it in Node, and must compute what our graph does."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.bundle.genai_trial import TEXT
from pipeline.bundle.generation_settings import read_generation_settings
from pipeline.bundle.same_tokens import (
    FAR,
    FAR_ELSE,
    TOKENS,
    first_difference,
    own_tokens,
    prompts_of,
)
from pipeline.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.bundle.graphs import GraphTarget
    from pipeline.bundle.pairs import PairTrial
    from pipeline.tasks import Task

SCRIPT: Final = Path(__file__).with_name("trial.mjs")
_PACKAGE: Final = "@huggingface/transformers"
_TIME_S: Final = 600.0


def find_transformers_js(packages: Path | None) -> Path | None:
    """The directory of the installed package; None without Node or without it."""
    if packages is None or shutil.which("node") is None:
        return None
    for folder in (packages.absolute(), *packages.absolute().parents):
        found = folder / "node_modules" / _PACKAGE
        if (found / "package.json").is_file():
            return found
    return None


def try_in_node(
    library: Path,
    task: Task,
    chosen: Mapping[str, GraphTarget],
    folder: Path,
    pairs: Mapping[str, PairTrial] = MappingProxyType({}),
) -> dict[str, str]:
    """Compare what transformers.js makes of a folder with what we make of the graphs in the artifact.

    Args:
        library: The installed package.
        task: Of the artifact.
        chosen: Targets by `dtype`.
        folder: What was written.
        pairs: For encoders with decoders what must come of them, by `dtype`.

    Returns:
        For each `dtype` that was tried what came of it, a sentence.

    Raises:
        ArtifactError: it cannot load one, or computes something else.
    """
    if task.modality == "image" or task.answer == "choice":
        return {}
    first = next(iter(chosen.values()))
    question: dict[str, Any] = {
        "library": str(library),
        "auto_class": task.auto_class,
        "dtypes": list(chosen),
        "text": TEXT,
        "outputs": [tensor.name for tensor in first.graph.outputs],
    }
    if pairs:
        question["pairs"] = {dtype: _asked(pair) for dtype, pair in pairs.items()}
    elif task.has_cache:
        settings = read_generation_settings(first)
        prompts = prompts_of(settings.vocabulary, settings.positions)
        length = min(TOKENS, settings.positions - max(map(len, prompts)))
        question |= {"prompts": prompts, "length": length}
    # transformers.js takes names of the hub only, and none that begins with a dot, as a draft's does.
    with tempfile.TemporaryDirectory(prefix="convert-") as parent:
        link = Path(parent) / "model"
        link.symlink_to(folder.absolute(), target_is_directory=True)
        answer = _ask(question | {"folder": str(link)})
    ids = _own_ids(folder)
    if answer["ids"] != ids:
        raise ArtifactError(
            f"transformers.js makes other tokens of {TEXT!r}: {answer['ids']} instead of {ids}"
        )
    version = f"transformers.js {answer['version']}"
    told = {}
    for dtype, target in chosen.items():
        made = answer["made"][dtype]
        graph = target.folder / "model.onnx"
        if pairs:
            problem = first_difference(pairs[dtype].own, made, pairs[dtype].stops)
            told[dtype] = f"{version}: the same tokens from {len(made)} sources"
        elif task.has_cache:
            own = own_tokens(graph, prompts, length, settings.stops, settings.pad)
            problem = first_difference(own, made, settings.stops)
            told[dtype] = f"{version}: the same {length} tokens after {len(prompts)} prompts"
        else:
            distance = _distance(graph, ids, made)
            problem = (
                f"its outputs are {distance:.2g} of their size away from ours"
                if not distance <= FAR.get(dtype, FAR_ELSE)
                else ""
            )
            told[dtype] = f"{version}: outputs differ by {distance:.1g} of their size"
        if problem:
            raise ArtifactError(f"transformers.js, dtype {dtype}: {problem}", where=target.name)
    return told


def _asked(pair: PairTrial) -> dict[str, Any]:
    """Arrays as shapes with numbers."""
    return {
        "starts": pair.starts,
        "length": pair.length,
        "sources": [
            {
                name: {
                    "type": str(array.dtype),
                    "dims": list(array.shape),
                    "data": array.ravel().tolist(),
                }
                for name, array in source.items()
            }
            for source in pair.sources
        ],
    }


def _ask(question: dict[str, Any]) -> dict[str, Any]:
    try:
        done = subprocess.run(  # noqa: S603 - our own script
            [shutil.which("node") or "node", str(SCRIPT)],
            input=json.dumps(question),
            capture_output=True,
            text=True,
            timeout=_TIME_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ArtifactError(f"transformers.js was not done after {_TIME_S:g} s") from error
    try:
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError) as error:
        told = [line for line in done.stderr.splitlines() if "Error" in line][-1:]
        raise ArtifactError(
            f"transformers.js cannot load it: {told[0].strip() if told else 'it said nothing'}"
        ) from error
    if "problem" in answer:
        raise ArtifactError(f"transformers.js cannot load it: {answer['problem']}")
    return answer


def _own_ids(folder: Path) -> list[int]:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids: list[int] = tokenizer.encode(TEXT).ids
    return ids


def _distance(graph: Path, ids: list[int], made: Mapping[str, list[float]]) -> float:
    """The largest of all outputs: RMS of the difference over RMS of ours."""
    from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner

    feed = {
        "input_ids": np.array([ids], np.int64),
        "attention_mask": np.ones((1, len(ids)), np.int64),
        "token_type_ids": np.zeros((1, len(ids)), np.int64),
    }
    with OnnxRuntimeRunner(graph, threads=1) as runner:
        taken = {spec.name for spec in runner.inputs}
        own = runner.run({name: value for name, value in feed.items() if name in taken})
    found = []
    for name, array in own.items():
        theirs = np.array(made[name], np.float64)
        if theirs.size != array.size:
            return float("inf")
        size = float(np.sqrt(np.mean(np.square(array, dtype=np.float64)))) or 1.0
        found.append(float(np.sqrt(np.mean((theirs - array.ravel()) ** 2))) / size)
    return max(found)
