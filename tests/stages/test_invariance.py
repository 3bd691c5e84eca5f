"""Invariance of models on images and on choices, and what the stage says of a graph by reading it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from pipeline.data.sample_set import InputSpec, SampleEntry, SampleIndex, save_samples
from pipeline.graph.run_time_effects import (
    least_float,
    nodes_with_scales_at_run_time,
    random_nodes,
)
from pipeline.stages.invariance import INVARIANCE, InvarianceConfig
from tests.stages.context import RecordingContext

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

IMAGES = """
<ir_version: 10, opset_import: ["" : 20]>
classifier (float[batch, 3, 4, 4] pixel_values) => (float[batch, 3] logits)
{
    mean = ReduceMean <keepdims = 0> (pixel_values, places)
    logits = Mul (mean, scale)
}
"""
CHOICES = """
<ir_version: 10, opset_import: ["" : 20]>
chooser (int64[batch, num_choices, sequence] input_ids,
         int64[batch, num_choices, sequence] attention_mask)
    => (float[batch, num_choices] logits)
{
    mask = Cast <to = 1> (attention_mask)
    ids = Cast <to = 1> (input_ids)
    seen = Mul (ids, mask)
    total = ReduceSum <keepdims = 0> (seen, last)
    count = ReduceSum <keepdims = 0> (mask, last)
    some = Max (count, scale)
    logits = Div (total, some)
}
"""
INITIALIZERS = {
    "places": np.array([2, 3], np.int64),
    "last": np.array([-1], np.int64),
    "first": np.array([0], np.int64),
    "choice": np.array([1], np.int64),
    "scale": np.array(0.5, np.float32),
}


def _write_graph(directory: Path, text: str, *edits: str) -> Path:
    for old, new in zip(edits[::2], edits[1::2], strict=True):
        assert old in text
        text = text.replace(old, new)
    model = onnx.parser.parse_model(text)
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name)
        for name, array in INITIALIZERS.items()
        if name in used
    )
    directory.mkdir()
    onnx.save(model, directory / "model.onnx")
    return directory


def _write_samples(
    directory: Path, inputs: dict[str, InputSpec], samples: Sequence[dict[str, np.ndarray]]
) -> Path:
    directory.mkdir()
    entries = []
    for place, sample in enumerate(samples):
        extents = {
            axis: size
            for name, spec in inputs.items()
            for axis, size in zip(spec.axes, sample[name].shape, strict=True)
            if axis is not None
        }
        entries.append(SampleEntry(index=place, text=str(place), extents=extents))
    index = SampleIndex(
        source="test",
        use="evaluation",
        seed=0,
        max_length=None,
        inputs=inputs,
        samples=tuple(entries),
    )
    save_samples(index, samples, directory)
    return directory


def _images(directory: Path) -> Path:
    generator = np.random.default_rng(0)
    pixels = generator.standard_normal((5, 3, 4, 4)).astype(np.float32)
    spec = InputSpec(dtype="float32", axes=(None, None, None))
    return _write_samples(
        directory, {"pixel_values": spec}, [{"pixel_values": image} for image in pixels]
    )


def _choices(directory: Path) -> Path:
    generator = np.random.default_rng(0)
    spec = InputSpec(dtype="int64", axes=("num_choices", "sequence"))
    samples = []
    for choices, length in ((2, 3), (4, 7), (3, 5), (4, 12)):
        ids = generator.integers(1, 30, (choices, length))
        mask = np.ones_like(ids)
        mask[0, -1] = 0  # its first choice is shorter
        samples.append({"input_ids": ids, "attention_mask": mask})
    return _write_samples(directory, {"input_ids": spec, "attention_mask": spec}, samples)


def _measure(model: Path, samples: Path, extents: dict[str, tuple[int, int, int]]) -> Any:
    config = InvarianceConfig(optimizations="disabled", extents=extents)
    context = RecordingContext(samples, threads=1)
    facts = INVARIANCE.run(config, {"model": model, "samples": samples}, samples, context)
    worst: dict[str, float] = {}
    for fact in facts["cases"]:
        assert not fact["problem"], fact
        worst[fact["case"]] = max(worst.get(fact["case"], 0.0), *fact["noises"])
    return worst


IMAGE_EXTENTS = {"batch": (1, 2, 6)}
CHOICE_EXTENTS = {"batch": (1, 2, 4), "num_choices": (2, 3, 4), "sequence": (2, 8, 16)}


def test_images_have_batches_and_no_padding(tmp_path: Path) -> None:
    model = _write_graph(tmp_path / "model", IMAGES)
    worst = _measure(model, _images(tmp_path / "samples"), IMAGE_EXTENTS)
    assert set(worst) == {"repeated", "batch", "largest_batch"}
    assert max(worst.values()) < 1e-6


def test_images_that_see_each_other_differ(tmp_path: Path) -> None:
    edits = (
        "logits = Mul (mean, scale)",
        "all = ReduceMean (mean, first) logits = Add (mean, all)",
    )
    model = _write_graph(tmp_path / "model", IMAGES, *edits)
    worst = _measure(model, _images(tmp_path / "samples"), IMAGE_EXTENTS)
    assert worst["batch"] > 0.1
    assert worst["largest_batch"] > 0.1
    assert worst["repeated"] == 0.0


def test_choices_are_padded_along_both_axes(tmp_path: Path) -> None:
    model = _write_graph(tmp_path / "model", CHOICES)
    worst = _measure(model, _choices(tmp_path / "samples"), CHOICE_EXTENTS)
    assert {"batch", "padding", "smallest", "longest", "masked_neighbour"} <= set(worst)
    assert max(worst.values()) < 1e-6


@pytest.mark.parametrize(
    ("old", "new", "case"),
    [
        ("mask = Cast <to = 1> (attention_mask)", "all = Equal (input_ids, input_ids) mask = Cast <to = 1> (all)", "padding"),
        ("logits = Div (total, some)", "own = Div (total, some) all = ReduceMean (own, choice) logits = Sub (own, all)", "padding"),
        ("logits = Div (total, some)", "own = Div (total, some) all = ReduceMean (own, first) logits = Sub (own, all)", "masked_neighbour"),
    ],
    ids=["mask ignored", "padded choices counted", "others of the batch seen"],
)  # fmt: skip
def test_choices_that_depend_on_their_company_differ(
    tmp_path: Path, old: str, new: str, case: str
) -> None:
    model = _write_graph(tmp_path / "model", CHOICES, old, new)
    worst = _measure(model, _choices(tmp_path / "samples"), CHOICE_EXTENTS)
    assert worst[case] > 0.01


def test_a_single_sample_in_batches_of_one_is_only_repeated_and_padded(tmp_path: Path) -> None:
    model = _write_graph(tmp_path / "model", IMAGES)
    worst = _measure(model, _images(tmp_path / "samples"), {"batch": (1, 1, 1)})
    assert set(worst) == {"repeated"}


QUANTIZED = """
<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
agraph (float[batch, 4] x) => (uint8[batch, 4] y)
{
    NODES
}
"""


@pytest.mark.parametrize(
    ("nodes", "found"),
    [
        ("y = QuantizeLinear (x, scale)", ()),
        ("half = Mul (scale, scale) y = QuantizeLinear (x, half)", ()),
        ("y, s, z = DynamicQuantizeLinear (x)", ("y (DynamicQuantizeLinear)",)),
        (
            "top = ReduceMax <keepdims = 0> (x) y = QuantizeLinear (x, top)",
            ("y (QuantizeLinear)",),
        ),
    ],
    ids=["stored", "computed from stored", "operator of its own", "computed from the input"],
)
def test_scales_are_told_by_what_the_graph_does(nodes: str, found: tuple[str, ...]) -> None:
    model = onnx.parser.parse_model(QUANTIZED.replace("NODES", nodes))
    model.graph.initializer.append(numpy_helper.from_array(INITIALIZERS["scale"], "scale"))
    assert nodes_with_scales_at_run_time(model) == found


@pytest.mark.parametrize(
    ("nodes", "found"),
    [
        ("a = Dropout (x) y = QuantizeLinear (a, scale)", ()),
        ("a = Dropout (x, scale, off) y = QuantizeLinear (a, scale)", ()),
        ("a = Dropout (x, scale, on) y = QuantizeLinear (a, scale)", ("a (Dropout)",)),
        ("r = RandomNormalLike (x) y = QuantizeLinear (r, scale)", ("r (RandomNormalLike)",)),
        ("r = Bernoulli <seed = 1.0> (x) y = QuantizeLinear (r, scale)", ("r (Bernoulli)",)),
    ],
    ids=["inference", "training off", "training on", "noise", "drawn with a seed"],
)
def test_nodes_that_draw_numbers_are_named(nodes: str, found: tuple[str, ...]) -> None:
    model = onnx.parser.parse_model(QUANTIZED.replace("NODES", nodes))
    for name, value in (("scale", np.float32(0.5)), ("on", np.True_), ("off", np.False_)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    assert random_nodes(model) == found


def test_the_least_exact_type_is_told_by_what_is_stored() -> None:
    model = onnx.parser.parse_model(QUANTIZED.replace("NODES", "y = QuantizeLinear (x, scale)"))
    model.graph.initializer.append(numpy_helper.from_array(INITIALIZERS["scale"], "scale"))
    assert least_float(model) == "float32"
    half = INITIALIZERS["scale"].astype(np.float16)
    model.graph.initializer.append(numpy_helper.from_array(half, "half"))
    assert least_float(model) == "float16"
