"""Small Parquet files with the hub's exact columns."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clgym.errors import SourceError
from clgym.events import IntArray
from clgym.hub import hub_task, hub_tasks, missing
from clgym.hub_sets import MTIL, SETS, class_lists
from clgym.scenario import Data, Task

# A 1 x 1 bitmap without its pixel: the pixel is the row's number, so that every image tells where it was.
BITMAP = struct.pack("<2sIIIIiiHHIIiiII", b"BM", 58, 0, 54, 40, 1, 1, 1, 24, 0, 4, 0, 0, 0, 0)


CALTECH = (
    "accordion airplanes anchor ant background_google barrel bass beaver binocular bonsai brain "
    "brontosaurus buddha butterfly camera cannon car_side ceiling_fan cellphone chair chandelier "
    "cougar_body cougar_face crab crayfish crocodile crocodile_head cup dalmatian dollar_bill dolphin "
    "dragonfly electric_guitar elephant emu euphonium ewer faces faces_easy ferry flamingo flamingo_head "
    "garfield gerenuk gramophone grand_piano hawksbill headphone hedgehog helicopter ibis inline_skate "
    "joshua_tree kangaroo ketch lamp laptop leopards llama lobster lotus mandolin mayfly menorah "
    "metronome minaret motorbikes nautilus octopus okapi pagoda panda pigeon pizza platypus pyramid "
    "revolver rhino rooster saxophone schooner scissors scorpion sea_horse snoopy soccer_ball stapler "
    "starfish stegosaurus stop_sign strawberry sunflower tick trilobite umbrella watch water_lilly "
    "wheelchair wild_cat windsor_chair wrench yin_yang"
).split()


EUROSAT = (
    "AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop Residential River SeaLake"
).split()


BACKGROUND = CALTECH.index("background_google")


NAMES: dict[str, Sequence[str]] = {
    "aircraft": ["F/A-18", *(f"7{i}-200" for i in range(99))],
    "caltech101": CALTECH,
    "eurosat": EUROSAT,
    "flowers": [str(i) for i in range(1, 103)],
    "mnist": [str(i) for i in range(10)],
    "sun397": ["/a/abbey", "/c/church/outdoor", *(f"/s/scene_{i}" for i in range(395))],
    # The mirrors name the classes of ImageNet's relatives by synset.
    "imagenet_r": sorted(class_lists()["imagenet_r"]["names"]),
    "imagenet_a": sorted(class_lists()["imagenet_a"]["names"]),
    "resisc45": ["airplane", "airport", *(f"class_{i:03d}" for i in range(2, 45))],
}


OTHER = {
    "aircraft": {"family": 70, "manufacturer": 30},
    "cifar100": {"coarse_label": 20},
    "eurosat": {"image_id": 0},
    "imagenet_r": {"class_name": 0},
    "resisc45": {"image_id": 0},
}


def caltech_labels(rows: int) -> IntArray:
    """Return 30 of each of 102 classes to train on; 437 of the background among the 6,084 to test on."""
    if rows == 3_060:
        return np.arange(rows) % 102
    others = np.delete(np.arange(102), BACKGROUND)
    return np.concatenate([np.full(437, BACKGROUND), others[np.arange(rows - 437) % 101]])


def write_set(
    root: Path,
    name: str,
    *,
    names: Sequence[str] | None = None,
    sizes: dict[str, int] | None = None,
    columns: Sequence[str] | None = None,
    shards: int = 1,
    place: str = "data",
    labels: Callable[[int], IntArray] | None = None,
    suffix: str = "",
) -> Path:
    """Write a set as the hub lays it out; the pixel of an image is 5,000,000 x split + row."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = SETS[name]
    known = [f"class_{i:03d}" for i in range(data.classes)] if names is None else list(names)
    image, label = columns or (data.image_column, data.label_column)
    folder = root.joinpath(*data.repo.split("/"), data.revision, place)
    folder.mkdir(parents=True, exist_ok=True)
    for number, (split, rows) in enumerate((sizes or dict(data.sizes)).items()):
        pixels = [BITMAP + struct.pack("<I", 5_000_000 * number + i) for i in range(rows)]
        targets = labels(rows) if labels else np.arange(rows) % len(known)
        table = {image: pa.StructArray.from_arrays([pa.array(pixels), pa.nulls(rows, pa.string())], ["bytes", "path"])}
        features = {image: datasets.Image()}
        for other, classes in OTHER.get(name, {}).items():
            table[other] = pa.array(np.arange(rows) % classes) if classes else pa.array(["x"] * rows)
            features[other] = datasets.ClassLabel(classes) if classes else datasets.Value("string")
        table[label] = pa.array([known[y] for y in targets] if data.text else targets)
        kind = datasets.ClassLabel(names=known) if known else datasets.Value("int64")
        features[label] = datasets.Value("string") if data.text else kind
        whole = pa.table(table, schema=datasets.Features(features).arrow_schema)
        step = -(-rows // shards)
        for shard in range(shards):
            file = folder / f"{split}-{shard:05d}-of-{shards:05d}{suffix}.parquet"
            pq.write_table(whole.slice(shard * step, step), file, compression="snappy")
    return folder


def numbers(data: Data, index: IntArray) -> IntArray:
    """Return where the images at ``index`` came from: the numbers in their only pixel."""
    images = data.batch(index)
    assert isinstance(images, np.ndarray)
    found: IntArray = images[:, 0, 0, ::-1].astype(np.int64) @ np.array([1, 256, 65536])
    return found


def everything(data: Data) -> IntArray:
    return numbers(data, np.arange(len(data)))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLGYM_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    """All eleven sets at their true sizes, loaded with the network cut."""

    def cut(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was touched")

    root = tmp_path_factory.mktemp("hub")
    for name in MTIL:
        shards = {"flowers": 6, "food": 2, "sun397": 3}.get(name, 1)
        labels = caltech_labels if name == "caltech101" else None
        place = "" if name == "mnist" else "data"
        write_set(root, name, names=NAMES.get(name), shards=shards, place=place, labels=labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLGYM_DATA", str(root))
        patch.setattr(socket.socket, "connect", cut)
        assert missing(MTIL) == []
        return {task.name: task for task in hub_tasks(MTIL, 1)}


def refuse(name: str, pattern: str) -> None:
    with pytest.raises(SourceError, match=pattern) as raised:
        hub_task(name, 1)
    assert "Remove " in str(raised.value)
    assert "clgym download CLIP-MTIL-v0" in str(raised.value)


@pytest.fixture
def small_imagenet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Expect fewer rows of ImageNet-1k than its 1.28 million."""
    data = SETS["imagenet100"]
    assert dict(data.sizes) == {"train": 1_281_167, "validation": 50_000}
    monkeypatch.setitem(SETS, "imagenet100", replace(data, sizes=(("train", 4_000), ("validation", 2_000))))
