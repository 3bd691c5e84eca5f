"""Which tensors of a candidate are those of a task: by the names that tools are known to write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pipeline.candidates.names import listed, quoted
from pipeline.candidates.records import AdoptedInput, AdoptedOutput
from pipeline.errors import RecipeError
from pipeline.tasks import BATCH_AXIS, SENTENCE_EMBEDDING, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.graph.model_facts import ModelFacts, TensorFacts
    from pipeline.tasks import Task

SYNONYMS: Final[Mapping[str, tuple[str, ...]]] = {
    "input_ids": ("input_ids", "ids"),
    "attention_mask": ("attention_mask", "mask", "input_mask"),
    "token_type_ids": ("token_type_ids", "segment_ids"),
    "pixel_values": ("pixel_values", "image", "images"),
    "last_hidden_state": ("last_hidden_state", "token_embeddings"),
    SENTENCE_EMBEDDING: (SENTENCE_EMBEDDING, "sentence_embeddings"),
    "logits": ("logits",),
    "start_logits": ("start_logits",),
    "end_logits": ("end_logits",),
}
"""Our name -> names that tools write. `pooler_output` is no `sentence_embedding`: it is what BERT's own
pooler makes of the first token."""

POSITIONS: Final = "position_ids"
TYPES: Final = "token_type_ids"
_INPUT_DTYPES: Final = {
    "int64": frozenset({"int64", "int32", "bool", "float", "float16"}),
    "float32": frozenset({"float", "float16", "double", "bfloat16"}),
}
"""numpy's name of what samples are -> ONNX's names of what they can be cast to without loss that
matters: ids fit into 32 bits, and masks are 0 and 1."""
_NATIVE: Final = {"int64": "int64", "float32": "float"}
_OUTPUT_DTYPES: Final = frozenset({"float", "float16", "double", "bfloat16"})
KNOWN_DOMAINS: Final = frozenset(
    {"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"}
)
"""Domains whose operators ONNX Runtime's CPU provider has without a library from elsewhere."""


def require_known(facts: ModelFacts, renames: Mapping[str, str]) -> None:
    """Refuse operators that need a library, and renames of what the graph does not have.

    Raises:
        RecipeError: naming them.
    """
    _require_known_operators(facts)
    _require_known_names(facts, renames)


def _require_known_operators(facts: ModelFacts) -> None:
    unknown = sorted(
        op
        for op in facts.op_counts
        if op.partition("::")[0] not in KNOWN_DOMAINS and "::" in op and op not in facts.functions
    )
    if unknown:
        raise RecipeError(
            f"the graph has operators that only a library from elsewhere computes: "
            f"{listed(unknown)}",
            hint="no such library is ever loaded; check the graph it was made from",
        )


def _require_known_names(facts: ModelFacts, renames: Mapping[str, str]) -> None:
    given = {tensor.name for tensor in (*facts.inputs, *facts.outputs)}
    for name in renames:
        if name not in given:
            raise RecipeError(
                f"the graph has no input or output {quoted(name)}",
                hint=f"it has {listed([*given])}",
            )


def pair(
    tensors: Sequence[TensorFacts],
    wanted: Sequence[TensorSpec],
    renames: Mapping[str, str],
    kind: str,
    notes: list[str],
) -> dict[str, TensorFacts]:
    """Our name -> the candidate's tensor, of all that are known for sure."""
    found: dict[str, TensorFacts] = {}
    claimed: set[str] = set()
    for spec in wanted:
        named = [name for name, ours in renames.items() if ours == spec.name]
        for name in named or _names(spec):
            tensor = next((t for t in tensors if t.name == name), None)
            if tensor is not None and name not in claimed and name not in {*renames} - {*named}:
                found[spec.name] = tensor
                claimed.add(name)
                if name != spec.name:
                    notes.append(f"its {kind} {quoted(name)} is taken for `{spec.name}`")
                break
    rest = [t for t in tensors if t.name not in claimed and t.name not in {POSITIONS, TYPES}]
    open_specs = [spec for spec in wanted if spec.name not in found]
    if len(rest) == 1 and len(open_specs) == 1 and not found:
        found[open_specs[0].name] = rest[0]
        notes.append(f"its only {kind} {quoted(rest[0].name)} is taken for `{open_specs[0].name}`")
    return found


def adopted_input(spec: TensorSpec, tensor: TensorFacts, notes: list[str]) -> AdoptedInput:
    """One input as it is fed.

    Raises:
        RecipeError: its type or its rank is not that of the task's.
    """
    if tensor.dtype not in _INPUT_DTYPES[spec.dtype]:
        raise RecipeError(
            f"the graph takes {quoted(tensor.name)} as {tensor.dtype}, not {spec.dtype}"
        )
    if len(tensor.shape) < len(spec.axes) or (spec.dtype == "int64") != (
        len(tensor.shape) == len(spec.axes)
    ):
        raise RecipeError(
            f"input {quoted(tensor.name)} has {len(tensor.shape)} axes, and `{spec.name}` is "
            f"({', '.join(spec.named_axes)}{', ...' * (spec.dtype != 'int64')})"
        )
    if tensor.dtype != _NATIVE[spec.dtype]:
        notes.append(f"it takes {quoted(tensor.name)} as {tensor.dtype}; samples are cast to it")
    return AdoptedInput(
        name=spec.name, given=tensor.name, fed=spec.dtype, dtype=tensor.dtype, axes=spec.named_axes
    )


def _wanted_outputs(task: Task, *, has_sentence: bool) -> tuple[TensorSpec, ...]:
    pooled = TensorSpec(name=SENTENCE_EMBEDDING, axes=(BATCH_AXIS,))
    is_encoder = task.modality == "text" and task.name == "feature-extraction"
    return (*task.outputs, pooled) if has_sentence and is_encoder else task.outputs


def adopted_outputs(
    tensors: Sequence[TensorFacts],
    task: Task,
    *,
    has_sentence: bool,
    renames: Mapping[str, str],
    notes: list[str],
) -> tuple[AdoptedOutput, ...]:
    """The task's outputs among some of a candidate's.

    Args:
        tensors: Outputs of the candidate.
        task: What the checkpoint is for.
        has_sentence: The checkpoint also gives a `sentence_embedding`.
        renames: The candidate's name -> ours.
        notes: Is told what was decided.

    Raises:
        RecipeError: one is not there, or is no number with a fraction.
    """
    wanted = _wanted_outputs(task, has_sentence=has_sentence)
    found = pair(tensors, wanted, renames, "output", notes)
    given = listed([tensor.name for tensor in tensors])
    lacking = [spec.name for spec in wanted if spec.name not in found]
    # Either of the two is what users of an encoder read; all outputs of a head are.
    if not found or (lacking and SENTENCE_EMBEDDING not in {spec.name for spec in wanted}):
        raise RecipeError(
            f"the graph gives {given}, and task `{task.name}` has {listed(lacking)}",
            hint="say which one it is with --rename GRAPH_NAME=NAME, or name another --task",
        )
    notes += [f"it does not give {quoted(name)}, so that is not compared" for name in lacking]
    claimed = {tensor.name for tensor in found.values()}
    ignored = [tensor.name for tensor in tensors if tensor.name not in claimed]
    if len(ignored) == 1:
        notes.append(f"its output {listed(ignored)} is not looked at")
    elif ignored:
        notes.append(f"its outputs {listed(ignored)} are not looked at")
    for spec in wanted:
        tensor = found.get(spec.name)
        if tensor is not None and tensor.dtype not in _OUTPUT_DTYPES:
            raise RecipeError(
                f"output {quoted(tensor.name)} is {tensor.dtype}, and `{spec.name}` is a number with a "
                "fraction"
            )
    return tuple(
        AdoptedOutput(
            name=spec.name,
            given=found[spec.name].name,
            dtype=found[spec.name].dtype,
            axes=spec.named_axes,
        )
        for spec in wanted
        if spec.name in found
    )


def _names(spec: TensorSpec) -> tuple[str, ...]:
    return SYNONYMS.get(spec.name, (spec.name,))
