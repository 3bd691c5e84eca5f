"""A backend of `transformers.exporters`, so that an artifact's targets load as its exports do.

    from pipeline.bundle.transformers_backend import register
    from transformers.exporters import ExportedModel

    register()
    model = ExportedModel.from_pretrained("artifacts/minilm/latest/cpu-int8")
    outputs = model(**tokenizer("a text", return_tensors="pt"))

`transformers` finds backends in a table in memory and has no entry points, so `register` must be
called. An artifact is verified before anything of it is run. Graphs run in ONNX Runtime, engines on
this machine's GPU; neither stands in for the other.
Source: `transformers.exporters.auto.register_backend`, transformers 5.23.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from transformers.exporters import ExportConfigMixin, HfExporter, ModelRunner, register_backend
from transformers.exporters.auto import EXPORT_BACKENDS
from transformers.exporters.runners.runner_onnx import OnnxModelRunner
from transformers.utils import ModelOutput

from pipeline.bundle.transformers_export import EXPORT_FILE, EXPORT_FORMAT
from pipeline.bundle.verified import require_whole
from pipeline.engines.facts_file import ENGINE_SUFFIX
from pipeline.engines.header import read_engine_header
from pipeline.engines.preflight import MODULES, choose_engine
from pipeline.errors import ArtifactError, EnvironmentMissing
from pipeline.listing import is_artifact

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers.exporters import ExportMetadata

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetProgram:
    """One target of an artifact that verifies: a graph, or engines for several GPUs.

    Attributes:
        graph: The ONNX file; None for engines.
        engines: Compute capability such as `sm89`, or `portable` -> file.
        digests: SHA-256 of each engine, as the artifact's manifest has it.
    """

    graph: Path | None
    engines: Mapping[str, Path]
    digests: Mapping[str, str]


@dataclass
class ConvertConfig(ExportConfigMixin):  # type: ignore[misc]
    """What `transformers` wants every backend to have; there is nothing to choose here."""

    export_format: str = EXPORT_FORMAT


class ConvertExporter(HfExporter):  # type: ignore[misc]
    """Reads targets of artifacts; makes none: that is what recipes are for."""

    export_format = EXPORT_FORMAT
    config_class = ConvertConfig
    program_suffix = ""

    def export_program(self, *_args: object, **_kwargs: object) -> NoReturn:
        """Refuse: a model is converted from its checkpoint, with gates.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "convert makes its artifacts from a recipe, not from a model in memory: "
            "`convert init MODEL`, then `convert recipe.yaml`"
        )

    @classmethod
    def save_program(cls, _program: object, path: str | Path) -> NoReturn:
        """Refuse: an artifact is published once and never changed.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            f"an artifact of convert is not written again to {path}: copy its directory"
        )

    @classmethod
    def load_program(cls, path: str | Path) -> TargetProgram:
        """Verify the artifact that a file is in, and name what its target runs.

        Raises:
            ArtifactError: there is no artifact around it, or it is damaged.
        """
        path = Path(path).resolve()
        artifact = next((p for p in path.parents if is_artifact(p)), None)
        if artifact is None:
            raise ArtifactError(
                f"{path.name} is in no artifact, so no manifest vouches for it",
                where=str(path.parent),
                hint=f"load it where it was published: artifacts/<name>/<version>/{path.parent.name}",
            )
        stated = require_whole(artifact)
        if path.suffix != ENGINE_SUFFIX:
            return TargetProgram(graph=path, engines={}, digests={})
        engines = {
            file.name.removeprefix("model.").removesuffix(ENGINE_SUFFIX): file
            for file in sorted(path.parent.glob(f"*{ENGINE_SUFFIX}"))
        }
        digests = {
            target: stated[file.relative_to(artifact.resolve()).as_posix()]
            for target, file in engines.items()
        }
        return TargetProgram(graph=None, engines=engines, digests=digests)


class EngineModelRunner(ModelRunner):  # type: ignore[misc]
    """Runs the engine that fits this machine's GPU."""

    def __init__(self, metadata: ExportMetadata, program: TargetProgram, number: int) -> None:
        """Load the engine.

        Raises:
            EnvironmentMissing: none of them runs here; the message says why.
        """
        super().__init__(metadata)
        from pipeline.runtimes.tensorrt import TensorRTRunner

        first = next(iter(program.engines.values()))
        choice = choose_engine(MODULES[read_engine_header(first).kind], list(program.engines))
        if not choice.target:
            raise EnvironmentMissing(
                f"no engine of this target can run here: {choice.reason}",
                where=str(first.parent),
                hint="run it on a GPU that it was built for, or load a target for onnxruntime",
            )
        self._device = torch.device("cuda", number)
        self.runner = TensorRTRunner(
            program.engines[choice.target], sha256=program.digests[choice.target], device=number
        )
        self.runner.__enter__()
        weakref.finalize(self, self.runner.__exit__, None, None, None)

    @property
    def device(self) -> torch.device:
        """The GPU."""
        return self._device

    @classmethod
    def from_program(
        cls, program: TargetProgram, metadata: ExportMetadata, device: Any = None
    ) -> Any:
        """See `ConvertModelRunner`."""
        return cls(metadata, program, torch.device(device or "cuda").index or 0)

    def __call__(
        self, share_inputs: bool = True, share_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """Run the engine; outputs are where the inputs are, and nothing is shared.

        Both go through host memory: torch may be here without CUDA.
        """
        del share_inputs, share_outputs
        home = next((value.device for value in kwargs.values()), torch.device("cpu"))
        feeds = {
            tensor.name: kwargs[tensor.name].detach().cpu().numpy()
            for tensor in self.runner.inputs
            if tensor.name in kwargs
        }
        found = self.runner.run(feeds)
        outputs = [torch.from_numpy(found[tensor.name]) for tensor in self.runner.outputs]
        return self.unflatten([output.to(home) for output in outputs])


class ConvertModelRunner(ModelRunner):  # type: ignore[misc]
    """What `transformers` asks for a runner: a graph gets ONNX Runtime's, engines their own."""

    @classmethod
    def from_program(
        cls,
        program: TargetProgram,
        metadata: ExportMetadata,
        device: Any = None,
        providers: list[Any] | None = None,
        session_options: Any = None,
    ) -> Any:
        """The runner of a target.

        Args:
            program: As `ConvertExporter.load_program` gives it.
            metadata: Of `export.json`.
            device: Where to run; None: the CPU for a graph, the GPU for engines.
            providers: ONNX Runtime's own list, in place of `device`.
            session_options: ONNX Runtime's.

        Raises:
            EnvironmentMissing: it cannot run there; the message says why.
            ValueError: what is asked for does not go together.
        """
        if program.graph is None:
            if device is not None and torch.device(device).type != "cuda":
                raise EnvironmentMissing(
                    f"engines run on a GPU, not on {device}",
                    hint="load a target for onnxruntime, or leave `device` out",
                )
            if providers is not None or session_options is not None:
                raise ValueError("`providers` and `session_options` are for ONNX Runtime targets")
            return EngineModelRunner.from_program(program, metadata, device)
        if device is not None and providers is not None:
            raise ValueError("give `device` or `providers`, not both")
        import onnxruntime

        chosen = providers or _providers(device)
        session = onnxruntime.InferenceSession(program.graph, session_options, providers=chosen)
        first = chosen[0] if isinstance(chosen[0], str) else chosen[0][0]
        active = session.get_providers()
        if first not in active:  # ONNX Runtime takes another one, with nothing but a warning
            raise EnvironmentMissing(
                f"{first} did not start here; ONNX Runtime offers {', '.join(active)} in its place",
                where=str(program.graph.parent),
                hint="ask for a provider that is here, or leave `providers` and `device` out",
            )
        return OnnxModelRunner(metadata, session)

    @property
    def device(self) -> torch.device:
        """Never asked: `from_program` gives another runner."""
        raise NotImplementedError

    def __call__(
        self, share_inputs: bool = True, share_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """Never called: `from_program` gives another runner."""
        raise NotImplementedError


def register() -> None:
    """Let `transformers.exporters` know artifacts of convert; calling it again changes nothing."""
    # The base of all outputs makes itself known to torch when the first one is made, not before.
    ModelOutput()
    known = EXPORT_BACKENDS.get(EXPORT_FORMAT)
    if known is None or known.exporter is not ConvertExporter:
        register_backend(ConvertExporter, ConvertModelRunner)


def _providers(device: Any) -> list[Any]:
    """ONNX Runtime's providers for a device of torch.

    Raises:
        EnvironmentMissing: this build of ONNX Runtime has none for it.
    """
    import onnxruntime

    wanted = torch.device(device or "cpu")
    if wanted.type == "cpu":
        return [CPU_PROVIDER]
    available = onnxruntime.get_available_providers()
    if wanted.type == "cuda" and CUDA_PROVIDER in available:
        return [(CUDA_PROVIDER, {"device_id": wanted.index or 0}), CPU_PROVIDER]
    raise EnvironmentMissing(
        f"this build of ONNX Runtime cannot run on {wanted}: it has {', '.join(available)}",
        hint="pip install 'convert-pipeline[gpu]' in place of [cpu]",
    )


__all__ = [
    "EXPORT_FILE",
    "ConvertConfig",
    "ConvertExporter",
    "ConvertModelRunner",
    "EngineModelRunner",
    "TargetProgram",
    "register",
]
