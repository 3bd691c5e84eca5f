"""Standard output: what may be piped. A reader that went away changes no exit code."""

from __future__ import annotations

import os
import sys

from pipeline.errors import ArtifactError, PipelineError


def say(text: str) -> None:
    """Write a line to standard error, for people."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def emit(text: str = "") -> None:
    """Write a line to standard output.

    When the reader has gone (`convert plan ... | head`), the rest goes nowhere and the command's own
    exit code stands. click would end the process with 1, which here means that a gate failed.

    Raises:
        ArtifactError: nothing can be written, such as on a full disk.
    """
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise ArtifactError(f"standard output cannot be written: {error.strerror}") from error


def error_document(kind: str, error: PipelineError, code: int) -> dict[str, object]:
    """What `--json` says where there is no artifact."""
    return {
        "verdict": "error",
        "exit_code": code,
        "artifact": None,
        "error": {
            "kind": kind,
            "message": error.message,
            "where": error.where,
            "hint": error.hint,
        },
    }
