"""What a candidate takes and gives, in our names: found out once, from its signature alone.

Nothing is guessed that could be wrong without being seen: names are those that tools are known to
write, and a single tensor that is left over on both sides. What was decided stands in `notes`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from pydantic import BaseModel, ConfigDict

from pipeline.candidates.names import listed, quoted
from pipeline.errors import RecipeError
from pipeline.tasks import BATCH_AXIS, SENTENCE_EMBEDDING, SEQUENCE_AXIS, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

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


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class AdoptedInput(_Record):
    """An input that samples feed.

    Attributes:
        name: Ours.
        given: The candidate's.
        fed: numpy's name of what samples are.
        dtype: ONNX's name of the type that the candidate takes.
        axes: Names of its first axes.
    """

    name: str
    given: str
    fed: Literal["int64", "float32"]
    dtype: str
    axes: tuple[str, ...]


class SuppliedInput(_Record):
    """An input that no sample has, and that follows from another.

    Attributes:
        given: The candidate's name.
        dtype: As in `AdoptedInput`.
        rule: `positions`: 0, 1, 2 ... in each row; `zeros`.
    """

    given: str
    dtype: str
    rule: Literal["positions", "zeros"]


class AdoptedOutput(_Record):
    """An output that is compared.

    Attributes:
        name: Ours.
        given: The candidate's.
        dtype: ONNX's name of its type.
        axes: Names of its first axes.
    """

    name: str
    given: str
    dtype: str
    axes: tuple[str, ...]

    @property
    def is_comparable(self) -> bool:
        """Outputs of this type are compared as they are; all others are cast to float32."""
        return self.dtype in {"float", "float16"}


class Interface(_Record):
    """How a candidate is fed and read.

    Attributes:
        fixed: Named axis -> the one size that the candidate takes.
        missing: Our inputs that the candidate does not take, though the checkpoint does.
        notes: What a reader should know of all this, a sentence each.
    """

    inputs: tuple[AdoptedInput, ...]
    supplied: tuple[SuppliedInput, ...]
    outputs: tuple[AdoptedOutput, ...]
    fixed: dict[str, int]
    missing: tuple[str, ...]
    notes: tuple[str, ...]


def match_interface(
    facts: ModelFacts,
    task: Task,
    *,
    fed: Sequence[str],
    has_sentence: bool,
    renames: Mapping[str, str],
) -> Interface:
    """Find the task's inputs and outputs among those of a candidate.

    Args:
        facts: What its file says.
        task: What the checkpoint is for.
        fed: Inputs that samples of this checkpoint have.
        has_sentence: The checkpoint also gives a `sentence_embedding`.
        renames: The candidate's name -> ours, where the user knows better.

    Raises:
        RecipeError: it needs an input that nothing can feed, lacks an output of the task, or has
            operators that need a library.
    """
    _require_known_operators(facts)
    _require_known_names(facts, renames)
    notes: list[str] = []
    wanted = [spec for spec in task.inputs if spec.name in fed]
    taken = _pair(facts.inputs, wanted, renames, "input", notes)
    supplied = tuple(_supplied(facts, taken, fed, notes))
    _require_fed(facts, task, taken, supplied)
    inputs = tuple(_input(spec, taken[spec.name], notes) for spec in wanted if spec.name in taken)
    outputs = _outputs(facts, task, has_sentence=has_sentence, renames=renames, notes=notes)
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


def output_names(facts: ModelFacts, task: Task) -> tuple[str, ...]:
    """The task's outputs that a candidate has under a name that is known."""
    given = {tensor.name for tensor in facts.outputs}
    return tuple(
        spec.name for spec in _wanted_outputs(task, has_sentence=True) if given & {*_names(spec)}
    )


def _names(spec: TensorSpec) -> tuple[str, ...]:
    return SYNONYMS.get(spec.name, (spec.name,))


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


def _pair(
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
        hint="decoders that keep a cache cannot be checked yet"
        if is_decoder
        else "say what it is with --rename GRAPH_NAME=NAME, where NAME is one of "
        f"{listed([spec.name for spec in task.inputs])}; or name another --task",
    )


def _input(spec: TensorSpec, tensor: TensorFacts, notes: list[str]) -> AdoptedInput:
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


def _outputs(
    facts: ModelFacts,
    task: Task,
    *,
    has_sentence: bool,
    renames: Mapping[str, str],
    notes: list[str],
) -> tuple[AdoptedOutput, ...]:
    wanted = _wanted_outputs(task, has_sentence=has_sentence)
    found = _pair(facts.outputs, wanted, renames, "output", notes)
    given = listed([tensor.name for tensor in facts.outputs])
    lacking = [spec.name for spec in wanted if spec.name not in found]
    # Either of the two is what users of an encoder read; all outputs of a head are.
    if not found or (lacking and SENTENCE_EMBEDDING not in {spec.name for spec in wanted}):
        raise RecipeError(
            f"the graph gives {given}, and task `{task.name}` has {listed(lacking)}",
            hint="say which one it is with --rename GRAPH_NAME=NAME, or name another --task",
        )
    notes += [f"it does not give {quoted(name)}, so that is not compared" for name in lacking]
    claimed = {tensor.name for tensor in found.values()}
    ignored = [tensor.name for tensor in facts.outputs if tensor.name not in claimed]
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
