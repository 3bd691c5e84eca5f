"""`builtin:synthetic-images`: seeded pictures for models without data.

Smooth noise, gradients and shapes have edges, textures and even areas, as photographs have; white
noise has none of them, and flat colours leave most of a network idle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.data.rows import Row
from pipeline.errors import EnvironmentMissing

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from PIL import Image

    from pipeline.data.rows import Request

ASPECTS = (1.0, 1.25, 0.75, 1.5)
"""Width over height, in turn, so that resizing and cropping are exercised."""
OVERSIZE = 1.3
"""Height over the height that the model takes."""
KINDS = ("noise", "gradient", "shapes")


def read_builtin_images(request: Request) -> Iterator[Row]:
    """Exactly `request.samples` rows; `image` is an RGB picture somewhat larger than the model's.

    Raises:
        EnvironmentMissing: when pillow is not installed.
    """
    import numpy as np

    try:
        import PIL.Image  # noqa: F401
    except ImportError as err:
        raise EnvironmentMissing(
            f"images need the package `pillow`: {err}",
            hint="pip install 'convert-pipeline[vision]'",
        ) from err
    height = max(8, round(request.size[0] * OVERSIZE))
    for number in range(request.samples):
        random = np.random.default_rng([request.seed, number])
        size = (round(height * ASPECTS[number % len(ASPECTS)]), height)
        kind = KINDS[number % len(KINDS)]
        draw = {"noise": _noise, "gradient": _gradient, "shapes": _shapes}[kind]
        yield Row(f"{request.source}:{number + 1} ({kind})", {"image": draw(random, size)})


def _noise(random: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Octaves of smooth noise, the coarse ones stronger."""
    import numpy as np
    from PIL import Image

    total = np.zeros((size[1], size[0], 3))
    for octave in range(5):
        cells = random.integers(0, 256, (3 << octave, 3 << octave, 3), dtype=np.uint8)
        layer = Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)
        total += np.asarray(layer, dtype=np.float64) * 0.6**octave
    total -= total.min()
    return Image.fromarray((total * (255 / max(total.max(), 1))).astype(np.uint8))


def _gradient(random: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """A blend between four colours at the corners."""
    import numpy as np
    from PIL import Image

    corners = random.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize(size, Image.Resampling.BILINEAR)


def _shapes(random: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Ellipses and rectangles of even colours on a gradient."""
    from PIL import ImageDraw

    image = _gradient(random, size)
    pen = ImageDraw.Draw(image)
    for number in range(12):
        left, top = (int(random.integers(-limit // 4, limit)) for limit in size)
        width, height = (int(random.integers(limit // 16 + 1, limit // 2 + 2)) for limit in size)
        red, green, blue = (int(value) for value in random.integers(0, 256, 3))
        draw = pen.ellipse if number % 2 else pen.rectangle
        draw((left, top, left + width, top + height), fill=(red, green, blue))
    return image
