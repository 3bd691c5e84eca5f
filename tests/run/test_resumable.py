"""A stage that was killed goes on where it was, and a repair is part of a whole build."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from pipeline.build import BuildOptions, open_store, prepare_plan
from pipeline.planning import attempt_key, node_preimage
from pipeline.recipe import load_recipe_file
from pipeline.run.events import Event, NodeProgress
from pipeline.run.local import LocalExecutor
from pipeline.run.worker import PROCESS_NAME
from tests.recipes import write_recipe

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.planning import Plan
    from pipeline.run.outcomes import NodeOutcome

SOURCE = "builtin:stdlib-docstrings"
DATA = {
    "evaluation": {"source": SOURCE, "samples": 6, "seed": 0},
    "calibration": {"source": SOURCE, "samples": 6, "seed": 1},
}


def _target(**quantization: Any) -> dict[str, Any]:
    return {
        "name": "cpu-int8",
        "runtime": "onnxruntime",
        "precision": "int8",
        "quantization": {"mode": "dynamic", **quantization},
    }


def _plan(folder: Path, checkpoint: Path, store: Path, **quantization: Any) -> Plan:
    path = write_recipe(
        folder / "recipe.yaml", checkpoint, data=DATA, targets=[_target(**quantization)]
    )
    return prepare_plan(load_recipe_file(path), open_store(BuildOptions(store=store)))


def only_what_leads_to(plan: Plan, name: str) -> Plan:
    """The part of a plan that ends with a node; nodes keep their places, which are its front."""
    from dataclasses import replace

    (place,) = [node.index for node in plan.nodes if node.name == name]
    wanted = {place}
    for node in reversed(plan.nodes[: place + 1]):
        if node.index in wanted:
            wanted |= set(node.parents())
    places = {old: new for new, old in enumerate(sorted(wanted))}
    nodes = []
    for old in sorted(wanted):
        node = plan.nodes[old]
        inputs = {
            port: type(ref)(places[ref.node]) if hasattr(ref, "node") else ref
            for port, ref in node.inputs.items()
        }
        nodes.append(replace(node, index=places[old], inputs=inputs))
    return replace(plan, nodes=tuple(nodes))


def _execute(plan: Plan, store: Path, listener: Any) -> dict[str, NodeOutcome]:
    executor = LocalExecutor(
        plan=plan,
        store=open_store(BuildOptions(store=store)),
        listener=listener,
        jobs=2,
        threads=1,
    )
    return {outcome.node.name: outcome for outcome in executor.execute()}


def test_a_killed_stage_goes_on_where_it_was_and_leaves_nothing(
    tmp_path: Path, sentence_encoder: Path
) -> None:
    store = tmp_path / "store"
    plan = only_what_leads_to(
        _plan(tmp_path, sentence_encoder, store, sensitivity={"samples": 2}), "sensitivity"
    )
    steps: list[int] = []

    def kill(event: Event) -> None:
        if isinstance(event, NodeProgress) and event.unit == "trials" and event.done >= 3:
            for child in psutil.Process().children(recursive=True):
                if child.name() == PROCESS_NAME and str(store) in child.cwd():
                    os.kill(child.pid, signal.SIGKILL)

    def watch(event: Event) -> None:
        if isinstance(event, NodeProgress) and event.unit == "trials":
            steps.append(event.done)

    failure = _execute(plan, store, kill)["sensitivity"].failure
    assert failure is not None
    assert failure.signal == "SIGKILL"
    (attempt,) = (store / "v1/attempts").iterdir()
    noted = {path: path.stat().st_mtime_ns for path in attempt.glob("*.json")}
    assert len(noted) >= 3
    record = _execute(plan, store, watch)["sensitivity"].record
    assert record is not None
    assert record.facts["is_complete"]
    assert not attempt.exists()
    assert _execute(plan, store, watch)["sensitivity"].record == record


def test_attempts_that_differ_in_their_time_limit_share_a_place(
    tmp_path: Path, sentence_encoder: Path
) -> None:
    def key(**sensitivity: Any) -> str:
        plan = _plan(tmp_path, sentence_encoder, tmp_path / "store", sensitivity=sensitivity)
        (node,) = [node for node in plan.nodes if node.stage.name == "sensitivity"]
        return attempt_key(node, node_preimage(node, {}))

    assert key(time_limit_s=1.0) == key(time_limit_s=2.0)
    assert key(samples=3) != key(samples=4)
    plan = _plan(tmp_path, sentence_encoder, tmp_path / "store")
    assert {attempt_key(node, node_preimage(node, {})) for node in plan.nodes} == {""}


def test_what_ran_out_of_time_is_kept_for_more_of_it(
    tmp_path: Path, sentence_encoder: Path
) -> None:
    store = tmp_path / "store"
    options = {"samples": 2, "time_limit_s": 1e-6}
    plan = only_what_leads_to(
        _plan(tmp_path, sentence_encoder, store, sensitivity=options), "sensitivity"
    )
    record = _execute(plan, store, lambda _: None)["sensitivity"].record
    assert record is not None
    assert record.facts["is_complete"] is False
    (attempt,) = (store / "v1/attempts").iterdir()
    assert len(list(attempt.iterdir())) == 2


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt-rtx"])
def test_a_repair_stands_before_the_quantisation(
    tmp_path: Path, sentence_encoder: Path, runtime: str
) -> None:
    target = _target(mode="static", repair={"max_noise": 0.05})
    if runtime == "tensorrt-rtx":
        pytest.importorskip("tensorrt_rtx")
        target |= {"runtime": runtime, "compute_capability": ["sm89"]}
    path = write_recipe(tmp_path / "r.yaml", sentence_encoder, data=DATA, targets=[target])
    plan = prepare_plan(load_recipe_file(path), open_store(BuildOptions(store=tmp_path / "store")))
    by_stage = {node.stage.name: node for node in plan.nodes if node.stage.name != "validate"}
    quantize, repair = by_stage["quantize_static"], by_stage["repair"]
    assert quantize.inputs["repair"].node == repair.index  # type: ignore[union-attr]
    assert repair.inputs["model"] == quantize.inputs["model"]
    assert repair.inputs["samples"] == by_stage["calibrate"].inputs["samples"]
    assert repair.config.quantizer == quantize.config  # type: ignore[attr-defined]
    assert "check_repair" in by_stage


def test_layers_are_not_chosen_by_what_they_are_judged_on(
    tmp_path: Path, sentence_encoder: Path
) -> None:
    from pipeline.errors import RecipeError

    target = _target(repair={"max_noise": 0.05})
    path = write_recipe(tmp_path / "recipe.yaml", sentence_encoder, targets=[target])
    with pytest.raises(RecipeError, match=r"layers are tried out on samples of their own"):
        prepare_plan(load_recipe_file(path), open_store(BuildOptions(store=tmp_path / "s")))


def test_the_report_judges_a_repair(tmp_path: Path, sentence_encoder: Path) -> None:
    """A whole build whose repair cannot reach its limit: everything is made, and the gate fails."""
    from pipeline.build import build

    repair = {"max_noise": 1e-7, "samples": 2, "time_limit_s": 1e-6}
    target = _target(sensitivity={"samples": 2, "time_limit_s": 1e-6}, repair=repair)
    path = write_recipe(tmp_path / "recipe.yaml", sentence_encoder, data=DATA, targets=[target])
    result = build(
        load_recipe_file(path),
        BuildOptions(output=tmp_path / "artifacts", store=tmp_path / "store", threads=1),
    )
    assert result.verdict == "failed"
    (report_path,) = (tmp_path / "artifacts").rglob("report.json")
    report = json.loads(report_path.read_text(encoding="utf-8"))
    gates = report["gates"] if "gates" in report else report["verdict"]["gates"]
    failed = [gate for gate in gates if gate["verdict"] == "failed"]
    assert [(gate["gate"], gate["metric"]) for gate in failed] == [
        ("repair", "quantize_dynamic.noise")
    ]
    assert "time limit" in failed[0]["reason"]
