"""Real launches of torch models of every kind of input, against a graph with the same inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pipeline.bench.job import Contender, LaunchJob
from pipeline.bench.launcher import Nursery
from pipeline.errors import StageError
from tests.bench.models import (
    write_choice_graph,
    write_choices,
    write_image_graph,
    write_images,
)
from tests.checkpoints import build_image_classifier, build_multiple_choice

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHOICES = ("batch", "num_choices", "sequence")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("contenders")
    build_image_classifier(root / "images")
    build_multiple_choice(root / "choices")
    write_image_graph(root / "image-graph")
    write_choice_graph(root / "choice-graph")
    write_images(root / "image-samples")
    write_choices(root / "choice-samples")
    return root


@pytest.fixture(scope="module")
def nursery(root: Path) -> Iterator[Nursery]:
    folder = root / "nursery"
    folder.mkdir()
    with Nursery(root / "images", folder, 1) as started:
        yield started


def make_job(
    root: Path, kind: str, axes: tuple[str, ...], shapes: tuple[tuple[int, ...], ...]
) -> LaunchJob:
    task = "image-classification" if kind == "image" else "multiple-choice"
    checkpoint = str(root / f"{kind}s")
    return LaunchJob(
        reference=Contender(runtime="torch", path=checkpoint, task=task, component="model"),
        candidate=Contender(runtime="onnxruntime", path=str(root / f"{kind}-graph")),
        first="reference",
        axes=axes,
        shapes=shapes,
        samples=str(root / f"{kind}-samples"),
        threads=1,
        seconds_per_shape=0.02,
        seed=3,
    )


@pytest.mark.parametrize(
    ("kind", "axes", "shapes"),
    [("image", ("batch",), ((1,), (4,))), ("choice", CHOICES, ((1, 2, 4), (2, 3, 8)))],
)
def test_torch_is_measured_on_images_and_choices(
    root: Path,
    nursery: Nursery,
    tmp_path: Path,
    kind: str,
    axes: tuple[str, ...],
    shapes: tuple[tuple[int, ...], ...],
) -> None:
    record = nursery.launch(make_job(root, kind, axes, shapes), tmp_path)
    assert record.reference.description.startswith("torch ")
    assert [shape.shape for shape in record.shapes] == list(shapes)
    assert all(min(pair.reference_ns) > 0 for shape in record.shapes for pair in shape.pairs)


def test_a_forked_launch_fails_without_a_traceback(
    root: Path, nursery: Nursery, tmp_path: Path
) -> None:
    job = make_job(root, "image", ("batch",), ((1,),))
    wrong = job.model_copy(update={"samples": str(root / "choice-samples")})
    with pytest.raises(StageError, match="no input `pixel_values`; they have") as caught:
        nursery.launch(wrong, tmp_path)
    assert 'File "' not in caught.value.message
