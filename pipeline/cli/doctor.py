"""`convert doctor`: what is here, what is missing, and how to get it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.options import json_option
from pipeline.cli.output import emit
from pipeline.errors import ExitCode

if TYPE_CHECKING:
    from pipeline.package_checks import Check


@click.command("doctor")
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    help="Root of the store to try; default $CONVERT_STORE, or the user's cache directory.",
)
@json_option
def doctor_command(store: Path | None, is_json: bool) -> int:
    """Look for what is missing on this machine, and say how to get it.

    Looks at Python, packages, CPU, memory, GPU, the store, and what each target needs.

    Packages with native code are really imported, and the store's calls really made, in a temporary
    directory that is deleted afterwards.

    \b
    Examples:
      convert doctor
      convert doctor --store /mnt/cache/convert
      convert doctor --json | jq '.checks[] | select(.state != "ok")'

    Exit codes: 0 everything that CPU targets need is here, 4 something of it is missing.
    """  # noqa: D301 - \b is click's own
    import os

    from pipeline.cli.lines import counted
    from pipeline.doctor import examine, is_fit_for_cpu
    from pipeline.store import resolve_store_root

    checks = examine((store or resolve_store_root(os.environ)).absolute())
    is_fit = is_fit_for_cpu(checks)
    code = ExitCode.OK if is_fit else ExitCode.ENVIRONMENT_MISSING
    if is_json:
        document = {
            "exit_code": int(code),
            "is_fit_for_cpu": is_fit,
            "checks": [_check_json(check) for check in checks],
        }
        emit(json.dumps(document, indent=2))
        return int(code)
    _show(checks)
    problems = sum(check.state == "problem" for check in checks)
    emit()
    emit("fit for CPU targets" if is_fit else f"{counted(problems, 'problem')}, marked with !")
    return int(code)


def _show(checks: tuple[Check, ...]) -> None:
    from pipeline.cli.lines import columns, one_line

    marks = {"ok": " ", "note": "-", "missing": "o", "problem": "!"}
    rows = [(marks[check.state], check.name, check.detail) for check in checks]
    area = ""
    for check, line in zip(checks, columns(rows), strict=True):
        if check.area != area:
            area = check.area
            emit(area)
        emit(line)
        if check.hint:
            emit(f"        hint: {one_line(check.hint)}")


def _check_json(check: Check) -> dict[str, str]:
    return {
        "area": check.area,
        "name": check.name,
        "state": check.state,
        "detail": check.detail,
        "hint": check.hint,
    }
