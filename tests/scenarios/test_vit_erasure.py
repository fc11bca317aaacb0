"""The removal streams: the paper's order, what each request takes, and the faults they name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import clgym
from clgym.env import ContinualEnv
from clgym.errors import SettingError, SourceMissingError
from clgym.scenarios.vit_erasure import ViTErasureImageNet100, removal_order

IMAGENET, FACES = "ViT-Erasure-ImageNet100-v0", "Face-Erasure-v0"
# Python's shuffle of range(100) with seed 1337: the twenty that go first, and the twenty that stay to the end.
FIRST = [51, 54, 13, 88, 84, 26, 50, 39, 96, 81, 49, 42, 21, 93, 74, 73, 46, 90, 68, 79]
LAST = [83, 17, 10, 9, 89, 52, 7, 32, 37, 77, 61, 34, 78, 55, 56, 63, 69, 22, 75, 66]


def bare(id: str, **settings: Any) -> ContinualEnv:
    env = clgym.make(id, disable_env_checker=True, **settings).unwrapped
    assert isinstance(env, ContinualEnv)
    return env


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Six classes of two training and two test images in one set."""
    rng = np.random.default_rng(0)
    for c in range(6):
        for split in ("train", "test"):
            place = tmp_path / split / f"person {c}"
            place.mkdir(parents=True)
            for i in range(2):
                Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(place / f"{i}.png")
    return tmp_path


def test_the_order_of_classes_is_the_papers() -> None:
    order = removal_order()
    assert sorted(order) == list(range(100))
    assert order[80:] == FIRST
    assert order[:20] == LAST


@pytest.mark.parametrize("id", [IMAGENET, FACES])
def test_four_times_twenty_of_a_hundred_classes_go(id: str) -> None:
    env = bare(id)
    env.reset(seed=0)
    (task,), requests = env.lifetime.tasks, env.lifetime.ledger.requests
    assert len(task.classes) == 100
    assert [request.after for request in requests] == [1, 1, 1, 1]
    assert list(requests[0].classes) == [task.classes[c] for c in FIRST]
    gone = [name for request in requests for name in request.classes]
    assert len(set(gone)) == 80
    assert set(task.classes) - set(gone) == {task.classes[c] for c in LAST}
    assert {(request.goal, request.forget, request.retain, request.shots) for request in requests} == {
        ("removal", "few", "few", 10)
    }
    # The order is the paper's whatever the seed.
    env.reset(seed=1)
    assert env.lifetime.ledger.requests[0].classes == requests[0].classes
    assert env.lifetime.plan.points[-1].service == 3


def test_a_removal_has_no_data_of_classes_that_are_missing(people: Path) -> None:
    env = bare(FACES, source=str(people), amount=1, requests=3, missing=2, shots=2, steps=1, erase_steps=1)
    env.reset(seed=0)
    life, order = env.lifetime, removal_order(6)
    names = [life.tasks[0].classes[c] for c in order]
    assert [request.classes for request in life.ledger.requests] == [(names[5],), (names[4],), (names[3],)]
    assert {request.missing for request in life.ledger.requests} == {(names[0], names[1])}
    forget, retain = life.ledger.grants(1)
    assert forget is not None
    assert retain is not None
    assert len(forget.ids) == 2
    # Of the six classes two are gone or going and two are missing.
    assert len(retain.ids) == 4
    classes = life.tasks[0].classes
    assert {classes[c] for c in np.unique(retain.data.targets)} == {names[2], names[3]}


def test_constants_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clgym.hub.require", lambda *_: None)
    real = ViTErasureImageNet100(source="hub")
    assert (real.backbone, real.shape, real.classes) == (
        ViTErasureImageNet100.spec.hub_backbone,
        (224, 224, 3),
        100,
    )
    assert (real.teaching.steps, real.teaching.batch_size) == (1000, 48)
    assert (real._how["steps"], real._how["shots"]) == (1000, 65)


def test_the_hub_without_data_fails_at_once() -> None:
    with pytest.raises(SourceMissingError, match="imagenet-1k"):
        bare(IMAGENET, source="hub")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"forget": "own"}, "Expected forget as one of 'none', 'few', 'full'; got 'own'"),
        ({"retain": "all"}, "Expected retain as one of"),
        ({"amount": 25}, "Expected amount and requests of 1 or more that leave some of 100 classes.*got 100 classes"),
        ({"missing": 21}, "the 21 missing ones among them; got 80 classes to remove"),
        ({"requests": 0}, "got 0 classes to remove"),
        ({"amount": -2, "requests": -2}, "got 0 classes to remove"),
        ({"shots": -1}, "Expected shots to be 0 or more; got -1"),
    ],
)
@pytest.mark.parametrize("id", [IMAGENET, FACES])
def test_settings_out_of_range(id: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        bare(id, **settings)


def test_faces_are_on_no_hub() -> None:
    with pytest.raises(SettingError, match="Expected source 'embedded' or a folder; got 'hub'"):
        bare(FACES, source="hub")


def test_classes_must_lie_in_one_set(four_domains: Path) -> None:
    with pytest.raises(SettingError, match="Expected classes in one set; got the 4 tasks of"):
        bare(FACES, source=str(four_domains))
