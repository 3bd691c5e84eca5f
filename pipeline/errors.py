"""Every error that `convert` raises on purpose, with the exit code it leads to.

    PipelineError
    ├── RecipeError            2  the recipe, or a command line, asks for something impossible
    ├── GateFailed             1  everything was built, and a gate of the recipe does not hold
    ├── StageError             3  a stage failed, was killed or ran out of time or memory
    │   ├── ExportError
    │   ├── QuantizationError
    │   └── EngineBuildError
    ├── ArtifactError          3  files on disk are not what their manifest says
    │   ├── DigestMismatch
    │   └── StoreError            the store cannot keep its promises here (disk full, read-only)
    └── EnvironmentMissing     4  a package, a GPU or a driver that is needed is not here

A message says what is wrong (with the offending value and the valid set) and where; `hint` says
how to mend it. No message ends in a full stop when it is one sentence.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """The documented exit codes of the command line."""

    OK = 0
    GATE_FAILED = 1
    USAGE = 2
    STAGE_FAILED = 3
    ENVIRONMENT_MISSING = 4


class PipelineError(Exception):
    """Base of all errors that are meant for the user.

    Args:
        message: What is wrong, naming the offending value and the valid ones.
        where: `file:line:column: key.path`, a stage or an artifact; empty when it is everywhere.
        hint: An edit or a command to paste; empty when there is none.
    """

    exit_code: ExitCode = ExitCode.STAGE_FAILED

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n\nhint: {self.hint}" if self.hint else text

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.where, self.hint))


def _rebuild(kind: type[PipelineError], message: str, where: str, hint: str) -> PipelineError:
    return kind(message, where=where, hint=hint)


class RecipeError(PipelineError):
    """The recipe or the command line asks for something that cannot be."""

    exit_code = ExitCode.USAGE


class GateFailed(PipelineError):
    """Everything was built and measured, and a gate of the recipe does not hold."""

    exit_code = ExitCode.GATE_FAILED


class StageError(PipelineError):
    """A stage failed, was killed, or went past its time or memory."""


class ExportError(StageError):
    """The checkpoint could not be turned into an ONNX graph that is right."""


class QuantizationError(StageError):
    """The graph could not be quantised as asked."""


class EngineBuildError(StageError):
    """TensorRT could not, or must not, build an engine from this graph."""


class ArtifactError(PipelineError):
    """Files on disk are missing, damaged or of another kind."""


class DigestMismatch(ArtifactError):
    """A file's content is not what its manifest says."""


class StoreError(ArtifactError):
    """The store cannot keep its promises here: disk full, read-only, foreign version."""


class EnvironmentMissing(PipelineError):
    """Something needed is not on this machine: a package, a GPU, a driver."""

    exit_code = ExitCode.ENVIRONMENT_MISSING
