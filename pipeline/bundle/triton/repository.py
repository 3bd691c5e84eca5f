"""Writes a model repository, checks it, and puts it in its place whole or not at all."""

from __future__ import annotations

import json
import re
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pipeline.bundle.placing import placed_whole
from pipeline.bundle.triton.configs import (
    Batching,
    ensemble_config,
    model_config,
    tokenizer_config,
    warm_up_file,
    warm_up_shape,
)
from pipeline.bundle.triton.plan import (
    DEFAULT_DELAY_US,
    is_of_engines_alone,
    plan_file,
    plan_models,
    text_names,
    tokenizer_trouble,
)
from pipeline.bundle.triton.rules import CONFIG_FILE, WARM_UP_FOLDER, repository_problems
from pipeline.bundle.triton.source import MODEL_FILE, read_artifact
from pipeline.bundle.triton.text import write_message
from pipeline.bundle.written import Export
from pipeline.errors import ArtifactError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.bundle.triton.plan import PlannedModel
    from pipeline.bundle.triton.source import ArtifactSource, TargetSource
    from pipeline.bundle.triton.text import Message

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VERSION: Final = "1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One model of the repository that was written."""

    name: str
    backend: str
    target: str


def export_triton(
    artifact: Path,
    directory: Path,
    *,
    targets: Sequence[str] = (),
    name: str | None = None,
    replace: bool = False,
) -> Export[ServedModel]:
    """Make a model repository from an artifact.

    Args:
        artifact: Its directory; it is verified first.
        directory: The repository; nothing may be there yet.
        targets: Which to serve; empty for all.
        name: What the models' names begin with; None for the artifact's.
        replace: A repository that is there already gives way. Nothing else does.

    Raises:
        RecipeError: the artifact failed, there is no such target, the name cannot be one, or
            something is in the way.
        ArtifactError: the artifact is damaged, or the repository would not load.
    """
    if name is not None and not _NAME.fullmatch(name):
        raise RecipeError(f"`{name}` cannot be the name of a model: {_NAME.pattern}")
    with placed_whole(
        directory,
        replace=replace,
        is_ours=lambda child: (child / CONFIG_FILE).is_file(),
        what="model of Triton",
    ) as draft:
        source = read_artifact(artifact, targets)
        models, notes = _write(source, draft, name or source.name, is_named=bool(targets))
        problems = repository_problems(draft)
        if problems:
            raise ArtifactError(
                f"the repository would not load: {'; '.join(problems[:3])}",
                where=str(artifact),
                hint="this is a defect of convert, please report it",
            )
    return Export(
        directory=directory,
        artifact=f"{source.name}/{source.version}",
        models=models,
        notes=notes,
    )


def _write(
    source: ArtifactSource, root: Path, base: str, *, is_named: bool
) -> tuple[tuple[ServedModel, ...], tuple[str, ...]]:
    planned = list(plan_models(source, base, is_named=is_named))
    if not planned:
        names = [target.declaration.name for target in source.targets]
        raise RecipeError(
            f"nothing of {', '.join(names)} is known to be served by Triton: ONNX Runtime has few "
            "kernels for graphs in bf16 and fp8",
            hint=f"--target {names[0]} writes it all the same; or build a target in fp32 or fp16 too",
        )
    made = []
    for model in planned:
        target = model.target.declaration.name
        _write_config(root, model_config(model.spec), source, target)
        _write_files(root / model.spec.name, model)
        _write_warm_ups(root / model.spec.name, model)
        made.append(ServedModel(name=model.spec.name, backend=model.spec.backend, target=target))
    notes = [note for target in source.targets for note in _notes(target, is_named=is_named)]
    trouble = tokenizer_trouble(source, planned)
    if trouble:
        notes.append(f"there is no ensemble from text: {trouble}")
        return tuple(made), tuple(notes)
    made += _write_text_models(source, root, base, [model for model in planned if model.is_main])
    return tuple(made), tuple(notes)


def _notes(target: TargetSource, *, is_named: bool) -> list[str]:
    name, precision = target.declaration.name, target.declaration.precision
    if is_of_engines_alone(target) and not is_named:
        return [
            (
                f"{name}: its graph is left out: ONNX Runtime has {precision} kernels for few operators, "
                "and a server that cannot load one model does not start; "
                f"--target {name} writes it all the same"
            )
        ]
    notes = []
    if target.has_rtx_engines:
        notes.append(
            f"{name}: its engines are TensorRT-RTX's, which Triton's tensorrt backend cannot read; "
            "ONNX Runtime serves the graph that they were built from"
        )
    if is_of_engines_alone(target):
        notes.append(
            f"{name}: ONNX Runtime has {precision} kernels for few operators, and none on the CPU; "
            "try the model with the onnxruntime backend before you rely on it"
        )
    return notes


def _write_text_models(
    source: ArtifactSource, root: Path, base: str, models: Sequence[PlannedModel]
) -> list[ServedModel]:
    """The tokenizer, and one ensemble from text for each target."""
    texts = text_names(source)
    batching = Batching(
        max_batch=max(model.spec.batching.max_batch for model in models),
        max_delay_us=DEFAULT_DELAY_US,
    )
    made = []
    tokenizers: dict[tuple[str, ...], str] = {}
    for model in models:
        tokens = tuple(tensor.name for tensor in model.spec.inputs)
        target = model.target.declaration.name
        if tokens not in tokenizers:
            number = f"{len(tokenizers) + 1}" if tokenizers else ""
            tokenizers[tokens] = f"{base}-tokenizer{number}"
            config = tokenizer_config(tokenizers[tokens], texts, tokens, batching)
            _write_config(root, config, source, target)
            _write_tokenizer(root / tokenizers[tokens], source, model.target, texts, tokens)
            made.append(ServedModel(name=tokenizers[tokens], backend="python", target=target))
        name = f"{base}-{target}-text"
        ensemble = ensemble_config(name, tokenizers[tokens], model.spec, texts, tokens)
        _write_config(root, ensemble, source, target)
        (root / name / _VERSION).mkdir()
        # Copies and version control drop empty directories, and the server wants this one.
        (root / name / _VERSION / ".keep").touch()
        made.append(ServedModel(name=name, backend="ensemble", target=target))
    return made


def _write_config(root: Path, config: Message, source: ArtifactSource, target: str) -> None:
    folder = root / str(config["name"])
    folder.mkdir()
    comment = (
        f"From artifact {source.name}/{source.version}, target {target}; "
        "written by convert export-triton."
    )
    text = write_message(config, comment=comment)
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")


def _write_files(folder: Path, model: PlannedModel) -> None:
    """Graph or engines; copies, because a file of an artifact has one hard link."""
    version = folder / _VERSION
    version.mkdir()
    target = model.target
    if model.spec.backend == "tensorrt":
        for engine in target.engines:
            shutil.copyfile(engine.path, version / plan_file(engine))
        return
    graph, external = target.folder / MODEL_FILE, target.graph.external_files
    if not external:
        shutil.copyfile(graph, version / MODEL_FILE)
        return
    place = version / MODEL_FILE
    place.mkdir()
    shutil.copyfile(graph, place / MODEL_FILE)
    for file in external:
        inside = (target.folder / file.location).resolve()
        if not inside.is_relative_to(target.folder.resolve()) or not inside.is_file():
            raise ArtifactError(
                f"its weights are in `{file.location}`, which is not beside it",
                where=f"{target.declaration.name}/{MODEL_FILE}",
            )
        (place / file.location).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(inside, place / file.location)


def _write_warm_ups(folder: Path, model: PlannedModel) -> None:
    """Files of ones, for what may not be all zeros."""
    for warm_up in model.spec.warm_ups:
        for tensor in model.spec.inputs:
            name = warm_up_file(tensor, warm_up)
            if not name:
                continue
            count = 1
            for size in warm_up_shape(tensor, warm_up):
                count *= size
            (folder / WARM_UP_FOLDER).mkdir(exist_ok=True)
            ones = struct.pack("<q", 1) * count
            (folder / WARM_UP_FOLDER / name).write_bytes(ones)


def _write_tokenizer(
    folder: Path,
    source: ArtifactSource,
    target: TargetSource,
    texts: Sequence[str],
    tokens: Sequence[str],
) -> None:
    from pipeline.data.tokenise import TOKENIZER_FILE, load_tokenizer

    sequence = source.sizes["sequence"]
    is_question = source.task.answer == "span"
    cut = "only_second" if is_question else "longest_first"
    tokenizer = load_tokenizer(
        target.folder,
        sequence.max,
        is_pair=len(texts) > 1,
        cut="only_second" if is_question else "longest_first",
    )
    missing = [token for token in tokens if token not in tokenizer.padding]
    if missing:
        raise ArtifactError(
            f"the tokenizer does not make `{missing[0]}`, which the model takes",
            where=target.declaration.name,
        )
    version = folder / _VERSION
    version.mkdir()
    shutil.copyfile(Path(__file__).with_name("tokenizer_model.py"), version / "model.py")
    own = target.folder / TOKENIZER_FILE
    if own.is_file():
        shutil.copyfile(own, version / TOKENIZER_FILE)
    else:
        (version / TOKENIZER_FILE).write_text(tokenizer.as_json(), encoding="utf-8")
    settings = {
        "texts": list(texts),
        "padding": {token: tokenizer.padding[token] for token in tokens},
        "max_length": sequence.max,
        "min_length": sequence.min,
        "cut": cut,
    }
    (version / "settings.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
