"""The graphs of a tiny encoder, made by the real stages, to be checked and to be damaged."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pipeline.parity.types import NoiseFloor
from pipeline.stages.calibrate import CALIBRATE, CalibrateConfig
from pipeline.stages.cast import CAST, CastConfig
from pipeline.stages.export import EXPORT, ExportConfig
from pipeline.stages.fuse import FUSE, FuseConfig
from pipeline.stages.noise_floor import NOISE_FLOOR, NoiseFloorConfig
from pipeline.stages.probes import PROBES, ProbesConfig
from pipeline.stages.quantize_dynamic import QUANTIZE_DYNAMIC, QuantizeDynamicConfig
from pipeline.stages.quantize_static import QUANTIZE_STATIC, QuantizeStaticConfig
from pipeline.stages.reference import REFERENCE, ReferenceConfig
from pipeline.stages.simplify import SIMPLIFY, SimplifyConfig
from tests.checkpoints import vocabulary
from tests.mutants.surgery import Graph
from tests.stages.test_calibrate import random_samples
from tests.stages.test_quantize_static import FLOAT8, ONNXRUNTIME, TENSORRT, Workbench

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

TASK = "feature-extraction"
PROFILE = {"batch": (1, 4, 6), "sequence": (2, 12, 48)}


@dataclass(frozen=True)
class Chain:
    """Every graph of a tiny encoder, each in a directory named after its stage.

    Attributes:
        root: Holds them, with `samples`, `probes` and `reference`.
    """

    root: Path

    @cached_property
    def floors(self) -> Mapping[str, NoiseFloor]:
        """Output -> noise floor."""
        import json

        floors = json.loads((self.root / "noise_floor/noise.json").read_text())
        return {floor["output"]: NoiseFloor.model_validate(floor) for floor in floors}

    def ports(self, model: Path, *names: str) -> dict[str, Path]:
        """A graph's directory and other results by their names."""
        return {"model": model} | {name: self.root / name for name in names}

    def damaged(self, stage: str, directory: Path, damage: Callable[[Graph], Any]) -> Path:
        """A copy of a stage's graph with a fault, in a new directory."""
        graph = Graph.read(self.root / stage)
        damage(graph)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        graph.write(directory)
        return directory


def make_chain(root: Path, checkpoint: Path) -> Chain:
    """Run all the stages; some seconds."""
    bench = Workbench(root)
    export = ExportConfig(task=TASK, component="model")
    bench.run(EXPORT, export, "export", checkpoint=checkpoint)
    bench.run(SIMPLIFY, SimplifyConfig(), "simplify", model="export")
    bench.run(FUSE, FuseConfig(), "fuse", model="simplify")
    bench.run(CAST, CastConfig(), "cast", model="simplify")
    bench.run(CAST, CastConfig(precision="bf16"), "cast-bf16", model="simplify")
    random_samples(root / "samples", 12, len(vocabulary()))
    lengths = PROFILE["sequence"][0], PROFILE["sequence"][2]
    probes = ProbesConfig(task=TASK, lengths=lengths)
    bench.run(PROBES, probes, "probes", samples="samples", tokenizer=checkpoint)
    ports = {"checkpoint": checkpoint, "samples": "samples", "probes": "probes"}
    reference = ReferenceConfig(task=TASK, component="model")
    bench.run(REFERENCE, reference, "reference", **ports)
    floor = NoiseFloorConfig(task=TASK, component="model")
    bench.run(NOISE_FLOOR, floor, "noise_floor", **ports, reference="reference")
    bench.run(CALIBRATE, CalibrateConfig(), "ranges", model="simplify", samples="samples")
    bench.run(QUANTIZE_DYNAMIC, QuantizeDynamicConfig(), "dynamic", model="fuse")
    ranges = {"ranges": "ranges"}
    config = QuantizeStaticConfig(**ONNXRUNTIME)
    bench.run(QUANTIZE_STATIC, config, "static", model="fuse", **ranges)
    config = QuantizeStaticConfig(**TENSORRT)
    bench.run(QUANTIZE_STATIC, config, "static-tensorrt", model="cast", **ranges)
    config = QuantizeStaticConfig(**FLOAT8)
    bench.run(QUANTIZE_STATIC, config, "static-float8", model="cast", **ranges)
    return Chain(root)
