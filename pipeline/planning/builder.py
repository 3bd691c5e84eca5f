"""Collects the nodes of a plan; equal ones are kept once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipeline.errors import RecipeError
from pipeline.hashing import canonical_json
from pipeline.planning.types import DATA_GROUP, Node
from pipeline.source.decoder_start import decoder_start
from pipeline.stages.decoder_samples import DECODER_SAMPLES, DecoderSamplesConfig
from pipeline.stages.export import EXPORT, ExportConfig
from pipeline.stages.probes import PROBES, ProbesConfig
from pipeline.stages.samples import SAMPLES, SamplesConfig
from pipeline.targets.base import NodeRef, Ref, SourceRef
from pipeline.tasks import DECODER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.candidates import Candidate
    from pipeline.data_source import DataSource
    from pipeline.hashing import JSON
    from pipeline.recipe.types import DataSpec, Recipe
    from pipeline.source import Source
    from pipeline.stages.base import AnyStage, StageConfig
    from pipeline.targets.shape_ranges import ShapeRange
    from pipeline.tasks import Task


@dataclass(slots=True, kw_only=True)
class Draft:
    """A node that has no name yet."""

    stage: AnyStage
    config: StageConfig
    inputs: Mapping[str, Ref]
    component: str
    labels: list[str]


class Builder:
    """Collects nodes; equal ones are kept once. Implements `pipeline.targets.base.ChainBuilder`."""

    def __init__(
        self,
        recipe: Recipe,
        task: Task,
        source: Source,
        data: Mapping[str, DataSource],
        candidates: Mapping[str, Candidate],
    ) -> None:
        self._recipe = recipe
        self._task = task
        self._source = source
        self._data = data
        self._candidates = candidates
        self.drafts: list[Draft] = []
        self._known: dict[str, int] = {}
        self.prefix = ""

    @property
    def components(self) -> tuple[str, ...]:
        """The model's components, in the task's order."""
        return self._task.components

    @property
    def profile(self) -> Mapping[str, tuple[int, int, int]]:
        """Axis -> (min, opt, max) that the recipe gives it."""
        return {
            axis: (extent.min, extent.opt, extent.max)
            for axis, extent in extents_of(self._recipe, self._task).items()
        }

    @property
    def task(self) -> Task:
        """What the model is for."""
        return self._task

    @property
    def source(self) -> Source:
        """The checkpoint."""
        return self._source

    def candidate(self, target: str) -> Candidate:
        """The model that a target checks."""
        return self._candidates[target]

    def evaluation_samples(self) -> NodeRef:
        """The node that prepares the samples everything is compared on."""
        return self._samples("evaluation", self._recipe.data.evaluation, {})

    def probes(self) -> NodeRef:
        """The node that makes the probes."""
        sequence = self._recipe.shapes.sequence
        config = ProbesConfig(
            task=self._task.name,
            lengths=(sequence.min, sequence.max) if sequence else None,
        )
        ports: dict[str, Ref] = {
            "samples": self.evaluation_samples(),
            "tokenizer": SourceRef("tokenizer"),
        }
        return self.add(PROBES, config, ports)

    def fed(self, component: str, samples: NodeRef, *, has_pasts: bool = False) -> NodeRef:
        """What a component is run on: the samples, or of a decoder behind an encoder its own inputs.

        Args:
            component: The component.
            samples: Samples or probes of the task.
            has_pasts: Some tokens are in the decoder's cache already.
        """
        if component != DECODER or not self._task.parts:
            return samples
        return self.add(
            DECODER_SAMPLES,
            DecoderSamplesConfig(task=self._task.name, has_pasts=has_pasts),
            {"checkpoint": SourceRef("checkpoint"), "samples": samples},
            component=component,
            fixed_label="probes" if has_pasts else "",
        )

    @property
    def task_name(self) -> str:
        """The task's own name, for configs."""
        return self._task.name

    def is_looked_at(self, stage: str) -> bool:
        """Whether anything compares or checks the float graph that a stage of this target makes."""
        gates = self._recipe.gates.of(self.prefix)
        checks = gates.checks
        is_checked = checks.layers is not None or checks.quantization is not None
        return is_checked or not gates.leaves_out(stage)

    def calibration_samples(
        self, purpose: str = "static quantisation needs samples to take its ranges from"
    ) -> NodeRef:
        """The node that prepares the samples for ranges.

        Raises:
            RecipeError: the recipe has none; `purpose` says what they are needed for.
        """
        spec = self._recipe.data.calibration
        if self._task.parts:
            raise RecipeError(
                f"{purpose}, and task `{self._task.name}` has none: of its decoder they would have to "
                "hold keys and values of the source too",
                hint="take `mode: dynamic` or `mode: weight_only`, which need no samples",
            )
        if spec is None:
            raise RecipeError(
                f"{purpose}, and the recipe has no `data.calibration`",
                hint="add `calibration: {source: ..., samples: 256}` beside `evaluation` in `data`",
            )
        return self._samples("calibration", spec, {"evaluation": self.evaluation_samples()})

    def _samples(
        self,
        use: Literal["evaluation", "calibration"],
        spec: DataSpec,
        inputs: Mapping[str, Ref],
    ) -> NodeRef:
        shapes, data = self._recipe.shapes, self._data[use]
        config = SamplesConfig(
            **spec.model_dump(),
            kind=data.kind,
            task=self._task.name,
            use=use,
            overlap=self._recipe.data.overlap,
            max_length=shapes.sequence.max if shapes.sequence else None,
            num_choices=shapes.num_choices.max if shapes.num_choices else None,
            start=decoder_start(self._source) if self._task.parts else None,
        )
        ports: dict[str, Ref] = {"tokenizer": SourceRef("tokenizer"), **inputs}
        if data.files:
            ports["data"] = SourceRef(f"{DATA_GROUP}{use}")
        # An address of its own for each use: `samples` and `samples@calibration`.
        return self.add(SAMPLES, config, ports, fixed_label="" if use == "evaluation" else use)

    def exported(self, component: str) -> NodeRef:
        """The node that exports a component."""
        config = ExportConfig(
            **self._recipe.export.model_dump(),
            task=self._task.name,
            component=component,
        )
        return self.add(
            EXPORT, config, {"checkpoint": SourceRef("checkpoint")}, component=component
        )

    def add(
        self,
        stage: AnyStage,
        config: StageConfig,
        inputs: Mapping[str, Ref],
        *,
        component: str = "",
        label: str = "",
        fixed_label: str | None = None,
    ) -> NodeRef:
        """A node for this work: the one there is, or a new one.

        Args:
            stage: What does it.
            config: Its options.
            inputs: Port -> what it reads.
            component: The model component it works on.
            label: Tells nodes of one stage and target apart.
            fixed_label: In place of the target's name and `label`: the same whoever asks.
        """
        wired = {port: _ref_json(ref) for port, ref in inputs.items()}
        identity = canonical_json([stage.name, config.model_dump(mode="json"), wired, component])
        full_label = "-".join(filter(None, (self.prefix, label)))
        if fixed_label is not None:  # it is the same for whichever target asks first
            full_label = fixed_label
        if identity not in self._known:
            self._known[identity] = len(self.drafts)
            self.drafts.append(
                Draft(
                    stage=stage,
                    config=config,
                    inputs=inputs,
                    component=component,
                    labels=[],
                )
            )
        index = self._known[identity]
        if full_label and full_label not in self.drafts[index].labels:
            self.drafts[index].labels.append(full_label)
        return NodeRef(index)


def _ref_json(ref: Ref) -> JSON:
    return ["node", ref.node] if isinstance(ref, NodeRef) else ["source", ref.group]


def named_nodes(drafts: list[Draft], work: int) -> tuple[Node, ...]:
    """Give every node its address: the stage's name, and who asks for it where that is not enough.

    Those from `work` on only explain a failure.
    """
    nodes: list[Node] = []
    taken: set[str] = set()
    for index, draft in enumerate(drafts):
        base = draft.stage.name
        if draft.component not in {"", "model"}:
            base = f"{base}.{draft.component}"
        rivals = [d for d in drafts if d.stage is draft.stage and d.component == draft.component]
        name = base
        if len(rivals) > 1 and draft.labels:
            name = f"{base}@{draft.labels[0]}"
        number = 2
        while name in taken:
            name, number = (
                f"{base}@{draft.labels[0] if draft.labels else ''}-{number}",
                number + 1,
            )
        taken.add(name)
        nodes.append(
            Node(
                index=index,
                name=name,
                stage=draft.stage,
                config=draft.config,
                inputs=draft.inputs,
                component=draft.component,
                is_diagnosis=index >= work,
            )
        )
    return tuple(nodes)


def extents_of(recipe: Recipe, task: Task) -> dict[str, ShapeRange]:
    """Axis -> its range, for the task's axes in their order; those without a range are left out."""
    ranges = {axis: getattr(recipe.shapes, axis) for axis in task.axes}
    return {axis: extent for axis, extent in ranges.items() if extent is not None}
