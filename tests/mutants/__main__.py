"""`scripts/mutants`: every fault in every model, as a table; or good twins, which must all pass."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from tests.mutants.bench import Bench
from tests.mutants.catalogue import all_faults
from tests.mutants.delivery import try_deliveries
from tests.mutants.models import DECODER_TARGETS, DECODERS, MODELS, TARGETS
from tests.mutants.table import render, summary
from tests.mutants.trial import Outcome, trials, try_fault, try_good

_DECODERS = frozenset(model.name for model in DECODERS)


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/mutants",
        description="Damages conversions in small, realistic ways, and shows which gate catches "
        "each, and which stage it accuses. Exit code 1 when one is missed.",
    )
    names = [model.name for model in (*MODELS, *DECODERS)]
    parser.add_argument("faults", nargs="*", help="parts of names of faults; default: all")
    parser.add_argument("--model", action="append", choices=names, help="may be repeated")
    parser.add_argument("--good", action="store_true", help="good twins instead of faults")
    parser.add_argument("--seeds", type=int, default=20, help="of the good twins; default: 20")
    parser.add_argument("--missed", action="store_true", help="show only what was missed")
    parser.add_argument("--list", action="store_true", help="say what there is, and run nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table as JSON too")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep good results there for the next time"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run what is asked; the exit status."""
    options = _arguments(arguments)
    models = options.model or [model.name for model in (*MODELS, *DECODERS)]
    faults = [
        fault
        for fault in all_faults()
        if not options.faults or any(part in fault.name for part in options.faults)
    ]
    if options.list:
        tried = [fault for fault, _ in trials(faults, models)]
        for fault in faults:
            if fault in tried:
                _say(f"{fault.name:44} {fault.kind:14} {fault.why}")
        _say(f"{len(dict.fromkeys(fault.name for fault in tried))} faults, {len(tried)} mutants")
        return 0
    with tempfile.TemporaryDirectory(prefix="mutants.") as temporary:
        bench = Bench(options.keep or Path(temporary))
        if options.good:
            return _good(bench, models, options.seeds)
        outcomes = []
        for fault, model in trials(faults, models):
            outcome = try_fault(bench, fault, model)
            if outcome is not None:
                outcomes.append(outcome)
                _say_progress(outcome)
        for model in models:
            if model in _DECODERS:
                continue
            for outcome in try_deliveries(bench, model, options.faults):
                outcomes.append(outcome)
                _say_progress(outcome)
    shown = [o for o in outcomes if not (options.missed and o.is_caught and o.is_attributed)]
    _say(render(shown))
    _say(summary(outcomes))
    if options.json:
        text = json.dumps([outcome.to_json() for outcome in outcomes], indent=1)
        options.json.write_text(f"{text}\n", encoding="utf-8")
    return 0 if all(o.is_caught and o.is_attributed for o in outcomes) else 1


def _good(bench: Bench, models: list[str], seeds: int) -> int:
    alarms = 0
    for model in models:
        for seed in range(seeds):
            targets = DECODER_TARGETS if model in _DECODERS else tuple(TARGETS)
            report = try_good(bench, model, targets, seed)
            is_good = report.verdict == "passed"
            alarms += not is_good
            _say(f"{model:9} seed {seed:2}: {report.verdict} {'; '.join(report.reasons)}")
    _say(f"{alarms} false alarms in {seeds} seeds of {len(models)} models")
    return 1 if alarms else 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _say_progress(outcome: Outcome) -> None:
    word = "caught" if outcome.is_caught else "MISSED"
    if outcome.is_caught and not outcome.is_attributed:
        word = f"caught, but accused is {outcome.accused or 'nobody'}"
    sys.stderr.write(f"{outcome.model:9} {outcome.fault:44} {outcome.seconds:5.1f} s  {word}\n")


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.exit(main(sys.argv[1:]))
