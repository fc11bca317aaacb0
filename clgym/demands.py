"""Who asks to be forgotten: requests made for given tasks, and the data that some of them need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from clgym.boxes import holds
from clgym.events import IntArray
from clgym.parts import Parts, picked
from clgym.scenario import Data, Request, Task

_NONE: IntArray = np.empty(0, np.int64)


def _at(tasks: Sequence[Task], t: int, rows: IntArray) -> tuple[IntArray, ...]:
    return tuple(rows if j == t else _NONE for j in range(len(tasks)))


def of_classes(tasks: Sequence[Task], names: Sequence[str], **how: Any) -> Request:
    """Return a request for classes, in whichever tasks they occur.

    Args:
        tasks: The tasks in the order they are learned.
        names: Names of the classes.
        **how: The other fields of :class:`clgym.scenario.Request`.
    """
    wanted = [[c for c, name in enumerate(task.classes) if name in names] for task in tasks]
    train, test = (
        tuple(
            np.flatnonzero(holds(data, labels))
            for data, labels in zip([getattr(task, half) for task in tasks], wanted, strict=True)
        )
        for half in ("train", "test")
    )
    kind = {"kind": "class", "scope": tuple(names), "classes": tuple(names)}
    return Request(**{**kind, "train": train, "test": test, **how})


def of_task(tasks: Sequence[Task], t: int, *, shared: bool = False, **how: Any) -> Request:
    """Return a request for all of a task; ``shared``: it is a domain, whose classes others have too."""
    task = tasks[t]
    train, test = (_at(tasks, t, np.arange(len(data))) for data in (task.train, task.test))
    kind = "domain" if shared else "task"
    classes = () if shared else task.classes
    return Request(**{"kind": kind, "scope": (task.name,), "classes": classes, "train": train, "test": test, **how})


def of_samples(rows: Sequence[IntArray], **how: Any) -> Request:
    """Return a request for single training samples, given by task and row."""
    return Request(**{"kind": "sample", "train": tuple(np.sort(part) for part in rows), **how})


def of_users(owners: Sequence[IntArray], users: Sequence[int], **how: Any) -> Request:
    """Return a request of some users for all of their samples, of tasks to come too.

    Args:
        owners: For each task the user that each training sample is from, int64 ``(n,)``.
        users: Who asks.
        **how: The other fields of :class:`clgym.scenario.Request`.
    """
    train = tuple(np.flatnonzero(np.isin(owner, users)) for owner in owners)
    groups = tuple(owner[rows] for owner, rows in zip(owners, train, strict=True))
    scope = tuple(f"user {user}" for user in sorted(users))
    return Request(**{"kind": "user", "scope": scope, "train": train, "groups": groups, **how})


def spread(pools: Sequence[npt.NDArray[np.bool_]], count: int, rng: np.random.Generator) -> list[IntArray]:
    """Draw so many rows over several data sets; return them per set, ascending.

    Args:
        pools: For each set which rows may be drawn, bool ``(n,)``.
        count: Number of rows; all if there are fewer.
        rng: Source of all randomness.
    """
    of = np.concatenate([np.full(int(pool.sum()), t) for t, pool in enumerate(pools)])
    rows = np.concatenate([np.flatnonzero(pool) for pool in pools])
    chosen = np.sort(rng.permutation(len(of))[:count])
    return [rows[chosen][of[chosen] == t] for t in range(len(pools))]


def owned(tasks: Sequence[Task], users: int, skew: float, rng: np.random.Generator) -> list[IntArray]:
    """Deal all training samples out to users whose taste in classes differs.

    The samples of each class of a task go to users in shares drawn from a Dirichlet distribution.

    Args:
        tasks: The tasks in the order they are learned.
        users: Number of users.
        skew: Concentration of the Dirichlet distribution; the smaller, the more users differ.
        rng: Source of all randomness.
    """
    out = []
    for task in tasks:
        owner = np.empty(len(task.train), np.int64)
        for c in range(len(task.classes)):
            rows = np.flatnonzero(task.train.targets == c)
            owner[rows] = rng.choice(users, len(rows), p=rng.dirichlet(np.full(users, skew)))
        out.append(owner)
    return out


def mislabelled(task: Task, share: float, rng: np.random.Generator) -> Task:
    """Return the task with a share of its training samples under another of its classes, drawn uniformly."""
    count = len(task.classes)
    targets = task.train.targets.copy()
    rows = rng.permutation(len(targets))[: round(share * len(targets))]
    targets[rows] = (targets[rows] + rng.integers(1, count, len(rows))) % count
    return replace(task, train=picked(task.train, np.arange(len(targets)), targets))


def joined(tasks: Sequence[Task], name: str) -> Task:
    """Return several tasks as one, with the classes of all; their names must differ."""
    offsets = np.cumsum([0, *(len(task.classes) for task in tasks)])[:-1]
    halves = []
    for half in ("train", "test"):
        data: list[Data] = [getattr(task, half) for task in tasks]
        of = np.repeat(np.arange(len(data)), [len(part) for part in data])
        rows = np.concatenate([np.arange(len(part)) for part in data])
        targets = np.concatenate([part.targets + offset for part, offset in zip(data, offsets, strict=True)])
        halves.append(Parts(data, of, rows, targets))
    classes = tuple(c for task in tasks for c in task.classes)
    prompts = tuple(p for task in tasks for p in task.prompts)
    said = f"{len(classes)} classes of {', '.join(task.name for task in tasks)}."
    return Task(name, said, classes, prompts, halves[0], halves[1])


def halves(task: Task, name: str) -> tuple[Task, Task]:
    """Return a task with every other training sample of each class, and a second task of this name with the rest.

    Both have all test data: the second asks them once more.
    """
    targets = task.train.targets
    by_class = [np.flatnonzero(targets == c) for c in range(len(task.classes))]
    first, second = (np.sort(np.concatenate([rows[part::2] for rows in by_class])) for part in range(2))
    again = f"New samples of the classes of {task.name}."
    return (
        replace(task, train=picked(task.train, first, targets[first])),
        replace(task, name=name, description=again, train=picked(task.train, second, targets[second])),
    )
