"""Online, task-free and blurred streams: what is exchanged, what is shown, what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clgym.check import check_scenario
from clgym.env import ContinualEnv
from clgym.errors import SettingError
from clgym.images import ArrayImages
from clgym.registry import entries, find, settings
from clgym.scenario import Task, Teaching
from clgym.variants import COMPOSED, ONLINE_BATCH, Variant, blurred

Toy = Callable[..., ContinualEnv]


def tasks(*sizes: int, classes: int = 2) -> list[Task]:
    """Return tasks whose images show, in red, their task, and in green, their number."""
    made = []
    for t, size in enumerate(sizes):
        pixels = np.zeros((size, 1, 1, 3), np.uint8)
        pixels[..., 0], pixels[:, 0, 0, 1] = t, np.arange(size)
        data = ArrayImages(pixels, np.arange(size) % classes)
        names = tuple(f"t{t}c{c}" for c in range(classes))
        made.append(Task(f"task {t}", "", names, tuple((f"a {name}",) for name in names), data, data))
    return made


def shown(task: Task) -> list[tuple[int, int, str]]:
    """Return of every training sample the task and number that it came with, and the name it has now."""
    pixels = task.train.batch(np.arange(len(task.train)))
    assert isinstance(pixels, np.ndarray)
    names = [task.classes[y] for y in task.train.targets]
    return [(int(p[0, 0, 0]), int(p[0, 0, 1]), name) for p, name in zip(pixels, names, strict=True)]


SIZES = st.lists(st.integers(0, 30), min_size=2, max_size=5)


@given(SIZES, st.floats(0, 0.99), st.integers(0, 5))
def test_a_share_of_every_task_is_exchanged_and_nothing_is_lost(sizes: list[int], share: float, seed: int) -> None:
    made = blurred(tasks(*sizes), share, np.random.default_rng(seed))
    found = [sample for task in made for sample in shown(task)]
    everything = [(t, i, f"t{t}c{i % 2}") for t, size in enumerate(sizes) for i in range(size)]
    assert sorted(found) == everything
    assert [len(task.train) for task in made] == sizes
    wanted = [round(share * size) for size in sizes]
    for t, task in enumerate(made):
        foreign = [source for source, _, _ in shown(task) if source != t]
        assert len(foreign) == min(wanted[t], sum(wanted) - wanted[t])
        assert task.own == 2


def test_own_classes_come_first_and_foreign_ones_that_occur_after_them_in_the_streams_order() -> None:
    made = blurred(tasks(20, 20, 20), 0.5, np.random.default_rng(0))
    for t, task in enumerate(made):
        foreign = sorted({name for _, _, name in shown(task)} - set(task.classes[:2]))
        assert task.classes == (f"t{t}c0", f"t{t}c1", *foreign)
        assert foreign
        assert task.prompts == tuple((f"a {name}",) for name in task.classes)


def test_test_data_stay_as_they_are() -> None:
    before = tasks(10, 10)
    after = blurred(before, 0.5, np.random.default_rng(0))
    assert all(a.test is b.test for a, b in zip(before, after, strict=True))


def test_classes_that_both_tasks_have_are_not_foreign() -> None:
    one, two = tasks(10, 10)
    made = blurred([one, replace(two, classes=one.classes)], 0.5, np.random.default_rng(0))
    assert [task.classes for task in made] == [one.classes] * 2
    assert sorted((t, name) for task in made for t, _, name in shown(task)) == sorted(
        (t, f"t0c{i % 2}") for t in range(2) for i in range(10)
    )


def test_the_exchange_is_the_generators_and_goes_everywhere() -> None:
    first, again, other = (blurred(tasks(50, 50, 50, 50), 0.4, np.random.default_rng(s)) for s in (0, 0, 1))
    assert [shown(task) for task in first] == [shown(task) for task in again]
    assert [shown(task) for task in first] != [shown(task) for task in other]
    moves = np.zeros((4, 4))
    for seed in range(20):
        for t, task in enumerate(blurred(tasks(50, 50, 50, 50), 0.4, np.random.default_rng(seed))):
            for source, _, _ in shown(task):
                moves[source, t] += source != t
    # 20 x 20 samples leave each task; a third of them go to each other task, give or take four deviations.
    away = moves[~np.eye(4, dtype=bool)]
    assert np.abs(away - 400 / 3).max() < 4 * np.sqrt(400 * 2 / 9)


def test_one_task_has_no_boundary() -> None:
    with pytest.raises(SettingError, match="Expected two tasks or more to blur the boundaries between; got one"):
        blurred(tasks(10), 0.1, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"boundaries": "none"}, "Expected boundaries 'given' or 'hidden'; got 'none'."),
        ({"blur": 1.0}, "Expected blur as a share from 0 to below 1; got 1.0."),
        ({"blur": -0.1}, "Expected blur as a share from 0 to below 1; got -0.1."),
        ({"passes": -1}, "Expected passes to be 0 or more; got -1."),
        ({"steps": -1}, "Expected steps to be 0 or more; got -1."),
        ({"passes": 1, "steps": 4}, "Expected passes or steps; got 1 and 4. Leave one out."),
    ],
)
def test_settings_out_of_range(chosen: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=re.escape(words)):
        Variant(**chosen)


def test_how_a_variant_is_taught() -> None:
    usual = Teaching(batch_size=32, steps=100)
    assert Variant().teach(usual) == usual
    assert Variant(steps=4).teach(usual) == replace(usual, steps=4)
    assert Variant(passes=1).teach(usual) == Teaching(batch_size=ONLINE_BATCH, passes=1)
    assert Variant(passes=3).teach(usual) == Teaching(batch_size=32, passes=3)
    hidden = Variant(boundaries="hidden").teach(usual)
    assert (hidden.boundaries, hidden.task_given, hidden.steps) == ("hidden", False, 100)
    assert Variant(boundaries="hidden", passes=1).teach(usual).batch_size == ONLINE_BATCH


def made_so(id: str, kind: str) -> dict[str, Any]:
    """Return the settings that make a scenario a kind, on two short tasks."""
    name, _, value = COMPOSED[kind].partition("=")  # type: ignore[index]
    default = settings("scenarios", id)[name]
    return {name: type(default)(value), "tasks": 2, **({} if name == "passes" else {"steps": 2})}


COMPOSITIONS: Sequence[tuple[str, str]] = [
    (id, kind) for id, entry in entries("scenarios").items() for kind in entry.spec.tags
]


@pytest.mark.parametrize(("id", "kind"), COMPOSITIONS)
def test_every_kind_that_a_scenario_claims_can_be_made_and_keeps_the_contract(id: str, kind: str) -> None:
    assert kind != find("scenarios", id).spec.kind
    check_scenario(id, limit=60, **made_so(id, kind))
