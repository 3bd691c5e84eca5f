"""What is written beside an engine: `engine.json`, delivered as `model.sm89.engine.json`.

It is all that may be known of an engine without the package that built it: what it was built for,
by which version, from which shapes to which, what it wants to be fed, and its digest. The report,
`convert inspect` and the program that runs engines read it. Light: imports neither TensorRT nor
numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from pipeline.errors import ArtifactError
from pipeline.hashing import sha256_file

if TYPE_CHECKING:
    from pathlib import Path

FACTS_FILE = "engine.json"
"""Its name in the output of an engine stage, beside `model.engine`."""

ENGINE_SUFFIX = ".engine"

SHA256_PATTERN = r"^[0-9a-f]{64}$"
Sha256 = Annotated[str, StringConstraints(pattern=SHA256_PATTERN)]
Size = Annotated[int, Field(ge=0)]
Range: TypeAlias = tuple[Size, Size, Size]
"""(min, opt, max)"""
Shape: TypeAlias = tuple[Size, ...]
Runtime = Literal["tensorrt-rtx", "tensorrt"]

_MAX_BYTES = 1 << 20


class _Fact(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorFacts(_Fact):
    """One input or output of an engine.

    Attributes:
        name: Of the graph's tensor, and of the engine's binding.
        dtype: As numpy names it: `int64`, `float32`, `float16`, `bool`; and `bfloat16`.
        dims: One for each axis: a size, or the name of a dynamic axis; None for one without name.
    """

    name: str
    dtype: str
    dims: tuple[int | str | None, ...]


class ProfileFacts(_Fact):
    """One optimization profile; its number is its place in `EngineFacts.profiles`.

    Attributes:
        axes: Name of a dynamic axis -> (min, opt, max), as the recipe gives them.
        inputs: Input name -> its smallest, usual and largest shape.
    """

    axes: dict[str, Range]
    inputs: dict[str, tuple[Shape, Shape, Shape]]


class EngineFacts(_Fact):
    """What is known of one engine file.

    Attributes:
        format: Version of this format.
        runtime: Which of the two runtimes reads the engine: neither reads the other's.
        version: Of the package that built it, such as `1.7.1.116`.
        target: `sm89`, `portable`, or for full TensorRT the capability of the GPU that built it.
        precision: Of the matrix products, such as `int8`.
        profiles: At least one; empty `axes` when the graph has no dynamic axis.
        inputs: What the engine expects, in the graph's order.
        outputs: What it gives, in the graph's order.
        layer_fingerprint: Of the table of fused layers, without names.
        size_bytes: Of the engine file.
        sha256: Of the engine file.
        compatibility: Options that widen where a full TensorRT engine runs, such as
            `version_compatible`; empty for TensorRT-RTX.
        gpu: Name of the GPU that a full TensorRT engine was built on; empty for TensorRT-RTX.
        driver: Version of that machine's driver; empty for TensorRT-RTX.
    """

    format: Literal[1] = 1
    runtime: Runtime
    version: str
    target: str
    precision: str
    profiles: Annotated[tuple[ProfileFacts, ...], Field(min_length=1)]
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    layer_fingerprint: Sha256
    size_bytes: Annotated[int, Field(ge=1)]
    sha256: Sha256
    compatibility: tuple[str, ...] = ()
    gpu: str = ""
    driver: str = ""

    @model_validator(mode="after")
    def _profiles_are_of_the_inputs(self) -> Self:
        names = {tensor.name for tensor in self.inputs}
        for number, profile in enumerate(self.profiles):
            if set(profile.inputs) != names:
                msg = f"profile {number} is of other inputs than the engine's"
                raise ValueError(msg)
            for name, shapes in profile.inputs.items():
                if any(
                    not small <= usual <= large
                    for small, usual, large in zip(*shapes, strict=True)
                ):
                    msg = f"profile {number} does not hold min <= opt <= max for {name}"
                    raise ValueError(msg)
            for axis, sizes in profile.axes.items():
                if list(sizes) != sorted(sizes):
                    msg = f"profile {number} does not hold min <= opt <= max for axis {axis}"
                    raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _axes_are_those_of_the_inputs(self) -> Self:
        """What is said of an axis by its name is what is said of every input that has it."""
        for number, profile in enumerate(self.profiles):
            for tensor in self.inputs:
                shapes = profile.inputs[tensor.name]
                for place, dim in enumerate(tensor.dims):
                    own = tuple(shape[place : place + 1] for shape in shapes)
                    said = profile.axes.get(dim) if isinstance(dim, str) else None
                    if said is not None and own != tuple((size,) for size in said):
                        msg = f"profile {number} gives axis {dim} and input {tensor.name} other sizes"
                        raise ValueError(msg)
        return self


def facts_path(engine: Path) -> Path:
    """Where the facts of an engine file lie: `model.sm89.engine` -> `model.sm89.engine.json`.

    In the stage's own output `model.engine` has `engine.json`.
    """
    if engine.name == "model.engine" and engine.with_name(FACTS_FILE).is_file():
        return engine.with_name(FACTS_FILE)
    return engine.with_name(f"{engine.name}.json")


def write_engine_facts(facts: EngineFacts, path: Path) -> None:
    """Write the file; equal facts give equal bytes."""
    path.write_text(facts.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_engine_facts(path: Path) -> EngineFacts:
    """Read the file that lies beside an engine; the engine itself is not looked at.

    Args:
        path: Of the facts; see `facts_path`.

    Raises:
        ArtifactError: when it cannot be read, or does not say what it must.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ArtifactError(
            f"the facts of an engine cannot be read: {error.strerror}", where=path.name
        ) from error
    if len(text) > _MAX_BYTES:
        raise ArtifactError(
            "this is too large to be the facts of an engine",
            where=path.name,
            hint="build the target again, which writes them",
        )
    try:
        return EngineFacts.model_validate_json(text)
    except ValidationError as error:
        raise ArtifactError(
            f"these are not the facts of an engine: {_first_fault(error.errors())}",
            where=path.name,
            hint="build the target again; a newer version of this program may have written it",
        ) from error


def _first_fault(faults: list[Any]) -> str:
    fault = faults[0]
    place = ".".join(str(part) for part in fault["loc"])
    said = str(fault["msg"])
    return f"`{place}`: {said}" if place else said


def require_engine_of_facts(facts: EngineFacts, engine: Path) -> None:
    """Hold the file against its facts: size first, then the digest.

    Raises:
        ArtifactError: it is not there, or another file than the facts are of.
    """
    try:
        size = engine.stat().st_size
        digest = sha256_file(engine) if size == facts.size_bytes else ""
    except OSError as error:
        raise ArtifactError(
            f"the engine cannot be read: {error.strerror}", where=engine.name
        ) from error
    if size != facts.size_bytes:
        raise ArtifactError(
            f"the engine has {size} bytes, and its facts say {facts.size_bytes}",
            where=engine.name,
            hint="copy the file again, or build the target again",
        )
    if digest != facts.sha256:
        raise ArtifactError(
            f"the engine's digest is {digest}, and its facts say {facts.sha256}",
            where=engine.name,
            hint="the file was changed after it was built: build the target again",
        )
