"""Engines of an artifact for ONNX Runtime's TensorRT providers: each with the model that loads it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pipeline.bundle.placing import placed_whole
from pipeline.bundle.verified import require_passed
from pipeline.bundle.written import Export
from pipeline.engines.facts_file import (
    ENGINE_SUFFIX,
    facts_path,
    read_engine_facts,
    require_engine_of_facts,
)
from pipeline.errors import ArtifactError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.engines.facts_file import EngineFacts

CONTEXT_SUFFIX: Final = "_ctx.onnx"
_WRITTEN: Final = (CONTEXT_SUFFIX, ENGINE_SUFFIX, f"{ENGINE_SUFFIX}.json")
"""How the names end of what is written here."""
_UNSUPPORTED: Final = ("sm75", "sm80")
"""TensorRT-RTX builds for them, and ONNX Runtime's provider of it refuses them: nv_execution_provider.cc."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextFile:
    """One model that was written.

    Attributes:
        path: Relative to the directory.
        provider: Of ONNX Runtime, that loads it.
    """

    path: str
    target: str
    compute_capability: str
    provider: str


def export_ep_context(
    artifact: Path, directory: Path, *, targets: Sequence[str] = (), replace: bool = False
) -> Export[ContextFile]:
    """Write each engine of an artifact with an EPContext model, in a folder for each target.

    Args:
        artifact: Its directory; it is verified first.
        directory: Where to; nothing may be there yet.
        targets: Which; empty for all that have engines.
        replace: What was written there earlier gives way.

    Raises:
        RecipeError: the artifact failed, or there is no such target or no engine.
        ArtifactError: the artifact is damaged, or an engine has no facts beside it.
    """
    with placed_whole(
        directory, replace=replace, is_ours=_is_ours, what="folder with EPContext models"
    ) as draft:
        facts = require_passed(artifact)
        known = [target.name for target in facts.targets]
        for name in targets:
            if name not in known:
                raise RecipeError(f"there is no target `{name}`, only {', '.join(known)}")
        models = [
            _write_one(engine, draft / name, name)
            for name in targets or known
            for engine in sorted((artifact / name).glob("*.engine"))
        ]
        if not models:
            raise RecipeError(
                f"there is no engine in {', '.join(targets or known)}",
                hint="engines come from targets with `runtime: tensorrt-rtx` or `tensorrt`",
            )
    notes = tuple(
        f"{model.path}: ONNX Runtime's provider for TensorRT-RTX takes GPUs of sm86, sm89 and from "
        f"sm120 on, so none that {model.compute_capability} is for"
        for model in models
        if model.compute_capability in _UNSUPPORTED and model.provider.startswith("Nv")
    )
    return Export(
        directory=directory,
        artifact=f"{facts.name}/{facts.version}",
        models=tuple(models),
        notes=notes,
    )


def _is_ours(child: Path) -> bool:
    if not child.is_dir():
        return False
    names = [file.name for file in child.iterdir()]
    is_written = all(name.endswith(_WRITTEN) for name in names)
    return is_written and any(name.endswith(CONTEXT_SUFFIX) for name in names)


def _write_one(engine: Path, folder: Path, target: str) -> ContextFile:
    from pipeline.graph.ep_context import PROVIDERS, require_ep_context, write_ep_context

    facts = _facts(engine)
    folder.mkdir(exist_ok=True)
    copy = folder / engine.name
    shutil.copyfile(engine, copy)
    shutil.copyfile(facts_path(engine), facts_path(copy))
    model = folder / f"{engine.stem}{CONTEXT_SUFFIX}"
    write_ep_context(
        copy,
        facts.inputs,
        facts.outputs,
        model,
        runtime=facts.runtime,
        version=facts.version,
        target=facts.target,
    )
    require_ep_context(model, facts.runtime)
    return ContextFile(
        path=f"{target}/{model.name}",
        target=target,
        compute_capability=facts.target,
        provider=PROVIDERS[facts.runtime],
    )


def _facts(engine: Path) -> EngineFacts:
    if not facts_path(engine).is_file():
        raise ArtifactError(
            "nothing lies beside the engine that says its inputs and outputs",
            where=engine.name,
            hint="build the target again with this version of convert",
        )
    facts = read_engine_facts(facts_path(engine))
    require_engine_of_facts(facts, engine)
    return facts
