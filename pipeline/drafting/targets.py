"""Which targets a draft has, and the limits that a right conversion of each one holds.

The limits are proposals. They are far from what ordinary models measure and far from what a wrong
graph does: a swapped input, a lost mask or an unscaled weight moves outputs by tens of per cent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.hashing import JSON
    from pipeline.tasks import Task

COMPUTE_CAPABILITIES = ("sm89", "sm120")
"""Ada and Blackwell, the generations of today's GPUs of desktops and small servers."""

_HIDDEN = ("hidden_size", "n_embd", "d_model")
_INNER = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
_HEADS = ("num_attention_heads", "n_head", "n_heads")
"""What `config.json` calls how many numbers a layer has, those between its two products, and its heads."""

Limits = dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A target that a draft may have.

    Attributes:
        document: The target as a recipe writes it.
        purpose: What it is good for, a few words.
        parity: Its own limits in place of the recipe's; None for those of the recipe.
        drop: Largest loss of right answers; None for that of the recipe.
        needs_calibration: Ranges are taken from `data.calibration`.
        needs_device: Its parity and speed may have to stay unchecked here.
        is_alternative: It is written as a comment, though it works.
    """

    document: Mapping[str, JSON]
    purpose: str
    parity: Limits | None = None
    drop: float | None = None
    needs_calibration: bool = False
    needs_device: bool = False
    is_alternative: bool = False

    @property
    def name(self) -> str:
        """The target's name."""
        return str(self.document["name"])


def candidates(
    task: Task,
    config: Mapping[str, object],
    *,
    is_scalar: bool = False,
    has_calibration: bool = False,
) -> tuple[Candidate, ...]:
    """The targets of a draft, whether or not they can be built here.

    Static INT8 is the sensible one for images, whose convolutions dynamic INT8 leaves in float. For
    text dynamic INT8 is the safer one, because the range of an activation differs from text to text.

    Args:
        task: What is converted.
        config: The checkpoint's `config.json`.
        is_scalar: The head gives one number.
        has_calibration: The user gives calibration data, and so wants static INT8.
    """
    is_text = task.modality == "text"
    static = Candidate(
        document={
            "name": "cpu-int8-static" if is_text else "cpu-int8",
            "runtime": "onnxruntime",
            "precision": "int8",
            "quantization": {"mode": "static"},
        },
        purpose="ranges are taken from data.calibration",
        parity=parity_limits(task, "int8", is_scalar=is_scalar),
        drop=0.02,
        needs_calibration=True,
        is_alternative=is_text and not has_calibration,
    )
    dynamic = Candidate(
        document={
            "name": "cpu-int8",
            "runtime": "onnxruntime",
            "precision": "int8",
            "quantization": {"mode": "dynamic", "per_channel": True},
        },
        purpose="a quarter of the size",
        parity=parity_limits(task, "int8", is_scalar=is_scalar),
        drop=0.02,
    )
    exact = Candidate(
        document={"name": "cpu-fp32", "runtime": "onnxruntime", "precision": "fp32"},
        purpose="as exact as the checkpoint",
    )
    if task.has_cache:  # what engines of decoders need is a choice of profiles
        small = Candidate(
            document={
                "name": "cpu-int4",
                "runtime": "onnxruntime",
                "precision": "int4",
                "quantization": {
                    "mode": "weight_only",
                    "block_size": block_size_of(config),
                    "symmetric": False,
                },
            },
            purpose="the smallest weights, which is what decoding waits for",
            parity=parity_limits(task, "int4"),
        )
        return exact, dynamic, small
    return (
        exact,
        *((dynamic,) if is_text else ()),
        static,
        Candidate(
            document={
                "name": "rtx-fp16",
                "runtime": "tensorrt-rtx",
                "precision": "fp16",
                "compute_capability": list(COMPUTE_CAPABILITIES),
            },
            purpose="engines for GPUs; built without one",
            parity=parity_limits(task, "fp16", is_scalar=is_scalar),
            needs_device=True,
        ),
    )


def block_size_of(config: Mapping[str, object]) -> int:
    """The largest block, up to 64 inputs, of which the products of a decoder have whole numbers.

    A product whose inputs are not whole blocks stays float.
    """
    text = config.get("text_config")
    said = text if isinstance(text, dict) else config

    def number(keys: Sequence[str]) -> int:
        found = (said.get(key) for key in keys)
        return next((n for n in found if type(n) is int and n > 0), 0)

    hidden, heads = number(_HIDDEN), number(_HEADS)
    widths = (hidden, number(_INNER), heads * number(("head_dim",)))  # 0 for what is not said
    return next((size for size in (64, 32) if not any(width % size for width in widths)), 16)


def parity_limits(task: Task, precision: str, *, is_scalar: bool = False) -> Limits:
    """Limits on the distance to the checkpoint in float32.

    The angle alone would not see outputs of the wrong size, so the relative distance is limited too.
    Of one number there is no angle but its sign, which any rounding turns near zero.

    Args:
        task: What is converted.
        precision: `fp32`, `fp16`, `int8` or `int4`.
        is_scalar: The head gives one number.
    """
    cosine, mean, distance, agreement = {
        "fp32": (0.9999, None, 0.001, 0.99),
        "fp16": (0.999, None, 0.05, 0.97),
        "int8": (0.9, 0.98, 0.3, 0.9),
        "int4": (0.8, 0.95, 0.4, 0.85),
    }[precision]
    if is_scalar:
        return {"relative_l2": {"max": distance}}
    limits: Limits = {"cosine_similarity": {"min": cosine}}
    if mean is not None:
        limits["cosine_similarity_mean"] = {"min": mean}
    limits["relative_l2"] = {"max": distance}
    if task.ranked:
        limits["top1_agreement"] = {"min": agreement}
    return limits
