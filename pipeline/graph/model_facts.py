"""What can be said of a model file, as records that travel between processes; imports no onnx."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorFacts(_Frozen):
    """One input or output; an axis is its size, its name, or `?`."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class LayerFacts(_Frozen):
    """One node that computes with a stored weight.

    Attributes:
        node: The node's name, or that of its first output.
        op: Operator; other domains than ONNX's own as `domain::op`.
        weight: The stored tensor's name, also where it is dequantised or transposed first.
        dtype: Element type in which the weight is stored.
        parameters: Number of elements.
    """

    node: str
    op: str
    weight: str
    dtype: str
    parameters: int


class ExternalFile(_Frozen):
    """A file beside the model with weights in it.

    Attributes:
        location: As the model says it.
        size_bytes: None when there is no such plain file beside the model.
    """

    location: str
    size_bytes: int | None


class ModelFacts(_Frozen):
    """One model file; see `inspect.ModelDescription` for what the first ones mean.

    Attributes:
        functions: Operators that the model itself defines, as `domain::op`.
    """

    opset: int
    domains: dict[str, int]
    ir_version: int
    producer: str
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    op_counts: dict[str, int]
    parameters: int
    weight_bytes: dict[str, int]
    layers: tuple[LayerFacts, ...]
    external_files: tuple[ExternalFile, ...]
    size_bytes: int
    functions: tuple[str, ...] = ()


class Refusal(_Frozen):
    """Why there are no facts."""

    message: str
    hint: str = ""


class Answer(_Frozen):
    """What the reading process writes: exactly one of the two is there."""

    facts: ModelFacts | None = None
    refusal: Refusal | None = None
