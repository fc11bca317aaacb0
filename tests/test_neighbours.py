"""Neighbours of erased classes: by texts on CLIP, by pictures elsewhere, each computed once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from clgym import neighbours
from clgym.backbones import load_backbone
from clgym.neighbours import Neighbours


def task(**colours: tuple[int, int, int]) -> Any:
    """Return a task with twenty one-coloured pictures of each class."""
    images = np.concatenate([np.full((20, 32, 32, 3), colour, np.uint8) for colour in colours.values()])
    targets = np.repeat(np.arange(len(colours)), 20)
    train = SimpleNamespace(targets=targets, batch=lambda rows: images[rows])
    prompts = tuple((f"a photo of a {name}.",) for name in colours)
    return SimpleNamespace(classes=tuple(colours), prompts=prompts, train=train)


TASKS = [
    task(red=(250, 0, 0), blue=(0, 0, 250), green=(0, 200, 0)),
    task(ruby=(245, 5, 5), blue=(9, 9, 9), navy=(0, 0, 220)),
]


def test_pictures_of_the_same_colour_are_next_to_each_other() -> None:
    near = Neighbours("embedded/tiny-vit", TASKS)
    assert near.nearest(2, ["red"]) == ["ruby"]
    # A class with a name of the first task is that of the first task: blue, not nearly black.
    assert near.nearest(2, ["navy"]) == ["blue"]


def test_classes_to_come_are_no_neighbours() -> None:
    near = Neighbours("embedded/tiny-vit", TASKS)
    assert near.nearest(1, ["red"])[0] in ("blue", "green")
    assert near.nearest(1, ["navy"]) == []
    assert near.nearest(1, ["red", "blue", "green"]) == []


def test_a_tenth_of_the_retained_classes_and_at_least_one() -> None:
    many = [task(**{f"shade {i}": (i, i, i) for i in range(0, 250, 10)})]
    # Two of twenty-four, and of equal ones the first.
    assert len(Neighbours("embedded/tiny-vit", many).nearest(1, ["shade 0"])) == 2


def test_on_clip_words_decide() -> None:
    near = Neighbours("embedded/tiny-clip", TASKS)
    expected = near.nearest(2, ["red"])
    blind = [SimpleNamespace(classes=t.classes, prompts=t.prompts, train=None) for t in TASKS]
    assert Neighbours("embedded/tiny-clip", blind).nearest(2, ["red"]) == expected  # type: ignore[arg-type]


def test_features_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(name: str, device: torch.device) -> Any:
        calls.append(name)
        return load_backbone(name, device)

    monkeypatch.setattr(neighbours, "load_backbone", counted)
    near = Neighbours("embedded/tiny-clip", TASKS)
    assert calls == []
    for _ in range(2):
        near.nearest(2, ["a name that is not there"])
        near.nearest(2, ["red"])
    assert calls == ["embedded/tiny-clip"]
