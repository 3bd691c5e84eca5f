"""The checkpoint in torch as people run it there: other precisions, compiled, on a GPU.

A comparison, not a target: nothing of it is delivered. Light until something is loaded: torch is
imported inside functions, because recipes name the variants.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from pipeline.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from pipeline.runtimes.torch_model import TorchComponent

TorchVariant: TypeAlias = Literal[
    "fp32", "fp16", "bf16", "compiled", "fp16-compiled", "bf16-compiled"
]
"""How torch computes; `compiled` alone is float32."""
TorchDevice: TypeAlias = Literal["cpu", "cuda"]

_DTYPES: Final = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "compiled": "float32"}


class PlacedModel:
    """One component on a device, in a precision, compiled or not.

    Args:
        loaded: In float32, on the CPU, as it was loaded; it is changed in place.
        variant: How it computes.
        device: Where; on a machine with several GPUs, `number` says on which.

    Raises:
        StageError: torch cannot use this machine's GPU.
    """

    def __init__(
        self,
        loaded: TorchComponent,
        variant: TorchVariant = "fp32",
        *,
        device: TorchDevice = "cpu",
        number: int = 0,
    ) -> None:
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            raise StageError(f"torch {torch.__version__} cannot use this machine's GPU")
        self.device = torch.device("cuda", number) if device == "cuda" else torch.device("cpu")
        precision = variant.partition("-")[0]
        self._dtype: torch.dtype = getattr(torch, _DTYPES[precision])
        # Products of float32 stay float32: neither TF32 nor bfloat16 passes.
        torch.set_float32_matmul_precision("highest")
        module: Callable[..., Any] = loaded.module.to(self.device, self._dtype)
        self._is_compiled = variant.endswith("compiled")
        if self._is_compiled:
            # As engines are made for ranges of shapes, so one program for all of them here.
            module = torch.compile(module, dynamic=True)
        self._module = module

    def prepare(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Inputs where copying them to the device is cheapest, floats in the model's precision."""
        narrow = [
            tensor.to(self._dtype) if tensor.is_floating_point() else tensor for tensor in tensors
        ]
        return tuple(t.pin_memory() if self.device.type == "cuda" else t for t in narrow)

    def __call__(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Outputs on the CPU, in the model's own precision; on a GPU it waits for them.

        Args:
            tensors: What `prepare` made.
        """
        import torch

        with torch.inference_mode():
            if self.device.type == "cpu":
                return tuple(self._module(*tensors))
            moved = [tensor.to(self.device, non_blocking=True) for tensor in tensors]
            return tuple(output.cpu() for output in self._module(*moved))

    @property
    def description(self) -> str:
        """Such as `torch 2.13.0 float16, compiled, NVIDIA L4`."""
        import torch

        mode = "compiled" if self._is_compiled else "eager mode"
        text = f"torch {torch.__version__} {str(self._dtype).removeprefix('torch.')}, {mode}"
        if self.device.type == "cpu":
            return text
        return f"{text}, {torch.cuda.get_device_name(self.device)}"
