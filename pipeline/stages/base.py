"""The contract of a stage: a value, not a base class.

A stage reads nothing but its inputs and writes nothing but its output directory. It runs in a child
process of its own (`pipeline.run.worker`), is filed under a key that `pipeline.planning` computes from
what is declared here, and is never filed when it fails. Importing a stage module must stay cheap:
torch, onnx, onnxruntime, numpy and the like are imported inside `run`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from pipeline.hashing import JSON

MODEL_FILE = "model.onnx"
"""Name of the graph in the output directory of every stage that makes an ONNX model."""

INLINE_LIMIT_BYTES = 1_900_000_000
"""Above this many bytes of weights they are stored outside the model file; protobuf's own limit is
2^31 - 1 bytes for the whole message."""

NARROW_LIMIT_BYTES = 8_000_000_000
"""Of weights as float32; above, those of a checkpoint in 16 bits stay in 16 bits between stages, see
`pipeline.graph.narrow_weights`."""

MAPPED_MIB = 1024
"""Of files that are mapped while a graph is run, at most, see `pipeline.runtimes.mapped_pages`."""

_MIB = 1 << 20

ENGINE_FILE = "model.engine"
"""Name of the engine in the output directory of every stage that makes one."""

EXTERNAL_DATA_FILE = "model.onnx_data"
"""Name of its weights when they do not fit into one protobuf (Optimum's name)."""


def model_size_bytes(directory: Path) -> int:
    """Size of the model in a stage's output: the graph with its weights beside it, or the engine."""
    files = (directory / name for name in (MODEL_FILE, EXTERNAL_DATA_FILE, ENGINE_FILE))
    return sum(file.stat().st_size for file in files if file.is_file())


class StageConfig(BaseModel):
    """Base of every stage's config: frozen, strict, unknown keys refused, JSON round trip exact."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @property
    def gpu_number(self) -> int:
        """Which GPU it runs on, where it runs on one; facts of the machine are of this one."""
        return 0


class StageContext(Protocol):
    """What a running stage may ask of the process it runs in."""

    @property
    def scratch(self) -> Path:
        """A private, empty directory that is deleted when the stage ends."""

    @property
    def resumable(self) -> Path | None:
        """A directory that survives a failed attempt; None but for stages that are `resumable`.

        What is in it was left by another attempt, killed at any moment: check what you read, write
        each file whole (another name, then rename), and take its loss for lost time only.
        """

    @property
    def threads(self) -> int:
        """How many threads the stage may use."""

    def progress(self, done: int, total: int, unit: str) -> None:
        """Report that `done` of `total` `unit` are behind us; cheap, call it often."""

    def log(self, message: str) -> None:
        """Write one line to the stage's log (shown with `--verbose`, and when the stage fails)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """About how much memory and disk a stage takes; for the forecast before a build starts.

    The unit is the checkpoint: its parameters as float32. Measured with models of 23 and 110
    million parameters, see `benchmarks/footprints.py`.

    Attributes:
        base_mib: Peak resident memory with a model of no size, MiB: the libraries.
        memory_per_weight: Bytes of peak memory for each byte of the checkpoint.
        memory_outside: The same above `INLINE_LIMIT_BYTES`, where weights are mapped and not read;
            None when it makes no difference.
        disk_per_weight: Bytes of output for each byte of the checkpoint.
        keeps_weights: Its output holds the checkpoint's own weights, which stay in 16 bits above
            `NARROW_LIMIT_BYTES` where the checkpoint has them so: it takes half of the disk then.
        memory_per_largest: Bytes of peak memory for each byte of the largest weight, where weights are
            mapped and not read.
        runs_model: It runs, or reads, the mapped graph of its port `model` a weight at a time.
        memory_to_run: Bytes of peak memory that whoever runs its output takes for each byte of the
            checkpoint, where weights are mapped; 0 where they are used as they are.
        keeps_outputs: It also holds, and writes, the model's outputs for every sample.
    """

    base_mib: int = 150
    memory_per_weight: float = 0.0
    memory_outside: float | None = None
    disk_per_weight: float = 0.0
    keeps_weights: bool = False
    memory_per_largest: float = 0.0
    runs_model: bool = False
    memory_to_run: float = 0.0
    keeps_outputs: bool = False

    def share_of(self, weights: int) -> float:
        """Bytes of peak memory for each byte of a checkpoint of so many bytes."""
        if self.memory_outside is not None and weights > INLINE_LIMIT_BYTES:
            return self.memory_outside
        return self.memory_per_weight

    def memory_bytes(self, weights: int, largest: int, to_run: float = 0.0) -> int:
        """Peak memory, without outputs that are kept.

        Args:
            weights: Bytes of the checkpoint, as float32.
            largest: Likewise of its largest weight.
            to_run: `memory_to_run` of the stage that made the graph it runs.
        """
        memory = self.base_mib * _MIB + self.share_of(weights) * weights
        if self.memory_outside is not None and weights > INLINE_LIMIT_BYTES:
            memory += self.memory_per_largest * largest
            if self.runs_model:
                memory += MAPPED_MIB * _MIB + to_run * weights
        return round(memory)

    def disk_share_of(self, weights: int, *, is_narrow: bool) -> float:
        """Bytes of output for each byte of a checkpoint of so many bytes.

        Args:
            weights: Of the checkpoint, as float32.
            is_narrow: Whether it has them in 16 bits.
        """
        if self.keeps_weights and is_narrow and weights > NARROW_LIMIT_BYTES:
            return self.disk_per_weight / 2
        return self.disk_per_weight


C = TypeVar("C", bound=StageConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage(Generic[C]):
    """One kind of work, as a value.

    Attributes:
        name: Unique, snake_case; part of the key.
        version: Raised whenever the code changes what comes out; part of the key.
        config_type: The frozen pydantic type of the config; the config with its defaults filled in
            is part of the key.
        run: `run(config, inputs, output, context) -> facts`. `inputs` maps each port to a
            directory that must not be written to; `output` is an empty private directory. Facts
            are JSON, a pure function of the inputs (no timings, no paths).
        packages: Distributions whose version can change the output; part of the key.
        extra: The extra of `convert-pipeline` that installs what `packages` needs and the base
            does not, such as `rtx`; named in the hint when one is missing.
        optional_packages: Distributions that some configs need; those that are installed are part
            of the key, and the stage itself says which one it lacks.
        machine: Which facts about the machine the output depends on, names of
            `pipeline.environment.MACHINE_FACTS`; part of the key. Empty: the output is the same
            everywhere.
        coverage: Names of the numbers it may report under `coverage` in its facts; a recipe's
            coverage gates can name these and no others.
        coverage_of: Config -> those of `coverage` that it may report with this config; None: all.
        preload: Modules a fresh worker may import while it waits for its inputs.
        footprint: About how much memory and disk it takes; no part of the key.
        resumable: None: every attempt begins anew. Otherwise an attempt finds what the one before
            left (`StageContext.resumable`), until a result is filed whose facts do not say
            `is_complete: false`. Named are keys of the config that say how long it may take and
            nothing of what it makes: attempts that differ in them alone go on from one another.
        is_exclusive: Nothing else may run at the same time, because it measures time.
    """

    name: str
    version: int
    config_type: type[C]
    run: Callable[[C, Mapping[str, Path], Path, StageContext], Mapping[str, JSON]]
    packages: tuple[str, ...] = ()
    extra: str = ""
    optional_packages: tuple[str, ...] = ()
    machine: tuple[str, ...] = ()
    coverage: tuple[str, ...] = ()
    coverage_of: Callable[[C], Collection[str]] | None = None
    preload: tuple[str, ...] = ()
    footprint: Footprint = Footprint()
    resumable: tuple[str, ...] | None = None
    is_exclusive: bool = False

    def may_report(self, config: C) -> tuple[str, ...]:
        """Names of `coverage` that it may report with a config."""
        if self.coverage_of is None:
            return self.coverage
        own = self.coverage_of(config)
        return tuple(name for name in self.coverage if name in own)


AnyStage: TypeAlias = Stage[Any]
"""A stage of whatever config type; `config_type` is what checks a config."""
