from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.graph.files import save_model
from pipeline.graph.inspect import describe_model
from tests.graph.models import embedding_model, write

if TYPE_CHECKING:
    from pathlib import Path


def test_a_description_has_interface_operators_and_sizes(tmp_path: Path) -> None:
    path = write(tmp_path / "m", embedding_model())
    found = describe_model(path)
    assert (found.opset, found.ir_version) == (20, 10)
    assert [(v.name, v.dtype, v.shape) for v in found.inputs] == [
        ("input_ids", "int64", ("batch", "sequence")),
        ("attention_mask", "int64", ("batch", "sequence")),
    ]
    assert found.outputs[0].shape == ("batch", "sequence", 4)
    assert found.op_counts == {"Cast": 1, "Constant": 1, "Gather": 1, "Mul": 1, "Unsqueeze": 1}
    assert found.parameters == 32
    assert found.weight_bytes == {"float": 128, "int64": 8}
    assert found.size_bytes == path.stat().st_size


def test_weights_in_a_file_of_their_own_count_too(tmp_path: Path) -> None:
    path = save_model(embedding_model(rows=512), tmp_path, inline_limit_bytes=1000)
    found = describe_model(path)
    assert found.weight_bytes["float"] == 512 * 4 * 4
    assert found.size_bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
