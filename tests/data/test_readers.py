from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ArtifactError, StageError
from tests.data.prepared import (
    make_samples,
    write_checkpoint,
    write_image_checkpoint,
    write_lines,
)

ROWS = [
    {"text": "The file is read.", "label": 1},
    {"text": 'It\'s "quoted", twice.', "label": 0},
    {"text": "Zwei\nZeilen über 5 €.", "label": None},
]
TEXTS = [row["text"] for row in ROWS]
LABELS = [1, 0, None]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint")


def _write(directory: Path, kind: str, rows: list[dict[str, Any]]) -> str:
    """The rows as a source of some kind; returns what a recipe says."""
    import csv

    import datasets
    import pyarrow as pa
    from pyarrow import parquet

    if kind == "jsonl":
        write_lines(directory / "data.jsonl", *rows)
    elif kind in {"csv", "tsv"}:
        with (directory / f"data.{kind}").open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), delimiter="," if kind == "csv" else "\t")
            table.writeheader()
            table.writerows(rows)
    elif kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), directory / "data.parquet")
    else:
        (directory / "data").mkdir()
        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
        )
        known = [row | {"label": -1 if row["label"] is None else row["label"]} for row in rows]
        made = datasets.Dataset.from_list(known, features=features)
        if kind == "saved":
            made.save_to_disk(directory / "data")
        else:
            made.to_parquet(directory / "data/test.parquet")
        return "datasets:data"
    return f"data.{kind}"


KINDS = ("jsonl", "csv", "tsv", "parquet", "saved", "folder of parquet")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_gives_the_same_samples(
    tmp_path: Path, checkpoint: Path, kind: str
) -> None:
    source = _write(tmp_path, kind, ROWS)
    samples, facts = make_samples(tmp_path, checkpoint, source, label="label")
    assert [entry.text for entry in samples.entries] == TEXTS
    assert [entry.label for entry in samples.entries] == LABELS
    assert facts["rows_seen"] == facts["samples"] == 3
    assert facts["labels"]["labelled"] == 2
    assert facts["labels"]["classes"] == {"LABEL_0": 1, "LABEL_1": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_that_is_not_there_is_named_with_those_that_are(
    tmp_path: Path, checkpoint: Path, kind: str
) -> None:
    source = _write(tmp_path, kind, ROWS)
    with pytest.raises(StageError, match="no column `txet` - did you mean `text`") as caught:
        make_samples(tmp_path, checkpoint, source, text="txet", label="label")
    assert "`text`, `label`" in caught.value.hint


def test_a_line_that_is_not_json_is_named(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n\n{"text": "b"\n')
    with pytest.raises(StageError, match="the line is not JSON") as caught:
        make_samples(tmp_path, checkpoint, "a.jsonl", samples=1)
    assert caught.value.where == "a.jsonl:3"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1, 2]\n", "a JSON array, not an object"),
        (b'{"text": "\xff"}\n', "not UTF-8"),
        (b"[" * 100_000, "not JSON"),
        (b'{"text": 5}\n', "holds the number `5`, a text is needed"),
        (b'{"text": ""}\n', "column `text` is empty"),
        (b'{"text": null}\n', "column `text` is empty"),
        (b'{"text": "  "}\n', "is blank"),
        (b'{"text": "a\\ud83d"}\n', r"character 2 is `\\ud83d`, half of a pair"),
        (b'{"label": 1}\n', "no column `text`"),
        (b"\n\n", "there are no rows"),
    ],
)
def test_a_damaged_line_is_refused(
    tmp_path: Path, checkpoint: Path, content: bytes, message: str
) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(StageError, match=message) as caught:
        make_samples(tmp_path, checkpoint, "a.jsonl")
    assert caught.value.where.startswith("a.jsonl")


def test_a_conversation_is_to_be_written_as_a_text(tmp_path: Path, checkpoint: Path) -> None:
    turns = [{"role": "user", "content": "Hello"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": turns}))
    with pytest.raises(StageError, match="a text is needed") as caught:
        make_samples(tmp_path, checkpoint, "a.jsonl", text="messages")
    assert "apply_chat_template" in caught.value.hint


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_what_git_left_in_place_of_data_is_named(
    tmp_path: Path, checkpoint: Path, name: str
) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4072896\n"
    (tmp_path / name).write_text(pointer)
    with pytest.raises(ArtifactError, match="pointer of Git LFS"):
        make_samples(tmp_path, checkpoint, name)


@pytest.mark.parametrize(
    ("content", "message", "line"),
    [
        ("The file is read.,1\nA name.,0\n", "the first line is not a header", 1),
        ("text,label\na\n", "the row has 1 values, the header has 2", 2),
        ("text,label\na,1\nb,c,0\n", "the row has 3 values", 3),
        ("text,text\na,b\n", "two columns are named `text`", 1),
        ("\n\n", "no header", 1),
        ('text\n"a', "unexpected end of data", 2),
        ('text\n"a" b\n', "expected after", 2),
        ("text,label\n,1\n", "column `text` is empty", 2),
    ],
)
def test_a_damaged_table_is_refused(
    tmp_path: Path, checkpoint: Path, content: str, message: str, line: int
) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(StageError, match=message) as caught:
        make_samples(tmp_path, checkpoint, "a.csv")
    assert caught.value.where == f"a.csv:{line}"


def test_a_table_that_is_not_utf8_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text\nZwölf\n".encode("latin-1"))
    with pytest.raises(StageError, match="not UTF-8"):
        make_samples(tmp_path, checkpoint, "a.csv")


def test_a_byte_order_mark_is_no_part_of_the_first_column(
    tmp_path: Path, checkpoint: Path
) -> None:
    (tmp_path / "a.csv").write_text("\ufefftext,label\na,1\n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('\ufeff{"text": "a"}\n', encoding="utf-8")
    for source in ("a.csv", "a.jsonl"):
        samples, _ = make_samples(tmp_path, checkpoint, source)
        assert samples.entries[0].text == "a"


def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"text,label\n")
    with pytest.raises(StageError, match="cannot be read as Parquet"):
        make_samples(tmp_path, checkpoint, "a.parquet")


def test_fewer_rows_than_asked_for_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    write_lines(tmp_path / "a.jsonl", *ROWS)
    with pytest.raises(StageError, match="there are 3 rows, 4 are asked for") as caught:
        make_samples(tmp_path, checkpoint, "a.jsonl", samples=4)
    assert caught.value.hint == "write `samples: 3` or `samples: all`"


def test_a_damaged_line_is_found_whatever_the_seed_chooses(
    tmp_path: Path, checkpoint: Path
) -> None:
    path = write_lines(tmp_path / "a.jsonl", *ROWS * 10)
    path.write_text(f"{path.read_text()}nonsense\n", encoding="utf-8")
    for seed in range(3):
        with pytest.raises(StageError, match="not JSON"):
            make_samples(tmp_path, checkpoint, "a.jsonl", samples=1, seed=seed)


# --- data sets of the library -----------------------------------------------------------------


def test_splits_are_chosen_by_name(tmp_path: Path, checkpoint: Path) -> None:
    import datasets

    splits = {
        "train": datasets.Dataset.from_list([{"text": "one"}]),
        "test": datasets.Dataset.from_list([{"text": "two"}]),
    }
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    (tmp_path / "folder").mkdir()
    for name, split in splits.items():
        split.to_parquet(tmp_path / f"folder/{name}-00000-of-00001.parquet")
    for source in ("datasets:saved", "datasets:folder"):
        samples, _ = make_samples(tmp_path, checkpoint, source, split="test")
        assert [entry.text for entry in samples.entries] == ["two"]
        with pytest.raises(StageError, match="2 splits, and no `split` is given") as caught:
            make_samples(tmp_path, checkpoint, source)
        assert "`train`, `test`" in caught.value.hint
        with pytest.raises(StageError, match="no split `tset`"):
            make_samples(tmp_path, checkpoint, source, split="tset")


def test_subsets_are_those_of_the_card(tmp_path: Path, checkpoint: Path) -> None:
    card = """---
configs:
- config_name: small
  data_files: a.jsonl
- config_name: large
  data_files: b.jsonl
---
"""
    write_lines(tmp_path / "set/a.jsonl", {"text": "one"})
    write_lines(tmp_path / "set/b.jsonl", {"text": "two"})
    (tmp_path / "set/README.md").write_text(card)
    samples, _ = make_samples(tmp_path, checkpoint, "datasets:set", subset="large")
    assert samples.entries[0].text == "two"
    with pytest.raises(StageError, match=r"(?s)huge.*small"):
        make_samples(tmp_path, checkpoint, "datasets:set", subset="huge")


def test_a_card_may_not_lead_out_of_the_data_set(tmp_path: Path, checkpoint: Path) -> None:
    write_lines(tmp_path / "secret.jsonl", {"text": "secret"})
    write_lines(tmp_path / "set/a.jsonl", {"text": "one"})
    files = f"---\nconfigs:\n- config_name: default\n  data_files: {tmp_path}/secret.jsonl\n---\n"
    (tmp_path / "set/README.md").write_text(files)
    with pytest.raises(StageError, match="names a file outside it"):
        make_samples(tmp_path, checkpoint, "datasets:set")


# --- images -----------------------------------------------------------------------------------


def _picture(seed: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50 + seed, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def image_checkpoint(tmp_path: Path) -> Path:
    return write_image_checkpoint(
        tmp_path / "checkpoint", id2label={"0": "dog", "1": "cat"}, label2id={"dog": 0, "cat": 1}
    )


def test_images_are_read_from_folders_columns_and_bytes(
    tmp_path: Path, image_checkpoint: Path
) -> None:
    import datasets
    import pyarrow as pa
    from pyarrow import parquet

    names = ["cat/1.png", "cat/2.png", "dog/0.png"]
    rows = []
    for seed, name in enumerate(names):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _picture(seed).save(path)
        rows.append({"image": f"pictures/{name}", "label": name.split("/")[0]})
    write_lines(tmp_path / "a.jsonl", *rows)
    (tmp_path / "a.csv").write_text(
        "image,label\n" + "".join(f"{row['image']},{row['label']}\n" for row in rows)
    )
    encoded = [row | {"image": (tmp_path / row["image"]).read_bytes()} for row in rows]
    parquet.write_table(pa.Table.from_pylist(encoded), tmp_path / "a.parquet")
    saved = datasets.Dataset.from_list([row | {"image": row["image"]} for row in encoded])
    saved.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "saved")
    sources: list[tuple[str, dict[str, str]]] = [
        ("pictures", {}),
        ("a.jsonl", {"image": "image", "label": "label"}),
        ("a.csv", {"image": "image", "label": "label"}),
        ("a.parquet", {"image": "image", "label": "label"}),
        ("datasets:saved", {"image": "image", "label": "label"}),
    ]
    fingerprints = set()
    for source, columns in sources:
        samples, facts = make_samples(
            tmp_path,
            image_checkpoint,
            source,
            task="image-classification",
            stage={"max_length": None},
            **columns,
        )
        assert [entry.label for entry in samples.entries] == [1, 1, 0]
        assert samples.index.label_names == ("dog", "cat")
        assert facts["labels"]["classes"] == {"cat": 2, "dog": 1}
        fingerprints.add(facts["fingerprint"])
    assert len(fingerprints) == 1


def test_pixels_are_those_of_the_checkpoints_processor(
    tmp_path: Path, image_checkpoint: Path
) -> None:
    from transformers import AutoImageProcessor

    (tmp_path / "flat").mkdir()
    _picture(3).save(tmp_path / "flat/x.png")
    samples, facts = make_samples(
        tmp_path, image_checkpoint, "flat", task="image-classification", stage={"max_length": None}
    )
    processor = AutoImageProcessor.from_pretrained(image_checkpoint, backend="pil")
    wanted = processor(_picture(3), return_tensors="np")["pixel_values"][0]
    (sample,) = samples.read([0])
    np.testing.assert_array_equal(sample["pixel_values"], wanted)
    assert sample["pixel_values"].dtype == np.float32
    assert facts["size"] == {"pixel_values": [3, 32, 32]}
    entry = samples.entries[0]
    assert (entry.text, entry.label, entry.extents) == ("x.png", None, {})
    with Image.open(samples.tensors.parent / str(entry.image)) as thumbnail:
        assert thumbnail.size == (53, 40)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_pictures_of_other_modes_get_the_models_channels(
    tmp_path: Path, image_checkpoint: Path, mode: str
) -> None:
    (tmp_path / "flat").mkdir()
    picture = _picture(0, mode)
    picture.save(tmp_path / ("flat/x.tiff" if mode == "CMYK" else "flat/x.png"))
    samples, _ = make_samples(
        tmp_path, image_checkpoint, "flat", task="image-classification", stage={"max_length": None}
    )
    assert samples.read([0])[0]["pixel_values"].shape == (3, 32, 32)


def test_a_picture_that_a_camera_turned_is_turned_back(
    tmp_path: Path, image_checkpoint: Path
) -> None:
    (tmp_path / "flat").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    _picture(0).save(tmp_path / "flat/a.png", exif=exif)
    _picture(0).transpose(Image.Transpose.ROTATE_270).save(tmp_path / "flat/b.png")
    samples, _ = make_samples(
        tmp_path, image_checkpoint, "flat", task="image-classification", stage={"max_length": None}
    )
    assert samples.entries[0].fingerprint == samples.entries[1].fingerprint


def _encoded(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32"])
def test_an_image_of_more_than_8_bits_is_refused_not_clipped(
    tmp_path: Path, image_checkpoint: Path, dtype: str
) -> None:
    (tmp_path / "flat").mkdir()
    grey = Image.fromarray(np.arange(900).reshape(30, 30).astype(dtype))
    grey.save(tmp_path / "flat/deep.tiff")
    with pytest.raises(StageError, match=r"`deep\.tiff` has more than 8 bits") as caught:
        make_samples(
            tmp_path, image_checkpoint, "flat", task="image-classification",
            stage={"max_length": None},
        )  # fmt: skip
    assert caught.value.where == "deep.tiff"


@pytest.mark.parametrize("content", [b"", b"not an image", _encoded(_picture(0), "PNG")[:900]])
def test_an_image_that_cannot_be_decoded_is_named(
    tmp_path: Path, image_checkpoint: Path, content: bytes
) -> None:
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat/bad.png").write_bytes(content)
    with pytest.raises(StageError, match=r"the image `bad\.png` cannot be decoded") as caught:
        make_samples(
            tmp_path,
            image_checkpoint,
            "flat",
            task="image-classification",
            stage={"max_length": None},
        )
    assert caught.value.where == "bad.png"
    assert "/data/" not in caught.value.message  # where the stage saw it


@pytest.mark.parametrize("name", ["../secret.png", "/etc/x.png", "missing.png"])
def test_a_path_that_leads_elsewhere_is_refused(
    tmp_path: Path, image_checkpoint: Path, name: str
) -> None:
    _picture(0).save(tmp_path / "secret.png")
    write_lines(tmp_path / "data/a.jsonl", {"image": name})
    with pytest.raises(StageError, match=r"leads out of the folder|there is no image"):
        make_samples(
            tmp_path,
            image_checkpoint,
            "data/a.jsonl",
            task="image-classification",
            image="image",
            stage={"max_length": None},
        )


def test_images_of_several_sizes_are_refused(tmp_path: Path, image_checkpoint: Path) -> None:
    processor = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 32}}
    written = processor | {"do_center_crop": False}
    (image_checkpoint / "preprocessor_config.json").write_text(json.dumps(written))
    (tmp_path / "flat").mkdir()
    _picture(0).save(tmp_path / "flat/x.png")
    with pytest.raises(StageError, match="all samples must have one size") as caught:
        make_samples(
            tmp_path,
            image_checkpoint,
            "flat",
            task="image-classification",
            stage={"max_length": None},
        )
    assert "[3, 32, 40] of `x.png`" in caught.value.message


def test_synthetic_images_are_the_same_for_the_same_seed(
    tmp_path: Path, image_checkpoint: Path
) -> None:
    def make(seed: int) -> Any:
        return make_samples(
            tmp_path,
            image_checkpoint,
            "builtin:synthetic-images",
            task="image-classification",
            samples=12,
            seed=seed,
            stage={"max_length": None},
        )

    samples, facts = make(0)
    assert facts["fingerprint"] == make(0)[1]["fingerprint"]
    assert facts["fingerprint"] != make(1)[1]["fingerprint"]
    assert facts["repeated"] == 0
    pixels = [sample["pixel_values"] for sample in samples.read(range(12))]
    assert min(float(image.std()) for image in pixels) > 0.05
