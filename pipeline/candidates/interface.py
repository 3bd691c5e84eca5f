"""What a candidate takes and gives, in our names: found out once, from its signature alone.

Nothing is guessed that could be wrong without being seen: names are those that tools are known to
write, and a single tensor that is left over on both sides. What was decided stands in `notes`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.candidates.decoders import match_decoder
from pipeline.candidates.matching import (
    POSITIONS,
    SYNONYMS,
    TYPES,
    adopted_input,
    adopted_outputs,
    pair,
    require_known,
)
from pipeline.candidates.names import listed, quoted
from pipeline.candidates.records import Interface, SuppliedInput
from pipeline.errors import RecipeError
from pipeline.tasks import BATCH_AXIS, SEQUENCE_AXIS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.candidates.records import AdoptedInput
    from pipeline.graph.model_facts import ModelFacts, TensorFacts
    from pipeline.tasks import Task


def match_interface(
    facts: ModelFacts,
    task: Task,
    *,
    fed: Sequence[str],
    has_sentence: bool,
    renames: Mapping[str, str],
    config: Mapping[str, object] | None = None,
) -> Interface:
    """Find the task's inputs and outputs among those of a candidate.

    Args:
        facts: What its file says.
        task: What the checkpoint is for.
        fed: Inputs that samples of this checkpoint have.
        has_sentence: The checkpoint also gives a `sentence_embedding`.
        renames: The candidate's name -> ours, where the user knows better.
        config: The checkpoint's `config.json`, which says how large a decoder's cache is.

    Raises:
        RecipeError: it needs an input that nothing can feed, lacks an output of the task, or has
            operators that need a library.
    """
    if task.has_cache and not task.parts:
        return match_decoder(facts, task, fed=fed, renames=renames, config=config or {})
    require_known(facts, renames)
    notes: list[str] = []
    wanted = [spec for spec in task.inputs if spec.name in fed]
    taken = pair(facts.inputs, wanted, renames, "input", notes)
    supplied = tuple(_supplied(facts, taken, fed, notes))
    _require_fed(facts, task, taken, supplied)
    inputs = tuple(
        adopted_input(spec, taken[spec.name], notes) for spec in wanted if spec.name in taken
    )
    outputs = adopted_outputs(
        facts.outputs, task, has_sentence=has_sentence, renames=renames, notes=notes
    )
    fixed = _fixed_axes(inputs, taken)
    notes += [_about_fixed(axis, size) for axis, size in fixed.items()]
    missing = tuple(spec.name for spec in wanted if spec.name not in taken)
    notes += [f"it does not take {quoted(name)}, which the checkpoint takes" for name in missing]
    return Interface(
        inputs=inputs,
        supplied=supplied,
        outputs=outputs,
        fixed=fixed,
        missing=missing,
        notes=tuple(notes),
    )


def _supplied(
    facts: ModelFacts, taken: Mapping[str, TensorFacts], fed: Sequence[str], notes: list[str]
) -> Iterator[SuppliedInput]:
    claimed = {tensor.name for tensor in taken.values()}
    for tensor in facts.inputs:
        if tensor.name in claimed or tensor.dtype not in {"int64", "int32"}:
            continue
        if len(tensor.shape) != 2 or "input_ids" not in taken:
            continue
        if tensor.name == POSITIONS:
            notes.append(
                f"it takes `{POSITIONS}`, which is fed 0, 1, 2, ... in each row; a caller who feeds "
                "something else gets something else"
            )
            yield SuppliedInput(given=tensor.name, dtype=tensor.dtype, rule="positions")
        elif tensor.name in SYNONYMS[TYPES] and TYPES not in fed:
            notes.append(
                f"it takes {quoted(tensor.name)}, which the checkpoint does not: zeros are fed"
            )
            yield SuppliedInput(given=tensor.name, dtype=tensor.dtype, rule="zeros")


def _require_fed(
    facts: ModelFacts,
    task: Task,
    taken: Mapping[str, TensorFacts],
    supplied: Sequence[SuppliedInput],
) -> None:
    fed = {tensor.name for tensor in taken.values()} | {each.given for each in supplied}
    unknown = [tensor.name for tensor in facts.inputs if tensor.name not in fed]
    if not unknown:
        return
    is_decoder = any(name.startswith(("past_key_values", "past.")) for name in unknown)
    raise RecipeError(
        f"the graph takes {listed(unknown)}, and task `{task.name}` has nothing to feed there",
        hint="a decoder that keeps a cache is of another task: leave --task out, or name text-generation"
        if is_decoder
        else "say what it is with --rename GRAPH_NAME=NAME, where NAME is one of "
        f"{listed([spec.name for spec in task.inputs])}; or name another --task",
    )


def _fixed_axes(
    inputs: Sequence[AdoptedInput], taken: Mapping[str, TensorFacts]
) -> dict[str, int]:
    """Named axes of one size.

    Raises:
        RecipeError: two inputs have different ones, or one of no size at all.
    """
    fixed: dict[str, int] = {}
    for adopted in inputs:
        shape = taken[adopted.name].shape
        for axis, size in zip(adopted.axes, shape, strict=False):
            if not isinstance(size, int):
                continue
            if size < 1:
                raise RecipeError(f"the graph's input {quoted(adopted.given)} has {axis} {size}")
            if fixed.setdefault(axis, size) != size:
                raise RecipeError(
                    f"the graph's inputs do not agree on {axis}: {fixed[axis]} and {size}"
                )
    return fixed


def _about_fixed(axis: str, size: int) -> str:
    if axis == BATCH_AXIS:
        return f"it takes batches of {size} only; smaller ones are filled up here, as its users must do"
    unit = "tokens" if axis == SEQUENCE_AXIS else axis.replace("_", " ")
    return (
        f"it takes {size} {unit} only; what is shorter is padded here, as its users must do, and what "
        "is longer is not compared"
    )
