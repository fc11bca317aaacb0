"""Which classes may be answered when, what a label is called among them, and names that tell domains apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from clgym.errors import SourceError
from clgym.events import IntArray
from clgym.scenario import Task, Teaching

Names = tuple[str, ...]
Prompts = tuple[tuple[str, ...], ...]
Shown = tuple[Names, Prompts]


class LabelSpace:
    """The classes of a stream, each name once in the order of the stream, and what of them is shown at each moment.

    Where a name occurs in several tasks and candidates come from several tasks, it is one class, with the
    prompts of its first task. Everything is laid out once, so that showing an event costs nothing.

    Args:
        tasks: The tasks in the order they are learned.
        teaching: The protocol's constants.

    Example:
        >>> from types import SimpleNamespace as Some
        >>> def task(*classes):
        ...     return Some(classes=classes, prompts=tuple((c,) for c in classes), own=0)
        >>> space = LabelSpace([task("cat", "dog"), task("dog", "eel")], Teaching(labels="seen"))
        >>> space.candidates(0, 1, taught=False)[0], space.candidates(0, 2, taught=False)[0]
        (('cat', 'dog'), ('cat', 'dog', 'eel'))
        >>> space.labels(1, np.array([0, 1])).tolist()
        [1, 2]
    """

    def __init__(self, tasks: Sequence[Task], teaching: Teaching) -> None:
        """Merge the classes by name."""
        self._labels, self._hidden = teaching.labels, teaching.boundaries == "hidden"
        prompts: dict[str, tuple[str, ...]] = {}
        known = []
        for task in tasks:
            for name, texts in zip(task.classes, task.prompts, strict=True):
                prompts.setdefault(name, texts)
            known.append(len(prompts))
        number = {name: i for i, name in enumerate(prompts)}
        self._merged = [np.array([number[name] for name in task.classes], np.int64) for task in tasks]
        names, templates = tuple(prompts), tuple(prompts.values())
        self._seen: tuple[Shown, ...] = tuple((names[:k], templates[:k]) for k in known)
        alone = self._labels == "task"
        self._tasks: tuple[Shown, ...] = tuple(
            (task.classes, task.prompts if alone else tuple(prompts[name] for name in task.classes)) for task in tasks
        )
        own = [task.own or len(task.classes) for task in tasks]
        self._own = tuple((shown[0][:k], shown[1][:k]) for shown, k in zip(self._tasks, own, strict=True))

    def start(self, task: int) -> Shown:
        """Return the classes and prompts that a task's start names; a hidden start names all, whatever the task."""
        return self._seen[-1] if self._hidden else self._tasks[task]

    def targets(self, task: int, labels: IntArray) -> IntArray:
        """Return a task's labels as indices into what its start names."""
        moved: IntArray = self._merged[task][labels] if self._hidden else labels
        return moved

    def met(self, tasks: int) -> Shown:
        """Return the classes and prompts of the first so many tasks, each name once."""
        return self._seen[tasks - 1] if tasks else ((), ())

    def merged(self, task: int, labels: IntArray) -> IntArray:
        """Return a task's labels as indices into :meth:`met`, whatever the candidates are."""
        moved: IntArray = self._merged[task][labels]
        return moved

    def candidates(self, task: int, met: int, *, taught: bool) -> Shown:
        """Return the candidates and prompts of a question.

        Args:
            task: Task that the question is about.
            met: Number of tasks learned or begun so far.
            taught: Whether the question is about a training batch, which may hold classes of other tasks.
        """
        if self._labels == "task":
            return (self._tasks if taught else self._own)[task]
        return self._seen[met - 1 if self._labels == "seen" else -1]

    def labels(self, task: int, labels: IntArray) -> IntArray:
        """Return a task's labels as indices into the candidates of any question about it."""
        moved: IntArray = labels if self._labels == "task" else self._merged[task][labels]
        return moved


def distinct(tasks: Sequence[Task], words: Mapping[str, str]) -> list[Task]:
    """Return the tasks with class names that differ between them, capitals aside.

    Args:
        tasks: The domains.
        words: For a domain, by name, what it appends to the class names that it shares with another.

    Raises:
        SourceError: Names are shared, and a domain that has one has no word.
    """
    shared = _shared(tasks)
    renamed = [_appended(task, words[task.name], frozenset(shared)) if task.name in words else task for task in tasks]
    if left := _shared(renamed):
        some = "; ".join(f"{name!r} in {' and '.join(of)}" for name, of in list(left.items())[:5])
        raise SourceError(
            f"Expected class names that differ between domains; got {len(left)} shared: {some}. "
            "Rename the class in all but one domain, such as 'crane bird' for 'crane'."
        )
    return renamed


def _shared(tasks: Sequence[Task]) -> dict[str, list[str]]:
    """Return the class names in lower case that several tasks have, with the tasks' names."""
    owners: dict[str, list[str]] = defaultdict(list)
    for task in tasks:
        for name in task.classes:
            owners[name.casefold()].append(task.name)
    return {name: of for name, of in owners.items() if len(of) > 1}


def _appended(task: Task, word: str, shared: frozenset[str]) -> Task:
    """Return the task with a word after each shared class name, in the prompts too unless it stands there already."""
    classes, prompts = [], []
    for name, texts in zip(task.classes, task.prompts, strict=True):
        new = f"{name} {word}" if name.casefold() in shared else name
        classes.append(new)
        prompts.append(tuple(text if new in text else text.replace(name, new, 1) for text in texts))
    return replace(task, classes=tuple(classes), prompts=tuple(prompts))
