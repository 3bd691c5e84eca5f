"""The command line's frame: commands, errors, exit codes."""

from __future__ import annotations

import contextlib
import difflib
import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.build import build_command
from pipeline.cli.github import annotate_error
from pipeline.cli.lazy import LazyCommand, LazyGroup
from pipeline.cli.output import emit, error_document
from pipeline.errors import ArtifactError, ExitCode, PipelineError, RecipeError

if TYPE_CHECKING:
    from types import FrameType

INTERRUPTED = 130
"""Exit status after Ctrl-C or SIGTERM: 128 + SIGINT, as shells have it."""
_FILING = frozenset({"run", "check", "diff"})
"""Commands that file what they have finished in the store."""


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 all is well, 1 a gate failed, 2 usage or recipe error, 3 a stage failed "
    "or a file is damaged, 4 something needed is missing here.",
)
@click.version_option(package_name="convert-pipeline", prog_name="convert")
def cli() -> None:
    """Turn a Hugging Face checkpoint into engine artifacts that can be trusted.

    \b
    convert init MODEL               a recipe that works at once
    convert recipe.yaml              build, verify and publish
    convert check MODEL --reference CHECKPOINT   whether a model that exists is right
    convert plan recipe.yaml         what would run, and why
    convert schema > recipe.json     JSON Schema of the recipe, for editors
    convert ls                       artifacts, versions, verdicts
    convert verify latest            every digest, both ways
    convert judge latest             other limits, without a build
    convert diff OLD NEW             two versions side by side, with thresholds for CI
    convert inspect PATH             what a recipe, artifact, model or engine holds
    convert generate ARTIFACT --prompt TEXT   text from an artifact
    convert export-triton ARTIFACT DIR   a model repository for Triton Inference Server
    convert export-epcontext ARTIFACT DIR   engines for ONNX Runtime's TensorRT providers
    convert export-genai, export-transformersjs, export-optimum, export-openvino, export-vllm
                                     the same for the engines of these names
    convert doctor                   what is missing on this machine, and how to get it
    """  # noqa: D301 - \b is click's own


cli.add_command(build_command)
cli.add_command(LazyCommand("init", "pipeline.cli.init:init_command"))
cli.add_command(LazyCommand("check", "pipeline.cli.check:check_command"))
cli.add_command(LazyCommand("plan", "pipeline.cli.plan:plan_command"))
cli.add_command(LazyCommand("schema", "pipeline.cli.schema:schema_command"))
cli.add_command(LazyCommand("ls", "pipeline.cli.ls:ls_command"))
cli.add_command(LazyCommand("verify", "pipeline.cli.verify:verify_command"))
cli.add_command(LazyCommand("judge", "pipeline.cli.judge:judge_command"))
cli.add_command(LazyCommand("diff", "pipeline.cli.diff:diff_command"))
cli.add_command(LazyCommand("inspect", "pipeline.cli.inspect:inspect_command"))
cli.add_command(LazyCommand("generate", "pipeline.cli.generate:generate_command"))
cli.add_command(LazyCommand("export-triton", "pipeline.cli.export_triton:export_triton_command"))
cli.add_command(
    LazyCommand("export-epcontext", "pipeline.cli.export_epcontext:export_epcontext_command")
)
cli.add_command(LazyCommand("export-genai", "pipeline.cli.export_genai:export_genai_command"))
cli.add_command(
    LazyCommand("export-openvino", "pipeline.cli.export_openvino:export_openvino_command")
)
cli.add_command(
    LazyCommand("export-optimum", "pipeline.cli.export_optimum:export_optimum_command")
)
cli.add_command(
    LazyCommand(
        "export-transformersjs", "pipeline.cli.export_transformersjs:export_transformersjs_command"
    )
)
cli.add_command(LazyCommand("export-vllm", "pipeline.cli.export_vllm:export_vllm_command"))
cli.add_command(LazyCommand("doctor", "pipeline.cli.doctor:doctor_command"))


def run(arguments: list[str]) -> int:
    """Run the command line and return its exit code; nothing but `SystemExit` escapes.

    With `--json` there is exactly one document on standard output, whatever happens.
    """
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, _interrupt)
    is_json = "--json" in arguments
    try:
        return _run(arguments)
    except PipelineError as error:
        annotate_error(error, arguments)
        return _tell(error, int(error.exit_code), is_json=is_json)
    except click.ClickException as error:
        error.show()
        if is_json:
            _emit_error("UsageError", RecipeError(error.format_message()), int(ExitCode.USAGE))
        return int(ExitCode.USAGE)
    except (KeyboardInterrupt, click.Abort):
        told = PipelineError(_interrupted(arguments))
        return _tell(told, INTERRUPTED, is_json=is_json, kind="Interrupted")
    except Exception as error:  # noqa: BLE001 - no traceback reaches a user
        return _tell(_defect(error), int(ExitCode.STAGE_FAILED), is_json=is_json, kind="Defect")


def _interrupted(arguments: list[str]) -> str:
    """Only what is filed in a store is kept."""
    if _FILING.intersection(_with_command(arguments)):
        return "interrupted: what is finished is kept, the next run goes on from there"
    return "interrupted"


def _run(arguments: list[str]) -> int:
    try:
        code = cli.main(args=_with_command(arguments), prog_name="convert", standalone_mode=False)
    except click.exceptions.Exit as error:
        return error.exit_code
    return int(code or 0)


def _with_command(arguments: list[str]) -> list[str]:
    """Put `run` first where the first word is no command: `convert recipe.yaml`."""
    words = [
        argument
        for before, argument in zip(["", *arguments], arguments, strict=False)
        if not argument.startswith("-") and before != "--var"
    ]
    if not words or words[0] in cli.commands:
        return arguments
    near = difflib.get_close_matches(words[0], cli.commands, n=1)
    if near and not Path(words[0]).exists() and not words[0].endswith((".yaml", ".yml")):
        raise click.UsageError(f"there is no command `{words[0]}` - did you mean `{near[0]}`?")
    return ["run", *arguments]


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _tell(error: PipelineError, code: int, *, is_json: bool, kind: str = "") -> int:
    """Say what went wrong, to people on standard error and to programs on standard output."""
    click.echo(f"error: {error}", err=True)
    if is_json:
        _emit_error(kind or type(error).__name__, error, code)
    return code


def _emit_error(kind: str, error: PipelineError, code: int) -> None:
    with contextlib.suppress(ArtifactError):  # the exit code says it all the same
        emit(json.dumps(error_document(kind, error, code), indent=2))


def _defect(error: Exception) -> PipelineError:
    """An error that nobody foresaw: a defect of convert, with its traceback in a file."""
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile(
        "w", prefix="convert-defect-", suffix=".log", delete=False, encoding="utf-8"
    ) as file:
        traceback.print_exc(file=file)
    return PipelineError(
        f"this is a defect of convert: {type(error).__name__}: {error}",
        hint=f"please report it with {file.name}",
    )
