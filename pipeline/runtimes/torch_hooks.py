"""What the modules of a checkpoint return, under the names that an exported graph has for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.graph.scopes import Scopes
    from pipeline.runtimes.base import Array
    from pipeline.runtimes.torch_model import TorchComponent


class ModuleResults:
    """Runs a component and keeps what its modules return.

    Args:
        component: In evaluation mode.
        scopes: Which call of which module returns which value. Of a module that is called another
            number of times nothing is known.
    """

    def __init__(self, component: TorchComponent, scopes: Scopes) -> None:
        self._component = component
        modules = dict(component.module.named_modules())
        self._names = {
            (modules[call.module], call.call): name
            for name, call in scopes.results.items()
            if call.module in modules
        }
        self._calls = {
            modules[name]: count for name, count in scopes.calls.items() if name in modules
        }

    @property
    def names(self) -> frozenset[str]:
        """All values that modules return, and the outputs."""
        return frozenset(self._names.values()) | frozenset(self._component.output_names)

    def run(self, feeds: Mapping[str, Array], names: Sequence[str]) -> dict[str, list[Array]]:
        """For each name the float tensors that the call returned: one, or several in a row.

        The outputs of the component are found under their own names.

        Args:
            feeds: All inputs.
            names: Which values; those that are not known are left out.

        Raises:
            StageError: when torch cannot run the inputs.
        """
        wanted = set(names)
        found: dict[str, list[Array]] = {}
        seen: dict[torch.nn.Module, int] = {}

        def keep(module: torch.nn.Module, _: Any, result: Any) -> None:
            call = seen.get(module, 0)
            seen[module] = call + 1
            name = self._names.get((module, call))
            if name in wanted and name is not None:
                found[name] = [tensor.detach().numpy().copy() for tensor in _tensors(result)]

        hooks = [
            module.register_forward_hook(keep) for module in {module for module, _ in self._names}
        ]
        tensors = [
            torch.from_numpy(feeds[name].copy()) for name in self._component.input_names
        ]  # fmt: skip
        try:
            with torch.inference_mode():
                outputs = self._component.module(*tensors)
        except (IndexError, RuntimeError) as err:
            raise StageError(f"torch cannot run the checkpoint: {err}") from err
        finally:
            for hook in hooks:
                hook.remove()
        for (module, _), name in self._names.items():
            if seen.get(module) != self._calls.get(module):
                found.pop(name, None)
        for name, output in zip(self._component.output_names, outputs, strict=True):
            if name in wanted:
                found[name] = [output.numpy()]
        return found


def _tensors(result: Any) -> Iterator[torch.Tensor]:
    """Float tensors in what a module returned: a tensor, a tuple, or an output with fields."""
    if isinstance(result, torch.Tensor):
        if result.is_floating_point():
            yield result
    elif isinstance(result, dict):  # outputs of transformers are dictionaries
        for each in result.values():
            yield from _tensors(each)
    elif isinstance(result, (tuple, list)):
        for each in result:
            yield from _tensors(each)
