"""What a fault is, and the list of all of them; a new one is a function in a file of `faults`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tests.mutants.bench import Scene
from tests.mutants.surgery import Graph

Apply = Callable[[Scene], Mapping[str, Any]]

TEXTS: Final = ("minilm", "snippets", "tokens", "answers")
ALL: Final = ("minilm", "snippets", "digits", "tokens", "answers")

QUANTIZED: Final = ("static", "dynamic", "rtx-int8")
FUSED: Final = ("dynamic", "static")
HALF: Final = ("rtx-fp16", "rtx-int8")
EVERYWHERE: Final = ("dynamic", "rtx-fp16", "static", "rtx-int8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A small, realistic damage to a correct conversion.

    Attributes:
        name: Unique; `gelu_tanh@cast`.
        kind: What sort of damage.
        why: How it comes about in real life, or what it does.
        stage: The stage whose result is damaged.
        accepts: Stages that may be accused; of what is no graph the first graph that is made of it.
        models: Where it can be made.
        targets: Chains it is tried in; each model takes the next one.
        node: The node's name where it is not the stage's: `samples@calibration`.
        component: Of a model of several graphs, the one that is damaged; the report must name it too.
        apply: Makes the damaged result.
    """

    name: str
    kind: str
    why: str
    stage: str
    accepts: tuple[str, ...]
    models: tuple[str, ...]
    targets: tuple[str, ...]
    apply: Apply
    node: str = ""
    component: str = ""

    def target_of(self, model: str) -> str:
        """The chain that it is tried in with a model."""
        place = self.models.index(model) if model in self.models else 0
        return self.targets[place % len(self.targets)]


FAULTS: list[Fault] = []


def graph_fault(
    kind: str,
    why: str,
    *,
    stages: Mapping[str, tuple[str, ...]],
    models: tuple[str, ...] = ALL,
    component: str = "",
    suffix: str = "",
) -> Callable[[Callable[[Graph], None]], Callable[[Graph], None]]:
    """Register a damage of a graph, once for each stage that can make it.

    Args:
        kind: What sort of damage.
        why: How it comes about.
        stages: Stage -> chains that it is tried in.
        models: Where it can be made.
        component: Which graph of several.
        suffix: Behind the name, where one damage is registered more than once.
    """

    def register(damage: Callable[[Graph], None]) -> Callable[[Graph], None]:
        for stage, targets in stages.items():
            node = f"{stage}.{component}" if component else ""
            FAULTS.append(
                Fault(
                    name=f"{damage.__name__}@{node or stage}{suffix}",
                    kind=kind,
                    why=why,
                    stage=stage,
                    accepts=(stage,),
                    models=models,
                    targets=targets,
                    apply=_on_graph(damage),
                    node=node,
                    component=component,
                )
            )
        return damage

    return register


def _on_graph(damage: Callable[[Graph], None]) -> Apply:
    def apply(scene: Scene) -> Mapping[str, Any]:
        graph = Graph.read(scene.good)
        damage(graph)
        graph.write(scene.output)
        # A stage that errs believes what it always says.
        return scene.facts

    return apply


def result_fault(
    kind: str,
    why: str,
    *,
    stage: str,
    targets: tuple[str, ...],
    accepts: tuple[str, ...] = (),
    models: tuple[str, ...] = ALL,
    node: str = "",
) -> Callable[[Apply], Apply]:
    """Register a damage of any result; the function is given the whole scene."""

    def register(damage: Apply) -> Apply:
        FAULTS.append(
            Fault(
                name=f"{damage.__name__}@{stage}",  # type: ignore[attr-defined]
                kind=kind,
                why=why,
                stage=stage,
                accepts=accepts or (stage,),
                models=models,
                targets=targets,
                apply=damage,
                node=node,
            )
        )
        return damage

    return register


def all_faults() -> tuple[Fault, ...]:
    """Every fault, in the order of the files."""
    from tests.mutants.faults import (
        arithmetic,
        decoding,
        pairs,
        quantising,
        ranges,
        weights,
        wiring,
    )

    del arithmetic, decoding, pairs, quantising, ranges, weights, wiring
    return tuple(FAULTS)
