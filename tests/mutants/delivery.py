"""Faults of what was delivered or kept: files that changed after they were made.

No gate can see them, for they come after it: digests do, in `convert verify` and in the store. What lies
beside the model is caught by `convert check` too, which knows no digests: as if the folder came from
somebody else.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pipeline
from pipeline.planning import plan_status
from pipeline.store import Store
from pipeline.verification import verify_published
from tests.cli.commands import run_convert
from tests.mutants.models import find_model, plan_model
from tests.mutants.trial import Outcome
from tests.trained.cache import ensure_trained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.mutants.bench import Bench

TARGETS: Final = ("fp32", "dynamic")


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """An artifact that is about to be damaged.

    Attributes:
        root: A copy of it.
        model: The model's name.
    """

    root: Path
    model: str

    @property
    def folder(self) -> Path:
        """What a user of the quantised target takes."""
        return self.root / "dynamic"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryFault:
    """A file that is not what it was.

    Attributes:
        name, why: As of `tests.mutants.catalogue.Fault`.
        file: The file that must be named, below the artifact.
        models: Where it can be made.
        apply: Damages the artifact.
    """

    name: str
    why: str
    file: str
    models: tuple[str, ...]
    apply: Callable[[Delivered], None]


ARTIFACT_FAULTS: list[DeliveryFault] = []
COMPANIONS: Final = frozenset({"config.json", "preprocessor_config.json", "tokenizer.json"})
TEXTS: Final = ("snippets", "tokens")
EVERY: Final = ("snippets", "digits", "tokens")


def _fault(
    why: str, file: str, models: tuple[str, ...] = EVERY
) -> Callable[[Callable[[Delivered], None]], Callable[[Delivered], None]]:
    def register(apply: Callable[[Delivered], None]) -> Callable[[Delivered], None]:
        ARTIFACT_FAULTS.append(
            DeliveryFault(name=apply.__name__, why=why, file=file, models=models, apply=apply)
        )
        return apply

    return register


def _edit(path: Path, how: Callable[[dict[str, object]], None]) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    how(document)
    path.write_text(json.dumps(document, indent=2), encoding="utf-8")


@_fault("the tokenizer of another model", "dynamic/tokenizer.json", TEXTS)
def other_tokenizer(delivered: Delivered) -> None:
    other = "tokens" if delivered.model == "snippets" else "snippets"
    source = ensure_trained(other).checkpoint / "tokenizer.json"
    shutil.copyfile(source, delivered.folder / "tokenizer.json")


@_fault("names of classes in another order", "dynamic/config.json")
def class_names_reordered(delivered: Delivered) -> None:
    def swapped(config: dict[str, object]) -> None:
        names = config["id2label"]
        assert isinstance(names, dict)
        names["0"], names["1"] = names["1"], names["0"]

    _edit(delivered.folder / "config.json", swapped)


@_fault("mean and deviation of another data set", "dynamic/preprocessor_config.json", ("digits",))
def other_normalisation(delivered: Delivered) -> None:
    _edit(
        delivered.folder / "preprocessor_config.json",
        lambda config: config.update(
            image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
        ),
    )


@_fault("a model that was cut off when it was copied", "dynamic/model.onnx")
def model_truncated(delivered: Delivered) -> None:
    path = delivered.folder / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1024])


@_fault("one bit of the weights flipped on the disk", "dynamic/model.onnx")
def bit_flipped(delivered: Delivered) -> None:
    path = delivered.folder / "model.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@_fault("the model of another target under this name", "dynamic/model.onnx")
def model_of_another_target(delivered: Delivered) -> None:
    shutil.copyfile(delivered.root / "fp32/model.onnx", delivered.folder / "model.onnx")


@_fault("a file that nobody made", "dynamic/model.onnx_data")
def file_added(delivered: Delivered) -> None:
    (delivered.folder / "model.onnx_data").write_bytes(b"weights of something else")


@_fault("the report says another verdict than was come to", "report.json")
def verdict_edited(delivered: Delivered) -> None:
    path = delivered.root / "report.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"verdict": "passed"', '"verdict": "failed"', 1), "utf-8")


def try_deliveries(bench: Bench, model: str, names: Sequence[str] = ()) -> Iterator[Outcome]:
    """Damage what a model's conversion delivered and what its store keeps.

    Args:
        bench: Where good results are kept.
        model: The model.
        names: Parts of names of faults; none: all.
    """
    wanted = [f for f in ARTIFACT_FAULTS if model in f.models and _is_wanted(f.name, names)]
    if wanted:
        good = _artifact(bench, model)
        assert not verify_published(good).problems
    for fault in wanted:
        started = time.monotonic()
        copy = bench.root / "delivered"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(good, copy)
        fault.apply(Delivered(root=copy, model=model))
        problems = verify_published(copy).problems
        by = ["convert verify"]
        if Path(fault.file).name in COMPANIONS:
            by += _gates_of_check(bench, model, copy / "dynamic")
            problems = problems if "companions" in by else ()
        shutil.rmtree(copy)
        yield _outcome(fault.name, model, by, fault.file, problems, started)
    if model in EVERY and _is_wanted("stale_cached_result", names):
        yield _stale_cached_result(bench, model)


def _gates_of_check(bench: Bench, model: str, folder: Path) -> list[str]:
    """Names of the gates that fail when the folder is checked as a model of unknown origin."""
    # Away from its manifest, which would say more than a stranger's folder does.
    alone = bench.root / "alone"
    shutil.rmtree(alone, ignore_errors=True)
    shutil.copytree(folder, alone)
    recipe = bench.recipes / f"{model}-{'-'.join(TARGETS)}-0.yaml"
    where = ["--output", bench.root / "checked", "--store", bench.store.root]
    done = run_convert(
        *("check", alone, "--recipe", recipe, "--like", "dynamic", "--json", *where),
        cwd=bench.root,
    )
    report = json.loads(done.stdout)["report"]
    return list(dict.fromkeys(g["gate"] for g in report["gates"] if not g["is_allowed"]))


def _is_wanted(name: str, parts: Sequence[str]) -> bool:
    return not parts or any(part in name for part in parts)


def _artifact(bench: Bench, model: str) -> Path:
    """The published artifact of the good results; every stage of it is a hit."""
    plan = plan_model(find_model(model), TARGETS, bench.recipes, bench.store)
    bench.good(plan)
    recipe = bench.recipes / f"{model}-{'-'.join(TARGETS)}-0.yaml"
    made = pipeline.convert(recipe, output=bench.root / "artifacts", store=bench.store.root)
    return made.path


def _stale_cached_result(bench: Bench, model: str) -> Outcome:
    """A cached graph is replaced by that of another stage: the store must not serve it."""
    started = time.monotonic()
    plan = plan_model(find_model(model), TARGETS, bench.recipes, bench.store)
    bench.good(plan)
    copy = bench.root / "stale"
    shutil.rmtree(copy, ignore_errors=True)
    # Links would damage the original.
    shutil.copytree(bench.store.root, copy, copy_function=shutil.copyfile)
    trees = {
        status.node.name: status.record.tree
        for status in plan_status(plan, Store(copy))
        if status.record is not None
    }
    shutil.copyfile(_model(copy, trees["simplify"]), _model(copy, trees["fuse"]))
    is_served = Store(copy).open_tree(trees["fuse"]) is not None
    again = {status.node.name: status for status in plan_status(plan, Store(copy))}
    problems = () if is_served else (f"fuse: {'; '.join(again['fuse'].reasons)}",)
    shutil.rmtree(copy)
    return _outcome("stale_cached_result", model, ["store"], "fuse", problems, started)


def _model(store: Path, tree: str) -> Path:
    (path,) = store.glob(f"**/trees/{tree}/model.onnx")
    path.chmod(0o644)
    return path


def _outcome(
    name: str, model: str, by: Sequence[str], file: str, problems: tuple[str, ...], started: float
) -> Outcome:
    first = next((problem for problem in problems if file in problem), "")
    return Outcome(
        fault=f"{name}@delivery",
        kind="delivery",
        stage="delivery",
        model=model,
        target="dynamic",
        is_caught=bool(problems),
        caught_by=tuple(by) if problems else (),
        accused=file if first else "",
        layer="",
        is_attributed=bool(first),
        metric="",
        measured=None,
        limit="",
        reason=first or "; ".join(problems[:1]),
        seconds=round(time.monotonic() - started, 1),
    )
