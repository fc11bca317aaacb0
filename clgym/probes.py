"""Which questions tell whether a request to forget was met: erased and retained samples, asked among the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clgym.erasure import Ledger
from clgym.events import IntArray
from clgym.scenario import Task

PROBES = 200  # erased training samples of a request that are asked about, at most
CONTROL = 0.05  # share of a task's other training samples that is asked about beside them
TWINS = 1000  # held-out questions about a request that keep their full answers, at most


@dataclass(frozen=True, slots=True)
class Sets:
    """Questions about a request, by task: numbers below a task's test size are test questions, the others probes.

    Attributes:
        erased: Probes: training samples of the request.
        unseen: Test questions of its scope.
        retained: Probes: training samples of no request.
        tested: Test questions of the tasks learned by its service that no request served until then concerns.
        twins: Test questions of classes that it has training samples of, held out from the same distribution.
    """

    erased: tuple[IntArray, ...]
    unseen: tuple[IntArray, ...]
    retained: tuple[IntArray, ...]
    tested: tuple[IntArray, ...]
    twins: tuple[IntArray, ...]


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
            free = ledger.drawn[t].copy()
            for request in ledger.requests:
                if request.train:
                    free[request.train[t]] = False
            count = round(CONTROL * len(task.train)) if ledger.requests else 0
            self._control.append(np.sort(rng.permutation(np.flatnonzero(free))[:count]))
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
        ledger, after = self._ledger, self._ledger.services[self._ledger.served(r)].after
        erased = tuple(self._probes(t, rows) for t, rows in enumerate(self._erased[r]))
        control = tuple(self._probes(t, rows) if t < after else _NONE for t, rows in enumerate(self._control))
        unseen = tuple(self._test(t, self._scope(r, t)) for t in range(len(self._tasks)))
        past = [other for other in range(len(ledger.requests)) if ledger.served(other) <= ledger.served(r)]
        tested, twins = [], []
        taken = ledger.taken(r)
        for t, task in enumerate(self._tasks):
            everything = np.arange(len(task.test))
            if t >= after:
                tested.append(_NONE)
                twins.append(_NONE)
                continue
            concerned = np.unique(np.concatenate([self._scope(other, t) for other in past]))
            tested.append(self._test(t, np.setdiff1d(everything, concerned)))
            alike = np.isin(task.test.targets, np.unique(task.train.targets[taken[t]]))
            twins.append(np.setdiff1d(np.flatnonzero(alike), self._scope(r, t)))
        drawn = self._capped(twins, TWINS, np.random.default_rng([self._entropy, 10, r]))
        return Sets(erased, unseen, control, tuple(tested), tuple(self._test(t, rows) for t, rows in enumerate(drawn)))

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
