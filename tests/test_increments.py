"""Class orders of the papers, and one set of classes cut into tasks."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest

from clgym.errors import SettingError
from clgym.images import ArrayImages
from clgym.increments import ICARL, class_order, dealt, divided, split_sizes
from clgym.scenario import Data, Task
from clgym.worlds.styles import STYLES, inverted

RNG = np.random.default_rng(0)


def whole(classes: int = 5, per_class: int = 4) -> Task:
    """Return a set whose images show, in red, their class, and in green, their number within it."""
    labels = np.tile(np.arange(classes), per_class)
    pixels = np.zeros((len(labels), 1, 1, 3), np.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = labels, np.arange(len(labels)) // classes
    names = tuple(f"class {c}" for c in range(classes))
    return Task(
        *("whole", "", names, tuple((f"a {name}",) for name in names)),
        *(ArrayImages(pixels, labels), ArrayImages(pixels[: 3 * classes], labels[: 3 * classes])),
    )


def red(data: Data) -> list[int]:
    return np.asarray(data.batch(np.arange(len(data))))[:, 0, 0, 0].tolist()  # type: ignore[no-any-return]


# As printed in methods of PILOT and SEMA (numpy seed 1993).
@pytest.mark.parametrize(
    ("count", "start"),
    [
        (100, [68, 56, 78, 8, 23, 84, 90, 65, 74, 76, 40, 89, 3, 92, 55, 9, 26, 80, 43, 38]),
        (200, [168, 136, 51, 9, 183, 101, 171, 99, 42, 159, 191, 70]),
    ],
)
def test_pilots_orders(count: int, start: list[int]) -> None:
    order = class_order("pilot", count, 0, RNG)
    assert order[: len(start)].tolist() == start
    assert sorted(order.tolist()) == list(range(count))
    state = np.random.get_state()
    np.random.seed(1993)
    expected = np.random.permutation(count).tolist()
    np.random.set_state(state)
    assert order.tolist() == expected


def test_pilots_order_of_a_hundred_is_that_of_imagenet100() -> None:
    # JiazuoYu/MoE-Adapters4CL (99d3e61), cil/class_orders/imagenet100.yaml, its last eleven.
    assert class_order("pilot", 100, 0, RNG)[-11:].tolist() == [4, 51, 48, 73, 93, 39, 67, 29, 49, 57, 33]


def test_zscls_order() -> None:
    order = class_order("zscl", 100, 0, RNG).tolist()
    assert order[:10] == [87, 0, 52, 58, 44, 91, 68, 97, 51, 15]
    assert sorted(order) == list(range(100))
    assert order == list(ICARL)


def test_codas_orders() -> None:
    assert class_order("coda", 10, 0, RNG).tolist() == list(range(10))
    # Worked with Python's shuffle: random.seed(3), random.shuffle(list(range(10))).
    assert class_order("coda", 10, 3, RNG).tolist() == [1, 5, 6, 0, 9, 4, 7, 2, 8, 3]
    state = random.getstate()
    class_order("coda", 10, 3, RNG)
    assert random.getstate() == state


def test_drawn_and_listed_orders() -> None:
    drawn = [class_order("drawn", 50, 0, np.random.default_rng(seed)).tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert class_order("listed", 4, 0, RNG).tolist() == [0, 1, 2, 3]
    assert all(
        class_order(rule, 100, 1, np.random.default_rng(0)).dtype == np.int64
        for rule in ("pilot", "coda", "zscl", "drawn", "listed")
    )


def test_sizes_of_the_protocols() -> None:
    assert split_sizes(100, 10) == (10,) * 10
    assert split_sizes(200, 20) == (10,) * 20
    assert split_sizes(100, 11, first=50) == (50, *(5,) * 10)
    assert split_sizes(100, 6, first=50) == (50, *(10,) * 5)
    assert split_sizes(7, 3) == (3, 2, 2)
    for count, splits, first in ((7, 4, 0), (100, 27, 50), (4, 0, 0)):
        with pytest.raises(SettingError, match=f"Expected at most {count // 2} tasks of {count} classes, two or more"):
            split_sizes(count, splits, first)


def test_division_by_hand() -> None:
    first, second = divided(whole(), np.array([3, 0, 4, 1, 2]), (2, 2))
    assert (first.name, first.classes, first.prompts) == (
        "1-2",
        ("class 3", "class 0"),
        (("a class 3",), ("a class 0",)),
    )
    assert second.classes == ("class 4", "class 1")
    for task, classes in ((first, [3, 0]), (second, [4, 1])):
        for data, per_class in ((task.train, 4), (task.test, 3)):
            assert len(data) == 2 * per_class
            assert red(data) == [classes[y] for y in data.targets]
            assert np.bincount(data.targets).tolist() == [per_class] * 2


def test_dealt_tasks_share_classes_and_no_sample() -> None:
    made = dealt(whole(), ["one", "two"])
    assert [task.name for task in made] == ["one", "two"]
    assert {task.classes for task in made} == {whole().classes}
    samples = [
        [tuple(p) for p in np.asarray(task.train.batch(np.arange(len(task.train))))[:, 0, 0, :2].tolist()]
        for task in made
    ]
    assert sorted(samples[0] + samples[1]) == [(c, i) for c in range(5) for i in range(4)]
    for task, own in zip(made, samples, strict=True):
        assert np.bincount(task.train.targets).tolist() == [2] * 5
        assert [c for c, _ in own] == task.train.targets.tolist()
        assert np.bincount(task.test.targets).min() >= 1


def test_dealt_tasks_named_by_a_style_are_shown_in_it() -> None:
    plain, negative = dealt(whole(), ["photo", "inverted"])
    assert red(plain.train) == plain.train.targets.tolist()
    assert red(negative.train) == (255 - negative.train.targets).tolist()
    assert red(negative.test) == (255 - negative.test.targets).tolist()
    assert STYLES["inverted"] is inverted


def test_too_few_samples_to_deal() -> None:
    words = "Expected 4 images or more of every class in training and test data, one for each task; got 3 of 'class 0'."
    with pytest.raises(SettingError, match=re.escape(words)):
        dealt(whole(), ["a", "b", "c", "d"])
