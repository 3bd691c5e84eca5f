from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.data.image_size import image_size
from pipeline.errors import StageError

# What hubs hold: checkpoints of years, with sizes written as they were then.
PROCESSORS: dict[str, dict[str, Any]] = {
    "vit": {"image_processor_type": "ViTImageProcessor", "size": {"height": 96, "width": 64}},
    "vit-old": {"feature_extractor_type": "ViTFeatureExtractor", "do_resize": True, "size": 48},
    "deit": {
        "image_processor_type": "DeiTImageProcessor",
        "size": {"height": 64, "width": 64},
        "do_center_crop": True,
        "crop_size": {"height": 56, "width": 48},
    },
    "deit-old": {
        "feature_extractor_type": "DeiTFeatureExtractor",
        "size": 64,
        "do_center_crop": True,
        "crop_size": 56,
    },
    "beit": {
        "image_processor_type": "BeitImageProcessor",
        "size": {"height": 64, "width": 64},
        "do_center_crop": False,
        "crop_size": {"height": 56, "width": 56},
    },
    "swin": {"image_processor_type": "ViTImageProcessor", "size": {"height": 56, "width": 56}},
    "dinov2": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 64},
        "do_center_crop": True,
        "crop_size": {"height": 56, "width": 56},
        "do_convert_rgb": True,
    },
    "convnext": {
        "image_processor_type": "ConvNextImageProcessor",
        "size": {"shortest_edge": 64},
        "crop_pct": 0.875,
    },
    "convnext-384": {
        "image_processor_type": "ConvNextImageProcessor",
        "size": {"shortest_edge": 384},
        "crop_pct": 0.875,
    },
    "resnet-old": {
        "feature_extractor_type": "ConvNextFeatureExtractor",
        "do_resize": True,
        "crop_pct": 0.875,
        "size": 64,
    },
}


def _write(directory: Path, processor: object, config: object) -> Path:
    (directory / "config.json").write_text(json.dumps(config))
    if processor is not None:
        (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    return directory


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_size_is_what_the_real_processor_makes(tmp_path: Path, name: str) -> None:
    from transformers import AutoImageProcessor

    _write(tmp_path, PROCESSORS[name], {"model_type": "vit", "num_channels": 3, "image_size": 999})
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil", local_files_only=True)
    image = Image.fromarray(np.zeros((80, 120, 3), np.uint8))
    made = processor(image, return_tensors="np")["pixel_values"]
    assert image_size(tmp_path) == made.shape[1:]


def test_settings_inside_a_processor_config_win_as_in_transformers(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    _write(tmp_path, PROCESSORS["vit"], {"num_channels": 3})
    nested = {"processor_class": "CLIPProcessor", "image_processor": PROCESSORS["swin"]}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil", local_files_only=True)
    image = Image.fromarray(np.zeros((80, 120, 3), np.uint8))
    assert image_size(tmp_path) == processor(image, return_tensors="np")["pixel_values"].shape[1:]


@pytest.mark.parametrize("written", [32, [32, 32]])
def test_without_a_processor_the_models_own_size_counts(tmp_path: Path, written: object) -> None:
    assert image_size(_write(tmp_path, None, {"num_channels": 1, "image_size": written})) == (
        1,
        32,
        32,
    )


def test_a_processor_that_does_not_resize_leaves_it_to_the_model(tmp_path: Path) -> None:
    processor = {"do_resize": False, "size": {"height": 9, "width": 9}}
    _write(tmp_path, processor, {"num_channels": 3, "image_size": 32})
    assert image_size(tmp_path) == (3, 32, 32)


@pytest.mark.parametrize("processor", [None, {"size": {"longest_edge": 9, "shortest_edge": 5}}])
def test_a_checkpoint_without_any_size_is_refused(tmp_path: Path, processor: object) -> None:
    with pytest.raises(StageError, match="does not say how large"):
        image_size(_write(tmp_path, processor, {"num_channels": 3}))


@pytest.mark.parametrize("content", ["[1]", "{"])
def test_a_damaged_processor_config_is_named(tmp_path: Path, content: str) -> None:
    _write(tmp_path, None, {"num_channels": 3})
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(StageError, match=r"`preprocessor_config\.json` is not"):
        image_size(tmp_path)
