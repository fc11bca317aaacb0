"""Pictures with objects from Parquet files with the hub's columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

import clgym
from clgym.boxed_sets import read_pictures
from clgym.boxes import BoxedImages
from clgym.detection_sources import hub_pictures
from clgym.errors import SettingError, SourceError, SourceMissingError
from clgym.hub_sets import SETS

NAMES = ("cup", "sea_horse", "kite")
# For each picture its sides and objects: category and corners.
Row = tuple[int, int, list[tuple[int, tuple[float, float, float, float]]]]
ROWS: list[Row] = [
    (100, 50, [(1, (10, 10, 30, 40)), (0, (50, 0, 100, 50))]),
    (40, 80, [(2, (30, 60, 40, 80))]),
    (60, 60, []),
    (80, 80, [(0, (60, 60, 80, 80)), (1, (70, 70, 70, 75))]),  # the second has no area
]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLGYM_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def write(path: Path, rows: Sequence[Row] = ROWS, names: Sequence[str] | None = NAMES, *, sizes: bool = False) -> Path:
    """Write pictures as `detection-datasets/coco` has them; ``names=None`` writes categories as texts."""
    rng = np.random.default_rng(0)
    kind: Any = datasets.Value("string") if names is None else datasets.ClassLabel(names=list(names))
    features = datasets.Features(
        {
            "image_id": datasets.Value("int64"),
            "image": datasets.Image(),
            "width": datasets.Value("int64"),
            "height": datasets.Value("int64"),
            "objects": {
                "bbox_id": datasets.List(datasets.Value("int64")),
                "category": datasets.List(kind),
                "bbox": datasets.List(datasets.List(datasets.Value("float64"), length=4)),
                "area": datasets.List(datasets.Value("float64")),
            },
        }
    )
    table: dict[str, list[Any]] = {name: [] for name in features}
    for number, (width, height, objects) in enumerate(rows):
        table["image_id"].append(number)
        table["image"].append(Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)))
        table["width"].append(width)
        table["height"].append(height)
        boxes = [(a, b, c - a, d - b) if sizes else (a, b, c, d) for _, (a, b, c, d) in objects]
        table["objects"].append(
            {
                "bbox_id": list(range(len(objects))),
                "category": [c if names is not None else NAMES[c] for c, _ in objects],
                "bbox": boxes,
                "area": [1.0] * len(objects),
            }
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(table, features=features).to_parquet(str(path))
    return path


@pytest.mark.parametrize("names", [NAMES, None])
@pytest.mark.parametrize("sizes", [False, True])
def test_boxes_become_shares_however_they_are_written(tmp_path: Path, names: Sequence[str] | None, sizes: bool) -> None:
    found = read_pictures([write(tmp_path / "a.parquet", names=names, sizes=sizes)])
    assert found.counts.tolist() == [2, 1, 0, 2]
    assert found.names == (NAMES if names else ())
    assert found.categories.tolist() == ([1, 0, 2, 0, 1] if names else ["sea_horse", "cup", "kite", "cup", "sea_horse"])
    assert found.boxes[0].tolist() == pytest.approx([0.2, 0.5, 0.2, 0.6])
    assert found.boxes[2].tolist() == pytest.approx([0.875, 0.875, 0.25, 0.25])


def test_boxes_that_fit_both_readings_or_none_are_refused(tmp_path: Path) -> None:
    small: list[Row] = [(100, 100, [(0, (1, 1, 5, 5)), (1, (1, 1, 5, 5)), (2, (1, 1, 5, 5))])]
    path = write(tmp_path / "a.parquet", small)
    with pytest.raises(SourceError, match=r"got some that fit both\. Say which with boxes=corners or boxes=sizes"):
        read_pictures([path])
    assert read_pictures([path], "corners").boxes[0, 2] == pytest.approx(0.04)
    assert read_pictures([path], "sizes").boxes[0, 2] == pytest.approx(0.05)
    wide = write(tmp_path / "b.parquet", [(10, 10, [(0, (5, 5, 30, 8))])])
    with pytest.raises(SourceError, match="got some that fit neither"):
        read_pictures([wide])
    with pytest.raises(SourceError, match="fit neither as sizes"):
        read_pictures([write(tmp_path / "c.parquet")], "sizes")


def test_columns_that_are_missing_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_dict({"image": [b""], "width": [1], "height": [1]}).to_parquet(str(path))
    with pytest.raises(
        SourceError, match=r"Expected the column 'objects' in .*a\.parquet; got 'image'.*datasets.Image"
    ):
        read_pictures([path])
    path = tmp_path / "b.parquet"
    rows = {"image": [b""], "width": [1], "height": [1], "objects": [{"category": [1]}]}
    datasets.Dataset.from_dict(rows).to_parquet(str(path))
    with pytest.raises(SourceError, match=r"Expected objects with category and bbox in .*b\.parquet"):
        read_pictures([path])
    (tmp_path / "c.parquet").write_bytes(b"no")
    with pytest.raises(SourceError, match=r"Expected a Parquet file at .*c\.parquet"):
        read_pictures([tmp_path / "c.parquet"])


def folder(path: Path, **how: Any) -> str:
    for split in ("train", "test"):
        write(path / f"{split}.parquet", **how)
    return str(path)


def test_a_folder_is_a_task_of_squares(tmp_path: Path) -> None:
    env: Any = clgym.make(
        "Detection-Erasure-v0", source=folder(tmp_path / "own"), backbone="embedded/tiny-yolos", amount=1, requests=1
    ).unwrapped
    env.reset(seed=0)
    (task,) = env.lifetime.tasks
    assert task.classes == ("cup", "sea horse", "kite")
    data = task.train
    assert isinstance(data, BoxedImages)
    # The picture without an object is gone, and so is the box without an area.
    assert len(data) == 3
    assert np.asarray(data.batch(np.arange(3))).shape == (3, 64, 64, 3)
    assert data.boxes(np.arange(3))[..., 0].tolist() == [[1, 0], [2, -1], [0, -1]]
    assert data.targets.tolist() == [0, 2, 0]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"rows": [*ROWS, (9, 9, [(-1, (1, 1, 9, 9))])]}, "Expected categories from 0 to 2 in own; got -1 to 2"),
        ({"names": (*NAMES, "eel")}, "Expected two or more classes in .*; got 3 of 4 with one"),
        ({"rows": ROWS[2:3]}, "got 0 of 3 with one"),
    ],
)
def test_malformed_folders(tmp_path: Path, how: dict[str, Any], words: str) -> None:
    with pytest.raises(SourceError, match=words):
        clgym.make("Detection-Erasure-v0", source=folder(tmp_path / "own", **how), amount=1, requests=1)


def test_halves_must_go_together(tmp_path: Path) -> None:
    own = tmp_path / "own"
    with pytest.raises(SourceError, match=r"Expected train\.parquet in .*own; got none"):
        clgym.make("Detection-Erasure-v0", source=str(own))
    folder(own)
    write(own / "test.parquet", names=("cup", "eel", "kite"))
    with pytest.raises(SourceError, match="Expected the same class names in all files of own; got others"):
        clgym.make("Detection-Erasure-v0", source=str(own))
    write(own / "train.parquet", ROWS[1:2], None)
    write(own / "test.parquet", names=None)
    with pytest.raises(SourceError, match="Expected the classes of own in its training data; got 'cup' only"):
        clgym.make("Detection-Erasure-v0", source=str(own))


def test_backbones_and_readings_that_do_not_fit(tmp_path: Path) -> None:
    own = folder(tmp_path / "own")
    with pytest.raises(
        SettingError, match=r"Expected the backbone of a folder as one of 'embedded/tiny-yolos', .*; got 'x'"
    ):
        clgym.make("Detection-Erasure-v0", source=own, backbone="x")
    with pytest.raises(SettingError, match="Expected no backbone with source 'hub'"):
        clgym.make("Detection-Erasure-v0", source="hub", backbone="embedded/tiny-yolos")
    with pytest.raises(SettingError, match="Expected boxes as one of '' with source 'embedded'; got 'sizes'"):
        clgym.make("Detection-Erasure-v0", boxes="sizes")
    with pytest.raises(SettingError, match="Expected boxes as one of '', 'corners', 'sizes' with source"):
        clgym.make("Detection-Erasure-v0", source=own, boxes="centres")


def test_the_hubs_coco(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceMissingError, match=r"detection-datasets/coco@main.*clgym download Detection-Erasure-v0"):
        clgym.make("Detection-Erasure-v0", source="hub")
    data = SETS["coco"]
    assert (data.sizes, data.classes) == ((("train", 117_266), ("val", 4_952)), 80)
    place = data.folder / "data"
    write(place / "train-00000-of-00002-ab.parquet", ROWS[:2])
    write(place / "train-00001-of-00002-cd.parquet", ROWS[2:])
    write(place / "val-00000-of-00001-ef.parquet")
    with pytest.raises(
        SourceError, match=r"Expected 117,266 and 4,952 rows in detection-datasets/coco@main; got 4 and 4"
    ):
        hub_pictures("coco", 64)
    monkeypatch.setitem(SETS, "coco", replace(data, sizes=(("train", 4), ("val", 4))))
    with pytest.raises(SourceError, match="Expected 80 classes in COCO 2017 detection"):
        hub_pictures("coco", 64)
    monkeypatch.setitem(SETS, "coco", replace(data, sizes=(("train", 4), ("val", 4)), classes=3))
    task = hub_pictures("coco", 64)
    assert (len(task.train), len(task.test), task.classes) == (3, 3, ("cup", "sea horse", "kite"))
    env: Any = clgym.make("Detection-Erasure-v0", source="hub", amount=1, requests=1).unwrapped
    assert env.scenario.backbone == "transformers/hustvl/yolos-tiny"
    assert env.observation_space.input_shape == (512, 512, 3)
