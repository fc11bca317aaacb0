"""The sets of class-incremental streams from files with the hub's exact columns."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clgym.errors import SourceError, SourceMissingError
from clgym.hub import download, hub_task, missing
from clgym.hub_sets import SETS, class_lists
from clgym.images import CLIP_VIEW, PILOT_VIEW
from clgym.scenario import Task
from tests.hub.conftest import NAMES, everything, write_set

LEMMAS = [first for first, _ in class_lists()["imagenet100"]["first"]]


def test_resisc45(home: Path) -> None:
    write_set(home, "resisc45", names=NAMES["resisc45"])
    task = hub_task("resisc45", 1)
    assert (len(task.classes), len(task.train), len(task.test)) == (45, 18_900, 6_300)
    assert task.classes[:3] == ("airplane", "airport", "class 002")


def test_imagenet_r_has_texts_for_labels_and_one_split(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SETS["imagenet_r"].sizes == (("test", 30_000),)
    monkeypatch.setitem(SETS, "imagenet_r", replace(SETS["imagenet_r"], sizes=(("test", 3_000),)))
    # Shuffled, so that the order of the classes is that of their synsets, not that of the rows.
    order = np.random.default_rng(0).permutation(3_000)
    write_set(home, "imagenet_r", names=NAMES["imagenet_r"], labels=lambda rows: order % 200, shards=5, place="test")
    task = hub_task("imagenet_r", 1)
    words = class_lists()["imagenet_r"]["names"]
    assert task.classes == tuple(words[synset] for synset in sorted(words))
    assert task.classes[:2] == ("goldfish", "great white shark")
    assert (len(task.train), len(task.test)) == (2_400, 600)
    ids = [everything(half) for half in (task.train, task.test)]
    assert sorted(np.concatenate(ids).tolist()) == list(range(3_000))
    for half, found, per_class in zip((task.train, task.test), ids, (12, 3), strict=True):
        assert np.bincount(half.targets).tolist() == [per_class] * 200
        assert (order[found] % 200 == half.targets).all()


def test_imagenet_r_with_a_strange_synset_is_refused(home: Path) -> None:
    write_set(home, "imagenet_r", names=[*NAMES["imagenet_r"][:-1], "n99999999"], place="test")
    with pytest.raises(SourceError, match=r"class names like 'n01443537' in axiong/imagenet-r@762a.*; got 'n99999999'"):
        hub_task("imagenet_r", 1)


def test_imagenet_a_has_one_split_and_file_names_with_a_hash(home: Path) -> None:
    assert "axiong" not in SETS["imagenet_a"].repo
    folder = write_set(home, "imagenet_a", names=NAMES["imagenet_a"], shards=2, suffix="-ab6d3d8ffc378699")
    task = hub_task("imagenet_a", 1)
    assert task.classes[:2] == ("stingray", "goldfinch")
    assert (len(task.train), len(task.test)) == (5_900, 1_600)
    assert np.bincount(task.train.targets).tolist() == [37 * 4 // 5 if c >= 100 else 38 * 4 // 5 for c in range(200)]
    assert not set(everything(task.train).tolist()) & set(everything(task.test).tolist())
    (folder / "train-00001-of-00002-ab6d3d8ffc378699.parquet").unlink()
    assert missing(["imagenet_a"]) == ["barkermrl/imagenet-a@main"]


def test_imagenet_a_of_another_mirror_is_refused(home: Path) -> None:
    write_set(home, "imagenet_a", names=NAMES["imagenet_a"], sizes={"train": 7_450})
    with pytest.raises(SourceError, match=r"7,500 rows in split 'train' in barkermrl/imagenet-a@main; got 7,450"):
        hub_task("imagenet_a", 1)


@pytest.mark.usefixtures("small_imagenet")
def test_imagenet100_is_the_first_hundred_of_imagenet(home: Path) -> None:
    names = [f"{lemma}, Other name" for lemma in LEMMAS] + [f"other {i}" for i in range(900)]
    write_set(home, "imagenet100", names=names, shards=3)
    task = hub_task("imagenet100", 1)
    assert (task.classes[0], task.classes[1], task.classes[99]) == ("tench", "goldfish", "goose")
    assert (len(task.classes), len(task.train), len(task.test)) == (100, 400, 200)
    kept = [row for row in range(4_000) if row % 1000 < 100]
    assert everything(task.train).tolist() == kept
    assert task.train.targets.tolist() == [row % 1000 for row in kept]
    assert (everything(task.test) - 5_000_000).tolist() == [row for row in range(2_000) if row % 1000 < 100]


@pytest.mark.usefixtures("small_imagenet")
@pytest.mark.parametrize("names", [[f"robin {i}" for i in range(100)], ["tench", "goldfish"], LEMMAS[::-1]])
def test_another_imagenet100_is_refused(home: Path, names: list[str]) -> None:
    # clane9/imagenet-100 and ambityga's have a hundred classes too, but not these.
    write_set(home, "imagenet100", names=names)
    with pytest.raises(SourceError, match=r"the 100 classes of the list first in ILSVRC/imagenet-1k@49e2.*; got \d+ "):
        hub_task("imagenet100", 1)


def test_the_list_of_imagenet100_is_the_literatures() -> None:
    words = [word for _, word in class_lists()["imagenet100"]["first"]]
    assert len(set(words)) == 100
    # JiazuoYu/MoE-Adapters4CL (99d3e61), cil/dataset_reqs/imagenet100_classes.txt.
    expected = {
        0: "tench",
        7: "rooster",
        21: "kite (bird of prey)",
        50: "American alligator",
        96: "toucan",
        99: "goose",
    }
    assert {i: words[i] for i in expected} == expected
    assert "clane9" in SETS["imagenet100"].notes


def test_a_gated_set_says_what_to_do_and_fetches_no_unlabelled_split(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def fail(**options: Any) -> None:
        asked.append(options["allow_patterns"])
        raise ConnectionError("403")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(SourceMissingError, match=r"got ConnectionError: 403\. Accept the terms on its page on the hub"):
        download(["imagenet100"], lambda _: None)
    assert asked == [["data/train-*.parquet", "data/validation-*.parquet", "README.md"]]


def test_the_view_is_handed_on(home: Path) -> None:
    write_set(home, "oxford_pet")
    prints = {hub_task("oxford_pet", 1, view).train.fingerprint() for view in (CLIP_VIEW, PILOT_VIEW)}
    assert len(prints) == 2


def test_fingerprints_tell_the_sets_apart(home: Path, tasks: dict[str, Task]) -> None:
    write_set(home, "oxford_pet")
    first = hub_task("oxford_pet", 1)
    assert first.train.fingerprint() == hub_task("oxford_pet", 1).train.fingerprint()
    assert first.train.fingerprint() != first.test.fingerprint()
    assert len(first.train.fingerprint()) == len(hashlib.sha256().hexdigest())
