"""Turns what TensorRT says, or does not say, into one error that names nodes and what to do.

Messages as seen with TensorRT-RTX 1.7.1.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pipeline.errors import EngineBuildError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pipeline.graph.engine_checks import GraphProblem

_ERRORS = frozenset({"ERROR", "INTERNAL_ERROR"})
_NO_DRIVER = re.compile(
    r"cudaError ?35|CUDA driver version is insufficient|Error reading CUDA GPU"
)
"""Follows every real error on a machine without a GPU, and says nothing about it."""
_OUT_OF_WORKSPACE = re.compile(r"OutOfMemory.*?Requested size was (\d+) bytes", re.DOTALL)
_NO_TACTIC_IN_WORKSPACE = "no tactics to implement the operation within workspace limit"
_OUT_OF_HOST_MEMORY = re.compile(r"MemoryError|bad_alloc|[Cc]annot allocate memory|out of memory")
_WRONG_ENGINE = (
    (
        re.compile(r"Profile k(?:MIN|OPT|MAX) values are not self-consistent"),
        "the largest shapes do not fit the graph, so the engine would fail when it meets them",
        "keep `shapes` within what the model was made for, such as its number of positions",
    ),
    (
        re.compile(r"Input Tensor .* is unused or used only at compile-time"),
        "an input's values are not used, so the engine would ignore what it is given",
        "the export has merged or dropped this input: give it example values of its own",
    ),
)
_LOSSY_CONSTANT = re.compile(
    r"in op (\S+), operand (\S+) payload type requires precision-lose casting"
)
_BENIGN = re.compile(r"Make sure input .* has Int64 binding")
_OUT_OF_MEMORY_HINT = (
    "most likely it ran out of memory: a build takes about three times the size of the weights; "
    "raise the memory limit, or build fewer engines at once"
)
_LAST_LINES = 10
_MIB = 1 << 20


def real_errors(records: Iterable[tuple[str, str]]) -> list[str]:
    """The errors of a log without the noise of a machine that has no GPU."""
    return [m for severity, m in records if severity in _ERRORS and not _NO_DRIVER.search(m)]


def notable_warnings(records: Iterable[tuple[str, str]]) -> list[str]:
    """The warnings of a log, each once and in order, without those that mean nothing."""
    found = [m for severity, m in records if severity == "WARNING" and not _BENIGN.search(m)]
    return list(dict.fromkeys(found))


def lossy_constants(lines: Iterable[str]) -> list[str]:
    """Constants that the graph's type cannot hold, such as a smallest norm of 1e-12 in fp16.

    The compiler prints these past the logger.
    """
    matches = (_LOSSY_CONSTANT.search(line) for line in lines)
    return [
        f"{m[1]}: the constant {m[2]} is not exact in the type of the node" for m in matches if m
    ]


def require_no_wrong_engine_warning(records: Iterable[tuple[str, str]]) -> None:
    """Refuse an engine that was built and is wrong.

    Raises:
        EngineBuildError: for a warning that means so.
    """
    for message in notable_warnings(records):
        for pattern, meaning, hint in _WRONG_ENGINE:
            if pattern.search(message):
                raise EngineBuildError(f"{meaning}; TensorRT warns: {message}", hint=hint)


def graph_failure(problems: Sequence[GraphProblem]) -> EngineBuildError:
    """All problems of a graph, listed by what they are."""
    groups: dict[tuple[str, str], list[str]] = {}
    for problem in problems:
        label = f"{problem.node} ({problem.operator})" if problem.operator else problem.node
        groups.setdefault((problem.what, problem.hint), []).append(label)
    lines = [f"  {what}: {_shorten(labels)}" for (what, _), labels in groups.items()]
    return EngineBuildError(
        f"{len(problems)} nodes or inputs of the graph cannot become a TensorRT engine\n"
        + "\n".join(lines),
        hint="; ".join(dict.fromkeys(hint for _, hint in groups)),
    )


def parser_failure(errors: Sequence[tuple[str, str, str, str]]) -> EngineBuildError:
    """The parser's errors by node, as (node, operator, code, description)."""
    lines = [
        f"  {node or 'the graph'} ({operator or 'no operator'}): {description} [{code}]"
        for node, operator, code, description in errors
    ]
    is_about_data = any("Failed to import initializer" in text for _, _, _, text in errors)
    return EngineBuildError(
        f"TensorRT's parser refuses {len(errors)} nodes of the graph\n" + "\n".join(lines),
        hint="the graph's external data is missing or too short, or of a type TensorRT does not know"
        if is_about_data
        else "",
    )


def build_failure(
    refused: str, records: Sequence[tuple[str, str]], workspace_bytes: int | None
) -> EngineBuildError:
    """Why the builder gave nothing back."""
    errors = real_errors(records)
    text = "\n".join(errors)
    if need := _needed_workspace(text):
        limit = "no limit" if workspace_bytes is None else f"{workspace_bytes / _MIB:.0f} MiB"
        return EngineBuildError(
            f"a layer needs {need} scratch memory than is allowed ({limit})\n  {errors[0]}",
            hint="raise `workspace_mib`, or lower the largest shapes",
        )
    what = refused or "TensorRT could not build the engine"
    said = "\n".join(f"  {error}" for error in errors)
    if not said:
        return EngineBuildError(what if refused else f"{what}, and it does not say why")
    hint = _OUT_OF_MEMORY_HINT if _OUT_OF_HOST_MEMORY.search(text) else ""
    if "FP32 GEMM is not supported" in text:
        hint = "cast the graph to fp16 first: this compute capability has no FP32 matrix product"
    elif "HW-specific datatypes" in text:
        hint = "this compute capability lacks a type that the graph holds; take another precision"
    elif "graph_jit.cpp" in text and "CUDA_SUCCESS" in text:
        hint = "refit and strip_weights need a GPU on the machine that builds"
    elif "Attention operation was not supported by a dedicated kernel" in text:
        hint = "TensorRT has a kernel for `Attention` in fp16 and bf16 only: cast the graph first"
    return EngineBuildError(f"{what}\n{said}", hint=hint)


def _needed_workspace(text: str) -> str:
    """How much scratch memory the builder misses, as words; empty when that is not its trouble."""
    if match := _OUT_OF_WORKSPACE.search(text):
        return f"{int(match[1]) / _MIB:.1f} MiB, more"
    return "more" if _NO_TACTIC_IN_WORKSPACE in text else ""


def process_failure(code: int, signal_name: str, lines: Sequence[str]) -> EngineBuildError:
    """Why the builder's process died without a result.

    Args:
        code: Its exit code.
        signal_name: The signal that ended it, or empty.
        lines: Its output.
    """
    tail = [line for line in lines if not _NO_DRIVER.search(line)][-_LAST_LINES:]
    ending = f"was killed by {signal_name}" if signal_name else f"ended with exit code {code}"
    said = "\n".join(f"  {line}" for line in tail) or "  (nothing)"
    hint = ""
    if signal_name == "SIGKILL" or _OUT_OF_HOST_MEMORY.search("\n".join(lines)):
        hint = _OUT_OF_MEMORY_HINT
    elif "ImportError" in "".join(tail):
        hint = "TensorRT cannot be loaded: the installation is broken, or the memory limit too low"
    return EngineBuildError(f"the builder's process {ending}; it said last\n{said}", hint=hint)


def _shorten(labels: Sequence[str], limit: int = 20) -> str:
    more = f" and {len(labels) - limit} more" if len(labels) > limit else ""
    return ", ".join(labels[:limit]) + more
