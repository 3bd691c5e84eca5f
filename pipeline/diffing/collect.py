"""What two artifacts say of themselves, side by side; nothing is run here."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pipeline.diffing.types import (
    Change,
    GraphChange,
    LayerChange,
    NumberChange,
    Side,
    TargetChange,
)
from pipeline.errors import ArtifactError, RecipeError
from pipeline.report.summary import delivered

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from pipeline.report.schema import Report, TargetReport

MODEL_SUFFIX = ".onnx"
QUANTIZED_SUFFIXES = ("_integer", "_row")
"""What dynamic quantisation puts behind the names of the layers that it rewrites."""
SCALE_SUFFIX = "_scale"
"""A look-up of a quantised table's scales belongs to the table."""
COMPARED_METRICS = (
    "cosine_similarity",
    "cosine_similarity_mean",
    "relative_l2",
    "max_abs_diff",
    "top1_agreement",
)


def side(directory: Path, report: Report) -> Side:
    """Who one of the two is."""
    return Side(
        name=report.name,
        version=report.version,
        directory=str(directory),
        verdict=report.verdict,
        created_at=report.created_at,
        size_bytes=sum(file.size_bytes for target in report.targets for file in target.files),
    )


def require_same_model(old: Report, new: Report, old_home: Path, new_home: Path) -> None:
    """Refuse two artifacts that are not of the same model: their numbers say nothing together.

    Other weights of the same architecture are the same model at another time, and are compared.

    Raises:
        RecipeError: another task, or another architecture.
    """
    tasks = [report.recipe["model"]["task"] for report in (old, new)]
    if tasks[0] != tasks[1]:
        raise RecipeError(
            f"these are two different models: the task is `{tasks[0]}` in the old artifact and "
            f"`{tasks[1]}` in the new one",
            where=str(new_home),
            hint="convert diff compares two conversions of one model",
        )
    kinds = [_architecture(home, report) for home, report in ((old_home, old), (new_home, new))]
    if kinds[0] != kinds[1] and all(kinds):
        differing = [name for name in kinds[0] if kinds[0][name] != kinds[1].get(name)]
        name = differing[0]
        raise RecipeError(
            f"these are two different models: `{name}` is {kinds[0][name]!r} in the old artifact "
            f"and {kinds[1].get(name)!r} in the new one",
            where=str(new_home),
            hint="convert diff compares two conversions of one model",
        )


ARCHITECTURE_KEYS = (
    "model_type",
    "architectures",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "id2label",
)


def _architecture(home: Path, report: Report) -> dict[str, Any]:
    """What makes a model this one, from the `config.json` that is delivered with every target."""
    for target in report.targets:
        path = home / target.name / "config.json"
        if path.is_file():
            try:
                config = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise ArtifactError(f"cannot be read: {error}", where=str(path)) from error
            return {name: config.get(name) for name in ARCHITECTURE_KEYS}
    return {}


def target_changes(
    old: Report, new: Report, old_home: Path, new_home: Path
) -> Iterator[TargetChange]:
    """Every target of both artifacts, in the order of the new one, then those that are gone."""
    before = {target.name: target for target in old.targets}
    same_samples = _samples(old) == _samples(new) and old.source["files"] == new.source["files"]
    for target in new.targets:
        if target.name not in before:
            yield TargetChange(name=target.name, state="added")
            continue
        own = before[target.name]
        yield TargetChange(
            name=target.name,
            state="both",
            parity=tuple(_pairs(_parity_numbers(own), _parity_numbers(target))),
            has_same_samples=same_samples,
            quality=tuple(_pairs(_quality_numbers(own), _quality_numbers(target))),
            size=_pair("size_bytes", _size(own), _size(target)),
            graphs=tuple(_graph_changes(own, target, old_home, new_home)),
            facts=tuple(
                change
                for change in _pairs(_coverage(old, own), _coverage(new, target))
                if change.old != change.new
            ),
        )
    for name in before.keys() - {target.name for target in new.targets}:
        yield TargetChange(name=name, state="removed")


def _samples(report: Report) -> str:
    """Fingerprint of the evaluation samples; empty when the report does not know it."""
    facts = next((node.facts for node in report.nodes if node.name == "samples"), {})
    return str(facts.get("fingerprint", ""))


def _size(target: TargetReport) -> float:
    return float(sum(file.size_bytes for file in target.files))


def _parity_numbers(target: TargetReport) -> dict[str, float | None]:
    return {
        f"{output.name}.{name}": getattr(output.metrics, name)
        for link in delivered(target)
        if link.parity is not None
        for output in link.parity.outputs
        for name in COMPARED_METRICS
        if name != "top1_agreement" or output.is_ranked
    }


def _quality_numbers(target: TargetReport) -> dict[str, float | None]:
    return {
        quality.metric: quality.score
        for link in delivered(target)
        if link.parity is not None
        for quality in link.parity.figures()
    }


def _coverage(report: Report, target: TargetReport) -> dict[str, float | None]:
    """Numbers that the stages of a target report: coverage, and how often each fusion fired."""
    chain = {link.node for link in target.parity} | {engine.node for engine in target.engines}
    found: dict[str, float | None] = {}
    for node in report.nodes:
        if node.name not in chain:
            continue
        numbers = dict(node.facts.get("coverage") or {})
        fusions = node.facts.get("fusions")
        if isinstance(fusions, dict):
            numbers |= {f"fusions.{name}": count for name, count in fusions.items()}
        found |= {
            f"{node.stage}.{name}": float(value)
            for name, value in numbers.items()
            if isinstance(value, int | float)
        }
    return found


def _pairs(
    old: Mapping[str, float | None], new: Mapping[str, float | None]
) -> Iterator[NumberChange]:
    for name in dict.fromkeys((*new, *old)):
        yield _pair(name, old.get(name), new.get(name))


def _pair(name: str, old: float | None, new: float | None) -> NumberChange:
    change = None if old is None or new is None else new - old
    return NumberChange(name=name, old=old, new=new, change=change)


def _graph_changes(
    old: TargetReport, new: TargetReport, old_home: Path, new_home: Path
) -> Iterator[GraphChange]:
    digests = {file.path: file.sha256 for file in old.files}
    for file in new.files:
        if not file.path.endswith(MODEL_SUFFIX) or file.path not in digests:
            continue
        own = [f for f in old.files if f.path.startswith(file.path)]
        now = [f for f in new.files if f.path.startswith(file.path)]
        if [f.sha256 for f in own] == [f.sha256 for f in now]:
            yield GraphChange(file=file.path, is_same_file=True)
        else:
            yield _compare_graphs(file.path, old_home / file.path, new_home / file.path)


def _compare_graphs(name: str, old: Path, new: Path) -> GraphChange:
    from pipeline.graph.files import load_graph_only
    from pipeline.graph.inspect import describe_model
    from pipeline.graph.layers import iter_layers

    descriptions = [describe_model(path) for path in (old, new)]
    counts = [description.op_counts for description in descriptions]
    layers = [
        {
            _float_name(layer.node): layer
            for layer in iter_layers(load_graph_only(path))
            if not layer.node.endswith(SCALE_SUFFIX)
        }
        for path in (old, new)
    ]
    changed = []
    same = 0
    for node in dict.fromkeys((*layers[1], *layers[0])):
        before, after = (found.get(node) for found in layers)
        one = after or before
        if before is not None and after is not None and before.dtype == after.dtype:
            same += 1
        elif one is not None:
            changed.append(
                LayerChange(
                    layer=node,
                    operator=one.op,
                    old=before.dtype if before else None,
                    new=after.dtype if after else None,
                )
            )
    opsets = [str(description.opset) for description in descriptions]
    return GraphChange(
        file=name,
        is_same_file=False,
        operators=tuple(
            Change(name=op, old=str(counts[0].get(op, 0)), new=str(counts[1].get(op, 0)))
            for op in dict.fromkeys((*counts[1], *counts[0]))
            if counts[0].get(op, 0) != counts[1].get(op, 0)
        ),
        layers=tuple(changed),
        layers_same=same,
        opset=Change(name="opset", old=opsets[0], new=opsets[1])
        if opsets[0] != opsets[1]
        else None,
    )


def _float_name(node: str) -> str:
    """The name of a layer in the graph that was not quantised yet."""
    for suffix in QUANTIZED_SUFFIXES:
        node = node.removesuffix(suffix)
    return node


def text_changes(old: Any, new: Any, path: str = "") -> Iterator[Change]:
    """Where two JSON documents differ, by key path; lists count as one value."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted({*old, *new}):
            here = f"{path}.{name}" if path else name
            yield from text_changes(old.get(name), new.get(name), here)
    elif old != new:
        yield Change(name=path, old=_text(old), new=_text(new))


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, sort_keys=True)
