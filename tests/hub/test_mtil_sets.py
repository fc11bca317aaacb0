"""The eleven sets of MTIL from files with the hub's exact columns: splits, names and prompts."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from clgym.errors import SourceMissingError
from clgym.hub import hub_task
from clgym.hub_sets import MTIL, SETS
from clgym.scenario import Task
from tests.hub.conftest import BACKGROUND, CALTECH, caltech_labels, everything, numbers, refuse, write_set


def test_sets_are_mtils_in_order_one() -> None:
    order = "aircraft caltech101 cifar100 dtd eurosat flowers food mnist oxford_pet stanford_cars sun397"
    assert list(MTIL) == order.split()
    assert sum(SETS[name].classes for name in MTIL) == 1201
    for data in SETS.values():
        # Where no commit could be verified, the notes say so.
        assert re.fullmatch(r"[0-9a-f]{40}", data.revision) or (data.revision == "main" and "'main'" in data.notes)
        assert re.fullmatch(r"[\w-]+/[\w-]+", data.repo)
        assert data.notes
        assert data.licence
        assert SETS[data.name] is data


def test_prompts_are_zscls() -> None:
    first = {
        "aircraft": (2, "a photo of a {}, a type of aircraft."),
        "caltech101": (34, "a photo of a {}."),
        "cifar100": (18, "a photo of a {}."),
        "dtd": (8, "a photo of a {} texture."),
        "eurosat": (3, "a centered satellite photo of {}."),
        "flowers": (1, "a photo of a {}, a type of flower."),
        "food": (1, "a photo of a {}, a type of food."),
        "mnist": (1, 'a photo of the number: "{}".'),
        "oxford_pet": (1, "a photo of a {}, a type of pet."),
        "stanford_cars": (9, "a photo of a {}, a type of car."),
        "sun397": (2, "a photo of a {}."),
    }
    assert {name: (len(SETS[name].templates), SETS[name].templates[0]) for name in MTIL} == first
    for data in SETS.values():
        assert len(set(data.templates)) == len(data.templates)
        assert all(t.count("{}") == 1 for t in data.templates)


# methods_vision.md B1, with the departures of hub.json for SUN397.
@pytest.mark.parametrize(
    ("name", "classes", "train", "test"),
    [
        ("aircraft", 100, 3_334, 3_333),
        ("caltech101", 101, 6_941, 1_736),
        ("cifar100", 100, 50_000, 10_000),
        ("dtd", 47, 1_880, 1_880),
        ("eurosat", 10, 21_600, 5_400),
        ("flowers", 102, 1_020, 6_149),
        ("food", 101, 75_750, 25_250),
        ("mnist", 10, 60_000, 10_000),
        ("oxford_pet", 37, 3_680, 3_669),
        ("stanford_cars", 196, 8_144, 8_041),
        ("sun397", 397, 76_127, 21_750),
    ],
)
def test_splits_have_mtils_sizes(tasks: dict[str, Task], name: str, classes: int, train: int, test: int) -> None:
    task = tasks[name]
    assert (len(task.classes), len(task.train), len(task.test)) == (classes, train, test)
    assert len(task.prompts) == classes
    assert task.description.startswith(SETS[name].title)
    for data in (task.train, task.test):
        assert set(data.targets.tolist()) == set(range(classes))
        assert data.decodes


def test_caltech_drops_the_background_and_draws_its_split(tasks: dict[str, Task]) -> None:
    task = tasks["caltech101"]
    train, test = everything(task.train), everything(task.test)
    label = np.concatenate([caltech_labels(3_060), caltech_labels(6_084)])
    rows = [np.where(ids < 5_000_000, ids, ids - 5_000_000 + 3_060) for ids in (train, test)]
    assert not set(rows[0].tolist()) & set(rows[1].tolist())
    assert sorted(np.concatenate(rows).tolist()) == np.flatnonzero(label != BACKGROUND).tolist()
    assert not any("background" in name for name in task.classes)
    kept = [name for name in CALTECH if name != "background_google"]
    hub = [kept[i] for i in task.test.targets]
    assert hub == [CALTECH[i] for i in label[rows[1]]]


def test_caltech_words_are_clips(tasks: dict[str, Task]) -> None:
    words = dict(zip([n for n in CALTECH if n != "background_google"], tasks["caltech101"].classes, strict=True))
    assert words["faces"] == "off-center face"
    assert words["faces_easy"] == "centered face"
    assert words["airplanes"] == "airplane"
    assert words["cougar_face"] == "face of a cougar cat"
    assert words["yin_yang"] == "yin and yang symbol"
    assert words["inline_skate"] == "inline skate"


def test_the_drawn_splits_are_torchs_with_seed_42(tasks: dict[str, Task]) -> None:
    torch = pytest.importorskip("torch")
    split = torch.utils.data.random_split(range(8_677), [6_941, 1_736], generator=torch.Generator().manual_seed(42))
    kept = np.flatnonzero(np.concatenate([caltech_labels(3_060), caltech_labels(6_084)]) != BACKGROUND)
    ids = everything(tasks["caltech101"].test)
    assert np.where(ids < 5_000_000, ids, ids - 5_000_000 + 3_060).tolist() == kept[split[1].indices].tolist()


def test_dtd_takes_half_of_each_class_of_the_merged_split(tasks: dict[str, Task], home: Path) -> None:
    task = tasks["dtd"]
    ids = everything(task.train)
    assert len(set(ids.tolist())) == 1_880
    assert ids.max() < 3_760
    assert np.bincount(task.train.targets).tolist() == [40] * 47
    assert (ids % 47 == task.train.targets).all()
    write_set(home, "dtd")
    assert (everything(hub_task("dtd", 1).train) == ids).all()


def test_eurosat_trains_on_train_and_validation(tasks: dict[str, Task]) -> None:
    task = tasks["eurosat"]
    splits = numbers(task.train, np.array([0, 16_199, 16_200, 21_599]))
    assert splits.tolist() == [0, 16_199, 5_000_000, 5_005_399]
    assert numbers(task.test, np.array([0])).tolist() == [10_000_000]
    assert task.classes[0] == "annual crop land"
    assert task.classes[9] == "lake or sea"
    assert task.prompts[2][0] == "a centered satellite photo of brushland or shrubland."


def test_cifar_reads_img_and_fine_label(tasks: dict[str, Task], home: Path) -> None:
    assert tasks["cifar100"].train.targets[:101].tolist() == [*range(100), 0]
    write_set(home, "cifar100", columns=("image", "label"))
    refuse("cifar100", r"columns 'img' and 'fine_label' in .*; got 'image', 'coarse_label', 'label'\.")


def test_aircraft_reads_the_variant(tasks: dict[str, Task], home: Path) -> None:
    assert len(tasks["aircraft"].classes) == 100
    write_set(home, "aircraft", columns=("image", "label"))
    refuse("aircraft", r"columns 'image' and 'variant' in .*; got 'image', 'family', 'manufacturer', 'label'\.")


def test_food_tests_on_validation(tasks: dict[str, Task], home: Path) -> None:
    assert numbers(tasks["food"].test, np.array([0])).tolist() == [5_000_000]
    write_set(home, "food", sizes={"train": 75_750, "test": 25_250})
    with pytest.raises(SourceMissingError, match=r"mteb/food101@7cca05bf"):
        hub_task("food", 1)


def test_mnist_prompts_have_bare_digits(tasks: dict[str, Task], home: Path) -> None:
    assert tasks["mnist"].prompts[7] == ('a photo of the number: "7".',)
    words = "zero one two three four five six seven eight nine".split()
    write_set(home, "mnist", names=[f"{i} - {word}" for i, word in enumerate(words)])
    refuse("mnist", r"class names like '0' in mteb/mnist@.*; got '0 - zero'\.")


def test_sun_names_are_stripped(tasks: dict[str, Task]) -> None:
    assert tasks["sun397"].classes[:3] == ("abbey", "church outdoor", "scene 0")
    assert tasks["aircraft"].prompts[0][0] == "a photo of a F/A-18, a type of aircraft."


def test_underscores_become_spaces(tasks: dict[str, Task]) -> None:
    assert tasks["oxford_pet"].prompts[1] == ("a photo of a class 001, a type of pet.",)


def test_flowers_have_the_official_names(tasks: dict[str, Task]) -> None:
    classes = tasks["flowers"].classes
    assert (classes[0], classes[15], classes[101]) == ("pink primrose", "globe-flower", "blackberry lily")


def test_flowers_numbers_sorted_as_text_still_get_their_names(home: Path, tasks: dict[str, Task]) -> None:
    write_set(home, "flowers", names=sorted(str(i) for i in range(1, 103)))
    classes = hub_task("flowers", 1).classes
    official = tasks["flowers"].classes
    assert classes[:3] == (official[0], official[9], official[99])
    assert set(classes) == set(official)


def test_flowers_with_words_must_agree_in_order(home: Path, tasks: dict[str, Task]) -> None:
    official = list(tasks["flowers"].classes)
    spelled = [name.upper() if i != 94 else "air plant" for i, name in enumerate(official)]
    write_set(home, "flowers", names=spelled)
    assert hub_task("flowers", 1).classes == tuple(official)
    write_set(home, "flowers", names=sorted(official))
    refuse("flowers", r"the 102 official class names in order in dpdl-benchmark/.*; got \d+ that agree\.")
