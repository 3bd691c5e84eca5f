"""A torch module as a traced program with named axes: the first half of an export."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch._dynamo import config as dynamo_config
from torch._dynamo.exc import UserError
from torch.export import Dim

from pipeline.errors import ExportError
from pipeline.tasks import PAST_AXIS, SEQUENCE_AXIS, TOTAL_AXIS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.runtimes.torch_model import TorchComponent


def capture_program(component: TorchComponent) -> torch.export.ExportedProgram:
    """Trace a component on its example inputs, with one symbol for each named axis.

    Raises:
        ExportError: when an axis turns out to be of fixed size or bound to another, or the model
            does something that depends on values and cannot be traced.
    """
    axes = _dimensions(component)
    shapes = tuple(
        {index: axes[axis] for index, axis in enumerate(spec.axes) if isinstance(axis, str)}
        for spec in component.inputs
    )
    logging.getLogger("torch.export").setLevel(logging.ERROR)
    try:
        # Shapes with symbols are hardly ever met twice: to look them up and to check what was found
        # takes a quarter of the time of a trace.
        cache = dynamo_config.patch(fake_tensor_cache_enabled=False)
        with warnings.catch_warnings(), torch.no_grad(), cache:
            warnings.simplefilter("ignore")
            return torch.export.export(
                component.module,
                component.example(),
                dynamic_shapes={"tensors": shapes},
                strict=False,
            )
    except (UserError, ValueError, RuntimeError, NotImplementedError, AssertionError) as err:
        reason = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
        raise ExportError(f"torch.export cannot trace the model: {reason}") from err


def _dimensions(component: TorchComponent) -> Mapping[str, Any]:
    """Named axis -> what the trace is told of it, a `Dim` or a hint.

    The three lengths of a decoder are bound to one another, as one is the sum of the others, which
    axes with names of their own may not be.
    """
    names = tuple(dict.fromkeys(axis for spec in component.inputs for axis in spec.named_axes))
    if PAST_AXIS in names:
        return {
            name: Dim.DYNAMIC if name in {SEQUENCE_AXIS, TOTAL_AXIS} else Dim(name)
            for name in names
        }
    return {
        name: (
            Dim(name, max=component.max_sequence)
            if name == SEQUENCE_AXIS and component.max_sequence
            else Dim(name)
        )
        for name in names
    }
