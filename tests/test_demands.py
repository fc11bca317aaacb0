"""Who asks to be forgotten: scopes of classes, tasks, samples and users, and the data of streams that need more."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from clgym.demands import halves, joined, mislabelled, of_classes, of_samples, of_task, of_users, owned, spread
from clgym.events import Inputs, IntArray
from clgym.scenario import Task


@dataclass(frozen=True)
class Dots:
    """Images of one pixel that show their row."""

    targets: IntArray
    decodes: bool = False

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, index: IntArray, rng: np.random.Generator | None = None) -> Inputs:
        return np.repeat(index.astype(np.uint8).reshape(-1, 1, 1, 1), 3, axis=-1)

    def fingerprint(self) -> str:
        return f"{len(self):064x}"


def task(name: str, *classes: str, train: int = 12, test: int = 6) -> Task:
    prompts = tuple((c,) for c in classes)
    data = [Dots(np.arange(n) % len(classes)) for n in (train, test)]
    return Task(name, "", classes, prompts, data[0], data[1])


TASKS = [task("one", "cat", "dog"), task("two", "dog", "eel", "fox")]


def parts(rows: tuple[IntArray, ...]) -> list[list[int]]:
    return [part.tolist() for part in rows]


def test_a_class_is_found_in_every_task_that_has_it() -> None:
    request = of_classes(TASKS, ["dog"], after=2, steps=3)
    assert parts(request.train) == [[1, 3, 5, 7, 9, 11], [0, 3, 6, 9]]
    assert parts(request.test) == [[1, 3, 5], [0, 3]]
    assert (request.kind, request.scope, request.classes, request.steps) == ("class", ("dog",), ("dog",), 3)


def test_a_task_goes_with_its_classes_and_a_domain_without() -> None:
    whole, shared = of_task(TASKS, 1, after=2), of_task(TASKS, 1, shared=True, after=2)
    assert parts(whole.train) == parts(shared.train) == [[], list(range(12))]
    assert parts(whole.test) == [[], list(range(6))]
    assert (whole.kind, whole.classes) == ("task", ("dog", "eel", "fox"))
    assert (shared.kind, shared.classes, shared.scope) == ("domain", (), ("two",))


def test_samples_come_in_order_and_have_no_unseen_ones() -> None:
    request = of_samples([np.array([4, 2]), np.array([], int)], after=1)
    assert parts(request.train) == [[2, 4], []]
    assert request.test == ()


def test_users_leave_with_all_they_have() -> None:
    owners = [np.array([3, 1, 3, 2]), np.array([1, 1, 3, 2])]
    request = of_users(owners, [3, 2], after=1)
    assert parts(request.train) == [[0, 2, 3], [2, 3]]
    assert parts(request.groups) == [[3, 3, 2], [3, 2]]
    assert request.scope == ("user 2", "user 3")


def test_rows_are_drawn_over_all_pools_alike() -> None:
    pools = [np.array([True, False, True]), np.array([True] * 6)]
    counts = np.zeros(2)
    for seed in range(400):
        drawn = spread(pools, 4, np.random.default_rng(seed))
        assert 1 not in drawn[0]
        assert all(np.array_equal(part, np.sort(part)) for part in drawn)
        counts += [len(part) for part in drawn]
    # Two of eight places are in the first pool: 1600 draws without replacement, at most sqrt(1600 * 3 / 16) = 17.3.
    assert abs(counts[0] - 400) < 4 * 17.3
    assert parts(tuple(spread(pools, 99, np.random.default_rng(0)))) == [[0, 2], [0, 1, 2, 3, 4, 5]]


def test_every_sample_has_an_owner_and_small_skew_makes_tastes() -> None:
    big = [task("one", "cat", "dog", train=2000)]
    flat, tilted = (owned(big, 10, skew, np.random.default_rng(0))[0] for skew in (1000.0, 0.1))
    assert set(flat.tolist()) == set(range(10))
    share = [np.bincount(of[::2], minlength=10).max() / 1000 for of in (flat, tilted)]  # of the cats
    assert share[0] < 0.2 < share[1]


def test_wrong_labels_are_as_many_as_asked_and_all_wrong() -> None:
    given = task("one", "cat", "dog", "eel", train=60)
    noisy = mislabelled(given, 0.25, np.random.default_rng(0))
    wrong = noisy.train.targets != given.train.targets
    assert wrong.sum() == 15
    assert set(noisy.train.targets.tolist()) == {0, 1, 2}
    assert np.array_equal(noisy.train.batch(np.arange(3)), given.train.batch(np.arange(3)))
    assert noisy.test is given.test


def test_joined_tasks_have_the_classes_of_all() -> None:
    both = joined([task("one", "cat", "dog"), task("two", "eel", "fox", "gnu")], "both")
    assert both.classes == ("cat", "dog", "eel", "fox", "gnu")
    assert both.train.targets.tolist() == [0, 1] * 6 + [2, 3, 4] * 4
    shown = np.asarray(both.train.batch(np.array([0, 11, 12, 23])))[:, 0, 0, 0]
    assert shown.tolist() == [0, 11, 0, 11]


def test_halves_share_every_class_and_no_sample() -> None:
    first, second = halves(task("one", "cat", "dog"), "again")
    shown = [set(np.asarray(t.train.batch(np.arange(len(t.train))))[:, 0, 0, 0].tolist()) for t in (first, second)]
    assert shown[0] | shown[1] == set(range(12))
    assert not shown[0] & shown[1]
    assert np.bincount(first.train.targets).tolist() == np.bincount(second.train.targets).tolist() == [3, 3]
    assert (second.name, second.test) == ("again", first.test)


@pytest.mark.parametrize("count", [1, 5])
def test_fewer_rows_than_asked_are_all_drawn(count: int) -> None:
    assert parts(tuple(spread([np.ones(count, bool)], 9, np.random.default_rng(0)))) == [list(range(count))]
