"""Requests to forget within a stream: whom they concern, when they are served, and what may be read for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from clgym.boxes import Boxed, holds, labels_of
from clgym.errors import SettingError
from clgym.events import Boxes, Erase, EraseRequest, IntArray, Train
from clgym.labels import LabelSpace
from clgym.parts import Parts
from clgym.plan import Service, Step, batch_index, train_length
from clgym.scenario import Request, Task, Teaching
from clgym.seeds import Entropies

BoolArray = npt.NDArray[np.bool_]
NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Grant:
    """Samples that a phase brings, as one set whose labels index the classes met so far.

    Attributes:
        data: The samples.
        ids: Their ids, int64 ``(n,)``.
        teaching: How they are cut into batches.
    """

    data: Parts
    ids: IntArray
    teaching: Teaching


class Ledger:
    """The requests of one lifetime: which samples each one takes away and when, and what each phase may read.

    Samples are known by task and row. Everything follows from the arguments, so that a stream can be resumed anywhere.

    Args:
        tasks: The tasks in the order they are learned.
        requests: What must be forgotten, in order.
        space: The stream's classes.
        ids: For each task the ids of its training samples.
        teaching: The protocol's constants.
        drawn: What the lifetime's generators start from.
        absent: Requests whose samples never come, nor they themselves: the counterfactual stream.

    Raises:
        SettingError: A request comes before the first task is learned or is due after the last, boundaries are hidden,
            or the numbers in ``absent`` are not requests to forget.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        requests: Sequence[Request],
        space: LabelSpace,
        ids: Sequence[IntArray],
        teaching: Teaching,
        drawn: Entropies,
        absent: Sequence[int] = (),
    ) -> None:
        """Work out when every sample goes."""
        self._tasks, self.requests, self._space, self._ids = tuple(tasks), tuple(requests), space, tuple(ids)
        self._teaching, self._drawn = teaching, drawn
        self._check(absent)
        again = {r for r, request in enumerate(self.requests) if request.kind == "relearn"}
        # Who never was asked to forget cannot be asked to take up again.
        self.absent = frozenset(absent) | (again if absent else frozenset())
        self._never = [np.zeros(len(task.train), bool) for task in tasks]
        for r in absent:
            for t, rows in enumerate(self.requests[r].train):
                self._never[t][rows] = True
        self._plain_services = self._scheduled()
        self._gone = self._departures()
        self.services = tuple(replace(s, steps=self._length(s)) for s in self._plain_services)

    def _check(self, absent: Sequence[int]) -> None:
        if self.requests and self._teaching.boundaries == "hidden":
            raise SettingError(
                "Expected boundaries='given' in a stream with requests to forget, which come at boundaries; got "
                "'hidden'. Leave one of them out."
            )
        for r, request in enumerate(self.requests):
            if not 1 <= request.after <= request.after + request.delay <= len(self._tasks):
                raise SettingError(
                    f"Expected request {r} to come and be served after 1 to {len(self._tasks)} tasks; got "
                    f"{request.after} and {request.after + request.delay}. Change its time or its delay."
                )
        known = [r for r, request in enumerate(self.requests) if request.kind != "relearn"]
        if not set(absent) <= set(known):
            raise SettingError(
                f"Expected numbers of requests to forget, among {known}; got {list(absent)}. Choose some of these."
            )

    def _scheduled(self) -> tuple[Service, ...]:
        """Return the services of every boundary: first those that are due, then those that come."""
        out = []
        for after in range(1, len(self._tasks) + 1):
            late = [r for r, q in enumerate(self.requests) if q.delay and q.after + q.delay == after]
            if late:
                out.append(Service(after, (), tuple(late)))
            for r, request in enumerate(self.requests):
                if request.after == after:
                    out.append(Service(after, (r,), () if request.delay else (r,)))
        return tuple(out)

    def _departures(self) -> list[IntArray]:
        """Return for each task the service that takes each training sample away, ``NEVER`` for none."""
        gone = [np.full(len(task.train), NEVER) for task in self._tasks]
        for number, service in enumerate(self._plain_services):
            for r in service.closes:
                for t, rows in enumerate(self.requests[r].train):
                    gone[t][rows] = np.minimum(gone[t][rows], number)
        return gone

    def served(self, r: int) -> int:
        """Return the number of the service that meets a request."""
        return next(number for number, service in enumerate(self._plain_services) if r in service.closes)

    @cached_property
    def kept(self) -> tuple[BoolArray | None, ...]:
        """Return for each task which training samples are shown, bool ``(n,)``; ``None`` where all are."""
        out = []
        for t, task in enumerate(self._tasks):
            past = [number for number, service in enumerate(self._plain_services) if service.after <= t]
            away = self._never[t] | np.isin(self._gone[t], past)
            out.append(~away if away.any() else None)
            assert len(away) == len(task.train)
        return tuple(out)

    def batch(self, t: int, number: int) -> IntArray:
        """Return the rows of a training batch of task ``t``, int64 ``(B,)``, without those that stay away."""
        index = batch_index(len(self._tasks[t].train), number, self._teaching, self._drawn.batches(t))
        kept = self.kept[t]
        return index if kept is None else index[kept[index]]

    @cached_property
    def batches(self) -> tuple[tuple[int, ...], ...]:
        """Return for each task the numbers of its training batches that are not empty."""
        out = []
        for t, task in enumerate(self._tasks):
            numbers = range(train_length(len(task.train), self._teaching))
            out.append(tuple(k for k in numbers if self.kept[t] is None or len(self.batch(t, k))))
        return tuple(out)

    @cached_property
    def classes(self) -> tuple[IntArray | None, ...]:
        """Return for each task the labels of which samples are shown, int64 ascending; ``None`` where all are."""
        return tuple(
            None if kept is None else labels_of(task.train, kept)
            for task, kept in zip(self._tasks, self.kept, strict=True)
        )

    def samples(self, t: int) -> int:
        """Return the number of training samples of task ``t`` that are shown."""
        kept = self.kept[t]
        return len(self._tasks[t].train) if kept is None else int(kept.sum())

    @cached_property
    def drawn(self) -> tuple[BoolArray, ...]:
        """Return for each task which samples its batches hold, those that stay away too, bool ``(n,)``."""
        out = []
        for t, task in enumerate(self._tasks):
            drawn = np.zeros(len(task.train), bool)
            for k in range(train_length(len(drawn), self._teaching)):
                drawn[batch_index(len(drawn), k, self._teaching, self._drawn.batches(t))] = True
            out.append(drawn)
        return tuple(out)

    def _shown(self, t: int) -> BoolArray:
        """Return which training samples of task ``t`` are shown, bool ``(n,)``."""
        kept = self.kept[t]
        return self.drawn[t] if kept is None else self.drawn[t] & kept

    def live(self, t: int, number: int) -> BoolArray:
        """Return which training samples of a learned task were shown and not yet gone when a service begins."""
        return self._shown(t) & (self._gone[t] >= number)

    def taken(self, r: int) -> tuple[IntArray, ...]:
        """Return for each task the training samples that request ``r`` takes away after they were shown, ascending.

        Those of the counterfactual stream are those of the factual one.
        """
        q, number = self.requests[r], self.served(r)
        out = []
        for t, task in enumerate(self._tasks):
            gone = _mask(q, t, len(task.train)) & self.drawn[t] & (self._gone[t] == number)
            out.append(np.flatnonzero(gone) if t < q.after + q.delay else np.empty(0, np.int64))
        return tuple(out)

    def ids_of(self, r: int) -> IntArray:
        """Return the ids that a request names: shown by then and in scope, gone or not, int64 ascending."""
        request = self.requests[r]
        named = [
            self._ids[t][rows[self._shown(t)[rows]]]
            for t, rows in enumerate(request.train)
            if t < request.after and len(rows)
        ]
        beyond = sum(map(len, self._ids)) + np.arange(request.unknown)
        return np.sort(np.concatenate([*named, beyond])).astype(np.int64)

    def request(self, r: int, deadline: int) -> EraseRequest:
        """Return the event that opens request ``r``."""
        q, ids = self.requests[r], self.ids_of(r)
        scope = tuple(map(str, ids.tolist())) if q.kind == "sample" else q.scope
        return EraseRequest(
            r, q.kind, scope, ids, q.classes, q.goal, q.notice, q.forget, q.retain, q.shots, q.missing,
            self._budget(r), deadline,
        )  # fmt: skip

    def _budget(self, r: int) -> int:
        """Return the ``Erase`` events of a request: none if nothing is left to forget, or nothing may be read."""
        q, number = self.requests[r], self.served(r)
        reads = q.forget != "none" or q.retain in ("few", "full")
        left = any(self.live(t, number)[rows].any() for t, rows in enumerate(q.train) if t < q.after + q.delay)
        return q.steps if reads and left else 0

    def _length(self, service: Service) -> int:
        return sum(self._budget(r) for r in service.closes if r not in self.absent)

    @lru_cache(maxsize=4)  # noqa: B019 - a ledger lives as long as its lifetime
    def grants(self, number: int) -> tuple[Grant | None, Grant | None]:
        """Return what the phase of a service brings to forget and to retain."""
        service = self.services[number]
        asked = [self.requests[r] for r in service.closes if r not in self.absent and self._budget(r)]
        forget = [np.zeros(len(task.train), bool) for task in self._tasks]
        retain = [np.zeros(len(task.train), bool) for task in self._tasks]
        for order, q in enumerate(asked):
            rng = np.random.default_rng([self._drawn.order, 5, number, order])
            scope = [_mask(q, t, len(task.train)) for t, task in enumerate(self._tasks)]
            left = [self.live(t, number) for t in range(service.after)]
            if q.forget != "none":
                self._add(forget, [alive & scope[t] for t, alive in enumerate(left)], q, "forget", rng)
            if q.retain in ("few", "full"):
                self._add(
                    retain, [alive & ~scope[t] & self._given(q, t) for t, alive in enumerate(left)], q, "retain", rng
                )
        for q in asked:  # what another request of the phase takes away is not retained
            for t in range(service.after):
                retain[t] &= ~_mask(q, t, len(retain[t]))
        size = max((q.batch_size for q in asked), default=0) or self._teaching.batch_size
        return self._grant(forget, service, size), self._grant(retain, service, size)

    def _given(self, q: Request, t: int) -> BoolArray:
        """Return which training samples are of classes that are not missing."""
        task = self._tasks[t]
        return ~holds(task.train, [c for c, name in enumerate(task.classes) if name in q.missing])

    def _add(
        self, chosen: list[BoolArray], pool: list[BoolArray], q: Request, part: str, rng: np.random.Generator
    ) -> None:
        """Mark the samples of a pool that a request may ``"forget"`` or ``"retain"``: all, or some per class."""
        if getattr(q, part) == "full":
            for t, rows in enumerate(pool):
                chosen[t] |= rows
            return
        of = np.concatenate([np.full(int(rows.sum()), t) for t, rows in enumerate(pool)])
        at = np.concatenate([np.flatnonzero(rows) for rows in pool])
        for group in self._by_class(pool, q.classes if part == "forget" else ()):
            for i in rng.permutation(group)[: q.shots]:
                chosen[of[i]][at[i]] = True

    def _by_class(self, pool: list[BoolArray], names: Sequence[str]) -> Iterator[IntArray]:
        """Yield for each class which samples of a pool are of it, or have an object of it.

        Args:
            pool: For each task which samples there are.
            names: Of pictures with objects, the classes; none is all.
        """
        if not isinstance(self._tasks[0].train, Boxed):
            labels = [self._space.merged(t, self._tasks[t].train.targets[rows]) for t, rows in enumerate(pool)]
            merged = np.concatenate(labels)
            yield from (np.flatnonzero(merged == c) for c in np.unique(merged))
            return
        for name in names or self._space.met(len(pool))[0]:
            parts = [
                holds(task.train, [c for c, own in enumerate(task.classes) if own == name])[rows]
                for task, rows in zip(self._tasks, pool, strict=False)
            ]
            yield np.flatnonzero(np.concatenate(parts))

    def _grant(self, chosen: list[BoolArray], service: Service, size: int) -> Grant | None:
        of = np.concatenate([np.full(int(rows.sum()), t) for t, rows in enumerate(chosen)])
        if not len(of):
            return None
        at = np.concatenate([np.flatnonzero(rows) for rows in chosen])
        labels = np.concatenate(
            [self._space.merged(t, self._tasks[t].train.targets[rows]) for t, rows in enumerate(chosen)]
        )
        ids = np.concatenate([self._ids[t][rows] for t, rows in enumerate(chosen)])
        data = Parts([task.train for task in self._tasks], of, at, labels)
        return Grant(data, ids, Teaching(batch_size=min(size, len(of)), steps=service.steps))

    def erase(self, number: int, k: int) -> Erase:
        """Return event ``k`` of the phase of a service."""
        service = self.services[number]
        classes, prompts = self._space.met(service.after)
        open_ = tuple(r for r in service.closes if r not in self.absent)
        brought: list[Train | None] = []
        for part, grant in enumerate(self.grants(number)):
            if grant is None:
                brought.append(None)
                continue
            index = self._index(number, part, k)
            rng = np.random.default_rng([self._drawn.data, 7, number, part, k]) if grant.data.decodes else None
            targets = self._targets(service, grant, index, hide_others=part == 0)
            brought.append(Train(grant.data.batch(index, rng), targets, grant.ids[index]))
        return Erase(open_, classes, prompts, brought[0], brought[1], k, service.steps)

    def _targets(self, service: Service, grant: Grant, index: IntArray, *, hide_others: bool) -> IntArray | Boxes:
        """Return labels; or boxes, with ``hide_others`` only those of what must go."""
        if not isinstance(self._tasks[0].train, Boxed):
            return grant.data.targets[index]
        gone = [name for r in service.closes if r not in self.absent for name in self.requests[r].classes]
        numbers = [self._space.merged(t, np.arange(len(task.classes))) for t, task in enumerate(self._tasks)]
        if hide_others:
            numbers = [
                np.where(np.isin(task.classes, gone), called, -1)
                for task, called in zip(self._tasks, numbers, strict=True)
            ]
        return grant.data.boxes(index, numbers)

    def _index(self, number: int, part: int, k: int) -> IntArray:
        """Return which of the granted samples event ``k`` of a phase brings."""
        grant = self.grants(number)[part]
        assert grant is not None
        return batch_index(len(grant.ids), k, grant.teaching, (self._drawn.data, 6, number, part))

    def reads(self, steps: Sequence[Step]) -> list[dict[str, int]]:
        """Return what each service's phase has brought in these steps: samples, and how many different ones."""
        out = []
        for number in range(len(self.services)):
            count = sum(step.kind == "erase" and step.service == number for step in steps)
            read = {"events": count}
            for part, name in enumerate(("forget", "retain")):
                grant = self.grants(number)[part] if count else None
                index = np.concatenate([self._index(number, part, k) for k in range(count)]) if grant else _NONE
                read |= {f"{name}_reads": len(index), f"{name}_samples": len(np.unique(index))}
            out.append(read)
        return out

    def revoked(self, steps: Sequence[Step]) -> dict[int, int]:
        """Return the ids that are gone after these steps, each with the request that took it away."""
        gone: dict[int, int] = {}
        for r in (step.batch for step in steps if step.kind == "erased"):
            gone |= {id: gone.get(id, r) for id in self.ids_of(r).tolist()}
        return gone

    def described(self) -> list[object]:
        """Return the requests as JSON values, for a fingerprint."""
        return [
            {
                field.name: [part.tolist() for part in value]
                if field.name in ("train", "test", "atypical", "groups")
                else value
                for field in fields(q)
                for value in [getattr(q, field.name)]
            }
            for q in self.requests
        ]


_NONE: IntArray = np.empty(0, np.int64)


def _mask(request: Request, t: int, size: int) -> BoolArray:
    """Return which training samples of task ``t`` a request concerns, bool ``(size,)``."""
    mask = np.zeros(size, bool)
    if request.train:
        mask[request.train[t]] = True
    return mask
