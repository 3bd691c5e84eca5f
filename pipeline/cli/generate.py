"""`convert generate`: text from an artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.options import json_option, output_option
from pipeline.cli.output import emit, say

if TYPE_CHECKING:
    from pipeline.bundle.generate import WrittenTexts


@click.command("generate")
@click.argument("artifact")
@click.option(
    "--prompt",
    "prompts",
    metavar="TEXT",
    multiple=True,
    help="What to continue or to answer; repeat.",
)
@click.option(
    "--audio",
    "sounds",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    multiple=True,
    help="A WAV file to write down; repeat.",
)
@click.option("--target", metavar="NAME", default="", help="Which; default the first for a CPU.")
@click.option(
    "--tokens", type=click.IntRange(min=1), help="New tokens of each text at most; default 64."
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0.0),
    default=0.0,
    show_default=True,
    help="Above 0 tokens are drawn; at 0 the likeliest is taken.",
)
@click.option("--top-k", type=click.IntRange(min=1), help="Draw among so many likeliest tokens.")
@click.option(
    "--top-p",
    type=click.FloatRange(0.0, 1.0, min_open=True),
    help="Draw among the likeliest tokens that hold this share.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of what is drawn."
)
@click.option(
    "--beams",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Above 1 for beam search.",
)
@click.option(
    "--length-penalty",
    type=float,
    default=1.0,
    show_default=True,
    help="Of beam search: above 0 favours longer texts.",
)
@click.option(
    "--early-stopping", is_flag=True, help="Beam search ends with as many texts as beams."
)
@click.option("--chat", "is_chat", is_flag=True, help="Put the chat template around each prompt.")
@click.option(
    "--plain",
    "is_plain",
    is_flag=True,
    help="The logits alone decide: no penalty, no forbidden and no forced tokens.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Of ONNX Runtime; default all cores.")
@output_option
@json_option
def generate_command(artifact: str, output: Path, *, is_json: bool, **options: Any) -> None:
    """Let ARTIFACT write: continue a text, translate one, write down a sound.

    It is what the artifact's own graphs make of a prompt with the reference loop on ONNX Runtime, greedily
    unless an option says otherwise. What the checkpoint's generation_config.json asks of tokens is heeded as
    transformers does, --plain leaves it out: repetition_penalty, no_repeat_ngram_size, bad_words_ids,
    suppress_tokens, begin_suppress_tokens, forced tokens and least lengths. The artifact is verified first. New text goes to standard output,
    one text after the other, and times to standard error.

    \b
    Examples:
      convert generate latest --prompt "Once upon a time"
      convert generate causal-lm --target cpu-int4 --prompt "def main" --temperature 0.8 --top-p 0.95
      convert generate seq2seq --prompt "Good morning." --beams 4
      convert generate speech-to-text --audio one.wav
      convert generate latest --prompt "Hello" --chat --json | jq -r '.texts[].text'

    Exit codes: 0 it is written, 2 there is no such artifact or target, it has no tokenizer or writes no
    texts, or a prompt is too long, 3 the artifact is damaged or cannot be run.
    """  # noqa: D301 - \b is click's own
    from pipeline.bundle.generate import TextRequest, generate_texts
    from pipeline.listing import find_artifact

    made = generate_texts(find_artifact(artifact, output), TextRequest(**options))
    _tell(made, is_json=is_json)


def _tell(made: WrittenTexts, *, is_json: bool) -> None:
    from dataclasses import asdict

    from pipeline.cli.lines import counted
    from pipeline.report.printable import printable_text

    if is_json:
        emit(json.dumps({"exit_code": 0, **asdict(made)}, indent=2))
        return
    for number, text in enumerate(made.texts):
        if len(made.texts) > 1:
            say(f"{number + 1}: {printable_text(text.prompt, 200)}")
        emit("\n".join(printable_text(line, len(line) + 1) for line in text.text.split("\n")))
    for note in made.notes:
        say(f"note: {note}")
    count = sum(len(text.tokens) for text in made.texts)
    say(
        f"{made.artifact} {made.target}: {counted(count, 'token')}, the first after {made.ttft_ms:.1f} ms, "
        f"{made.tokens_per_s:.1f} tokens/s"
    )
