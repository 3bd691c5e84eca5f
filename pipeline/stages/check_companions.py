"""Compare the files that lie beside a model with the checkpoint's: a right graph is no use without.

Ports: `companions`, the candidate's tokenizer, processor and configuration; `checkpoint`, the same of the
checkpoint; `samples`, whose texts are tokenised with both. A file that is missing is a note: many
ship a bare graph. One that is there and says something else is a difference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.stages.base import Footprint, Stage, StageConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext
    from pipeline.tasks import Task

COMPANIONS_PORT = "companions"
CHECKPOINT_PORT = "checkpoint"
SAMPLES_PORT = "samples"
MOST_TEXTS = 200
TEXTS = (
    "Hello, World! It's 9 o'clock.",
    "Äpfel, garçon, naïve café, straße",
    "ALL CAPS and lower case",
    "  two  spaces\tand\na line  ",
    "日本語のテキスト и немного русского",
    "e-mail: someone@example.org, https://example.org/?q=1&x=%20",
    "unbelievablyinterconnectedness 1234567890 3.14159",
    "😀 👩‍💻 — “quotes” … ½",
    "[MASK] <mask> [SEP] </s>",
    "a",
)
"""What tells tokenizers apart: case, accents, spaces, scripts, long words, special tokens as text."""

PICTURES = ((64, 48), (48, 96), (300, 200))
"""Width and height of made-up pictures: neither square nor of the model's own size."""
SAME_PIXELS = 1e-4
"""Largest difference of two pixels that are the same; a wrong mean moves them by hundredths at least."""
PROCESSOR_KEYS = (
    "image_mean",
    "image_std",
    "rescale_factor",
    "size",
    "crop_size",
    "resample",
    "do_resize",
    "do_rescale",
    "do_normalize",
    "do_center_crop",
    "do_convert_rgb",
)
CONFIG_KEYS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "type_vocab_size",
    "max_position_embeddings",
    "pad_token_id",
    "problem_type",
    "image_size",
    "num_channels",
)
"""Keys of `config.json` that software which runs the graph reads, or that say that it is of another
model."""


class CheckCompanionsConfig(StageConfig):
    """For which task."""

    task: str


def run(
    config: CheckCompanionsConfig,
    inputs: Mapping[str, Path],
    output: Path,
    context: StageContext,
) -> dict[str, JSON]:
    """Facts: for each part how much was compared and how much differs, with the first difference.

    Raises:
        StageError: the checkpoint's own files cannot be read.
    """
    from pipeline.tasks import find_task

    del output
    task = find_task(config.task)
    theirs, ours = inputs[COMPANIONS_PORT], inputs[CHECKPOINT_PORT]
    parts: list[JSON] = []
    notes: list[JSON] = []
    sources = (
        _compare_text(theirs, ours, inputs[SAMPLES_PORT], notes)
        if task.modality == "text"
        else _compare_pictures(theirs, ours, notes),
        _compare_config(theirs, ours, task, notes),
        _compare_pooling(theirs, ours, notes),
        _compare_endings(theirs, ours, notes) if task.has_cache else (),
    )
    for number, source in enumerate(sources, 1):
        parts += source
        context.progress(number, len(sources), "parts")
    return {"parts": parts, "warnings": notes}


def _part(name: str, compared: int, differences: list[str]) -> dict[str, JSON]:
    return {
        "part": name,
        "compared": compared,
        "different": len(differences),
        "first": differences[0] if differences else "",
    }


# --- tokenizer ------------------------------------------------------------------------------


def _compare_text(
    theirs: Path, ours: Path, samples: Path, notes: list[JSON]
) -> Iterator[dict[str, JSON]]:
    from pipeline.data.sample_set import load_samples
    from pipeline.data.tokenise import load_tokenizer
    from pipeline.errors import StageError
    from pipeline.file_names import TOKENIZER_VOCABULARIES

    if not any((theirs / name).is_file() for name in TOKENIZER_VOCABULARIES):
        notes.append("there is no tokenizer beside the candidate: its users need the checkpoint's")
        return
    taken = load_samples(samples)
    length = taken.index.max_length or 512
    right = load_tokenizer(ours, length)
    try:
        left = load_tokenizer(theirs, length)
    except StageError as error:
        yield _part("tokenizer", 1, [f"the candidate's cannot be read: {error.message}"])
        return
    texts = [*TEXTS, *(entry.text for entry in taken.entries[:MOST_TEXTS])]
    differences = []
    for text in texts:
        one, other = (each.encode(text)["input_ids"].tolist() for each in (left, right))
        if one != other:
            place = next(
                (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
                min(len(one), len(other)),
            )
            differences.append(
                f"{text[:40]!r} has {len(one)} tokens, {len(other)} with the checkpoint's, and "
                f"token {place} is {_at(one, place)}, not {_at(other, place)}"
            )
    yield _part("tokenizer", len(texts), differences)
    pads = left.padding["input_ids"], right.padding["input_ids"]
    if not differences and pads[0] != pads[1]:
        yield _part("padding", 1, [f"padding is token {pads[0]}, the checkpoint's is {pads[1]}"])
    _note_lengths(theirs, ours, notes)


def _at(tokens: list[int], place: int) -> str:
    return str(tokens[place]) if place < len(tokens) else "missing"


def _note_lengths(theirs: Path, ours: Path, notes: list[JSON]) -> None:
    for file, key in (
        ("tokenizer_config.json", "model_max_length"),
        ("sentence_bert_config.json", "max_seq_length"),
    ):
        one, other = (_read(folder / file).get(key) for folder in (theirs, ours))
        if one is not None and other is not None and one != other:
            notes.append(
                f"`{key}` of the candidate's {file} is {one}, the checkpoint's is {other}"
            )


# --- image processor ------------------------------------------------------------------------


def _compare_pictures(theirs: Path, ours: Path, notes: list[JSON]) -> Iterator[dict[str, JSON]]:
    import numpy as np

    from pipeline.data.image_size import read_processor
    from pipeline.data.prepare.images import load_processor
    from pipeline.errors import StageError
    from pipeline.file_names import PROCESSOR_FILES

    if not any((theirs / name).is_file() for name in PROCESSOR_FILES):
        notes.append(
            "there is no image processor beside the candidate: its users need the checkpoint's"
        )
        return
    right = load_processor(ours)
    try:
        left, settings = load_processor(theirs), (read_processor(theirs), read_processor(ours))
    except StageError as error:
        yield _part("processor", 1, [f"the candidate's cannot be used: {error.message}"])
        return
    changed = [
        f"{key} is {settings[0].get(key)}, not {settings[1].get(key)}"
        for key in PROCESSOR_KEYS
        if key in settings[0] and settings[0].get(key) != settings[1].get(key)
    ]
    why = f" ({'; '.join(changed)})" if changed else ""
    differences = []
    mode = "L" if _read(ours / "config.json").get("num_channels") == 1 else "RGB"
    for picture in _pictures(mode):
        one, other = (_pixels(each, picture) for each in (left, right))
        if one is None or other is None or one.shape != other.shape:
            shapes = [None if each is None else list(each.shape) for each in (one, other)]
            differences.append(f"pixels have shape {shapes[0]}, not {shapes[1]}{why}")
        elif (gap := float(np.abs(one - other).max())) > SAME_PIXELS:
            differences.append(f"pixels differ by up to {gap:.3g}{why}")
    yield _part("processor", len(PICTURES), differences)


def _pictures(mode: str) -> Iterator[Any]:
    """Seeded pictures with slopes of another steepness in each channel, and noise on them."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for width, height in PICTURES:
        x = np.linspace(0, 1, width)[None, :, None] * np.array([180.0, 60.0, 20.0])
        y = np.linspace(0, 1, height)[:, None, None] * np.array([20.0, 90.0, 160.0])
        noise = generator.uniform(0, 50, (height, width, 3))
        yield Image.fromarray((x + y + noise).clip(0, 255).astype(np.uint8)).convert(mode)


def _pixels(processor: Any, picture: Any) -> Any:
    import numpy as np

    try:
        return np.asarray(processor(picture, return_tensors="np")["pixel_values"], np.float64)
    except (ValueError, TypeError, KeyError):
        return None


# --- configuration --------------------------------------------------------------------------


def _compare_config(
    theirs: Path, ours: Path, task: Task, notes: list[JSON]
) -> Iterator[dict[str, JSON]]:
    if not (theirs / "config.json").is_file():
        notes.append("there is no config.json beside the candidate")
        return
    left, right = _read(theirs / "config.json"), _read(ours / "config.json")
    if not left:
        yield _part("config", 1, ["the candidate's config.json is no JSON object"])
        return
    keys = [key for key in CONFIG_KEYS if left.get(key) is not None and right.get(key) is not None]
    yield _part(
        "config",
        len(keys),
        [
            f"`{key}` is {left[key]!r:.60}, the checkpoint's is {right[key]!r:.60}"
            for key in keys
            if left[key] != right[key]
        ],
    )
    if task.answer not in {"class", "token_classes"}:
        return
    names, classes = _classes(left), _classes(right)
    if classes and not names:
        notes.append("the candidate's config.json does not name its classes")
    elif classes:
        yield _part("labels", len(classes), _label_differences(left, names, classes))


def _classes(config: Mapping[str, Any]) -> dict[str, str]:
    names = config.get("id2label")
    return {str(key): str(name) for key, name in names.items()} if isinstance(names, dict) else {}


def _label_differences(
    config: Mapping[str, Any], names: Mapping[str, str], classes: Mapping[str, str]
) -> list[str]:
    found = []
    if len(names) != len(classes):
        found.append(f"there are {len(names)} classes, the checkpoint has {len(classes)}")
    found += [
        f"class {key} is {names[key]!r:.40}, the checkpoint's is {name!r:.40}"
        for key, name in classes.items()
        if key in names and names[key] != name
    ]
    numbers = config.get("label2id")
    if isinstance(numbers, dict) and not found:
        found += [
            f"`label2id` says {name!r:.40} is {number}, and `id2label` says otherwise"
            for name, number in numbers.items()
            if classes.get(str(number)) != str(name)
        ]
    return found


# --- endings --------------------------------------------------------------------------------


def _compare_endings(theirs: Path, ours: Path, notes: list[JSON]) -> Iterator[dict[str, JSON]]:
    """The tokens that end a text: a runtime that waits for another one goes on writing."""
    from pipeline.file_names import GENAI_CONFIG

    own = _read(ours / "generation_config.json").get("eos_token_id")
    right = _tokens(_read(ours / "config.json").get("eos_token_id") if own is None else own)
    found = {
        GENAI_CONFIG: _read(theirs / GENAI_CONFIG).get("model"),
        "generation_config.json": _read(theirs / "generation_config.json"),
        "config.json": _read(theirs / "config.json"),
    }
    said = {
        name: _tokens(config["eos_token_id"])
        for name, config in found.items()
        if isinstance(config, dict) and config.get("eos_token_id") is not None
    }
    if "generation_config.json" in said:
        said.pop("config.json", None)  # nobody asks it then
    if not right:
        return
    if not said:
        notes.append("nothing beside the candidate says which tokens end a text (eos_token_id)")
        return
    yield _part(
        "ending",
        len(said),
        [
            f"a text ends with token {_listed(tokens)} in {name}, the checkpoint's with {_listed(right)}"
            for name, tokens in said.items()
            if tokens != right
        ],
    )


def _tokens(value: Any) -> frozenset[int]:
    values = value if isinstance(value, list) else [value]
    return frozenset(token for token in values if isinstance(token, int))


def _listed(tokens: frozenset[int]) -> str:
    return " or ".join(map(str, sorted(tokens))) or "none"


# --- pooling --------------------------------------------------------------------------------


def _compare_pooling(theirs: Path, ours: Path, notes: list[JSON]) -> Iterator[dict[str, JSON]]:
    if not (ours / "modules.json").is_file():
        return
    if not (theirs / "modules.json").is_file():
        notes.append(
            "nothing beside the candidate says how tokens become a sentence's vector (modules.json)"
        )
        return
    if not any(theirs.glob("[0-9]_*/config.json")):
        notes.append("the candidate's modules.json names a pooling whose own folder is not there")
        return
    from pipeline.errors import ExportError
    from pipeline.runtimes.sentence_pooling import load_sentence_pooling

    right = load_sentence_pooling(ours)
    assert right is not None
    try:
        left = load_sentence_pooling(theirs)
    except ExportError as error:
        yield _part("pooling", 2, [f"the candidate's cannot be read: {error.message}"])
        return
    assert left is not None
    found = []
    if left.modes != right.modes:
        found.append(
            f"pooling is {'+'.join(left.modes)}, the checkpoint's is {'+'.join(right.modes)}"
        )
    if left.is_normalized != right.is_normalized:
        said = "are brought to length 1" if left.is_normalized else "are not brought to length 1"
        found.append(f"vectors {said}, the checkpoint does otherwise")
    yield _part("pooling", 2, found)


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty when there is none."""
    import json

    try:
        value = json.loads(path.read_bytes()) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


CHECK_COMPANIONS = Stage(
    name="check_companions",
    version=2,
    footprint=Footprint(base_mib=300),
    config_type=CheckCompanionsConfig,
    run=run,
    packages=("numpy", "tokenizers", "transformers"),
    # Vocabularies without tokenizer.json are read with the last two; torch for the pooling.
    optional_packages=("pillow", "sentencepiece", "tiktoken", "torch"),
)
"""Ports `companions`, `checkpoint` and `samples` -> facts only."""
