"""The stream as it would have been without some of its samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from clgym.events import Event, TaskEnd, TaskStart, Train


def without(events: Sequence[Event], ids: Iterable[int]) -> list[Event]:
    """Return task starts, batches and task ends as if some samples had never come.

    Batches shrink and keep their order; empty ones are left out. A class of which a task has no sample left is no class
    of that task, and a task of which no sample is left does not take place.

    Args:
        events: ``TaskStart``, ``Train`` and ``TaskEnd`` events as they came; other events are left out.
        ids: Samples that never came.

    Example:
        >>> start = TaskStart(0, "pets", "", ("cat", "dog"), (("a cat",), ("a dog",)), 3, 2)
        >>> batch = Train(("mew", "wuff"), np.array([0, 1]), np.array([5, 6]))
        >>> end = Train(("miau",), np.array([0]), np.array([7]))
        >>> start, one = without([start, batch, end, TaskEnd(0)], [5, 7])[:2]
        >>> start.classes, start.samples, start.steps, one.inputs, one.targets.tolist()
        (('dog',), 1, 1, ('wuff',), [0])
    """
    gone = np.fromiter(ids, np.int64)
    out: list[Event] = []
    task: list[Event] = []
    for event in events:
        if isinstance(event, TaskStart | Train | TaskEnd):
            task.append(event)
        if isinstance(event, TaskEnd):
            out += _task(task, gone)
            task = []
    return out + _task(task, gone)


def _task(events: Sequence[Event], gone: np.ndarray) -> list[Event]:
    """Return the events of one task, or of its part so far, without samples."""
    kept: list[Event] = []
    ids: set[int] = set()
    classes: set[int] = set()
    steps = 0
    for event in events:
        if isinstance(event, Train):
            shrunk = shrink(event, ~np.isin(event.ids, gone))
            if not len(shrunk.ids):
                continue
            event, steps = shrunk, steps + 1
            ids |= set(shrunk.ids.tolist())
            classes |= set(np.asarray(shrunk.targets).tolist())
        kept.append(event)
    if not steps:
        return []
    numbers = sorted(classes)
    place = np.full(max(numbers) + 1, -1)
    place[numbers] = np.arange(len(numbers))
    return [_renumbered(event, numbers, place, len(ids), steps) for event in kept]


def shrink(event: Train, kept: np.ndarray) -> Train:
    """Return the samples of a batch where ``kept``, bool ``(B,)``, holds; fresh arrays."""
    rows = np.flatnonzero(kept)
    inputs = event.inputs[rows] if isinstance(event.inputs, np.ndarray) else tuple(event.inputs[i] for i in rows)
    assert isinstance(event.targets, np.ndarray)
    return Train(inputs, event.targets[rows], event.ids[rows])


def _renumbered(event: Event, numbers: Sequence[int], place: np.ndarray, samples: int, steps: int) -> Event:
    if isinstance(event, Train):
        assert isinstance(event.targets, np.ndarray)
        return replace(event, targets=place[event.targets])
    if isinstance(event, TaskStart):
        classes, prompts = tuple(event.classes[i] for i in numbers), tuple(event.prompts[i] for i in numbers)
        noted = tuple(name for name in event.temporary if name in classes)
        return replace(event, classes=classes, prompts=prompts, samples=samples, steps=steps, temporary=noted)
    return event
