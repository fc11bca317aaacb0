"""Class-incremental streams: the order of the classes, and one set of classes cut into tasks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from clgym.errors import SettingError
from clgym.events import IntArray
from clgym.parts import changed, picked
from clgym.scenario import Data, Scenario, Task, Teaching
from clgym.sources import ClassSource
from clgym.variants import Variant, not_negative
from clgym.worlds.styles import STYLES

PILOT_SEED = 1993
# The order of CIFAR-100's classes in the CLIP experiments of ZSCL and MoE-Adapters, which is iCaRL's; as released in
# JiazuoYu/MoE-Adapters4CL (99d3e61), cil/class_orders/cifar100.yaml.
ICARL = (
    *(87, 0, 52, 58, 44, 91, 68, 97, 51, 15, 94, 92, 10, 72, 49, 78, 61, 14, 8, 86, 84, 96, 18, 24, 32),
    *(45, 88, 11, 4, 67, 69, 66, 77, 47, 79, 93, 29, 50, 57, 83, 17, 81, 41, 12, 37, 59, 25, 20, 80, 73),
    *(1, 28, 6, 46, 62, 82, 53, 9, 31, 75, 38, 63, 33, 74, 27, 22, 36, 3, 16, 21, 60, 19, 70, 90, 89),
    *(43, 5, 42, 65, 76, 40, 30, 23, 85, 2, 95, 56, 48, 71, 64, 98, 13, 99, 7, 34, 55, 54, 26, 35, 39),
)
SHIFTS = ("class", "domain", "instance")
SMALL_BATCH, SMALL_PASSES = 32, 8


def class_order(rule: str, count: int, seed: int, rng: np.random.Generator) -> IntArray:
    """Return the order in which classes are learned, a permutation int64 ``(count,)``.

    Args:
        rule: ``"pilot"``: NumPy's legacy permutation of seed 1993, as in PILOT and SEMA (arXiv:2403.18886);
            ``"coda"``: Python's shuffle of ``seed``, 0 being the listed order, as in CODA-Prompt
            (arXiv:2211.13218); ``"zscl"``: that of ZSCL (arXiv:2303.06628) for 100 classes; ``"drawn"``: drawn from
            the run's seed; ``"listed"``: as the source lists them.
        count: Number of classes.
        seed: Of the rule ``"coda"``.
        rng: Of the rule ``"drawn"``.

    >>> class_order("pilot", 100, 0, np.random.default_rng(0))[:5].tolist()
    [68, 56, 78, 8, 23]
    """
    if rule == "pilot":
        return np.random.RandomState(PILOT_SEED).permutation(count).astype(np.int64)
    order = list(range(count))
    if rule == "coda" and seed:
        random.Random(seed).shuffle(order)
    if rule == "zscl":
        order = list(ICARL)
    return rng.permutation(count) if rule == "drawn" else np.array(order, dtype=np.int64)


class Increments:
    """The classes of one source as a stream of tasks, checked when it is made.

    Args:
        source: Where the classes come from.
        allowed: The paper's numbers of tasks, the usual one first.
        orders: The paper's orders, the usual one first.
        splits: Number of tasks; 0 takes the usual.
        order: Order of the classes, see :func:`class_order`; ``""`` takes the usual.
        coda_seed: Seed of the order ``"coda"``.
        shift: What changes between tasks: ``"class"``; ``"domain"``: all tasks have all classes, each in another
            style of :data:`clgym.worlds.styles.STYLES`; ``"instance"``: all tasks have all classes, in new pictures.
        tasks: Play the first so many tasks only; 0 plays all.
        first: Number of classes of the first task, in a folder half of all; 0 is as many as the others have.

    Raises:
        SettingError: A setting is out of range, or the source's tasks stand as they are.
    """

    def __init__(
        self,
        source: ClassSource,
        *,
        allowed: Sequence[int],
        orders: Sequence[str],
        splits: int = 0,
        order: str = "",
        coda_seed: int = 0,
        shift: str = "class",
        tasks: int = 0,
        first: int = 0,
    ) -> None:
        """Check the settings; nothing is loaded."""
        not_negative(splits=splits, coda_seed=coda_seed, tasks=tasks)
        if shift not in SHIFTS:
            raise SettingError(f"Expected shift as one of {_listed(SHIFTS)}; got {shift!r}. Choose one.")
        self.source, self._played, self._shift = source, tasks or None, shift
        self._seed, self.sizes = coda_seed, source.counts
        self._order = "listed"
        if source.given:
            if splits or order or coda_seed or shift != "class":
                raise SettingError(
                    f"Expected no splits, order or shift with the {len(source.counts)} tasks of {source.name}, which "
                    "stand as they are; got some. Leave them out, or move the classes into one set."
                )
            return
        (total,) = source.counts
        self._order = order or next(rule for rule in orders if rule != "zscl" or total == len(ICARL))
        _check_order(self._order, coda_seed, orders, total)
        count = splits or allowed[0]
        if first and shift != "class":
            raise SettingError(f"Expected tasks of one size with shift {shift!r}; got a first task of {first} classes.")
        if shift == "domain":
            if splits:
                raise SettingError(f"Expected no splits with shift 'domain', which has a task per style; got {splits}.")
            self.sizes = source.counts * len(STYLES)
        elif shift == "instance":
            self.sizes = source.counts * count
        else:
            if count not in allowed and not source.free:
                raise SettingError(
                    f"Expected splits as one of {_listed(allowed)}, those of the paper; got {splits}. Choose one; a "
                    "folder may be divided otherwise."
                )
            self.sizes = split_sizes(total, count, total // 2 if first and source.free else first)

    @property
    def classes(self) -> int:
        """Number of classes of all tasks that are played; a name that recurs in a folder counts again."""
        return self.sizes[0] if self._shift != "class" else sum(self.sizes[: self._played])

    def draw(self, rng: np.random.Generator) -> list[Task]:
        """Return the tasks in the order they are learned; ``rng`` draws the order ``"drawn"``."""
        loaded = list(self.source.load())
        if self.source.given:
            return loaded[: self._played]
        (task,) = loaded
        if self._shift != "class":
            names = STYLES if self._shift == "domain" else [f"part {t + 1}" for t in range(len(self.sizes))]
            return dealt(task, list(names))[: self._played]
        order = class_order(self._order, len(task.classes), self._seed, rng)
        return divided(task, order, self.sizes[: self._played])


class Incremental(Scenario):
    """Base of class-incremental streams: all classes learned so far are asked together, and no event tells the task.

    A subclass calls :meth:`set_up` in its ``__init__``.
    """

    def set_up(
        self,
        increments: Increments,
        variant: Variant,
        *,
        batch_size: int,
        passes: int,
        probe_every: int,
        prequential: bool,
    ) -> None:
        """Set what a scenario sets.

        Args:
            increments: The tasks.
            variant: How the stream departs from one that is told and sharp.
            batch_size: The paper's, for real models; for embedded ones it is :data:`SMALL_BATCH`.
            passes: The paper's passes over a task's training data, for real models; for embedded ones they are
                :data:`SMALL_PASSES`.
            probe_every: ``Train`` events between two probes inside a task; 0 is never.
            prequential: Whether every training batch is asked before it is shown.

        Raises:
            SettingError: ``probe_every`` is negative.
            SourceMissingError: The data are not on this machine.
        """
        not_negative(probe_every=probe_every)
        given = increments.source
        given.require(self.spec.id)
        self._increments, self._variant = increments, variant
        self.source, self.backbone, self.shape = given.name, given.backbone, (given.size, given.size, 3)
        self.classes = increments.classes
        small = given.backbone.startswith("embedded/")
        usual = Teaching(
            batch_size=SMALL_BATCH if small else batch_size,
            passes=SMALL_PASSES if small else passes,
            task_given=False,
            labels="seen",
            probe_every=probe_every,
            prequential=prequential,
        )
        self.teaching = variant.teach(usual)

    def tasks(self, rng: np.random.Generator) -> Sequence[Task]:
        """Return the tasks in order; ``rng`` draws the order ``"drawn"`` and what blurred boundaries exchange."""
        return self._variant.mix(self._increments.draw(rng), rng)


def _check_order(rule: str, seed: int, allowed: Sequence[str], count: int) -> None:
    """Raise unless a scenario knows the order, it fits so many classes, and the seed belongs to it."""
    if rule not in allowed:
        raise SettingError(f"Expected order as one of {_listed(allowed)}; got {rule!r}. Choose one.")
    if seed and rule != "coda":
        raise SettingError(
            f"Expected coda_seed 0 with order {rule!r}, which takes none; got {seed}. Choose order 'coda' or 0."
        )
    if rule == "zscl" and count != len(ICARL):
        raise SettingError(f"Expected {len(ICARL)} classes for order 'zscl'; got {count}. Choose another order.")


def _listed(words: Sequence[object]) -> str:
    return ", ".join(map(repr, words))


def split_sizes(count: int, splits: int, first: int = 0) -> tuple[int, ...]:
    """Return how many classes each task has: ``first`` in the first if that is not 0, the rest shared out evenly.

    Where they do not come out even, earlier tasks have one more.

    Raises:
        SettingError: A task would have fewer than two classes.

    >>> split_sizes(10, 3), split_sizes(10, 3, first=6)
    ((4, 3, 3), (6, 2, 2))
    """
    rest, tasks = count - first, splits - bool(first)
    if not 1 <= tasks <= rest // 2:
        raise SettingError(
            f"Expected at most {count // 2} tasks of {count} classes, two or more each; got {splits} tasks"
            f"{f', the first of {first} classes' if first else ''}. Choose fewer splits."
        )
    sizes = [rest // tasks + (t < rest % tasks) for t in range(tasks)]
    return (first, *sizes) if first else tuple(sizes)


def divided(task: Task, order: IntArray, sizes: Sequence[int]) -> list[Task]:
    """Return one set of classes as tasks of ``sizes`` classes each, taken in ``order``; what is left over is dropped.

    Args:
        task: The whole set.
        order: Permutation of its classes, int64 ``(C,)``.
        sizes: Classes per task.
    """
    rank = np.argsort(order)
    ends = np.cumsum([0, *sizes]).tolist()
    out = []
    for start, stop in pairwise(ends):
        classes = [int(c) for c in order[start:stop]]
        halves = []
        for data in (task.train, task.test):
            ranks = rank[data.targets]
            rows = np.flatnonzero((start <= ranks) & (ranks < stop))
            halves.append(picked(data, rows, ranks[rows] - start))
        names = tuple(task.classes[c] for c in classes)
        said = f"Classes {start + 1} to {stop} of {len(task.classes)} of {task.name}, in the order of the stream."
        prompts = tuple(task.prompts[c] for c in classes)
        out.append(Task(f"{start + 1}-{stop}", said, names, prompts, halves[0], halves[1]))
    return out


def dealt(task: Task, names: Sequence[str]) -> list[Task]:
    """Return one set of classes as tasks that all have all of its classes, and each a share of every class's samples.

    Args:
        task: The whole set.
        names: Names of the tasks; where one is a style of :data:`clgym.worlds.styles.STYLES`, the task's pictures
            are shown in it.

    Raises:
        SettingError: A class has fewer samples than there are tasks.
    """
    shares = [_shares(task, data, len(names)) for data in (task.train, task.test)]
    out = []
    for t, name in enumerate(names):
        halves: list[Data] = []
        for data, share in zip((task.train, task.test), shares, strict=True):
            rows = np.flatnonzero(share == t)
            own = picked(data, rows, data.targets[rows])
            style = STYLES.get(name)
            halves.append(own if style is None or name == "photo" else changed(own, style))
        said = f"{task.name}, part {t + 1} of {len(names)}: {name}."
        out.append(replace(task, name=name, description=said, train=halves[0], test=halves[1]))
    return out


def _shares(task: Task, data: Data, count: int) -> IntArray:
    """Deal every class's samples out in turn: return which task each is for, int64 ``(N,)``."""
    numbers = np.bincount(data.targets, minlength=len(task.classes))
    if (numbers < count).any():
        least = int(numbers.argmin())
        raise SettingError(
            f"Expected {count} images or more of every class in training and test data, one for each task; got "
            f"{numbers[least]} of {task.classes[least]!r}. Choose fewer splits, or add images."
        )
    by_class = np.argsort(data.targets, kind="stable")
    starts = np.cumsum([0, *numbers])[:-1]
    share = np.empty(len(data), np.int64)
    share[by_class] = (np.arange(len(data)) - np.repeat(starts, numbers)) % count
    return share
