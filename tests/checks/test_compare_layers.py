"""What the stage says of graphs; that faults are found is in `tests/test_diagnosis.py`."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.errors import StageError
from pipeline.parity import layer_comparison
from pipeline.stages.compare_layers import COMPARE_LAYERS, CompareLayersConfig
from tests.checks.chain import Chain
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from pathlib import Path

    from tests.mutants.surgery import Graph


FLOAT = {"arithmetic": "float32"}


def compare(
    chain: Chain,
    scratch: Path,
    model: Path,
    before: str = "fuse",
    run_before: str = "all",
    **changes: Any,
) -> dict[str, Any]:
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    values: dict[str, Any] = {
        "against": before,
        "arithmetic": "quantized",
        "optimizations": "all",
        "before": run_before,
    }
    config = CompareLayersConfig(**(values | changes))
    inputs = chain.ports(model, "samples", "export") | {"before": chain.root / before}
    context = RecordingContext(scratch=scratch)
    facts = COMPARE_LAYERS.run(config, inputs, scratch, context)
    json.dumps(facts, allow_nan=False)
    assert context.steps[-1][2] == "samples"
    return dict(facts)


def test_large_graphs_are_compared_in_pieces_with_the_same_numbers(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = chain.root / "static"
    whole = compare(chain, tmp_path / "whole", model)
    assert len(list((tmp_path / "whole/graph").glob("piece*"))) == 1
    monkeypatch.setattr(layer_comparison, "GROUP_BYTES", 20_000)
    pieces = compare(chain, tmp_path / "pieces", model)
    assert len(list((tmp_path / "pieces/graph").glob("piece*"))) > 4
    assert pieces == whole


def test_a_graph_compared_with_itself_has_no_noise(chain: Chain, tmp_path: Path) -> None:
    facts = compare(chain, tmp_path / "out", chain.root / "fuse", arithmetic="float32")
    assert {row["noise"] for row in facts["layers"]} == {0.0}
    assert {row["added"] for row in facts["layers"]} == {0.0}
    assert facts["worst"] == []
    assert facts["first"] is None
    assert facts["samples"] == 8
    assert facts["unmatched"] == 0 or facts["unmatched"] < len(facts["layers"])


def test_when_the_time_is_over_the_facts_say_how_far_it_got(chain: Chain, tmp_path: Path) -> None:
    facts = compare(chain, tmp_path / "out", chain.root / "static", time_limit_s=1e-6)
    assert facts["samples"] == 1
    (warning,) = facts["warnings"]
    assert "1 of 8 samples" in warning
    assert all(row["added"] is not None for row in facts["layers"])


def test_overflow_is_told_where_it_is_made(chain: Chain, tmp_path: Path) -> None:
    def overflow(graph: Graph) -> None:
        (name,) = graph.find("layer.0.intermediate.dense.bias")

        def infinite(bias: Any) -> Any:
            bias[3] = np.inf
            return bias

        graph.change(name, infinite)

    model = chain.damaged("cast", tmp_path / "damaged", overflow)
    facts = compare(
        chain, tmp_path / "out", model, "simplify", arithmetic="float16", optimizations="disabled"
    )
    rows = {row["name"]: row for row in facts["layers"]}
    first = rows[facts["first"]]
    assert first["layer"] == "encoder.layer.0.intermediate.dense"
    assert first["added"] is None
    assert facts["worst"][0] == facts["first"]
    behind = [row for row in facts["layers"] if row["layer"] == "encoder.layer.1.output.dense"]
    assert behind
    assert all(row["noise"] is None for row in behind)  # all of it is spoilt ...
    assert all(row["added"] < facts["limit"] for row in behind)  # ... but not by these


def test_a_bfloat16_graph_is_compared_rounded(chain: Chain, tmp_path: Path) -> None:
    bfloat16 = {"arithmetic": "bfloat16", "optimizations": "disabled", "run_before": "disabled"}
    good = chain.root / "cast-bf16"
    facts = compare(chain, tmp_path / "good", good, "simplify", **bfloat16)
    assert facts["first"] is None
    assert max(row["noise"] for row in facts["layers"]) > 1e-3  # it is rounded
    assert facts["unmatched"] < 0.3 * len(facts["layers"])

    def shifted(graph: Graph) -> None:
        (name,) = graph.find("layer.0.intermediate.dense.bias")
        graph.change(name, lambda bias: (bias + 1).astype(bias.dtype))

    model = chain.damaged("cast-bf16", tmp_path / "damaged", shifted)
    facts = compare(chain, tmp_path / "bad", model, "simplify", **bfloat16)
    rows = {row["name"]: row for row in facts["layers"]}
    assert rows[facts["first"]]["layer"] == "encoder.layer.0.intermediate.dense"
    # Quantised graphs may be made of it: then it is what values are compared with.
    facts = compare(chain, tmp_path / "before", good, "cast-bf16", **bfloat16)
    assert {row["noise"] for row in facts["layers"]} == {0.0}


def test_without_scopes_layers_are_told_by_the_names_of_weights(
    chain: Chain, tmp_path: Path
) -> None:
    foreign = Chain(tmp_path / "chain")
    shutil.copytree(chain.root, foreign.root)
    (foreign.root / "export/scopes.json").unlink()
    facts = compare(foreign, tmp_path / "out", foreign.root / "static")
    layers = {row["layer"] for row in facts["layers"]}
    assert any(layer.endswith("encoder.layer.1.output.dense") for layer in layers)


def test_a_graph_that_cannot_be_run_is_an_error(chain: Chain, tmp_path: Path) -> None:
    def cut(graph: Graph) -> None:
        (name,) = graph.find("layer.0.intermediate.dense.bias")
        graph.put(name, np.zeros(3, dtype=np.float32))

    model = chain.damaged("fuse", tmp_path / "damaged", cut)
    with pytest.raises(StageError, match="ONNX Runtime"):
        compare(chain, tmp_path / "out", model, "simplify", arithmetic="float32")


def test_values_that_only_share_a_name_are_left_out(chain: Chain, tmp_path: Path) -> None:
    names: list[str] = []

    def rename(graph: Graph) -> None:
        """Twice as much under the old name, and half of that for whoever read it: nothing is wrong."""
        node = next(n for n in graph.all("Add") if "layer.0.intermediate.dense.bias" in n.input[1])
        graph.put("twice", np.array(2, dtype=np.float32))
        graph.put("half", np.array(0.5, dtype=np.float32))
        before = node.input[0]
        graph.after(before, "Mul", "twice")
        graph.change(node.input[1], lambda bias: bias * 2)
        graph.after(node.output[0], "Mul", "half")
        names.append(node.output[0])

    plain = compare(chain, tmp_path / "plain", chain.root / "fuse", "simplify", **FLOAT)
    model = chain.damaged("fuse", tmp_path / "renamed", rename)
    facts = compare(chain, tmp_path / "out", model, "simplify", **FLOAT)
    assert facts["first"] is None
    assert names[0] in {row["name"] for row in plain["layers"]}
    assert names[0] not in {row["name"] for row in facts["layers"]}
    assert len(facts["layers"]) == len(plain["layers"]) - 1
