"""Faults in real conversions are caught by the gates that hold by default, and the right stage is named.

Here are some, in models that need no training; `scripts/mutants` and `-m slow` run all.
"""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from tests.mutants.bench import Bench, Damage
from tests.mutants.catalogue import all_faults
from tests.mutants.delivery import ARTIFACT_FAULTS, try_deliveries
from tests.mutants.models import DECODERS, MODELS, find_model, plan_model
from tests.mutants.surgery import NotHereError
from tests.mutants.table import render, summary
from tests.mutants.trial import trials, try_fault, try_good

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from tests.mutants.bench import Scene

QUICK = (
    ("gelu_tanh@export", "tiny-encoder"),
    ("norm_epsilon@fuse", "tiny-encoder"),
    ("mask_ignored@fuse", "tiny-encoder"),
    ("mask_infinite@export", "tiny-encoder"),
    ("token_types_dropped@fuse", "tiny-encoder"),
    ("positions_by_mask@export", "tiny-encoder"),
    ("positions_of_exported_length@fuse", "tiny-encoder"),
    ("mask_of_first_sample@export", "tiny-encoder"),
    ("last_tokens_missing@export", "tiny-encoder"),
    ("weight_stale@fuse", "tiny-encoder"),
    ("channels_swapped@export", "tiny-vit"),
    ("heads_swapped@fuse", "tiny-vit"),
    ("stale_fused_result@fuse", "tiny-vit"),
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("mutants"))


def test_the_list_is_as_long_as_it_should_be() -> None:
    faults = all_faults()
    assert len({fault.name for fault in faults}) == len(faults)
    damages = {fault.name.partition("@")[0] for fault in faults}
    assert len(damages) >= 40
    for model in MODELS:
        assert sum(1 for _ in trials(faults, [model.name])) >= 40, model.name
    hidden = [fault for fault in faults if not set(fault.targets) <= {"fp32"}]
    assert len(hidden) >= len(faults) / 2
    assert len({fault.kind for fault in faults}) >= 10


@pytest.mark.parametrize("model", ["tiny-encoder", "tiny-vit"])
def test_a_good_twin_passes(bench: Bench, model: str) -> None:
    report = try_good(bench, model, ["fp32", "dynamic"], seed=0)
    assert report.verdict == "passed", report.reasons


@pytest.mark.parametrize(("name", "model"), QUICK)
def test_a_fault_is_caught_where_it_was_made(bench: Bench, name: str, model: str) -> None:
    (fault,) = (fault for fault in all_faults() if fault.name == name)
    outcome = try_fault(bench, fault, model)
    assert outcome is not None
    assert outcome.is_caught
    assert outcome.accused == fault.stage
    assert name in render([outcome])
    assert "1 caught, 1 with the right stage accused" in summary([outcome])


def test_what_changes_nothing_is_not_caught(bench: Bench) -> None:
    """The bench itself raises no alarm: a copy of the right result passes."""
    plan = plan_model(find_model("tiny-vit"), ["dynamic"], bench.recipes, bench.store)

    def copied(scene: Scene) -> Mapping[str, Any]:
        (scene.output / "model.onnx").write_bytes((scene.good / "model.onnx").read_bytes())
        return scene.facts

    report = bench.mutant(plan, Damage(name="nothing", node="fuse", apply=copied))
    assert report.verdict == "passed"
    assert not report.findings


def test_a_fault_that_finds_nothing_to_damage_says_so(bench: Bench) -> None:
    plan = plan_model(find_model("tiny-vit"), ["dynamic"], bench.recipes, bench.store)
    (fault,) = (fault for fault in all_faults() if fault.name == "mask_ignored@export")
    with pytest.raises(NotHereError, match="no mask"):
        bench.mutant(plan, Damage(name=fault.name, node="export", apply=fault.apply))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="chains of engines are tried too")
@pytest.mark.parametrize("model", [model.name for model in MODELS])
def test_every_fault_is_caught_in_every_model(bench: Bench, model: str) -> None:
    outcomes = [
        outcome
        for fault, name in trials(all_faults(), [model])
        if (outcome := try_fault(bench, fault, name)) is not None
    ]
    outcomes += try_deliveries(bench, model)
    missed = [outcome for outcome in outcomes if not (outcome.is_caught and outcome.is_attributed)]
    assert not missed, render(missed)
    assert Counter(outcome.model for outcome in outcomes)[model] >= 40


@pytest.mark.slow
@pytest.mark.parametrize("model", [model.name for model in DECODERS])
def test_every_fault_of_a_decoder_is_caught(bench: Bench, model: str) -> None:
    outcomes = [try_fault(bench, fault, name) for fault, name in trials(all_faults(), [model])]
    found = [outcome for outcome in outcomes if outcome is not None]
    missed = [outcome for outcome in found if not (outcome.is_caught and outcome.is_attributed)]
    assert not missed, render(missed)
    assert len(found) == len(outcomes) >= 11


def test_every_delivered_file_has_a_fault() -> None:
    damaged = {fault.file for fault in ARTIFACT_FAULTS}
    assert {"dynamic/model.onnx", "dynamic/tokenizer.json", "dynamic/config.json"} <= damaged
