"""Take in a model that somebody else made, as the first link of a chain.

Port: `candidate`, the model file with its external data. The output is `model.onnx` with our names
outside and, inside, every node as it was (`pipeline.graph.adoption`). What the file says of itself, and
what was decided of its inputs and outputs, is in the facts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.candidates.records import Interface
from pipeline.stages.base import Footprint, Stage, StageConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext

CANDIDATE_PORT = "candidate"


class AdoptConfig(StageConfig):
    """Which file, and how its inputs and outputs are ours.

    Attributes:
        file: The model file's name.
        interface: From `match_interface`.
        companions: Names of the files that lie beside it; they are not read here.
    """

    file: str
    interface: Interface
    companions: tuple[str, ...] = ()


def run(
    config: AdoptConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> Mapping[str, JSON]:
    """Write `model.onnx`.

    Raises:
        ArtifactError: the file is damaged, or its external data is.
        StoreError: when the output cannot be written.
    """
    from pipeline.candidates.names import quoted
    from pipeline.candidates.precision import precision_of
    from pipeline.graph.adoption import adopt_model
    from pipeline.graph.adoption_weights import move_weights
    from pipeline.graph.dataflow import data_dead_inputs
    from pipeline.graph.files import load_graph_only, save_model
    from pipeline.graph.read_foreign import read_facts

    path = inputs[CANDIDATE_PORT] / config.file
    facts = read_facts(path)
    context.progress(1, 3, "steps")
    model = load_graph_only(path)
    dead = data_dead_inputs(model)
    weights = move_weights(model, inputs[CANDIDATE_PORT])
    adopt_model(model, config.interface)
    context.progress(2, 3, "steps")
    written = save_model(model, output)
    weights.write(output)
    del model
    context.progress(3, 3, "steps")
    precision = precision_of(facts)
    return {
        "file": config.file,
        "producer": facts.producer,
        "opset": facts.opset,
        "ir_version": facts.ir_version,
        "domains": dict(facts.domains),
        "inputs": {each.given: each.name for each in config.interface.inputs},
        "supplied_inputs": {each.given: each.rule for each in config.interface.supplied},
        "outputs": {each.given: each.name for each in config.interface.outputs},
        "fixed_axes": dict(config.interface.fixed),
        "dead_inputs": list(dead),
        "arithmetic": precision.arithmetic,
        "quantization": precision.quantization,
        "precision": precision.words,
        "parameters": facts.parameters,
        "size_bytes": facts.size_bytes,
        "weight_bytes": dict(facts.weight_bytes),
        "ops": dict(facts.op_counts),
        "coverage": {
            "quantized_weights": precision.quantized_weights,
            "fp16_weights": precision.fp16_weights,
        },
        "notes": list(config.interface.notes),
        "warnings": [
            *config.interface.notes,
            *(f"no output depends on the data of its input {quoted(name)}" for name in dead),
            *_complaint(written),
        ],
    }


def _complaint(path: Path) -> list[str]:
    """What ONNX's checker has against the graph; ONNX Runtime may run it all the same."""
    from pipeline.errors import StageError
    from pipeline.graph.validity import require_valid

    try:
        require_valid(path)
    except StageError as error:
        return [error.message]
    return []


ADOPT = Stage(
    name="adopt",
    version=2,
    footprint=Footprint(
        base_mib=150, memory_per_weight=4.1, memory_outside=1.0, disk_per_weight=1.0
    ),
    config_type=AdoptConfig,
    run=run,
    packages=("onnx", "onnx-ir", "numpy"),
    coverage=("quantized_weights", "fp16_weights"),
    preload=("pipeline.graph.adoption", "pipeline.graph.read_foreign"),
)
"""Port `candidate` -> `model.onnx`."""
