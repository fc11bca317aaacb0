"""The class-incremental streams for vision transformers: tasks, orders, sources, kinds, and the faults they name."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import clgym
from clgym.env import ContinualEnv
from clgym.errors import SettingError, SourceError, SourceMissingError
from clgym.events import Query, TaskEnd, TaskStart, Train
from clgym.hub_sets import SETS
from clgym.images import ArrayImages
from clgym.increments import SMALL_PASSES, class_order
from clgym.scenario import Task
from clgym.scenarios.vit_cil import ViTCIFAR100, ViTImageNetA, ViTImageNetR, ViTVTAB
from clgym.sources import HUB_VIT, HUB_VTAB, TINY_VIT, VTAB, embedded_classes
from clgym.worlds.styles import STYLES

IDS = ("ViT-CIFAR100-CIL-v0", "ViT-ImageNetR-CIL-v0", "ViT-ImageNetA-CIL-v0", "ViT-VTAB-CIL-v0")
CIFAR, R, A, VTAB_ID = IDS
PILOT_100 = class_order("pilot", 100, 0, np.random.default_rng(0)).tolist()


def bare(id: str, **settings: Any) -> ContinualEnv:
    env = clgym.make(id, disable_env_checker=True, **settings).unwrapped
    assert isinstance(env, ContinualEnv)
    return env


def tasks(id: str, seed: int = 0, **settings: Any) -> list[Task]:
    """Return the tasks that a reset with this seed draws."""
    return list(bare(id, **settings).scenario.tasks(np.random.default_rng(seed)))


def folder(root: Path, **classes: int) -> Path:
    """Write classes with so many training images each, and as many to test."""
    rng = np.random.default_rng(0)
    for name, count in classes.items():
        for split in ("train", "test"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 255, (36, 40, 3), np.uint8)).save(root / split / name / f"{i}.png")
    return root


@pytest.mark.parametrize(
    ("id", "settings", "count"),
    [
        (CIFAR, {}, 10),
        (CIFAR, {"splits": 20}, 20),
        (R, {"splits": 5}, 5),
        (R, {}, 10),
        (R, {"splits": 20}, 20),
        (A, {}, 20),
        (VTAB_ID, {}, 5),
    ],
)
def test_tasks_of_the_embedded_streams(id: str, settings: dict[str, Any], count: int) -> None:
    made = tasks(id, **settings)
    total = 50 if id == VTAB_ID else 100
    assert [len(task.classes) for task in made] == [total // count] * count
    assert len({name for task in made for name in task.classes}) == total
    for task in made:
        assert np.bincount(task.train.targets).tolist() == [40] * len(task.classes)
        assert np.bincount(task.test.targets).tolist() == [20] * len(task.classes)
        assert task.prompts == tuple((f"a photo of a {name}.",) for name in task.classes)


def test_the_hundred_classes_are_of_eight_domains_with_distinct_names() -> None:
    (whole,) = embedded_classes("cifar100")
    assert len(set(whole.classes)) == 100
    assert {"trout small object", "trout dish", "red mug", "sunny desert"} <= set(whole.classes)
    assert embedded_classes("imagenet_r")[0].classes == embedded_classes("imagenet_a")[0].classes == whole.classes


@pytest.mark.parametrize("id", [CIFAR, R])
def test_classes_come_in_pilots_order_and_pictures_with_them(id: str) -> None:
    (whole,) = embedded_classes("cifar100" if id == CIFAR else "imagenet_r")
    learned = [name for task in tasks(id) for name in task.classes]
    assert learned == [whole.classes[c] for c in PILOT_100]
    assert learned[:3] == [whole.classes[c] for c in (68, 56, 78)]
    first = tasks(id)[0]
    rows = np.flatnonzero(whole.train.targets == 68)
    shown = first.train.batch(np.flatnonzero(first.train.targets == 0))
    assert np.array_equal(np.asarray(shown), np.asarray(whole.train.batch(rows)))


def test_other_orders() -> None:
    (whole,) = embedded_classes("cifar100")

    def learned(seed: int = 0, **settings: Any) -> list[str]:
        return [name for task in tasks(CIFAR, seed, **settings) for name in task.classes]

    assert learned(order="coda") == list(whole.classes)
    three = class_order("coda", 100, 3, np.random.default_rng(0))
    assert learned(order="coda", coda_seed=3) == [whole.classes[c] for c in three]
    assert learned(0, order="drawn") != learned(1, order="drawn") != list(whole.classes)
    assert learned(0) == learned(1)


def test_imagenet_a_and_vtab_are_never_shuffled() -> None:
    (hard,) = embedded_classes("imagenet_a")
    assert [name for task in tasks(A, 5) for name in task.classes] == list(hard.classes)
    assert [task.name for task in tasks(VTAB_ID, 5)] == list(VTAB)
    assert "order" not in ViTImageNetA.__init__.__annotations__
    assert not {"order", "splits"} & set(ViTVTAB.__init__.__annotations__)


def test_renditions_and_hard_pictures_are_the_same_things_seen_otherwise() -> None:
    plain, styled, hard = (embedded_classes(name)[0] for name in ("cifar100", "imagenet_r", "imagenet_a"))
    everything = np.arange(len(plain.train))
    pictures = [np.asarray(task.train.batch(everything)) for task in (plain, styled, hard)]
    assert not (pictures[0] == pictures[2]).all(axis=(1, 2, 3)).any()
    which = np.zeros(len(everything), np.int64)
    for number, style in enumerate(STYLES.values()):
        which[(style(pictures[0]) == pictures[1]).all(axis=(1, 2, 3))] = number
    assert np.bincount(which, minlength=len(STYLES))[0] == 0
    assert np.bincount(which)[1:].min() > 700  # of 4,000 in five styles


def test_what_is_asked_and_what_is_not() -> None:
    env = bare(R, splits=20, tasks=3, steps=1)
    event, done = env.reset(seed=0)[0], False
    starts: list[Any] = []
    queries: list[Any] = []
    assert isinstance(event, TaskStart)
    while not done:
        assert not isinstance(event, TaskStart | TaskEnd | Query) or event.task is None
        starts += [event] if isinstance(event, TaskStart) else []
        queries += [event] if isinstance(event, Query) else []
        event, _, done, _, _ = env.step(env.action_space.sample())
    assert [query.candidates for query in queries] == [
        tuple(name for start in starts[:t] for name in start.classes) for t in (1, 2, 2, 3, 3, 3)
    ]
    assert env.scenario.classes == 15
    assert np.isnan(env.report().R).tolist() == [[j >= t for j in range(3)] for t in range(4)]


def test_constants() -> None:
    small = ViTCIFAR100()
    assert (small.backbone, small.shape, small.classes) == (TINY_VIT, (32, 32, 3), 100)
    assert (small.teaching.batch_size, small.teaching.passes, small.teaching.steps) == (32, SMALL_PASSES, 0)
    assert ViTCIFAR100(steps=7).teaching.steps == 7
    assert (ViTCIFAR100(passes=1).teaching.batch_size, ViTCIFAR100(passes=1).teaching.passes) == (10, 1)


def test_constants_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clgym.hub.require", lambda *_: None)
    passes = []
    for kind, classes in ((ViTCIFAR100, 100), (ViTImageNetR, 200), (ViTImageNetA, 200), (ViTVTAB, 50)):
        real = kind(source="hub")
        assert (real.backbone, real.shape, real.classes) == (HUB_VIT, (224, 224, 3), classes)
        assert (real.teaching.batch_size, real.teaching.labels) == (32, "seen")
        passes.append(real.teaching.passes)
        assert kind.spec.hub_backbone == HUB_VIT
    # SEMA: func_epoch 5 for CIFAR-100 and 20 for the others.
    assert passes == [5, 20, 20, 20]


@pytest.mark.parametrize(("id", "missing"), [(CIFAR, 1), (R, 1), (A, 1), (VTAB_ID, 5)])
def test_the_hub_without_data_fails_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, id: str, missing: int
) -> None:
    monkeypatch.setenv("CLGYM_DATA", str(tmp_path))
    with pytest.raises(SourceMissingError, match=f"; {missing} missing: .*clgym download {id}"):
        bare(id, source="hub")


@pytest.fixture
def local_hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """Stand in for the hub's reader; return what it is asked for."""
    asked: dict[str, list[Any]] = {}

    def hub_task(name: str, size: int, view: Any) -> Task:
        asked[name] = [size, view]
        count = SETS[name].classes
        names = tuple(f"{name} {c}" for c in range(count))
        images = ArrayImages(np.zeros((2 * count, 1, 1, 3), np.uint8), np.arange(2 * count) % count)
        return Task(name, "", names, tuple((f"x {c}", f"y {c}") for c in names), images, images)

    monkeypatch.setattr("clgym.hub.require", lambda *_: None)
    monkeypatch.setattr("clgym.hub.hub_task", hub_task)
    return asked


def test_the_hubs_vtab_is_five_sets_of_ten_in_order(local_hub: dict[str, list[Any]]) -> None:
    made = tasks(VTAB_ID, source="hub")
    assert [task.name for task in made] == list(local_hub) == list(HUB_VTAB)
    assert HUB_VTAB == ("resisc45", "dtd", "oxford_pet", "eurosat", "flowers")
    for task in made:
        assert task.classes == tuple(f"{task.name} {c}" for c in range(10))
        assert task.prompts == tuple((f"a photo of a {name}.",) for name in task.classes)
        assert np.bincount(task.train.targets).tolist() == [2] * 10


def test_the_hubs_images_are_seen_as_in_pilot(local_hub: dict[str, list[Any]]) -> None:
    made = tasks(R, source="hub", splits=20)
    assert [len(task.classes) for task in made] == [10] * 20
    assert made[0].classes[:2] == ("imagenet_r 168", "imagenet_r 136")
    size, view = local_hub["imagenet_r"]
    assert (size, view.least, view.flip, round(size * view.resize)) == (224, 0.05, True, 256)


@pytest.mark.parametrize(
    ("id", "settings", "words"),
    [
        (CIFAR, {"splits": 7}, "Expected splits as one of 10, 20, those of the paper; got 7."),
        (A, {"splits": 10}, "Expected splits as one of 20, those of the paper; got 10."),
        (CIFAR, {"splits": -1}, "Expected splits to be 0 or more; got -1."),
        (CIFAR, {"order": "zscl"}, "Expected order as one of 'pilot', 'coda', 'drawn'; got 'zscl'."),
        (CIFAR, {"coda_seed": 2}, "Expected coda_seed 0 with order 'pilot', which takes none; got 2."),
        (CIFAR, {"shift": "time"}, "Expected shift as one of 'class', 'domain', 'instance'; got 'time'."),
        (
            CIFAR,
            {"shift": "domain", "splits": 20},
            "Expected no splits with shift 'domain', which has a task per style",
        ),
        (CIFAR, {"probe_every": -1}, "Expected probe_every to be 0 or more; got -1."),
        (CIFAR, {"backbone": HUB_VIT}, "Expected no backbone with source 'embedded', which has its own;"),
        (CIFAR, {"boundaries": "soft"}, "Expected boundaries 'given' or 'hidden'; got 'soft'."),
    ],
)
def test_settings_out_of_range(id: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=re.escape(words)):
        bare(id, **settings)


def test_domains_shift() -> None:
    made = tasks(CIFAR, shift="domain")
    assert [task.name for task in made] == list(STYLES)
    assert len({task.classes for task in made}) == 1
    assert sum(len(task.train) for task in made) == 4_000
    (whole,) = embedded_classes("cifar100")
    for t, (task, style) in enumerate(zip(made, STYLES.values(), strict=True)):
        # Samples are dealt out in turn, so the first of each class's 40 that a task has is its number t.
        first = np.asarray(whole.train.batch(np.flatnonzero(whole.train.targets == 7)[[t]]))
        shown = np.asarray(task.train.batch(np.flatnonzero(task.train.targets == 7)[[0]]))
        assert np.array_equal(style(first), shown)
    env = bare(CIFAR, shift="domain", tasks=2, steps=1)
    env.reset(seed=0)
    assert env.scenario.classes == 100


def test_instances_shift() -> None:
    made = tasks(CIFAR, shift="instance", splits=20)
    assert len(made) == 20
    assert {np.bincount(task.train.targets).tolist() == [2] * 100 for task in made} == {True}


def test_task_free_and_blurred_together() -> None:
    env = bare(CIFAR, boundaries="hidden", blur=0.5, passes=1, tasks=3)
    event, done = env.reset(seed=0)[0], False
    starts, trains, queries = [], [], []
    while not done:
        starts += [event] if isinstance(event, TaskStart) else []
        trains += [event] if isinstance(event, Train) else []
        queries += [event] if isinstance(event, Query) else []
        event, _, done, _, _ = env.step(env.action_space.sample())
    assert len(starts) == 1
    assert (len(starts[0].classes), starts[0].samples, starts[0].steps) == (30, 1_200, 120)
    assert {len(train.ids) for train in trains} == {10}
    assert sorted(np.concatenate([train.ids for train in trains]).tolist()) == list(range(1_200))
    first = np.concatenate([np.asarray(train.targets) for train in trains[:40]])
    # Half of the first task's 400 samples have gone to the other two tasks, and half are theirs.
    assert (first < 10).sum() == 200
    assert not np.isnan(env.report().R[-1]).any()


def test_a_folder_with_its_data_right_in_it_is_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLGYM_DATA", str(tmp_path / "data"))
    path = folder(tmp_path / "birds", **{f"bird_{c}": 2 for c in range(6)})
    made = tasks(CIFAR, source=str(path), splits=3)
    order = class_order("pilot", 6, 0, np.random.default_rng(0))
    assert [name for task in made for name in task.classes] == [f"bird {c}" for c in order]
    assert made[0].prompts[0] == (f"a photo of a bird {order[0]}.",)
    env = bare(CIFAR, source=str(path), splits=3, steps=1)
    env.reset(seed=0)
    assert (env.scenario.source, env.scenario.backbone, env.scenario.classes) == ("birds", TINY_VIT, 6)
    with pytest.raises(SettingError, match="Expected at most 3 tasks of 6 classes, two or more each; got 10 tasks"):
        bare(CIFAR, source=str(path))


def test_a_folder_of_tasks_stands_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLGYM_DATA", str(tmp_path / "data"))
    folder(tmp_path / "mine" / "tools", saw=2, crane=2)
    folder(tmp_path / "mine" / "birds", robin=2, crane=2)
    path = str(tmp_path / "mine")
    assert [(task.name, task.classes) for task in tasks(CIFAR, source=path)] == [
        ("birds", ("crane", "robin")),
        ("tools", ("crane", "saw")),
    ]
    env = bare(CIFAR, source=path, steps=1)
    event, done = env.reset(seed=0)[0], False
    while not done:
        last = event
        event, _, done, _, _ = env.step(env.action_space.sample())
    assert isinstance(last, Query)
    assert last.candidates == ("crane", "robin", "saw")  # a name that recurs is one class
    for settings in ({"splits": 2}, {"order": "coda"}, {"shift": "domain"}):
        with pytest.raises(SettingError, match="Expected no splits, order or shift with the 2 tasks of mine"):
            bare(CIFAR, source=path, **settings)


def test_a_folders_backbone_gives_the_size(tmp_path: Path) -> None:
    path = folder(tmp_path / "birds", a=2, b=2, c=2, d=2)
    env = bare(CIFAR, source=str(path), splits=2, backbone=HUB_VIT)
    assert env.scenario.shape == (224, 224, 3)
    assert env.scenario.teaching.passes == 5
    with pytest.raises(SettingError, match=r"Expected the backbone 'embedded/tiny-clip' or .*; got 'timm/nothing'"):
        bare(CIFAR, source=str(path), splits=2, backbone="timm/nothing")
    with pytest.raises(SourceError, match="Expected a folder at"):
        bare(CIFAR, source=str(tmp_path / "none"))


def test_fingerprints_follow_the_variant() -> None:
    prints = []
    for settings in ({}, {"blur": 0.1}, {"boundaries": "hidden"}, {"order": "coda"}, {"shift": "domain"}):
        env = bare(CIFAR, tasks=2, **settings)
        env.reset(seed=0)
        prints.append(env.fingerprints())
    assert len({each["stream"] for each in prints}) == len(prints)
    assert prints[0]["data"] == prints[2]["data"]
    assert len({each["data"] for each in prints}) == len(prints) - 1
    assert replace(env.scenario.spec) == ViTCIFAR100.spec
