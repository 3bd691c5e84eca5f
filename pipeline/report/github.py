"""What GitHub Actions shows of a report: annotations on the recipe's lines, and the step's summary.

Annotations are workflow commands, lines such as `::error file=a.yaml,line=3::message`. The runner
reads them from standard error as well as from standard output (`ScriptHandler` of actions/runner
gives both to its command parser), so they leave standard output to `--json`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import StoreError
from pipeline.report.figures import plural
from pipeline.report.markdown import render_markdown
from pipeline.report.places import gate_key_path, target_key_path
from pipeline.report.printable import printable, printable_text
from pipeline.report.sarif import gate_sentence
from pipeline.report.summary import failed_nodes
from pipeline.report.terminal import render_terminal_summary
from pipeline.report.verdicts import accused, causes, unexplained

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.report.places import Place, Places
    from pipeline.report.schema import Report
    from pipeline.report.verdicts import Cause

MAX_ANNOTATIONS = 10
"""GitHub keeps no more errors of one step; the last one says how many there are beyond."""

MAX_SUMMARY_BYTES = 1 << 20
"""Of the file at `$GITHUB_STEP_SUMMARY`; GitHub drops a larger one whole."""


def annotation_lines(report: Report, places: Places | None = None) -> tuple[str, ...]:
    """Workflow commands: an error for each fault that was found and each stage that failed.

    A finding stands for the gates that it explains; every other gate that breaks the build is an error
    of its own.

    Args:
        report: The report.
        places: Where the recipe's keys are written; None: the annotations have no line.
    """
    found = tuple(_annotations(printable(report), places))
    if len(found) <= MAX_ANNOTATIONS:
        return found
    rest = len(found) - MAX_ANNOTATIONS + 1
    more = error_command(
        f"{rest:,} more gates or stages fail, see the report",
        title=f"convert {printable_text(report.name)}",
    )
    return (*found[: MAX_ANNOTATIONS - 1], more)


def error_command(message: str, *, title: str = "", place: Place | None = None) -> str:
    """One `::error` command, escaped so that nothing in it can start another command."""
    properties = {"title": title} if title else {}
    if place is not None:
        properties = {
            "file": place.file,
            "line": str(place.line),
            "col": str(place.column),
            **properties,
        }
    told = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    return f"::error{' ' * bool(told)}{told}::{_data(message)}"


def append_summary(report: Report, path: Path) -> bool:
    """Append the report as Markdown to a step's summary; others may have written there before.

    Where the whole report has no room, the few lines of the terminal are appended instead.

    Returns:
        Whether it was appended; False when the summary is full.

    Raises:
        StoreError: the file cannot be written.
    """
    try:
        taken = path.stat().st_size if path.exists() else 0
        lines = render_terminal_summary(report)
        # Code by indentation, which nothing in the lines can close.
        short = "\n".join(f"    {line}" for line in lines.splitlines()) + "\n"
        for text in (render_markdown(report), short):
            content = f"\n{text}".encode() if taken else text.encode()
            if taken + len(content) <= MAX_SUMMARY_BYTES:
                with path.open("ab") as file:
                    file.write(content)
                return True
    except OSError as error:
        raise StoreError(
            f"the step's summary cannot be written: {error.strerror}",
            where=str(path),
            hint="`GITHUB_STEP_SUMMARY` names the file",
        ) from error
    return False


def _annotations(report: Report, places: Places | None) -> Iterator[str]:
    for node in failed_nodes(report):
        message = node.failure.message if node.failure else "the stage failed"
        hint = f"\nhint: {node.failure.hint}" if node.failure and node.failure.hint else ""
        yield error_command(f"{message}{hint}", title=f"{report.name}: {node.name} failed")
    for cause in causes(report):
        yield _cause_annotation(report, cause, places)
    for gate in unexplained(report):
        yield error_command(
            gate_sentence(report, gate),
            title=f"{report.name}: {gate.gate} gate",
            place=places(gate_key_path(report, gate)) if places else None,
        )


def _cause_annotation(report: Report, cause: Cause, places: Places | None) -> str:
    """On the line of the first target; of a fault that no gate accuses, on that of the limit."""
    lines = [f"{', '.join(cause.targets)}: {cause.sentence}"]
    key_path = target_key_path(report, cause.targets[0])
    if not cause.gates and cause.behind:
        lines.append(gate_sentence(report, cause.behind[0]))
        key_path = gate_key_path(report, cause.behind[0])
    if count := len(cause.gates) + len(cause.behind):
        lines.append(f"{plural(count, 'gate fails', 'gates fail')} for it, see the report")
    return error_command(
        "\n".join(lines),
        title=f"{report.name}: {accused(cause) or 'finding'}",
        place=places(key_path) if places else None,
    )


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
