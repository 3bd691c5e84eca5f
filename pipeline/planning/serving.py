"""What measuring a server may not ask for, found before anything runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pipeline.checks.generation_speed import NAME as TIMED
from pipeline.checks.openvino_serving import DRAFT_NAME, NAME
from pipeline.environment import find_package
from pipeline.errors import EnvironmentMissing, RecipeError
from pipeline.stages.benchmark_openvino import QUESTION
from pipeline.tasks import find_task

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.candidates import Candidate
    from pipeline.checks.limits import CheckLimits
    from pipeline.planning.types import Where
    from pipeline.recipe.types import Recipe
    from pipeline.source import Source

_TOKENIZER: str = "tokenizer.json"
_SHOWN = 40
LOADGEN = "mlcommons-loadgen"


def check_serving(
    recipe: Recipe, source: Source, candidates: Mapping[str, Candidate], where: Where
) -> None:
    """Refuse texts longer than the model's positions, and a draft with another vocabulary.

    Raises:
        RecipeError: naming what does not fit.
        EnvironmentMissing: LoadGen is asked for and is not installed.
    """
    _check_timed(recipe, source, where)
    shared = recipe.gates.checks
    _check_generator(("gates", "checks"), shared, where)
    _check_texts(("gates", "checks"), shared, recipe, source, candidates, where)
    for name, own in recipe.gates.targets.items():
        if own.checks is None:
            continue
        place = ("gates", "targets", name, "checks")
        _check_generator(place, own.checks, where)
        _check_texts(place, own.checks, recipe, source, candidates, where)
        serving = own.checks.openvino_serving
        all_have = shared.openvino_serving.draft if shared.openvino_serving else None
        if serving is not None and serving.draft not in {None, all_have}:
            raise RecipeError(
                "one draft is for all targets",
                where=where(*place, NAME, "draft"),
                hint="name it in `gates.checks.openvino_serving`; `openvino_serving: null` leaves the check "
                "out of a target",
            )


def _check_texts(
    home: tuple[str, ...],
    checks: CheckLimits,
    recipe: Recipe,
    source: Source,
    candidates: Mapping[str, Candidate],
    where: Where,
) -> None:
    """Refuse texts that the model, or the draft, has no positions for."""
    limits, sequence = checks.openvino_serving, recipe.shapes.sequence
    if limits is None or sequence is None:
        return
    place = (*home, NAME)
    prefix = limits.prefix_of(sequence.max)
    wanted = {
        "tokens": (sequence.opt + limits.tokens, f"prompts of {sequence.opt} tokens and"),
        "prefix": (prefix + 2 * QUESTION, f"a prefix of {prefix} tokens, questions and"),
    }
    positions = source.max_positions
    for key, (length, what) in wanted.items():
        if positions is not None and length > positions:
            raise RecipeError(
                f"{what} their continuations are {length} tokens, and the checkpoint has {positions} "
                "positions",
                where=where(*place, key),
                hint=f"set `{key}` lower",
            )
    if DRAFT_NAME in candidates and limits.draft is not None:
        longest = max(n for n, _ in wanted.values())
        _check_draft(candidates[DRAFT_NAME], source, longest, where(*place, "draft"))


def _check_timed(recipe: Recipe, source: Source, where: Where) -> None:
    """Refuse to time what is outside of `shapes`, and texts that a decoder has no positions for.

    It would read past its table of them.
    """
    sequence, batch = recipe.shapes.sequence, recipe.shapes.batch
    if sequence is None:
        return
    # Behind an encoder the prompt is the encoder's, and the decoder begins with one token.
    is_pair, positions = bool(find_task(recipe.model.task).parts), source.max_positions
    for target in recipe.targets:
        speed = recipe.gates.of(target.name).checks.generation_speed
        if speed is None:
            continue
        own = recipe.gates.targets.get(target.name)
        shared = recipe.gates.checks.generation_speed
        is_own = own is not None and own.checks is not None and speed != shared
        home = (*(("gates", "targets", target.name) if is_own else ("gates",)), "checks", TIMED)
        for place, (rows, length, tokens) in enumerate(speed.shapes or ()):
            for axis, size, extent in (("batch", rows, batch), ("sequence", length, sequence)):
                if extent.min <= size <= extent.max:
                    continue
                raise RecipeError(
                    f"{axis} {size} is timed, but `shapes.{axis}` goes from {extent.min} to {extent.max}",
                    where=where(*home, "shapes", place),
                    hint="time what the targets are made for",
                )
            prompt = 1 if is_pair else length
            _check_positions(prompt, tokens, positions, where(*home, "shapes", place))
        if speed.shapes is None:
            prompt = 1 if is_pair else sequence.opt
            _check_positions(prompt, speed.tokens, positions, where(*home, "tokens"))


def _check_positions(prompt: int, tokens: int, positions: int | None, place: str) -> None:
    """Whether a prompt and what follows it are within a decoder's positions."""
    if positions is None or prompt + tokens <= positions:
        return
    raise RecipeError(
        f"`{TIMED}` times texts of {prompt + tokens} tokens ({prompt} before the "
        f"{tokens} new ones), and the checkpoint has {positions} positions",
        where=place,
        hint=f"set the new tokens to {positions - prompt} or less"
        if positions - prompt > 1
        else "take shorter prompts: by default they have `shapes.sequence.opt` tokens",
    )


def _check_generator(home: tuple[str, ...], checks: CheckLimits, where: Where) -> None:
    speed = checks.generation_speed
    asks_loadgen = speed is not None and speed.server and speed.server.generator == "loadgen"
    if asks_loadgen and find_package(LOADGEN) is None:
        raise EnvironmentMissing(
            f"`generator: loadgen` needs `{LOADGEN}`, which is not installed",
            where=where(*home, "generation_speed", "server", "generator"),
            hint="pip install 'convert-pipeline[loadgen]', or take `generator: own`",
        )


def _check_draft(draft: Candidate, source: Source, longest: int, place: str) -> None:
    inputs = {tensor.name for tensor in draft.facts.inputs}
    if not any(name.startswith("past_key_values.") for name in inputs):
        raise RecipeError(
            f"`{draft.file}` of the draft is no decoder with a cache: it has no inputs "
            "`past_key_values.N.key`",
            where=place,
            hint="name a target of a recipe with `task: text-generation`",
        )
    if foreign := sorted(name for name in inputs if "encoder" in name or name == "cache_position"):
        kind = (
            "has a static cache" if foreign == ["cache_position"] else "stands behind an encoder"
        )
        raise RecipeError(
            f"`{draft.file}` of the draft {kind}: it has the input `{foreign[0]}`",
            where=place,
            hint="name a target of a recipe with `task: text-generation` and without `static_cache`",
        )
    ours = source.config.get("vocab_size")
    theirs = next((t.shape[-1] for t in draft.facts.outputs if t.name == "logits"), None)
    if ours != theirs:
        raise RecipeError(
            f"the draft has another vocabulary: its logits are of {theirs} tokens, and the model knows "
            f"{ours}",
            where=place,
            hint="a draft proposes tokens by number; name a model of the same family",
        )
    _check_tokens(draft, source, place)
    config = draft.companions.get("config.json")
    limit = _read(config.path).get("max_position_embeddings") if config else None
    if isinstance(limit, int) and longest > limit:
        raise RecipeError(
            f"texts are up to {longest} tokens, and the draft has {limit} positions",
            where=place,
            hint="set `tokens` or `prefix` lower, or name a draft with more positions",
        )


def _check_tokens(draft: Candidate, source: Source, place: str) -> None:
    """The same numbers must mean the same tokens, where both say what they mean."""
    own, other = source.files.get(_TOKENIZER), draft.companions.get(_TOKENIZER)
    if own is None or other is None or own.sha256 == other.sha256:
        return
    ours, theirs = _vocabulary(own.path), _vocabulary(other.path)
    for token in sorted({*ours, *theirs}):
        if ours.get(token) != theirs.get(token):
            raise RecipeError(
                f"the draft has another vocabulary: token {token[:_SHOWN]!r} is "
                f"{_number(theirs.get(token))} there and {_number(ours.get(token))} here",
                where=place,
                hint="a draft proposes tokens by number; name a model of the same family",
            )


def _number(number: int | None) -> str:
    return "missing" if number is None else f"number {number}"


def _vocabulary(path: Path) -> dict[str, int]:
    """Token -> its number; of models that keep a list (Unigram) the place in it."""
    document = _read(path)
    model = document.get("model")
    known = model.get("vocab") if isinstance(model, dict) else None
    found: dict[str, int] = {}
    if isinstance(known, dict):
        found.update({token: number for token, number in known.items() if isinstance(number, int)})
    elif isinstance(known, list):
        found.update(
            {str(entry[0]): n for n, entry in enumerate(known) if isinstance(entry, list)}
        )
    for entry in document.get("added_tokens") or ():
        if isinstance(entry, dict) and isinstance(entry.get("id"), int):
            found[str(entry.get("content"))] = entry["id"]
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
