"""Puts together what a build made and measured: the files to publish, and the report.

Pure but for reading small results (`parity.json`, `benchmark.json`, `samples.json`) from the store.
"""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pipeline.bench.types import BenchmarkResult
from pipeline.environment import describe_environment
from pipeline.errors import ArtifactError
from pipeline.judging import judged
from pipeline.manifest import Manifest
from pipeline.parity.types import NoiseFloor, Parity
from pipeline.publish import ArtifactFile
from pipeline.recipe import dump_recipe
from pipeline.report.schema import (
    CheckEntry,
    EngineReport,
    Failure,
    FileEntry,
    NodeReport,
    NodeState,
    Report,
    SampleSizes,
    StageParity,
    TargetReport,
    TorchRun,
    WeightPart,
    WorstSample,
)
from pipeline.source.decoder_start import start_doubts
from pipeline.stages.catalogue import STAGES
from pipeline.stages.validate import VALIDATE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from pipeline.planning import Plan, TargetPlan
    from pipeline.run.outcomes import NodeOutcome
    from pipeline.store import Store
    from pipeline.targets.base import NodeRef

_LAYER: Final = re.compile(r"(.*?)\.(\d+)\.")
"""First number in the name of a weight: its layer."""

WORST_SAMPLES = 3
"""How many of the worst samples of each output are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Read access to what the nodes of a plan came to.

    Attributes:
        notes: What else the report is to warn of.
    """

    plan: Plan
    outcomes: tuple[NodeOutcome, ...]
    store: Store
    notes: tuple[str, ...] = ()

    def tree(self, ref: NodeRef) -> Path | None:
        """The verified output of a node; None when it has none.

        Raises:
            ArtifactError: it was there and is damaged.
        """
        record = self.outcomes[ref.node].record
        if record is None:
            return None
        tree = self.store.open_tree(record.tree)
        if tree is None:
            raise ArtifactError(
                f"the result of `{self.plan.nodes[ref.node].name}` is damaged",
                hint="it was put aside; run again to make it anew",
            )
        return tree

    def document(self, ref: NodeRef, name: str) -> str | None:
        """The text of a file in a node's output; None when the node has none."""
        tree = self.tree(ref)
        return None if tree is None else (tree / name).read_text(encoding="utf-8")

    def facts(self, ref: NodeRef) -> Mapping[str, Any]:
        """What a node's stage said of its output; empty when it has none."""
        record = self.outcomes[ref.node].record
        return {} if record is None else record.facts

    def why_missing(self, ref: NodeRef) -> str:
        """Why a node has no result, in a sentence."""
        outcome = self.outcomes[ref.node]
        if outcome.failure is not None:
            return f"`{outcome.node.name}` failed: {outcome.failure.sentence}"
        return "; ".join(outcome.reasons) or f"`{outcome.node.name}` has no result"


def deliverable_files(results: Results) -> tuple[ArtifactFile, ...]:
    """Every target's files: models, engines, and the checkpoint's own config and tokenizer."""
    files: list[ArtifactFile] = []
    for target in results.plan.targets:
        files += _target_files(results, target)
    return tuple(files)


def _target_files(results: Results, target: TargetPlan) -> Iterator[ArtifactFile]:
    several = len(target.chain.deliverables) > 1
    for component, deliverables in target.chain.deliverables.items():
        folder = f"{target.name}/{component}" if several else target.name
        for deliverable in deliverables:
            tree = results.tree(deliverable.node)
            if tree is None:
                continue
            manifest = Manifest.from_json((tree / "MANIFEST.json").read_text(encoding="utf-8"))
            for entry in manifest.entries:
                name = deliverable.renames.get(entry.path, entry.path)
                yield ArtifactFile(
                    source=tree / entry.path,
                    path=f"{folder}/{name}",
                    sha256=entry.sha256,
                    size_bytes=entry.size_bytes,
                )
    if not target.chain.deliverables:
        return
    source = results.plan.source
    for name in source.groups["companions"]:
        file = source.files[name]
        yield ArtifactFile(
            source=file.path,
            path=f"{target.name}/{name}",
            sha256=file.sha256,
            size_bytes=file.size_bytes,
        )


def assemble_report(
    results: Results, *, version: str, created_at: str, files: tuple[ArtifactFile, ...]
) -> Report:
    """The whole report: everything measured, every gate judged, one verdict."""
    plan = results.plan
    targets = tuple(_target_report(results, target, files) for target in plan.targets)
    packages = {name for stage in STAGES for name in stage.packages} | {"convert-pipeline"}
    measured = Report(
        name=plan.recipe.name,
        version=version,
        verdict="error",  # until it is judged
        reasons=(),
        created_at=created_at,
        recipe=dump_recipe(plan.recipe),
        source={
            "source": plan.source.spec,
            "revision": plan.source.revision,
            **({"notes": list(plan.source.notes)} if plan.source.notes else {}),
            "files": {name: file.sha256 for name, file in plan.source.files.items()},
        },
        environment=describe_environment(tuple(packages)),
        gates=(),
        targets=targets,
        nodes=tuple(_node_report(plan, outcome) for outcome in results.outcomes),
        worst_samples=tuple(_worst_samples(results, targets)),
        warnings=(*_warnings(results), *_device_warnings(targets)),
        sample_sizes=_sample_sizes(results),
        noise_floors=tuple(_noise_floors(results)),
        torch_runs=tuple(_torch_runs(results)),
    )
    return judged(
        measured,
        plan.recipe.gates,
        declared={stage.name: stage.coverage for stage in STAGES},
    )


def _warnings(results: Results) -> Iterator[str]:
    """What the checkpoint itself gives reason to doubt, and what stages say under `warnings`."""
    yield from start_doubts(results.plan.source)
    yield from results.notes
    for outcome in results.outcomes:
        if outcome.node.is_diagnosis and outcome.failure is not None:
            yield f"{outcome.node.name}: the failure is not explained further: " + (
                outcome.failure.sentence
            )
        facts: Mapping[str, Any] = outcome.record.facts if outcome.record else {}
        for warning in facts.get("warnings", ()):
            yield f"{outcome.node.name}: {warning}"
        yield from (
            f"{outcome.node.name}: config.json asks for fewer layers than the checkpoint has, and these "
            f"are left out: {layers}"
            for layers in layers_left_out(facts.get("ignored_weights", ()))
        )


def layers_left_out(ignored: Iterable[str]) -> Iterator[str]:
    """Layers whose weights went nowhere, such as `model.layers.3`, by the names of those weights.

    What is ignored of layer 0 too is a part that such models lack, and no layer more than they have.
    """
    numbers: dict[str, set[int]] = {}
    for name in ignored:
        if found := _LAYER.match(name):
            numbers.setdefault(found[1], set()).add(int(found[2]))
    for prefix, found_numbers in sorted(numbers.items()):
        if 0 not in found_numbers:
            yield ", ".join(f"`{prefix}.{number}`" for number in sorted(found_numbers))


def _device_warnings(targets: tuple[TargetReport, ...]) -> Iterator[str]:
    """Why the latency of a target on a GPU is not that of the GPU's work."""
    for target in targets:
        for shape in target.benchmark.shapes if target.benchmark else ():
            for warning in shape.device.warnings if shape.device else ():
                yield f"{target.name}: {shape.description}: {warning}"


def _noise_floors(results: Results) -> Iterator[NoiseFloor]:
    for ref in results.plan.noise_floors.values():
        for floor in json.loads(results.document(ref, "noise.json") or "[]"):
            yield NoiseFloor.model_validate(floor)


def _torch_runs(results: Results) -> Iterator[TorchRun]:
    for run in results.plan.torch_runs:
        parity = results.document(run.validation, "parity.json")
        timed = results.document(run.benchmark, "benchmark.json")
        yield TorchRun(
            variant=run.variant,
            component=run.component,
            parity=None if parity is None else Parity.model_validate_json(parity),
            benchmark=None if timed is None else BenchmarkResult.model_validate_json(timed),
        )


def _node_report(plan: Plan, outcome: NodeOutcome) -> NodeReport:
    node, record = outcome.node, outcome.record
    failure = outcome.failure
    state: NodeState = "hit"
    if failure is not None:
        state = "failed"
    elif record is None:
        state = "skipped"
    elif outcome.has_run:
        state = "ran"
    return NodeReport(
        name=node.name,
        stage=node.stage.name,
        component=node.component,
        inputs=tuple(plan.nodes[parent].name for parent in node.parents()),
        state=state,
        key=record.key if record else "",
        reasons=outcome.reasons,
        wall_time_s=record.wall_time_s if record else None,
        peak_rss_mib=record.peak_rss_mib if record else None,
        facts=dict(record.facts) if record else {},
        is_diagnosis=node.is_diagnosis,
        failure=None
        if failure is None
        else Failure(
            message=failure.sentence,
            hint=failure.hint,
            signal=failure.signal,
            last_lines=failure.last_lines,
        ),
    )


def _target_report(
    results: Results, target: TargetPlan, files: tuple[ArtifactFile, ...]
) -> TargetReport:
    declared = next(t for t in results.plan.recipe.targets if t.name == target.name)
    parity = []
    for component, validations in target.validations.items():
        parity += [
            StageParity(
                node=results.plan.nodes[each.link.node.node].name,
                stage=each.stage,
                component=component,
                parity=None,
                not_run_reason=each.reason,
                arithmetic=each.link.arithmetic,
                is_left_out=True,
            )
            for each in target.left_out
            if each.component == component
        ]
        for link, validation in validations:
            text = results.document(validation, "parity.json")
            parity.append(
                StageParity(
                    node=results.plan.nodes[link.node.node].name,
                    stage=results.plan.nodes[link.node.node].stage.name,
                    component=component,
                    parity=None if text is None else Parity.model_validate_json(text),
                    not_run_reason="" if text is not None else results.why_missing(validation),
                    arithmetic=link.arithmetic,
                    failure=failure.sentence
                    if (failure := results.outcomes[validation.node].failure) is not None
                    else "",
                )
            )
    benchmark = None
    for ref in target.benchmarks.values():
        text = results.document(ref, "benchmark.json")
        benchmark = None if text is None else BenchmarkResult.model_validate_json(text)
    mine = tuple(file for file in files if file.path.startswith(f"{target.name}/"))
    return TargetReport(
        name=target.name,
        runtime=declared.runtime,
        precision=target.chain.precision or getattr(declared, "precision", ""),
        files=tuple(
            FileEntry(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256)
            for file in mine
        ),
        parity=tuple(parity),
        proxy=target.chain.proxy,
        not_run_reason=target.chain.not_run_reason,
        benchmark=benchmark,
        engines=tuple(_engine_reports(results, target)),
        nodes=_nodes_of(results.plan, target),
        weights=tuple(_weights(results, target)),
        checks=tuple(
            CheckEntry(
                check=check.check,
                node=results.plan.nodes[check.node.node].name,
                of=results.plan.nodes[check.of.node].name,
                stage=results.plan.nodes[check.of.node].stage.name,
                component=check.component,
            )
            for check in target.checks
        ),
        left_out_checks=target.left_out_checks,
    )


def _weights(results: Results, target: TargetPlan) -> Iterator[WeightPart]:
    """What the last model of each component is made of, as its validation found it."""
    for component, validations in target.validations.items():
        nodes = results.plan.nodes  # what ran on a device says nothing of weights
        graphs = [made for _, made in validations if nodes[made.node].stage is VALIDATE]
        for validation in graphs[-1:]:
            for part in results.facts(validation).get("weights", ()):
                yield WeightPart(component=component, **part)


def _nodes_of(plan: Plan, target: TargetPlan) -> tuple[str, ...]:
    """Names of all nodes that a target hangs on, in the plan's order."""
    chain = target.chain
    refs = [link.node for links in chain.models.values() for link in links]
    refs += [made.node for group in chain.deliverables.values() for made in group]
    refs += [check for checks in target.validations.values() for _, check in checks]
    refs += target.benchmarks.values()
    refs += [check.node for check in target.checks]
    found: set[int] = set()
    queue = [ref.node for ref in refs]
    while queue:
        index = queue.pop()
        if index not in found:
            found.add(index)
            queue += plan.nodes[index].parents()
    return tuple(plan.nodes[index].name for index in sorted(found))


def _engine_reports(results: Results, target: TargetPlan) -> Iterator[EngineReport]:
    for deliverables in target.chain.deliverables.values():
        for deliverable in deliverables:
            facts = results.facts(deliverable.node)
            file = deliverable.renames.get("model.engine")
            if file is None or not facts:
                continue
            yield EngineReport(
                node=results.plan.nodes[deliverable.node.node].name,
                file=f"{target.name}/{file}",
                compute_capability=str(facts.get("compute_capability", "")),
                size_bytes=int(facts.get("size_bytes", 0)),
                facts=dict(facts),
            )


# --- worst samples --------------------------------------------------------------------------


def _worst_samples(results: Results, targets: tuple[TargetReport, ...]) -> Iterator[WorstSample]:
    tree = results.tree(results.plan.samples)
    if tree is None:
        return
    document = json.loads((tree / "samples.json").read_text(encoding="utf-8"))
    entries = {entry["index"]: entry for entry in document["samples"]}
    for target in targets:
        if not target.parity or target.parity[-1].parity is None:
            continue
        for output in target.parity[-1].parity.outputs:
            ranked = sorted(
                (sample.metrics.relative_l2, sample.index)
                for sample in output.samples
                if sample.metrics.relative_l2 is not None
            )
            for value, index in reversed(ranked[-WORST_SAMPLES:]):
                entry = entries.get(index, {})
                yield WorstSample(
                    target=target.name,
                    output=output.name,
                    index=index,
                    text=str(entry.get("text", ""))[:1000],
                    label=_label_names(entry.get("label"), document["label_names"]),
                    image=_picture(tree, entry.get("image")),
                    metric="relative_l2",
                    value=value,
                )


def _sample_sizes(results: Results) -> tuple[SampleSizes, ...]:
    """How many evaluation samples have which size, for each named axis."""
    text = results.document(results.plan.samples, "samples.json")
    samples = [] if text is None else json.loads(text)["samples"]
    counts: dict[str, Counter[int]] = {}
    for sample in samples:
        for axis, size in sample["extents"].items():
            counts.setdefault(axis, Counter())[size] += 1
    return tuple(
        SampleSizes(axis=axis, counts=tuple(sorted(found.items())))
        for axis, found in sorted(counts.items())
    )


def _label_names(label: int | list[int] | None, names: list[str]) -> str:
    """The true answer of a sample that has one class, in words."""
    if not isinstance(label, int):
        return ""
    return names[label] if 0 <= label < len(names) else str(label)


def _picture(tree: Path, name: str | None) -> str:
    """A sample's picture as a data URI, so that the report needs no other file."""
    if not name:
        return ""
    content = base64.b64encode((tree / name).read_bytes()).decode("ascii")
    return f"data:image/png;base64,{content}"
