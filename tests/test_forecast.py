"""The forecast: about right for a real build, and a refusal with numbers when it cannot fit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from pipeline.build import BuildOptions, open_store, prepare_plan
from pipeline.errors import EnvironmentMissing
from pipeline.forecast import Forecast, NodeForecast, checkpoint_size, forecast, require_room
from pipeline.planning import plan_status
from pipeline.recipe import load_recipe_file
from pipeline.stages.base import INLINE_LIMIT_BYTES, Footprint
from tests.cli.commands import run_convert
from tests.recipes import FP32, INT8, write_recipe

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.planning import Plan
    from pipeline.store import Store

TIB = 1 << 40


def _plan(tmp_path: Path, checkpoint: Path, store: Store) -> Plan:
    recipe = write_recipe(tmp_path / "recipe.yaml", checkpoint, targets=[FP32, INT8])
    return prepare_plan(load_recipe_file(recipe), store)


def test_every_node_that_must_run_is_forecast(tmp_path: Path, sentence_encoder: Path) -> None:
    store = open_store(BuildOptions(store=tmp_path / "store"))
    plan = _plan(tmp_path, sentence_encoder, store)
    found = forecast(plan, plan_status(plan, store))
    assert {node.name for node in found.nodes} == {node.name for node in plan.nodes}
    weights = checkpoint_size(plan.source).weights
    export = next(node for node in found.nodes if node.name == "export")
    assert export.memory_bytes > weights
    assert found.store_bytes >= 3 * weights
    assert found.output_bytes >= weights
    assert found.memory_bytes == max(node.memory_bytes for node in found.nodes)


def test_what_is_there_needs_nothing(
    tmp_path: Path, sentence_encoder: Path, filled_store: Path
) -> None:
    store = open_store(BuildOptions(store=filled_store))
    plan = _plan(tmp_path, sentence_encoder, store)
    statuses = plan_status(plan, store)
    found = forecast(plan, statuses)
    done = {status.node.name for status in statuses if status.record is not None}
    assert done
    assert not done.intersection(node.name for node in found.nodes)


def test_parameters_are_counted_as_the_file_has_them(
    tmp_path: Path, sentence_encoder: Path
) -> None:
    from safetensors.numpy import load_file

    store = open_store(BuildOptions(store=tmp_path / "store"))
    plan = _plan(tmp_path, sentence_encoder, store)
    tensors = load_file(sentence_encoder / "model.safetensors")
    assert checkpoint_size(plan.source).parameters == sum(
        tensor.size for tensor in tensors.values()
    )


def test_memory_that_is_not_there_is_refused_with_numbers(tmp_path: Path) -> None:
    large = NodeForecast(name="export", memory_bytes=TIB, disk_bytes=0)
    with pytest.raises(
        EnvironmentMissing, match=r"`export` will need about 1,048,576 MiB .* MiB are"
    ):
        require_room(Forecast(nodes=(large,), output_bytes=0), store=tmp_path, output=tmp_path)


def test_a_disk_that_is_too_small_is_refused_with_numbers(tmp_path: Path) -> None:
    large = NodeForecast(name="export", memory_bytes=0, disk_bytes=1000 * TIB)
    with pytest.raises(
        EnvironmentMissing, match=r"will write about 1,048,576,000 MiB, and .* free"
    ):
        require_room(
            Forecast(nodes=(large,), output_bytes=0),
            store=tmp_path / "not/there/yet",
            output=tmp_path,
        )


def test_the_command_refuses_and_leaves_nothing(tmp_path: Path, sentence_encoder: Path) -> None:
    # A sparse tail makes the checkpoint look larger than any machine; nothing of it is read.
    path = tmp_path / "checkpoint"
    path.mkdir()
    for file in sentence_encoder.iterdir():
        if file.name != "model.safetensors" and file.is_file():
            (path / file.name).write_bytes(file.read_bytes())
    size = 1 << 32
    header = json.dumps(
        {"huge": {"dtype": "F8_E4M3", "shape": [size], "data_offsets": [0, size]}}
    ).encode()
    with (path / "model.safetensors").open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + size)
    recipe = write_recipe(tmp_path / "recipe.yaml", path)
    done = run_convert(str(recipe), "--output", str(tmp_path / "out"), cwd=tmp_path)
    assert done.returncode == 4
    assert "will need about" in done.stderr
    assert "--no-forecast" in done.stderr
    assert not (tmp_path / "out").exists()


def test_weights_above_what_a_model_file_holds_are_not_read() -> None:
    mapped = Footprint(memory_per_weight=4.0, memory_outside=0.1)
    assert mapped.share_of(INLINE_LIMIT_BYTES) == 4.0
    assert mapped.share_of(INLINE_LIMIT_BYTES + 1) == 0.1
    assert Footprint(memory_per_weight=4.0).share_of(INLINE_LIMIT_BYTES + 1) == 4.0


def test_a_benchmark_that_does_not_fit_is_left_out_by_a_line(
    tmp_path: Path, sentence_encoder: Path
) -> None:
    store = open_store(BuildOptions(store=tmp_path / "store"))
    timed = {"benchmark": {"shapes": [[1, 8]]}}
    recipe = write_recipe(tmp_path / "recipe.yaml", sentence_encoder, targets=[FP32], **timed)
    plan = prepare_plan(load_recipe_file(recipe), store)
    found = forecast(plan, plan_status(plan, store))
    remedies = {node.name: node.remedy for node in found.nodes}
    (remedy,) = {remedies[name] for name in remedies if name.startswith("benchmark")}
    assert remedy == "`benchmark: null`"
