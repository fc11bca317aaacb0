"""Files of the hub that are missing, damaged or of another mirror are refused with a word on what to do."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clgym.errors import NotRegisteredError, SourceError, SourceMissingError
from clgym.hub import download, hub_task, hub_tasks, missing, require
from clgym.hub_sets import MTIL, SETS
from tests.hub.conftest import NAMES, refuse, write_set


def test_flipped_flowers_are_refused(home: Path) -> None:
    write_set(home, "flowers", names=NAMES["flowers"], sizes={"train": 7_169, "test": 1_020})
    refuse("flowers", r"1,020 rows in split 'train' in dpdl-benchmark/oxford_flowers102@544b.*; got 7,169\.")
    assert "mteb" not in SETS["flowers"].repo


def test_another_number_of_rows_is_refused(home: Path) -> None:
    write_set(home, "oxford_pet", sizes={"train": 3_680, "test": 3_668})
    refuse("oxford_pet", r"3,669 rows in split 'test' in mteb/OxfordPets@557b.*; got 3,668\.")


def test_another_number_of_classes_is_refused(home: Path) -> None:
    write_set(home, "oxford_pet", names=[f"pet {i}" for i in range(36)])
    refuse("oxford_pet", r"37 classes in mteb/OxfordPets@.*; got 36\.")


def test_labels_without_names_and_out_of_range_are_refused(home: Path) -> None:
    write_set(home, "oxford_pet", names=[], labels=lambda rows: np.arange(rows) % 37)
    refuse("oxford_pet", r"a ClassLabel column 'label' in mteb/OxfordPets@.*; got labels without names\.")
    write_set(home, "oxford_pet", labels=lambda rows: np.arange(rows) % 37 - 1)
    refuse("oxford_pet", r"labels below 37 in .*; got -1 to 35\.")


def test_a_class_without_images_is_refused(home: Path) -> None:
    write_set(home, "oxford_pet", labels=lambda rows: np.arange(rows) % 36)
    refuse("oxford_pet", r"images of every class in .*; got none of 'class 036' in one half\.")


def test_splits_with_different_names_are_refused(home: Path) -> None:
    pets = [f"pet {i}" for i in range(37)]
    write_set(home, "oxford_pet", names=pets, sizes={"train": 3_680})
    write_set(home, "oxford_pet", names=pets[::-1], sizes={"test": 3_669})
    refuse("oxford_pet", r"the same class names in all splits in .*; got different ones\.")


def test_two_configurations_are_refused(home: Path) -> None:
    for place in ("one", "two"):
        write_set(home, "oxford_pet", place=place)
    refuse("oxford_pet", r"one folder with split 'train' in .*; got .*one, .*two\.")


@pytest.mark.parametrize("place", ["", "default", "plain_text"])
def test_layouts_of_the_hub_are_found(home: Path, place: str) -> None:
    folder = write_set(home, "oxford_pet", place=place, shards=2)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "train-00000-of-00001.parquet").write_bytes(b"unfinished")
    assert len(hub_task("oxford_pet", 1).train) == 3_680


def test_converted_layout_is_found(home: Path) -> None:
    folder = write_set(home, "oxford_pet", place="default")
    for split in ("train", "test"):
        (folder / split).mkdir()
        (folder / f"{split}-00000-of-00001.parquet").rename(folder / split / "0000.parquet")
    assert missing(["oxford_pet"]) == []
    assert len(hub_task("oxford_pet", 1).test) == 3_669


def test_all_missing_sets_are_listed_with_the_command(home: Path) -> None:
    write_set(home, "oxford_pet")
    with pytest.raises(SourceMissingError) as raised:
        hub_tasks(["mnist", "oxford_pet", "dtd"], 1)
    text = str(raised.value)
    assert text.startswith(f"Expected 3 data sets of the hub in {home}; 2 missing: mteb/mnist@cf6afcba")
    assert SETS["dtd"].revision in text
    assert "OxfordPets" not in text
    assert "`clgym download CLIP-MTIL-v0`" in text
    with pytest.raises(SourceMissingError, match="`clgym download CLIP-XTAIL-v0`"):
        require(["mnist"], "CLIP-XTAIL-v0")
    assert len(missing(MTIL)) == 10


def test_a_missing_shard_is_missing(home: Path) -> None:
    folder = write_set(home, "oxford_pet", shards=3)
    (folder / "test-00001-of-00003.parquet").unlink()
    assert missing(["oxford_pet"]) == [f"mteb/OxfordPets@{SETS['oxford_pet'].revision}"]


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(NotRegisteredError, match=r"a registered data set; got 'flower'. Did you mean 'flowers'\?"):
        hub_task("flower", 1)


def test_download_fetches_what_is_missing_at_the_revision(
    home: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = tmp_path_factory.mktemp("there")
    source = write_set(hub, "oxford_pet").parent
    asked: list[dict[str, Any]] = []

    def fetch(**options: Any) -> None:
        asked.append(options)
        shutil.copytree(source, options["local_dir"])

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    said: list[str] = []
    for _ in range(2):
        download(["oxford_pet"], said.append)
    data = SETS["oxford_pet"]
    assert asked == [
        {
            "repo_id": "mteb/OxfordPets",
            "repo_type": "dataset",
            "revision": data.revision,
            "local_dir": home / "mteb" / "OxfordPets" / data.revision,
            "allow_patterns": ["*.parquet", "README.md"],
        }
    ]
    assert said[0] == f"[1/1] Oxford-IIIT Pet: mteb/OxfordPets@557b480f to {data.folder}"
    assert said[1] == "[1/1] Oxford-IIIT Pet: mteb/OxfordPets@557b480f is here"
    assert len(hub_task("oxford_pet", 1).test) == 3_669


def test_download_says_what_failed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    pattern = r"to fetch mteb/mnist@cf6a\w+; got ConnectionError: no route to host\. Check the network"
    with pytest.raises(SourceMissingError, match=pattern):
        download(["mnist"], lambda _: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda **_: None)
    with pytest.raises(SourceError, match=r"the splits train, test in mteb/mnist@.*; got no Parquet file\."):
        download(["mnist"], lambda _: None)
