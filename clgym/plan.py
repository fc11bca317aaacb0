"""The order of a stream's events, addressable by position, so that a stream can be resumed anywhere."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from clgym.events import IntArray
from clgym.scenario import Teaching


class Step(NamedTuple):
    """One event to be: its kind, the task it belongs to, and which part of that task's data it shows.

    Attributes:
        kind: ``"ask"`` is a question about training data, prequential; ``"query"`` about test data; ``"request"``,
            ``"erase"`` and ``"erased"`` are those of a :class:`Service`.
        task: Task, from 0; -1 for the start and the end of a stream without boundaries.
        batch: Number of the training batch within the task (``"train"``, ``"ask"``), of the event within its phase
            (``"erase"``), or of the request (``"request"``, ``"erased"``).
        point: Evaluation point (``"query"``).
        start: First question (``"query"``).
        stop: One past the last question (``"query"``).
        service: Number of the service (``"request"``, ``"erase"``, ``"erased"``).
    """

    kind: Literal["start", "train", "ask", "end", "query", "request", "erase", "erased", "over"]
    task: int = -1
    batch: int = 0
    point: int = -1
    start: int = 0
    stop: int = 0
    service: int = -1


@dataclass(frozen=True, slots=True)
class Service:
    """Requests that come or are met together, at a task's boundary.

    Attributes:
        after: Tasks learned.
        opens: Requests that come.
        closes: Requests that are met, with a round of questions after them.
        steps: ``Erase`` events.
    """

    after: int
    opens: tuple[int, ...]
    closes: tuple[int, ...]
    steps: int = 0


@dataclass(frozen=True, slots=True)
class Point:
    """When an evaluation takes place.

    Attributes:
        after: Tasks finished so far; row of ``R``.
        step: ``Train`` events of the running task so far; 0 at a task boundary.
        service: Service that it follows; -1 for none.
    """

    after: int
    step: int = 0
    service: int = -1

    @property
    def is_row(self) -> bool:
        """Whether it is a row of ``R``."""
        return self.step == 0 and self.service < 0


@dataclass(frozen=True, slots=True)
class Plan:
    """All steps of a stream and its evaluation points.

    Attributes:
        steps: The events to be, in order.
        points: The evaluation points.
        train_steps: ``Train`` events per task.
        ends: For each task the number of steps up to its last ``Train``.
    """

    steps: tuple[Step, ...]
    points: tuple[Point, ...]
    train_steps: tuple[int, ...]
    ends: tuple[int, ...]


def plan(
    train_sizes: Sequence[int],
    test_sizes: Sequence[int],
    teaching: Teaching,
    *,
    batches: Sequence[Sequence[int]] | None = None,
    services: Sequence[Service] = (),
    probes: Sequence[int] = (),
    absent: Container[int] = (),
) -> Plan:
    """Lay out a stream: every task asked before training, then each task taught and every task asked again.

    With ``labels="seen"`` tasks are asked from their own end on, so nothing is asked at the first point. With
    hidden boundaries the stream starts once and ends once, after its last batch and before the last questions.

    Args:
        train_sizes: Training samples per task.
        test_sizes: Test samples per task.
        teaching: The protocol's constants.
        batches: Numbers of the training batches that are shown, per task; a task without any does not take place.
            ``None``: all.
        services: Requests to forget, in order.
        probes: Questions per task about its training data, asked with the others once the task is learned.
        absent: Requests of which no event is shown; the questions after them are asked all the same.
    """
    laid = _Layout(test_sizes, teaching, probes)
    count = len(train_sizes)
    hidden, seen = teaching.boundaries == "hidden", teaching.labels == "seen"
    shown = batches or [range(train_length(n, teaching)) for n in train_sizes]
    laid.ask(Point(0), range(0 if seen else count))
    ends = []
    for t, numbers in enumerate(shown):
        if numbers and not (hidden and t):
            laid.steps.append(Step("start", -1 if hidden else t))
        laid.teach(t, numbers)
        ends.append(len(laid.steps))
        if t + 1 == count if hidden else numbers:
            laid.steps.append(Step("end", -1 if hidden else t))
        asked = range(t + 1 if seen else count)
        laid.ask(Point(t + 1), asked)
        for number, service in enumerate(services):
            if service.after == t + 1:
                laid.serve(number, service, absent)
                if service.closes:
                    laid.ask(Point(t + 1, service=number), asked)
    laid.steps.append(Step("over"))
    return Plan(tuple(laid.steps), tuple(laid.points), tuple(map(len, shown)), tuple(ends))


class _Layout:
    """The steps and points laid out so far."""

    def __init__(self, test_sizes: Sequence[int], teaching: Teaching, probes: Sequence[int]) -> None:
        self.steps: list[Step] = []
        self.points: list[Point] = []
        self._tests, self._teaching, self._probes = test_sizes, teaching, probes

    def ask(self, point: Point, tasks: range, size: int | None = None) -> None:
        """Ask about tasks, in full or ``size`` questions each."""
        width = self._teaching.query_size
        for j in tasks:
            n = self._tests[j] if size is None else min(size, self._tests[j])
            if size is None and self._probes and j < point.after:
                n += self._probes[j]
            for start in range(0, n, width):
                self.steps.append(Step("query", j, 0, len(self.points), start, min(start + width, n)))
        self.points.append(point)

    def teach(self, t: int, batches: Sequence[int]) -> None:
        """Show the batches of a task, with the questions before and between them."""
        every = self._teaching.probe_every
        for step, k in enumerate(batches, 1):
            if self._teaching.prequential:
                self.steps.append(Step("ask", t, k))
            self.steps.append(Step("train", t, k))
            if every and step % every == 0 and step < len(batches):
                self.ask(Point(t, step), range(t + 1), self._teaching.probe_size)

    def serve(self, number: int, service: Service, absent: Container[int]) -> None:
        """Show the events of requests."""
        opens, closes = ([r for r in group if r not in absent] for group in (service.opens, service.closes))
        self.steps += [Step("request", batch=r, service=number) for r in opens]
        self.steps += [Step("erase", batch=k, service=number) for k in range(service.steps)]
        self.steps += [Step("erased", batch=r, service=number) for r in closes]


def train_length(samples: int, teaching: Teaching) -> int:
    """Return the number of ``Train`` events of a task with so many samples.

    >>> [train_length(n, Teaching(batch_size=4, passes=2)) for n in (4, 5, 9)]
    [2, 4, 6]
    """
    return teaching.steps or teaching.passes * -(-samples // teaching.batch_size)


def batch_index(samples: int, batch: int, teaching: Teaching, entropy: Sequence[int]) -> IntArray:
    """Return which samples training batch ``batch`` of a task holds, int64 ``(B,)``.

    Passes are fresh permutations laid end to end. With ``teaching.steps`` every batch is full and may
    span two passes; otherwise a pass ends with what is left.

    Args:
        samples: Training samples of the task.
        batch: Number of the batch within the task.
        teaching: The protocol's constants.
        entropy: Integers that fix the permutations: lifetime and task.
    """
    size = teaching.batch_size
    if teaching.steps:
        first, last = batch * size // samples, ((batch + 1) * size - 1) // samples
        runs = [_permutation(samples, *entropy, number) for number in range(first, last + 1)]
        start = batch * size - first * samples
        return (runs[0] if first == last else np.concatenate(runs))[start : start + size]
    number, within = divmod(batch, -(-samples // size))
    return _permutation(samples, *entropy, number)[within * size : (within + 1) * size]


@lru_cache(maxsize=4)
def _permutation(samples: int, *entropy: int) -> IntArray:
    """Return the order of one pass; the batches of a pass come one after another, hence the cache."""
    order = np.random.default_rng(entropy).permutation(samples)
    order.flags.writeable = False
    return order
