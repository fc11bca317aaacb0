"""Which questions tell whether a request to forget was met: erased and retained samples, asked among the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clgym.erasure import Ledger
from clgym.events import IntArray
from clgym.scenario import Task

PROBES = 200  # erased training samples of a request that are asked about, at most
CONTROL, LEAST = 0.05, 50  # share of a task's training samples that is asked about beside them, and how many at least
TWINS = 1000  # held-out questions about a request that keep their full answers, at most


@dataclass(frozen=True, slots=True)
class Sets:
    """Questions about a request, by task: numbers below a task's test size are test questions, the others probes.

    Attributes:
        erased: Probes: training samples of the request.
        unseen: Test questions of its scope.
        retained: Probes: training samples of tasks learned by its service that no request served until then concerns.
        tested: Test questions of the tasks learned by its service that no request served until then concerns.
        twins: Test questions that are as often of each class as its erased training samples are, held out from the
            same distribution: unseen ones of an erased domain, none of an erased class or task.
        atypical: Those of ``erased`` that the scenario calls atypical, such as mislabelled.
        groups: The user of each of ``erased``; empty for other kinds.
    """

    erased: tuple[IntArray, ...]
    unseen: tuple[IntArray, ...]
    retained: tuple[IntArray, ...]
    tested: tuple[IntArray, ...]
    twins: tuple[IntArray, ...]
    atypical: tuple[IntArray, ...]
    groups: tuple[IntArray, ...]


class Probing:
    """The questions of every evaluation of a stream with requests.

    Question ``q`` of a task is test question ``q`` below its test size ``n``, and from there its probe ``q - n``: a
    training sample that is asked about as if it were new, from the task's end on.

    Args:
        ledger: The requests.
        tasks: The tasks in the order they are learned.
        questions: For each task the order of its test samples.
        entropy: Fixes all draws.
    """

    def __init__(self, ledger: Ledger, tasks: Sequence[Task], questions: Sequence[IntArray], entropy: int) -> None:
        """Choose the probes."""
        self._ledger, self._tasks, self._entropy = ledger, tuple(tasks), entropy
        self._number = [np.argsort(order) for order in questions]  # of a test sample among the questions
        self._sizes = [len(order) for order in questions]
        rng = np.random.default_rng([entropy, 8])
        self._erased = [self._capped(ledger.taken(r), PROBES, rng) for r in range(len(ledger.requests))]
        self._control = []
        for t, task in enumerate(tasks):
            count = max(round(CONTROL * len(task.train)), LEAST)
            self._control.append(np.sort(rng.permutation(np.flatnonzero(ledger.drawn[t]))[:count]))
        self.rows = tuple(
            np.unique(np.concatenate([self._control[t], *(erased[t] for erased in self._erased)])).astype(np.int64)
            for t in range(len(tasks))
        )

    @staticmethod
    def _capped(rows: Sequence[IntArray], most: int, rng: np.random.Generator) -> tuple[IntArray, ...]:
        """Return at most so many of the rows, drawn over all tasks."""
        ends = np.cumsum([len(part) for part in rows])
        chosen = np.sort(rng.permutation(int(ends[-1]))[:most])
        owner = np.searchsorted(ends, chosen, side="right")
        starts = ends - [len(part) for part in rows]
        return tuple(part[chosen[owner == t] - starts[t]] for t, part in enumerate(rows))

    def order(self, point: int, t: int, learned: bool) -> IntArray:
        """Return the questions about task ``t`` at an evaluation point in the order they are asked, int64."""
        count = self._sizes[t] + (len(self.rows[t]) if learned else 0)
        return np.random.default_rng([self._entropy, 9, point, t]).permutation(count)

    def sets(self, r: int) -> Sets:
        """Return the questions about request ``r``."""
        ledger, tasks = self._ledger, range(len(self._tasks))
        request, after = ledger.requests[r], ledger.services[ledger.served(r)].after
        past = [other for other in range(len(ledger.requests)) if ledger.served(other) <= ledger.served(r)]
        tested = []
        for t in tasks:
            concerned = np.concatenate([self._scope(other, t) for other in past])
            rest = np.setdiff1d(np.arange(len(self._tasks[t].test)), concerned)
            tested.append(self._test(t, rest if t < after else _NONE))
        odd = [np.intersect1d(self._erased[r][t], request.atypical[t]) if request.atypical else _NONE for t in tasks]
        owners = [
            request.groups[t][np.searchsorted(request.train[t], self._erased[r][t])] if request.groups else _NONE
            for t in tasks
        ]
        return Sets(
            erased=tuple(self._probes(t, self._erased[r][t]) for t in tasks),
            unseen=tuple(self._test(t, self._scope(r, t)) for t in tasks),
            retained=tuple(self._probes(t, self._staying(t, past)) if t < after else _NONE for t in tasks),
            tested=tuple(tested),
            twins=tuple(self._test(t, rows) for t, rows in enumerate(self._twins(r))),
            atypical=tuple(self._probes(t, odd[t]) for t in tasks),
            groups=tuple(owners),
        )

    def _staying(self, t: int, past: Sequence[int]) -> IntArray:
        """Return the control samples of a task that no request served until then concerns."""
        asked = [self._ledger.requests[r].train for r in past]
        return np.setdiff1d(self._control[t], np.concatenate([_NONE, *(train[t] for train in asked if train)]))

    def _twins(self, r: int) -> list[IntArray]:
        """Return for each task test rows whose classes are distributed as those of the erased samples."""
        rng = np.random.default_rng([self._entropy, 10, r])
        pools: list[list[IntArray]] = []
        counts: list[list[int]] = []
        for t, task in enumerate(self._tasks):
            labels, numbers = np.unique(task.train.targets[self._erased[r][t]], return_counts=True)
            inside = self._scope(r, t)
            domain = self._ledger.requests[r].kind == "domain"
            free = inside if domain else np.setdiff1d(np.arange(len(task.test)), inside)
            pools.append([rng.permutation(free[task.test.targets[free] == c]) for c in labels])
            counts.append(numbers.tolist())
        pairs = [pair for of in zip(pools, counts, strict=True) for pair in zip(*of, strict=True)]
        total = sum(count for _, count in pairs)
        share = min([len(pool) / count for pool, count in pairs] + [TWINS / max(total, 1)], default=0.0)
        return [
            np.sort(np.concatenate([_NONE, *(pool[: int(share * n)] for pool, n in zip(*of, strict=True))]))
            for of in zip(pools, counts, strict=True)
        ]

    def numbers(self, t: int, rows: IntArray, *, probes: bool) -> IntArray:
        """Return the questions about samples of task ``t``, ascending.

        Args:
            t: The task.
            rows: Rows of its test data, or with ``probes`` of its training data; those never asked about are left out.
            probes: Which of the two.
        """
        return self._probes(t, np.intersect1d(rows, self.rows[t])) if probes else self._test(t, rows)

    def _scope(self, r: int, t: int) -> IntArray:
        request = self._ledger.requests[r]
        return request.test[t] if request.test else _NONE

    def _test(self, t: int, rows: IntArray) -> IntArray:
        return np.sort(self._number[t][rows])

    def _probes(self, t: int, rows: IntArray) -> IntArray:
        return self._sizes[t] + np.searchsorted(self.rows[t], rows)

    def kept(self) -> list[np.ndarray]:
        """Return for each task which questions keep their full answers, bool over test questions and probes."""
        out = [np.zeros(n + len(rows), bool) for n, rows in zip(self._sizes, self.rows, strict=True)]
        for t, mask in enumerate(out):
            mask[self._sizes[t] :] = True
        for r in range(len(self._ledger.requests)):
            sets = self.sets(r)
            for t, mask in enumerate(out):
                mask[sets.unseen[t]] = mask[sets.twins[t]] = True
        return out


_NONE: IntArray = np.empty(0, np.int64)
