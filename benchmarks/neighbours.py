"""What neighbours' own checks say to the faults of `tests/mutants`, beside what ours say.

    .venv/bin/python benchmarks/neighbours.py --peer-venv /var/tmp/peer [--stage fuse] [--json FILE]

Every fault that damages the graph of one of the stages is made in the small trained models, in the
chain that `scripts/mutants` tries it in, and judged by the gates that hold by default. The damaged graph,
and the right one beside it, are then shown to

- `optimum`: the validator of `optimum-cli export onnx`, by Optimum's own code and in an environment of its
  own (made when it is missing), which gets our graph where it would export: random inputs, the
  tolerance of its configuration. A fault counts as told only when it hears something else of the right
  graph. Its `onnxruntime quantize` and `onnxruntime optimize` compare nothing; what is shown of graphs
  that are cast or quantised is what the validator would say if somebody asked it.
- `checker`: `onnx.checker.check_model`, with inference of types and shapes.
- `load`, `run`: an ONNX Runtime session, and one batch of two random samples through it.
- `parity`: ONNX Runtime's `compare_bert_results`, which compares a later graph with the exported one, by the
  tolerances of its command line. It prints; its exit code is 0 either way.
- `qdq`: ONNX Runtime's `qdq_loss_debug`: lowest signal to noise ratio of a weight, in dB, of the right graph
  and of the damaged one. It has no limit and no verdict.

Prints a line a mutant, and totals. Nothing here can fail but the run itself.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cold_chain import make_peer_environment
from pipeline.environment import describe_environment
from pipeline.stages.base import MODEL_FILE
from pipeline.targets.base import NodeRef
from tests.mutants.bench import Bench
from tests.mutants.catalogue import all_faults
from tests.mutants.models import find_model, plan_model
from tests.mutants.trial import trials, try_fault
from tests.trained.cache import ensure_trained

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.mutants.bench import Scene
    from tests.mutants.catalogue import Fault

MODELS = ("snippets", "tokens", "answers", "digits")
"""MiniLM is not among them: its outputs are pooled, and the validator knows no pooled ones."""

STAGES = ("export", "simplify", "fuse", "cast", "quantize_dynamic", "quantize_static")
PEER = Path(__file__).with_name("neighbours_optimum.py")
BATCH, LENGTH = 2, 16
PARITY_CASES = 5
PARITY_RTOL, PARITY_ATOL = 1e-3, 1e-4
"""Defaults of the command line of `compare_bert_results`."""

NOT_ASKED = "-"


@dataclass(slots=True, kw_only=True)
class Row:
    """What was said of one damaged graph.

    Attributes:
        fault, model, target, stage: What was damaged.
        graph, good: Folders of the damaged graph and of the right one.
        ours: Gates that failed by default; empty when it was missed.
        accused: The stage that our report names.
        neighbours: Check -> what it says of the damaged graph.
        of_good: The same of the right graph.
    """

    fault: str
    model: str
    target: str
    stage: str
    graph: Path
    good: Path
    ours: tuple[str, ...] = ()
    accused: str = ""
    neighbours: dict[str, str] = field(default_factory=dict)
    of_good: dict[str, str] = field(default_factory=dict)

    def tells(self, check: str) -> bool:
        """Whether a check says of the damaged graph what it does not say of the right one."""
        said = self.neighbours.get(check, NOT_ASKED)
        return said != NOT_ASKED and _word(said) != _word(self.of_good.get(check, NOT_ASKED))


def _word(said: str) -> str:
    """The verdict without numbers; a check that only gives numbers has none."""
    return re.split("[ ,]", said, maxsplit=1)[0]


CHECKS = ("optimum", "checker", "load", "run", "parity")
"""Checks with a verdict."""


def parse_arguments() -> argparse.Namespace:
    """What to ask, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Formatter)
    parser.add_argument("faults", nargs="*", help="parts of names of faults; none: all")
    parser.add_argument("--peer-venv", type=Path, help="Optimum's environment; none: not asked")
    parser.add_argument("--model", action="append", choices=MODELS, help="may be repeated")
    parser.add_argument("--stage", action="append", choices=STAGES, help="may be repeated")
    parser.add_argument("--rounds", type=int, default=3, help="random inputs of the validator")
    parser.add_argument("--keep", type=Path, help="folder for right results, for the next time")
    parser.add_argument("--json", type=Path, help="also write everything that was said here")
    return parser.parse_args()


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and leaves the description as it is written."""


# --- ours -----------------------------------------------------------------------------------


def make_rows(bench: Bench, faults: Sequence[Fault], models: Sequence[str]) -> Iterator[Row]:
    """Every fault in every model, judged by our own gates; the damaged graph is kept."""
    for fault, model in trials(faults, models):
        graph = bench.root / "graphs" / model / fault.name
        shutil.rmtree(graph, ignore_errors=True)
        keeping = replace(fault, apply=_keeping(fault, graph))
        outcome = try_fault(bench, keeping, model)
        if outcome is None:
            continue
        plan = plan_model(find_model(model), [outcome.target], bench.recipes, bench.store)
        name = next(node.name for node in plan.nodes if node.stage.name == fault.stage)
        yield Row(
            fault=fault.name,
            model=model,
            target=outcome.target,
            stage=fault.stage,
            graph=graph,
            good=bench.result(plan, name),
            ours=outcome.caught_by if outcome.is_caught else (),
            accused=outcome.accused,
        )


def _keeping(fault: Fault, folder: Path) -> Any:
    def apply(scene: Scene) -> Mapping[str, Any]:
        facts = fault.apply(scene)
        shutil.copytree(scene.output, folder)
        return facts

    return apply


def earlier_graph(bench: Bench, row: Row, stage: str = "") -> Path:
    """The right graph of a stage of the same chain; of the one that the damaged stage reads if none."""
    plan = plan_model(find_model(row.model), [row.target], bench.recipes, bench.store)
    by_stage = {node.stage.name: node for node in plan.nodes if node.stage.name in STAGES}
    if not stage:
        source = by_stage[row.stage].inputs["model"]
        assert isinstance(source, NodeRef)
        return bench.result(plan, plan.nodes[source.node].name) / MODEL_FILE
    return bench.result(plan, by_stage[stage].name) / MODEL_FILE


# --- neighbours -----------------------------------------------------------------------------


def ask_optimum(rows: Sequence[Row], venv: Path, rounds: int) -> None:
    """Fill in what Optimum says, in one process of its environment, and print its versions."""
    make_peer_environment(venv)
    jobs: dict[str, dict[str, Any]] = {}
    for row in rows:
        trained = ensure_trained(row.model)
        for graph in (row.graph, row.good):
            jobs[str(graph)] = {
                "name": str(graph),
                "checkpoint": str(trained.checkpoint),
                "task": trained.task,
                "graph": str(graph),
                "rounds": rounds,
            }
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder, "jobs.json"), Path(folder, "answers.json")
        # Jobs of one checkpoint stand together, because it is loaded for them once.
        ordered = sorted(jobs.values(), key=lambda job: str(job["checkpoint"]))
        asked.write_text(json.dumps(ordered), encoding="utf-8")
        command = [str(venv / "bin" / "python"), str(PEER), str(asked), str(answered)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            command, env=environment, stderr=subprocess.PIPE, text=True, check=False
        )
        if done.returncode != 0:
            command_line = " ".join(command)
            sys.exit(f"`{command_line}` ended with exit code {done.returncode}:\n{done.stderr}")
        answers = json.loads(answered.read_text(encoding="utf-8"))
    print(json.dumps(answers["versions"]))
    for row in rows:
        row.neighbours["optimum"] = _said(answers[str(row.graph)])
        row.of_good["optimum"] = _said(answers[str(row.good)])


def _said(rounds: Sequence[Mapping[str, Any]]) -> str:
    """`warns 2/3, exit 0, max diff 0.1`; what is loudest stands first."""
    verdicts = Counter(answer["verdict"] for answer in rounds)
    word = next(word for word in ("raises", "warns", "silent") if verdicts[word])
    loudest = next(answer for answer in rounds if answer["verdict"] == word)
    share = "" if verdicts[word] == len(rounds) else f" {verdicts[word]}/{len(rounds)}"
    text = f"{word}{share}, exit {loudest['exit_code']}"
    return text + (f", {_short(loudest['says'])}" if loudest["says"] else "")


def _short(text: str) -> str:
    _, marker, difference = text.partition("max diff = ")
    if marker:
        return f"max diff {float(difference.split()[0].rstrip('.')):.3g}"
    return " ".join(text.split())[:100]


def ask_checker(graph: Path) -> str:
    """`onnx.checker.check_model` with full checks: `silent` or `raises`."""
    import onnx  # noqa: TID251 - whose own check this is

    try:
        onnx.checker.check_model(str(graph / MODEL_FILE), full_check=True)
    except Exception as error:  # noqa: BLE001 - whatever it says is the answer
        return f"raises {_short(str(error))}"
    return "silent"


def ask_runtime(graph: Path) -> tuple[str, str]:
    """Whether a session loads, and whether it runs: each `silent` or `raises`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            str(graph / MODEL_FILE), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # noqa: BLE001 - whatever it says is the answer
        return f"raises {_short(str(error))}", NOT_ASKED
    generator = np.random.default_rng(0)
    feeds = {}
    for value in session.get_inputs():
        shape = [
            size if isinstance(size, int) else (LENGTH if place else BATCH)
            for place, size in enumerate(value.shape)
        ]
        if value.type == "tensor(int64)":
            feeds[value.name] = generator.integers(0, 2, shape)
        else:
            dtype = np.float16 if value.type == "tensor(float16)" else np.float32
            feeds[value.name] = generator.standard_normal(shape).astype(dtype)
    try:
        session.run(None, feeds)
    except Exception as error:  # noqa: BLE001 - as above
        return "silent", f"raises {_short(str(error))}"
    return "silent", "silent"


def ask_parity(baseline: Path, graph: Path, words: int) -> str:
    """`compare_bert_results`, the exported graph against a later one: `silent` or `warns`."""
    import onnxruntime.transformers

    (folder,) = onnxruntime.transformers.__path__
    printed = io.StringIO()
    # Its files import each other by their bare names.
    sys.path.append(str(folder))
    try:
        from compare_bert_results import run_test  # type: ignore[import-not-found]

        with contextlib.redirect_stdout(printed):
            difference, is_passed = run_test(
                str(baseline),
                str(graph / MODEL_FILE),
                None,
                BATCH,
                LENGTH,
                use_gpu=False,
                test_cases=PARITY_CASES,
                seed=3,
                verbose=False,
                rtol=PARITY_RTOL,
                atol=PARITY_ATOL,
                input_ids_name="input_ids",
                segment_ids_name="token_type_ids",
                input_mask_name="attention_mask",
                mask_type=2,
                dictionary_size=words,
            )
    except Exception as error:  # noqa: BLE001 - whatever it says is the answer
        return f"raises {_short(str(error))}"
    finally:
        sys.path.remove(str(folder))
    return "silent" if is_passed else f"warns, exit 0, max diff {float(difference):.3g}"


def ask_qdq(baseline: Path, graph: Path) -> str:
    """`qdq_loss_debug`: the lowest signal to noise ratio of a weight, and which."""
    from onnxruntime.quantization.qdq_loss_debug import (
        compute_weight_error,
        create_weight_matching,
    )

    try:
        errors = compute_weight_error(
            create_weight_matching(str(baseline), str(graph / MODEL_FILE))
        )
    except Exception as error:  # noqa: BLE001 - whatever it says is the answer
        return f"raises {_short(str(error))}"
    if not errors:
        return "matches no weight"
    worst = min(errors, key=errors.__getitem__)
    return f"{errors[worst]:.1f} dB of {len(errors)} weights"


def ask_onnx(bench: Bench, row: Row) -> None:
    """Fill in what ONNX and ONNX Runtime say of the damaged graph and of the right one."""
    config = json.loads((ensure_trained(row.model).checkpoint / "config.json").read_text("utf-8"))
    for graph, said in ((row.graph, row.neighbours), (row.good, row.of_good)):
        said["checker"] = ask_checker(graph)
        said["load"], said["run"] = ask_runtime(graph)
        if row.stage != "export" and "vocab_size" in config:
            baseline = earlier_graph(bench, row, "export")
            said["parity"] = ask_parity(baseline, graph, config["vocab_size"])
        if row.stage == "quantize_static":
            # It matches weights by name, and simplifying gives some another name.
            said["qdq"] = ask_qdq(earlier_graph(bench, row), graph)


# --- reporting ------------------------------------------------------------------------------


def print_table(rows: Sequence[Row]) -> None:
    """A line a mutant, and how many each check tells from the right graph."""
    header = ("fault", "model", "ours: caught by", *CHECKS, "qdq, right > damaged")
    lines: list[tuple[str, ...]] = [header]
    for row in rows:
        qdq = f"{row.of_good['qdq']} > {row.neighbours['qdq']}" if "qdq" in row.of_good else "-"
        cells = [_cell(row, check) for check in CHECKS]
        lines.append((row.fault, row.model, ", ".join(row.ours) or "MISSED", *cells, qdq))
    widths = [max(len(line[place]) for line in lines) for place in range(len(header))]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        print("  ".join(cells).rstrip())
    print()
    for stage in dict.fromkeys(row.stage for row in rows):
        print_totals(stage, [row for row in rows if row.stage == stage])
    if len({row.stage for row in rows}) > 1:
        print_totals("all", rows)


def _cell(row: Row, check: str) -> str:
    said = row.neighbours.get(check, NOT_ASKED)
    if _word(said) == "raises":
        # What it raises is in the JSON.
        said = "raises"
    is_heard = _word(said) not in (NOT_ASKED, "silent")
    return f"{said} (of the right one too)" if is_heard and not row.tells(check) else said


def totals(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """Check -> how many it was asked of, tells from the right graph, and ends with an error for."""
    found = {"ours": {"asked": len(rows), "told": sum(bool(row.ours) for row in rows)}}
    found["ours"]["stops"] = found["ours"]["told"]
    for check in CHECKS:
        asked = [row for row in rows if row.neighbours.get(check, NOT_ASKED) != NOT_ASKED]
        told = [row for row in asked if row.tells(check)]
        stops = [row for row in told if _word(row.neighbours[check]) == "raises"]
        found[check] = {"asked": len(asked), "told": len(told), "stops": len(stops)}
    return found


def print_totals(stage: str, rows: Sequence[Row]) -> None:
    """One line a check."""
    print(f"{stage}: of {len(rows)} damaged graphs")
    for check, counts in totals(rows).items():
        if counts["asked"]:
            print(
                f"  {check:8} tells {counts['told']:3} of {counts['asked']:3} from the right graph,"
                f" ends with an error for {counts['stops']:3}"
            )


def main() -> int:
    """Ask everybody, print, and return the exit code."""
    arguments = parse_arguments()
    logging.getLogger().setLevel(logging.CRITICAL)
    packages = ("convert-pipeline", "torch", "onnx", "onnxruntime")
    print(json.dumps(describe_environment(packages)))
    faults = [
        fault
        for fault in all_faults()
        if fault.stage in (arguments.stage or STAGES)
        and (not arguments.faults or any(part in fault.name for part in arguments.faults))
    ]
    with tempfile.TemporaryDirectory(prefix="neighbours.") as folder:
        bench = Bench(arguments.keep or Path(folder))
        rows = []
        for row in make_rows(bench, faults, arguments.model or MODELS):
            ask_onnx(bench, row)
            rows.append(row)
            print(f"{row.model} {row.fault}: {', '.join(row.ours) or 'MISSED'}", file=sys.stderr)
        if arguments.peer_venv is not None:
            ask_optimum(rows, arguments.peer_venv.absolute(), arguments.rounds)
        print_table(rows)
    if arguments.json:
        document = {
            "totals": {
                stage: totals([row for row in rows if row.stage == stage])
                for stage in dict.fromkeys(row.stage for row in rows)
            },
            "rows": [_plain(row) for row in rows],
        }
        arguments.json.write_text(json.dumps(document, indent=1), encoding="utf-8")
    return 0


def _plain(row: Row) -> dict[str, Any]:
    """Without folders, which mean nothing elsewhere."""
    return {key: value for key, value in asdict(row).items() if key not in ("graph", "good")}


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.exit(main())
