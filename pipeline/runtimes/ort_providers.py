"""ONNX Runtime's execution providers for NVIDIA GPUs: what a recipe may say, and what the session is told.

Light: ONNX Runtime is not imported. Names of options as the libraries of onnxruntime-gpu 1.31.1 hold
them; that of TensorRT refuses names that it does not know.
Source: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html and
TensorRT-ExecutionProvider.html.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import EnvironmentMissing
from pipeline.gpu import this_machine

if TYPE_CHECKING:
    from collections.abc import Mapping

Provider: TypeAlias = Literal["cpu", "cuda", "tensorrt"]
NAMES: Final[dict[str, str]] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""As recipes name them -> as ONNX Runtime does."""
BEHIND: Final[dict[str, str]] = {"TensorrtExecutionProvider": "CUDAExecutionProvider"}
"""Provider -> what runs the nodes that it does not take; the last resort is always the CPU."""
ENGINE_CACHE: Final = "engines"
TIMING_CACHE: Final = "timing"

Mebibytes: TypeAlias = Annotated[int, Field(ge=1, le=1 << 24)]
"""Of a device: up to 16 TiB, which as bytes still is a number that the libraries take."""

_MIB: Final = 1 << 20
_BOTH: Final = frozenset({"device_id"})
_CUDA: Final = frozenset(
    {"use_tf32", "cudnn_conv_algo_search", "prefer_nhwc", "gpu_memory_mib", "fuse_conv_bias"}
)
_TENSORRT: Final = frozenset(
    {"trt_fp16_enable", "workspace_mib", "builder_optimization_level", "timing_cache"}
)


class ProviderOptions(BaseModel):
    """What a recipe may set; each option belongs to one provider, or to both."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    device_id: Annotated[int, Field(ge=0)] = Field(
        default=0, description="number of the GPU; cuda and tensorrt"
    )
    use_tf32: bool = Field(
        default=False,
        description="cuda: let float32 products be computed in TF32, as ONNX Runtime does by itself",
    )
    cudnn_conv_algo_search: Literal["exhaustive", "heuristic", "default"] | None = Field(
        default=None, description="cuda: how kernels of convolutions are chosen"
    )
    prefer_nhwc: bool | None = Field(
        default=None, description="cuda: convolutions in the layout NHWC"
    )
    fuse_conv_bias: bool | None = Field(
        default=None, description="cuda: bias and activation inside of a convolution"
    )
    gpu_memory_mib: Mebibytes | None = Field(
        default=None, description="cuda: limit of the memory it takes, MiB"
    )
    trt_fp16_enable: bool | None = Field(
        default=None,
        description="tensorrt: let TensorRT compute a float32 graph in fp16 where it is quicker; "
        "`precision: fp16` says exactly what is fp16, and is not to be mixed with it",
    )
    workspace_mib: Mebibytes | None = Field(
        default=None, description="tensorrt: limit of scratch memory while it builds, MiB"
    )
    builder_optimization_level: Annotated[int, Field(ge=0, le=5)] | None = Field(
        default=None, description="tensorrt: how long it searches, 0 to 5; its default is 3"
    )
    timing_cache: bool | None = Field(
        default=None, description="tensorrt: reuse kernel timings between the graph's parts"
    )

    def foreign_to(self, provider: Provider) -> tuple[str, ...]:
        """Names of the options that are set and mean nothing to a provider."""
        own = {"cuda": _BOTH | _CUDA, "tensorrt": _BOTH | _TENSORRT}.get(provider, frozenset())
        return tuple(name for name in self.model_fields_set if name not in own)


class ProviderPlan(BaseModel):
    """A provider with its options, as it stands in configs of stages."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    provider: Literal["cuda", "tensorrt"]
    options: ProviderOptions = ProviderOptions()

    @property
    def name(self) -> str:
        """ONNX Runtime's name of it."""
        return NAMES[self.provider]

    def session_options(
        self, profile: Mapping[str, tuple[Shape, Shape, Shape]], cache: Path
    ) -> dict[str, str]:
        """What the session is told.

        Args:
            profile: Input name -> its smallest, usual and largest shape; of use to TensorRT alone,
                which would else build an engine anew for each shape that it meets.
            cache: A directory of our own for TensorRT's engines and timings; it is the one that
                keeps them by what they were made of, and never the directory we happen to be in.
        """
        if self.provider == "cuda":
            return _cuda_options(self.options)
        return _tensorrt_options(self.options, profile, cache)


Shape: TypeAlias = tuple[int, ...]


def _cuda_options(options: ProviderOptions) -> dict[str, str]:
    search = options.cudnn_conv_algo_search
    limit = options.gpu_memory_mib
    told = {
        "device_id": str(options.device_id),
        "use_tf32": _switch(options.use_tf32),
        "cudnn_conv_algo_search": None if search is None else search.upper(),
        "prefer_nhwc": _switch(options.prefer_nhwc),
        "fuse_conv_bias": _switch(options.fuse_conv_bias),
        "gpu_mem_limit": None if limit is None else str(limit * _MIB),
    }
    return {name: value for name, value in told.items() if value is not None}


def _tensorrt_options(
    options: ProviderOptions, profile: Mapping[str, tuple[Shape, Shape, Shape]], cache: Path
) -> dict[str, str]:
    workspace, level = options.workspace_mib, options.builder_optimization_level
    told = {
        "device_id": str(options.device_id),
        "trt_fp16_enable": _switch(options.trt_fp16_enable),
        "trt_max_workspace_size": None if workspace is None else str(workspace * _MIB),
        "trt_builder_optimization_level": None if level is None else str(level),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache / ENGINE_CACHE),
    }
    if options.timing_cache:
        told["trt_timing_cache_enable"] = "1"
        told["trt_timing_cache_path"] = str(cache / TIMING_CACHE)
    for place, which in enumerate(("min", "opt", "max")):
        told[f"trt_profile_{which}_shapes"] = shapes_text(
            {name: shapes[place] for name, shapes in profile.items()}
        )
    return {name: value for name, value in told.items() if value is not None}


def shapes_text(shapes: Mapping[str, Shape]) -> str:
    """`input_ids:1x8,attention_mask:1x8`, the form in which ONNX Runtime takes shapes."""
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())


def _switch(value: bool | None) -> str | None:
    return None if value is None else str(int(value))


def copy_cache(kept: Path, to: Path) -> None:
    """Copy a provider's cache, so that it can be written to: the store's own files cannot."""
    for file in kept.rglob("*"):
        if file.is_file():
            target = to / file.relative_to(kept)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def require_provider(provider: Literal["cuda", "tensorrt"], gpu: int = 0) -> None:
    """Refuse a provider that cannot start here, before anything is made; imports nothing.

    Args:
        provider: As recipes name it.
        gpu: Number of the GPU that it is to run on.

    Raises:
        EnvironmentMissing: this build of ONNX Runtime lacks it, there is no GPU for it, or none of
            this number.
    """
    machine = this_machine()
    if not _has_library(provider):
        raise EnvironmentMissing(
            f"provider {provider} is not in the ONNX Runtime that is installed here",
            hint="pip uninstall -y onnxruntime, then pip install 'convert-pipeline[gpu]' on a "
            "machine with an NVIDIA GPU",
        )
    if machine.gpu is None:
        reason = (
            f"the NVIDIA driver {machine.driver} shows none: {machine.trouble}"
            if machine.driver
            else "this machine has no NVIDIA driver"
        )
        raise EnvironmentMissing(
            f"provider {provider} runs on a GPU, and {reason}",
            hint="take `provider: cpu`, or a machine with a GPU",
        )
    if gpu >= len(machine.gpus):
        shown = ", ".join(f"{number} ({one.name})" for number, one in enumerate(machine.gpus))
        raise EnvironmentMissing(
            f"`provider_options.device_id` is {gpu}, and the driver shows GPUs of these numbers: "
            f"{shown}",
            hint="take one of those; CUDA_VISIBLE_DEVICES hides and numbers them",
        )


def _has_library(provider: str) -> bool:
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        return False
    name = f"onnxruntime_providers_{provider}"
    capi = Path(spec.origin).parent / "capi"
    return any((capi / file).is_file() for file in (f"lib{name}.so", f"{name}.dll"))
