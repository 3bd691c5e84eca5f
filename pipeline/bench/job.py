"""What a launch is told and what it answers: plain frozen data that travels as JSON."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from pydantic import Field

from pipeline.bench.types import Shape, Shaped
from pipeline.records import Frozen
from pipeline.runtimes.torch_variants import TorchVariant

CPU_PROVIDER: Final = "CPUExecutionProvider"
Role: TypeAlias = Literal["reference", "candidate"]
ROLES: tuple[Role, Role] = ("reference", "candidate")

Runtime: TypeAlias = Literal["torch", "onnxruntime", "tensorrt"]


class Contender(Frozen):
    """A model to load.

    Attributes:
        path: A checkpoint directory for torch, else a directory with a graph or an engine.
        device: Where torch computes; the other runtimes know it themselves.
        device_number: Which of the GPUs, for torch.
        variant: How torch computes.
        uses_cuda_graph: Of an engine: its work is handed over as one captured graph.
        provider: Of ONNX Runtime.
        provider_options: For that provider; see `pipeline.runtimes.ort_providers`.
    """

    runtime: Runtime
    path: str
    task: str = ""
    component: str = ""
    device: Literal["cpu", "cuda"] = Field(default="cpu", exclude_if=lambda name: name == "cpu")
    device_number: int = Field(default=0, exclude_if=lambda number: not number)
    variant: TorchVariant = Field(default="fp32", exclude_if=lambda name: name == "fp32")
    uses_cuda_graph: bool = Field(default=False, exclude_if=lambda given: not given)
    provider: str = Field(default=CPU_PROVIDER, exclude_if=lambda name: name == CPU_PROVIDER)
    provider_options: dict[str, str] = Field(default_factory=dict, exclude_if=lambda d: not d)


class LaunchJob(Frozen):
    """One launch: two models, loaded in a given order, measured in turn.

    In an A/A launch both roles are the same files, loaded twice.

    Attributes:
        first: The role that is loaded first. Its peak memory is read before the other is loaded.
        axes: Names of the model's free axes, the batch first.
        shapes: For each shape the sizes of these axes.
        samples: Directory of the sample set that inputs are taken from.
        seconds_per_shape: About how long one shape is measured; slow models take longer, because
            there is a smallest number of calls.
        seed: Of the order of shapes and blocks, and of which samples are taken.
    """

    reference: Contender
    candidate: Contender
    first: Role
    axes: tuple[str, ...]
    shapes: tuple[Shape, ...]
    samples: str
    threads: int
    seconds_per_shape: float
    seed: int


class LoadRecord(Frozen):
    """How loading one model went.

    Attributes:
        description: What ran, such as `onnxruntime 1.31.1 CPUExecutionProvider`.
        load_time_ns: From file to ready; the libraries were imported before.
        peak_rss_bytes: Of the process after this model, alone in it, ran every shape once. None
            for the model that was loaded second.
    """

    description: str
    load_time_ns: int
    peak_rss_bytes: int | None


class PairRecord(Frozen):
    """Two blocks of calls, one right after the other; durations in ns, warm-up calls left out."""

    first: Role
    reference_ns: tuple[int, ...]
    candidate_ns: tuple[int, ...]


class DeviceRecord(Frozen):
    """Parts of single calls of the candidate on a GPU, ms; see `pipeline.bench.types.DeviceTimes`."""

    h2d_ms: tuple[float, ...]
    compute_ms: tuple[float, ...]
    d2h_ms: tuple[float, ...]
    enqueue_ms: tuple[float, ...]


class ShapeRecord(Shaped):
    """All pairs of one shape, in the order they were measured.

    Attributes:
        device: Of a candidate that can tell; taken after the pairs, in calls of their own.
    """

    pairs: tuple[PairRecord, ...]
    device: DeviceRecord | None = Field(default=None, exclude_if=lambda record: record is None)


class LaunchRecord(Frozen):
    """What one launch measured."""

    reference: LoadRecord
    candidate: LoadRecord
    shapes: tuple[ShapeRecord, ...]

    def load_of(self, role: Role) -> LoadRecord:
        """How loading the model of a role went."""
        return self.reference if role == "reference" else self.candidate


class Launch(Frozen):
    """A job and its record; `kind` is `aa` for the candidate against itself."""

    kind: Literal["ab", "aa"]
    job: LaunchJob
    record: LaunchRecord


class LaunchLog(Frozen):
    """`launches.json`: everything that was measured, in the order it was."""

    launches: tuple[Launch, ...]
