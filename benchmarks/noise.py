"""How far good graphs are from their checkpoint, and small faults, in units of the noise floor.

    .venv/bin/python benchmarks/noise.py [--seeds 20] [--models minilm digits ...] [--zoo NAME] [--json FILE]

The evidence behind `pipeline/parity/tolerances.py`. For every model the graphs of its float chains are
made once. Then, for every seed, other evaluation samples and other probes are drawn, the checkpoint's
noise floor is measured on them anew, and every graph is compared and judged by the gate `stages`:
no good graph may fail. Printed for each graph: the largest noise, as a multiple of the floor and of its
limit. Two small faults of the exported graph, which people really ship, must fail: of them it is the
smallest noise. Rows `torch` say what the checkpoint does to itself when torch runs it in half precision:
every operator rounds there, which ONNX Runtime's CPU leaves out where it can (but not for bfloat16, which
`pipeline.graph.stand_in` rounds everywhere).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.build import BuildOptions, open_store, prepare_plan
from pipeline.graph.files import load_model, save_model
from pipeline.parity.stage_gates import JudgedGraph, judge_stage, noise_of
from pipeline.parity.tolerances import floor_value
from pipeline.parity.types import NoiseFloor, Parity
from pipeline.recipe import load_recipe_file
from pipeline.stages.base import MODEL_FILE
from pipeline.stages.validate import VALIDATE, ValidateConfig
from pipeline.targets.base import NodeRef

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pipeline.planning import Plan
    from pipeline.targets.base import ModelLink

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
TRAINED = {
    "digits": "image-classification",
    "snippets": "text-classification",
    "tokens": "token-classification",
    "answers": "question-answering",
}
MODELS = ("minilm", *TRAINED)
SAMPLES = 16
FAULT_SEEDS = 3
"""Seeds by which faults and torch's half precision are looked at; good graphs are by all."""
TARGETS = [
    {"name": "cpu", "runtime": "onnxruntime", "precision": "fp32"},
    {
        "name": "rtx",
        "runtime": "tensorrt-rtx",
        "precision": "fp16",
        "compute_capability": ["sm89"],
    },
    {
        "name": "rtx-bf16",
        "runtime": "tensorrt-rtx",
        "precision": "bf16",
        "compute_capability": ["sm89"],
    },
]
FLOAT, STRING = 1, 3
"""ONNX's numbers for the types of attributes."""
EPSILON = {1e-12: 1e-5, 1e-5: 1e-12}
"""What a normalisation's epsilon is taken for; others are taken for 1e-5."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a stage may ask of its process: `pipeline.stages.base.StageContext`."""

    scratch: Path
    threads: int = 1

    @property
    def resumable(self) -> None:
        """Nothing is killed here."""

    def progress(self, done: int, total: int, unit: str) -> None:
        """Nobody is watching."""

    def log(self, message: str) -> None:
        """Nobody is reading."""


@dataclass(slots=True)
class Found:
    """What one graph did, over all seeds and outputs.

    Attributes:
        over_floor: Noise over floor.
        over_limit: Noise over limit.
        failed: Seeds by which the gate failed.
        kinds: What was farthest, by how often.
    """

    over_floor: list[float] = field(default_factory=list)
    over_limit: list[float] = field(default_factory=list)
    failed: set[int] = field(default_factory=set)
    kinds: dict[str, int] = field(default_factory=lambda: defaultdict(int))


class Bench:
    """Runs the stages of one plan in this process.

    Args:
        plan: Of a recipe with the targets `TARGETS`.
        folder: Takes all results.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self._folder = folder
        self._made: dict[int, Path] = {}
        self._count = itertools.count()

    def run(self, index: int, threads: int = 1, **changes: Any) -> Path:
        """The output of a node, which is run when it was not yet, or when its config is changed."""
        if index in self._made and not changes:
            return self._made[index]
        node = self.plan.nodes[index]
        inputs = {port: self.input(ref) for port, ref in node.inputs.items()}
        self._made[index] = self.stage(
            node.stage, node.config.model_copy(update=changes), inputs, threads
        )
        return self._made[index]

    def stage(self, stage: Any, config: Any, inputs: Mapping[str, Path], threads: int = 1) -> Path:
        """Run a stage into a new folder."""
        output = self._folder / str(next(self._count))
        output.mkdir()
        stage.run(config, inputs, output, Context(self._folder, threads))
        return output

    def input(self, ref: Any) -> Path:
        """The folder behind one input of a node."""
        if isinstance(ref, NodeRef):
            return self.run(ref.node)
        place = self._folder / f"source-{ref.group.replace(':', '-')}"
        if not place.exists():
            place.mkdir()
            self.plan.materialise(ref.group, place)
        return place

    def forget(self, *stages: str) -> None:
        """Let these stages run anew."""
        for node in self.plan.nodes:
            if node.stage.name in stages:
                self._made.pop(node.index, None)

    def node(self, stage: str) -> int:
        """The first node of a stage."""
        return next(node.index for node in self.plan.nodes if node.stage.name == stage)

    def links(self) -> Iterator[tuple[str, ModelLink]]:
        """Name of the stage, and every graph of both chains once."""
        seen = set()
        for target in self.plan.targets:
            for link in target.chain.models["model"]:
                if link.node not in seen:
                    seen.add(link.node)
                    yield self.plan.nodes[link.node.node].stage.name, link


def plan_of(name: str, folder: Path) -> Plan:
    """The plan of a model of `MODELS`, or of an entry of the zoo, with `TARGETS`."""
    if name == "minilm":
        document = described(RECIPES / "quickstart.yaml", {})
    elif name in TRAINED:
        from tests.trained.cache import ensure_trained

        trained = ensure_trained(name)
        is_file = TRAINED[name] == "question-answering"
        data = trained.test if is_file else trained.root
        variables: dict[str, str | int] = {"model": str(trained.checkpoint), "data": str(data)}
        variables |= {"max_tokens": 128} if is_file else {}
        document = described(RECIPES / f"{TRAINED[name]}.yaml", variables)
    else:
        from tests.architectures.conversion import recipe_for, write_questions
        from tests.architectures.zoo import ENTRIES, build_checkpoint

        entry = next(entry for entry in ENTRIES if str(entry) == name)
        write_questions(folder / "questions.jsonl")
        document = recipe_for(entry, build_checkpoint(entry, folder / "checkpoint"))
    document |= {"name": "noise", "benchmark": None, "targets": TARGETS}
    document["gates"] = {
        "parity": {"relative_l2": {"max": 1.0}},
        "allow_not_run": ["device_parity"],
    }
    evaluation = document["data"]["evaluation"]
    wanted = evaluation["samples"]
    samples = min(SAMPLES, wanted) if isinstance(wanted, int) else SAMPLES
    document["data"] = {"evaluation": {**evaluation, "samples": samples}}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    return prepare_plan(load_recipe_file(path), open_store(BuildOptions(store=folder / "store")))


def described(path: Path, variables: Mapping[str, str | int]) -> dict[str, Any]:
    """What a recipe says of the model, its shapes and its data."""
    recipe = load_recipe_file(path, variables).recipe.model_dump(mode="json", exclude_none=True)
    return {key: recipe[key] for key in ("recipe", "model", "shapes", "data")}


def write_faults(exported: Path, folder: Path) -> dict[str, Path]:
    """Fault -> folder with the damaged graph, of the small faults that the graph can have."""
    places = {}
    for fault, op, attribute in (
        ("epsilon", "LayerNormalization", "epsilon"),
        ("tanh", "Gelu", "approximate"),
    ):
        model = load_model(exported / MODEL_FILE)
        hit = [node for node in model.graph.node if node.op_type == op]
        for node in hit:
            found = next((a for a in node.attribute if a.name == attribute), None)
            if found is None:  # 1e-5 is what the operator takes then
                found = node.attribute.add(name=attribute, type=FLOAT, f=1e-5)
            if fault == "epsilon":
                found.f = EPSILON.get(float(f"{found.f:.3g}"), 1e-5)
            else:
                found.type, found.s = STRING, b"tanh"
        if hit:
            places[fault] = folder / fault
            places[fault].mkdir()
            save_model(model, places[fault])
    return places


def torch_half(bench: Bench, dtype: str) -> Iterator[tuple[str, float]]:
    """Output -> noise of each sample and probe when torch runs the checkpoint in half precision."""
    import numpy as np
    import torch

    from pipeline.data.reference_set import load_reference
    from pipeline.data.sample_set import load_samples
    from pipeline.runtimes.torch_model import load_torch_model

    node = bench.plan.nodes[bench.node("reference")]
    loaded = load_torch_model(bench.input(node.inputs["checkpoint"]), node.config.task, "model")
    kind = getattr(torch, dtype)
    loaded.module.to(kind)
    samples, probes = bench.run(bench.node("samples")), bench.run(bench.node("probes"))
    made = bench.run(bench.node("reference"))
    units: dict[str, float] = {}
    for place, references in ((samples, made), (probes, made / "probes")):
        source, reference = load_samples(place), load_reference(references)
        for name in reference.index.outputs:
            if name not in units:
                arrays = reference.read(range(len(source)), [name])[name]
                squares = sum(float(np.square(a, dtype=np.float64).sum()) for a in arrays)
                units[name] = math.sqrt(squares / sum(a.size for a in arrays))
        for entry in source.entries:
            if entry.compared != "values":
                continue
            (feed,) = source.read([entry.index])
            tensors = [torch.from_numpy(feed[n][None].copy()) for n in loaded.input_names]
            tensors = [t.to(kind) if t.is_floating_point() else t for t in tensors]
            with torch.inference_mode():
                values = loaded.module(*tensors)
            for name, value in zip(loaded.output_names, values, strict=True):
                gap = value[0].double().numpy() - reference.read([entry.index], [name])[name][0]
                # Nobody reads what is padding; the first rows of a text padded on the left are.
                gap = gap[entry.starts.get("sequence", 0) :] if gap.ndim > 1 else gap
                yield name, float(np.sqrt(np.square(gap).mean())) / units[name]


def measure(name: str, seeds: int, has_half: bool) -> dict[str, Found]:
    """All graphs and faults of one model, over the seeds."""
    found: dict[str, Found] = defaultdict(Found)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bench = Bench(plan_of(name, folder), folder)
        graphs = [
            (
                f"{stage} {link.arithmetic}" if stage == "cast" else stage,
                link.arithmetic,
                link.optimizations,
                bench.run(link.node.node),
            )
            for stage, link in bench.links()
        ]
        exported = next(place for stage, _, _, place in graphs if stage == "export")
        for fault, place in write_faults(exported, folder).items():
            graphs.append((f"fault: {fault}", "float32", "disabled", place))
        for seed in range(seeds):
            bench.forget("reference", "noise_floor")
            bench.run(bench.node("samples"), seed=seed)
            bench.run(bench.node("probes"), seed=seed)
            floors = {
                floor.output: floor
                for text in json.loads(
                    (bench.run(bench.node("noise_floor")) / "noise.json").read_text()
                )
                for floor in [NoiseFloor.model_validate(text)]
            }
            inputs = {
                "samples": bench.run(bench.node("samples")),
                "probes": bench.run(bench.node("probes")),
                "reference": bench.run(bench.node("reference")),
            }
            for stage, arithmetic, optimizations, place in graphs:
                if stage.startswith("fault") and seed >= FAULT_SEEDS:
                    continue
                config = ValidateConfig(
                    task=bench.plan.task.name, optimizations=optimizations, batch_size=8
                )
                # The order of sums is another with two threads, and people use both.
                out = bench.stage(VALIDATE, config, {"model": place, **inputs}, 1 + seed % 2)
                parity = Parity.model_validate_json((out / "parity.json").read_bytes())
                graph = JudgedGraph(
                    target="",
                    component="model",
                    stage=stage,
                    node=stage,
                    arithmetic=arithmetic or "float32",
                    is_proxy=False,
                )
                add(found[stage], seed, parity, judge_stage(graph, parity, floors, None), floors)
            for dtype in ("float16", "bfloat16") if has_half and seed < FAULT_SEEDS else ():
                for output, noise in torch_half(bench, dtype):
                    row = found[f"torch {dtype}"]
                    row.over_floor.append(noise / floor_value(floors[output]))
    return found


def add(
    row: Found,
    seed: int,
    parity: Parity,
    results: tuple[Any, ...],
    floors: Mapping[str, NoiseFloor],
) -> None:
    """Add one comparison to a graph's row."""
    for result in results:
        if not result.is_allowed:
            row.failed.add(seed)
        output = result.metric.split(".")[1] if result.metric.endswith(".noise") else None
        if output is None or result.measured is None:
            continue
        row.over_floor.append(result.measured / max(1e-30, floor_value(floors[output])))
        row.over_limit.append(result.measured / float(result.limit.removeprefix("<= ")))
        unit = next(o for o in parity.outputs if o.name == output).metrics.reference_rms or 1.0
        noises: dict[str, float] = defaultdict(float)
        for probe in parity.probes:
            if probe.metrics is not None and probe.output == output:
                noise = noise_of(probe.metrics, unit) or 0.0
                noises[probe.kind] = max(noises[probe.kind], noise)
        worst = max(noises, key=lambda kind: noises[kind], default="")
        row.kinds[worst if noises[worst] >= 0.999 * result.measured else "sample"] += 1


def report(name: str, found: Mapping[str, Found], seeds: int) -> int:
    """Print a model's rows; how many are not as they must be."""
    wrong = 0
    for stage, row in found.items():
        is_fault, has_gate = stage.startswith("fault"), bool(row.over_limit) or bool(row.failed)
        pick = min if is_fault else max
        floor = f"{pick(row.over_floor):9.2f}" if row.over_floor else "        -"
        limit = f"{pick(row.over_limit):9.3f}" if row.over_limit else "        -"
        is_wrong = has_gate and len(row.failed) != (min(seeds, FAULT_SEEDS) if is_fault else 0)
        wrong += is_wrong
        kinds = ", ".join(
            f"{kind} {n}" for kind, n in sorted(row.kinds.items(), key=lambda i: -i[1])
        )
        asked = min(seeds, FAULT_SEEDS) if is_fault else seeds
        said = f"failed by {len(row.failed)} of {asked}" if has_gate else ""
        print(
            f"{name:34} {stage:16} {floor} {limit}  {said:19} {'WRONG' if is_wrong else ''} {kinds}"
        )
    sys.stdout.flush()
    return wrong


def main() -> int:
    """Print one row for each graph of each model; 1 when a good one failed or a fault passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--zoo", help="entries of tests/architectures/zoo.py in which this occurs")
    parser.add_argument("--no-half", action="store_true", help="leave out torch in half precision")
    parser.add_argument("--json", type=Path, help="write all numbers")
    arguments = parser.parse_args()
    names = list(arguments.models)
    if arguments.zoo is not None:
        from tests.architectures.zoo import ENTRIES

        names += [str(entry) for entry in ENTRIES if arguments.zoo in str(entry)]
    print(
        f"{'model':34} {'graph':16} {'x floor':>9} {'x limit':>9}  largest, of faults the smallest"
    )
    wrong, numbers = 0, {}
    for name in names:
        found = measure(name, arguments.seeds, not arguments.no_half)
        wrong += report(name, found, arguments.seeds)
        numbers[name] = {
            stage: {"over_floor": row.over_floor, "over_limit": row.over_limit}
            for stage, row in found.items()
        }
    if arguments.json:
        arguments.json.write_text(f"{json.dumps(numbers)}\n", encoding="utf-8")
    print("FAILED" if wrong else "OK")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
