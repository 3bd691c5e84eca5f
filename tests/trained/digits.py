"""Image classification: a ViT that reads scikit-learn's handwritten digits.

The images (1797 of 8 x 8) are part of scikit-learn, so nothing is downloaded. They are written as
PNG files and read back through the checkpoint's own processor, for training too: what the model is
tested on is what it has learned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tests.trained.training import Outcome, fit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from PIL.Image import Image
    from transformers import ViTForImageClassification

    from tests.trained.training import Batch

LABELS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
IMAGE_SIZE = 32
SOURCE_SIZE = 8
SOURCE_MAXIMUM = 16
"""The largest grey value in scikit-learn's digits."""
TEST_SAMPLES = 360
CALIBRATION_SAMPLES = 128
BATCH_SIZE = 64
EPOCHS = 40
PEAK_RATE = 2e-3
LARGEST_SHIFT = 1


def train(folder: Path) -> Outcome:
    """Train, and write `checkpoint/`, `test/<label>/*.png` and `calibration/<label>/*.png`."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    images, labels = _load_images()
    # Drawn once: the first are the test split, the last are for calibration and are trained on.
    order = torch.randperm(len(images)).tolist()
    test, rest = order[:TEST_SAMPLES], order[TEST_SAMPLES:]
    for split, indices in (("test", test), ("calibration", rest[-CALIBRATION_SAMPLES:])):
        for index in indices:
            path = folder / split / LABELS[labels[index]] / f"{index:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            images[index].save(path)

    processor = ViTImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    pixels = torch.from_numpy(np.asarray(processor(images, return_tensors="np")["pixel_values"]))
    targets = torch.tensor(labels)
    config = ViTConfig(
        image_size=IMAGE_SIZE,
        patch_size=8,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    model = ViTForImageClassification(config)

    def batches() -> Iterator[Batch]:
        for chosen in torch.tensor(rest)[torch.randperm(len(rest))].split(BATCH_SIZE):
            yield {"pixel_values": _shift(pixels[chosen]), "labels": targets[chosen]}

    fit(model, batches, epochs=EPOCHS, peak_rate=PEAK_RATE)
    model.save_pretrained(folder / "checkpoint")
    processor.save_pretrained(folder / "checkpoint")
    accuracy = _accuracy(model, pixels[test], targets[test])
    counts = {"train": len(rest), "test": len(test), "calibration": CALIBRATION_SAMPLES}
    return Outcome(accuracy=accuracy, facts={"samples": counts, "labels": list(LABELS)})


def _load_images() -> tuple[list[Image], list[int]]:
    """Every digit as an RGB image of 8 x 8, and its value."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    grey = np.rint(digits.images * (255 / SOURCE_MAXIMUM)).astype(np.uint8)
    # The processor of transformers wants three channels, as the model does.
    images = [Image.fromarray(picture).convert("RGB") for picture in grey]
    assert images[0].size == (SOURCE_SIZE, SOURCE_SIZE)
    return images, [int(label) for label in digits.target]


def _shift(pixels: torch.Tensor) -> torch.Tensor:
    """A batch moved by some pixels, by chance; without it a ViT learns single pixels by heart."""
    down, right = torch.randint(-LARGEST_SHIFT, LARGEST_SHIFT + 1, (2,)).tolist()
    padded = torch.nn.functional.pad(pixels, (LARGEST_SHIFT,) * 4, value=float(pixels.min()))
    top, left = LARGEST_SHIFT + down, LARGEST_SHIFT + right
    return padded[..., top : top + IMAGE_SIZE, left : left + IMAGE_SIZE]


def _accuracy(
    model: ViTForImageClassification, pixels: torch.Tensor, targets: torch.Tensor
) -> float:
    with torch.inference_mode():
        predicted = model(pixel_values=pixels).logits.argmax(-1)
    return float((predicted == targets).double().mean())
