"""A model that somebody else made: nothing is built, it is only checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, StringConstraints

from pipeline.candidates import match_interface, precision_of
from pipeline.errors import RecipeError
from pipeline.stages.adopt import ADOPT, CANDIDATE_PORT, AdoptConfig
from pipeline.targets.base import ModelLink, SourceRef, TargetBase, TargetChain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.candidates import Interface
    from pipeline.source import Source
    from pipeline.targets.base import ChainBuilder
    from pipeline.tasks import Task

Words = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]+$")]
TYPES = "token_type_ids"


class ExistingTarget(TargetBase):
    """A model from elsewhere. Its weights are not copied into the artifact, which is the report."""

    runtime: Literal["existing"]
    model: Words = Field(
        description="an .onnx file, or a folder as Optimum, transformers.js, Olive or convert make "
        "them (relative to the recipe)",
        examples=["onnx-model/"],
    )
    file: Words | None = Field(
        default=None,
        description="which model of the folder, relative to it",
        examples=["onnx/model_quantized.onnx"],
    )
    rename: dict[Words, Words] = Field(
        default_factory=dict,
        description="the graph's name of an input or output -> the task's, where it is not known",
        examples=[{"output_0": "logits"}],
    )

    def chain(self, builder: ChainBuilder) -> TargetChain:
        """One link: the model as it is, run as users of ONNX Runtime do.

        Raises:
            RecipeError: it cannot be fed or read as the task needs, or not at the recipe's sizes.
        """
        candidate = builder.candidate(self.name)
        interface = match_interface(
            candidate.facts,
            builder.task,
            fed=fed_inputs(builder.task, builder.source),
            has_sentence=has_sentence(builder.source),
            renames=self.rename,
            config=builder.source.config,
        )
        _require_sizes(interface, builder.profile)
        precision = precision_of(candidate.facts)
        (component,) = builder.components
        node = builder.add(
            ADOPT,
            AdoptConfig(
                file=candidate.file,
                interface=interface,
                companions=tuple(sorted(candidate.companions)),
            ),
            {CANDIDATE_PORT: SourceRef(f"candidate:model:{self.name}")},
            component=component,
        )
        link = ModelLink(
            node=node,
            optimizations="all",
            arithmetic=precision.arithmetic,
            # Not the cache: how a decoder keeps it is its own affair, as long as it reads it right.
            outputs=tuple(output.name for output in interface.outputs),
        )
        engines = ", ".join(candidate.engines)
        return TargetChain(
            models={component: (link,)},
            deliverables={},
            runtime=None if engines else "onnxruntime",
            not_run_reason=f"running engines ({engines}) is not part of this version"
            if engines
            else "",
            proxy="onnxruntime-cpu" if engines else "",
            precision=precision.words,
        )


def fed_inputs(task: Task, source: Source) -> tuple[str, ...]:
    """Inputs that samples of a checkpoint have: token types where it tells two or more apart."""
    types = source.config.get("type_vocab_size")
    has_types = isinstance(types, int) and types > 1
    return tuple(spec.name for spec in task.inputs if spec.name != TYPES or has_types)


def has_sentence(source: Source) -> bool:
    """Whether the checkpoint also gives one vector a sentence."""
    return "modules.json" in source.files


def _require_sizes(interface: Interface, profile: Mapping[str, tuple[int, int, int]]) -> None:
    for axis, size in interface.fixed.items():
        _, _, largest = profile[axis]
        if largest > size:
            raise RecipeError(
                f"the graph takes {axis.replace('_', ' ')} {size} only, and `shapes.{axis}` goes up "
                f"to {largest}",
                hint=f"set `max` to {size}, or export the graph with free axes",
            )
