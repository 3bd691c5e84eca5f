"""A tiny BERT that was really exported, what it is measured with, and small ways to break its graph."""

from __future__ import annotations

import functools
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pipeline.data.sample_set import load_samples
from pipeline.parity.types import NoiseFloor, Parity
from pipeline.stages.export import EXPORT, ExportConfig
from pipeline.stages.noise_floor import NOISE_FLOOR, NoiseFloorConfig
from pipeline.stages.probes import PROBES, ProbesConfig
from pipeline.stages.reference import REFERENCE, ReferenceConfig
from pipeline.stages.samples import SAMPLES, SamplesConfig
from pipeline.stages.validate import VALIDATE, ValidateConfig
from tests.checkpoints import build_token_classifier
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

TASK = "token-classification"
LONGEST_SAMPLE = 40
WORDS = "model.bert.embeddings.word_embeddings.weight"
POSITIONS = "model.bert.embeddings.position_embeddings.weight"
POSITION_IDS = "model.bert.embeddings.position_ids"
TYPES = "model.bert.embeddings.token_type_embeddings.weight"
HEAD = "model.classifier.bias"


@dataclass(frozen=True)
class Converted:
    """Folders, by what is in them, and the floors by output."""

    folders: Mapping[str, Path]
    floors: Mapping[str, NoiseFloor]
    owner: tempfile.TemporaryDirectory[str]

    def model(self) -> onnx.ModelProto:
        """A fresh copy of the exported graph."""
        return onnx.load(self.folders["model"] / "model.onnx")

    def seen_ids(self) -> NDArray[np.int64]:
        """Token ids that the samples hold."""
        samples = load_samples(self.folders["samples"])
        ids = [sample["input_ids"] for sample in samples.read(range(len(samples)))]
        return np.unique(np.concatenate(ids))

    def compare(self, model: onnx.ModelProto, folder: Path, *, has_probes: bool = True) -> Parity:
        """Compare a graph with the checkpoint, as the stage does it."""
        place, output = folder / "model", folder / "out"
        place.mkdir(parents=True)
        output.mkdir()
        onnx.save(model, place / "model.onnx")
        inputs = {
            "model": place,
            **{port: self.folders[port] for port in ("samples", "reference")},
        }
        if has_probes:
            inputs["probes"] = self.folders["probes"]
        config = ValidateConfig(task=TASK, optimizations="disabled", batch_size=4)
        VALIDATE.run(config, inputs, output, RecordingContext(folder))
        return Parity.model_validate_json((output / "parity.json").read_bytes())


@functools.cache
def converted() -> Converted:
    """Made once for all tests of a process, by the stages themselves."""
    owner = tempfile.TemporaryDirectory(prefix="converted-")
    root = Path(owner.name)
    checkpoint = build_token_classifier(root / "checkpoint")
    context = RecordingContext(root)
    component: dict[str, Any] = {"task": TASK, "component": "model"}
    folders = {name: root / name for name in ("samples", "probes", "reference", "floor", "model")}
    for folder in folders.values():
        folder.mkdir()
    config = SamplesConfig(
        source="builtin:stdlib-docstrings",
        kind="builtin",
        task=TASK,
        samples=9,
        seed=0,
        max_length=LONGEST_SAMPLE,
    )
    SAMPLES.run(config, {"tokenizer": checkpoint}, folders["samples"], context)
    ports = {"checkpoint": checkpoint, "tokenizer": checkpoint, **folders}
    PROBES.run(ProbesConfig(task=TASK, lengths=(2, 128)), ports, folders["probes"], context)
    REFERENCE.run(ReferenceConfig(**component), ports, folders["reference"], context)
    NOISE_FLOOR.run(NoiseFloorConfig(**component), ports, folders["floor"], context)
    EXPORT.run(ExportConfig(**component), ports, folders["model"], context)
    read = json.loads((folders["floor"] / "noise.json").read_text())
    floors = {floor["output"]: NoiseFloor.model_validate(floor) for floor in read}
    return Converted(folders, floors, owner)


def edit(model: onnx.ModelProto, name: str, change: Callable[[Any], Any]) -> None:
    """Replace an initializer by what `change` makes of its array."""
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    array = change(numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def rewire(model: onnx.ModelProto, name: str, *nodes: onnx.NodeProto) -> None:
    """Everything that reads input `name` reads `other` instead, which new nodes make."""
    for node in model.graph.node:
        for place, read in enumerate(node.input):
            if read == name:
                node.input[place] = "other"
    for node in reversed(nodes):
        model.graph.node.insert(0, node)


def constant(name: str, *values: int) -> onnx.NodeProto:
    """int64 (n,)."""
    return helper.make_node("Constant", [], [name], value_ints=values)


def attribute(model: onnx.ModelProto, op: str, name: str, value: Any) -> None:
    """Set an attribute of all nodes of one operator, at least of one."""
    nodes = [node for node in model.graph.node if node.op_type == op]
    assert nodes
    for node in nodes:
        kept = [found for found in node.attribute if found.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])


def epsilon(model: onnx.ModelProto) -> None:
    """1e-5, as most frameworks have it, where BERT says 1e-12."""
    attribute(model, "LayerNormalization", "epsilon", 1e-5)


def tanh_for_erf(model: onnx.ModelProto) -> None:
    """The other GELU."""
    attribute(model, "Gelu", "approximate", "tanh")


def mask_ignored(model: onnx.ModelProto) -> None:
    """Right for what is not padded."""
    rewire(
        model,
        "attention_mask",
        constant("zero", 0),
        constant("one", 1),
        helper.make_node("Mul", ["attention_mask", "zero"], ["none"]),
        helper.make_node("Add", ["none", "one"], ["other"]),
    )


def mask_by_length(model: onnx.ModelProto) -> None:
    """As many leading positions as the mask has ones: right for padding on the right alone."""
    rewire(
        model,
        "attention_mask",
        constant("zero", 0),
        constant("one", 1),
        helper.make_node("ReduceSum", ["attention_mask", "one"], ["length"], keepdims=1),
        helper.make_node("Mul", ["attention_mask", "zero"], ["none"]),
        helper.make_node("Add", ["none", "one"], ["ones"]),
        helper.make_node("CumSum", ["ones", "one_axis"], ["places"]),
        helper.make_node("LessOrEqual", ["places", "length"], ["is_text"]),
        helper.make_node("Cast", ["is_text"], ["other"], to=onnx.TensorProto.INT64),
    )
    axis = numpy_helper.from_array(np.array(1, np.int64), "one_axis")
    model.graph.initializer.append(axis)


def inputs_merged(model: onnx.ModelProto) -> None:
    """Types are read from the mask."""
    rewire(model, "token_type_ids", helper.make_node("Identity", ["attention_mask"], ["other"]))


def nan_when_all_is_masked(model: onnx.ModelProto) -> None:
    """What a softmax over nothing but minus infinity gives."""
    (output,) = model.graph.output
    for node in model.graph.node:
        for place, made in enumerate(node.output):
            if made == output.name:
                node.output[place] = "good"
    model.graph.node.extend(
        [
            constant("minus_one", -1),
            helper.make_node("ReduceMax", ["attention_mask", "minus_one"], ["any"], keepdims=1),
            helper.make_node("Cast", ["any"], ["any_bool"], to=onnx.TensorProto.BOOL),
            helper.make_node("Unsqueeze", ["any_bool", "minus_one"], ["is_text"]),
            helper.make_node("Constant", [], ["nan"], value_float=float("nan")),
            helper.make_node("Where", ["is_text", "good", "nan"], [output.name]),
        ]
    )


def position_shift(model: onnx.ModelProto) -> None:
    """Positions count from 1."""
    edit(model, POSITION_IDS, lambda ids: np.minimum(ids + 1, ids.max()))


def rare_tokens_lost(model: onnx.ModelProto) -> None:
    """No embeddings of tokens that no sample holds."""
    seen = converted().seen_ids()

    def change(table: Any) -> Any:
        kept = np.zeros_like(table)
        kept[seen] = table[seen]
        return kept

    edit(model, WORDS, change)


def second_type_lost(model: onnx.ModelProto) -> None:
    """The second type's embedding is the first one's."""
    edit(model, TYPES, lambda table: np.stack([table[0], table[0]]))


def far_positions_lost(model: onnx.ModelProto) -> None:
    """Positions that no sample reaches are zeros."""

    def change(table: Any) -> Any:
        table[LONGEST_SAMPLE:] = 0
        return table

    edit(model, POSITIONS, change)


def bias_dropped(model: onnx.ModelProto) -> None:
    """Of the head."""
    edit(model, HEAD, np.zeros_like)


def head_negated(model: onnx.ModelProto) -> None:
    """Nothing resembles the checkpoint any more."""
    (output,) = model.graph.output
    for node in model.graph.node:
        for place, made in enumerate(node.output):
            if made == output.name:
                node.output[place] = "good"
    model.graph.node.append(helper.make_node("Neg", ["good"], [output.name]))
