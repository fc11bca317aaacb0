"""One lifetime of a stream: what its seed draws, and the event at each position."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from clgym.boxes import Boxed, renumbered, woven
from clgym.detection_scorer import DetectionScorer
from clgym.erasure import Ledger
from clgym.errors import ErasedError, SettingError
from clgym.events import (
    Array,
    Boxes,
    End,
    Erase,
    EraseEnd,
    Event,
    Inputs,
    IntArray,
    Query,
    TaskEnd,
    TaskStart,
    Train,
    Wants,
)
from clgym.labels import LabelSpace
from clgym.parts import Parts
from clgym.plan import Point, Step, plan
from clgym.probes import Probing
from clgym.scenario import Scenario
from clgym.scorer import Scorer
from clgym.seeds import Entropies

WORDS = {"start": "TaskStart", "train": "Train", "ask": "Query", "end": "TaskEnd", "query": "Query", "over": "End"}
WORDS |= {"request": "EraseRequest", "erase": "Erase", "erased": "EraseEnd"}


class Lifetime:
    """The tasks in order, the plan, the classes, sample ids, question order and requests that a seed draws.

    Args:
        scenario: What is played.
        entropy: Number of the lifetime.
        drawn: What its generators start from.
        absent: Requests to forget whose samples never come: the counterfactual stream.

    Raises:
        SettingError: The scenario's requests do not fit its tasks.
    """

    def __init__(self, scenario: Scenario, entropy: int, drawn: Entropies, absent: Sequence[int] = ()) -> None:
        """Draw everything."""
        self.entropy, self.drawn = entropy, drawn
        self.teaching, self.absent = scenario.teaching, tuple(sorted(absent))
        self.detects = scenario.spec.modality == "detection"
        self.told = self.teaching.task_given and self.teaching.boundaries == "given"
        rng = drawn.ordering()
        self.tasks = tuple(scenario.tasks(rng))
        sizes = [len(task.train) for task in self.tasks]
        self.ids: list[IntArray] = np.split(rng.permutation(sum(sizes)), np.cumsum(sizes)[:-1])
        # The order of questions is part of the stream, not of a lifetime: question 7 is the same for every seed.
        self.questions = tuple(np.random.default_rng(j).permutation(len(t.test)) for j, t in enumerate(self.tasks))
        self.space = LabelSpace(self.tasks, self.teaching)
        requests = tuple(scenario.requests(self.tasks, np.random.default_rng([drawn.order, 4])))
        self.ledger = Ledger(self.tasks, requests, self.space, self.ids, self.teaching, drawn, self.absent)
        self.probing = Probing(self.ledger, self.tasks, self.questions, drawn.order) if requests else None
        self.plan = plan(
            sizes,
            [len(task.test) for task in self.tasks],
            self.teaching,
            batches=self.ledger.batches,
            services=self.ledger.services,
            probes=[] if self.probing is None else [len(rows) for rows in self.probing.rows],
            absent=self.ledger.absent,
        )

    @property
    def decodes(self) -> bool:
        """Whether any input is read from a file."""
        return any(task.train.decodes or task.test.decodes for task in self.tasks)

    def labels(self) -> list[IntArray]:
        """Return for each task the labels of its questions within the candidates: of test samples, then of probes."""
        out = []
        for j, (task, order) in enumerate(zip(self.tasks, self.questions, strict=True)):
            asked = [task.test.targets[order]]
            if self.probing is not None:
                asked.append(task.train.targets[self.probing.rows[j]])
            out.append(self.space.labels(j, np.concatenate(asked)))
        return out

    def truths(self) -> list[Boxes]:
        """Return for each task the objects in its questions, as :meth:`labels` returns labels, ``(n, M, 5)``."""
        out = []
        for j, (task, order) in enumerate(zip(self.tasks, self.questions, strict=True)):
            assert isinstance(task.test, Boxed)
            assert isinstance(task.train, Boxed)
            asked = [task.test.boxes(order)]
            if self.probing is not None:
                asked.append(task.train.boxes(self.probing.rows[j]))
            ends = np.cumsum([len(part) for part in asked])
            whole = woven(asked, np.split(np.arange(ends[-1]), ends[:-1]))
            out.append(renumbered(whole, self._answered(j)))
        return out

    def scorer(self) -> Scorer | DetectionScorer:
        """Return a scorer that knows the labels, or the objects, of all questions."""
        steps, tests = self.plan.steps, [len(task.test) for task in self.tasks]
        if self.detects:
            return DetectionScorer([task.name for task in self.tasks], self.truths(), self.plan.points, tests=tests)
        return Scorer(
            [task.name for task in self.tasks],
            self.labels(),
            self.plan.points,
            sum(step.stop - step.start for step in steps),
            sum(step.kind == "ask" for step in steps),
            tests=tests,
            kept=None if self.probing is None else self.probing.kept(),
        )

    def fingerprints(self) -> dict[str, str]:
        """Return sha256 of the stream's lay-out and of its data."""
        layout: list[Any] = [
            asdict(self.teaching),
            str(self.drawn),
            [[t.name, t.classes, t.prompts, len(t.train), len(t.test)] for t in self.tasks],
        ]
        if self.ledger.requests:
            layout += [self.ledger.described(), self.absent]
        data = "".join(task.train.fingerprint() + task.test.fingerprint() for task in self.tasks)
        named = {"stream": json.dumps(layout), "data": data}
        return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in named.items()}

    def describe(self, rewards: Array) -> dict[str, Array]:
        """Return the columns of ``events.parquet``: one row per event, with the reward of the act upon it."""
        steps = self.plan.steps
        return {
            "position": np.arange(len(steps), dtype=np.int32),
            "kind": np.array([WORDS[step.kind] for step in steps]),
            "task": np.array([step.task for step in steps], np.int16),
            "point": np.array([step.point for step in steps], np.int32),
            "reward": np.append(rewards, 0.0).astype(np.float64),
        }

    def event(self, position: int, read: Callable[[int], Any]) -> Event:
        """Return the event at a position.

        Args:
            position: Number of events before it.
            read: Returns what :meth:`read` does, ahead of time if it can.
        """
        step = self.plan.steps[position]
        t = step.task
        shown = t if self.told else None
        match step.kind:
            case "over":
                return End()
            case "end":
                return TaskEnd(shown)
            case "start":
                return self._task_start(t)
            case "request":
                return self.ledger.request(step.batch, self._deadline(position, step.batch))
            case "erased":
                return EraseEnd(step.batch)
            case "erase":
                erase: Erase = read(position)
                return erase
            case "train":
                index = self.ledger.batch(t, step.batch)
                return Train(read(position), self._targets(t, index), self.ids[t][index])
        point = self.plan.points[step.point] if step.kind == "query" else None
        met = t + 1 if point is None else point.after + (point.step > 0)
        names, prompts = self.space.candidates(t, met, taught=point is None)
        wants: Wants = "boxes" if self.detects else "scores" if self.teaching.needs_scores else "labels"
        return Query(read(position), names, prompts, wants, shown)

    def _deadline(self, position: int, request: int) -> int:
        """Return the events between a request and its phase."""
        service = self.ledger.served(request)
        for later in range(position + 1, len(self.plan.steps)):
            step = self.plan.steps[later]
            if step.service == service and step.kind in ("erase", "erased"):
                return later - position - 1
        raise AssertionError("every request is closed")

    def _task_start(self, t: int) -> TaskStart:
        """Return the start of a task, or with ``t = -1`` that of the whole stream."""
        classes, prompts = self.space.start(t)
        if t < 0:
            samples = sum(len(task.train) for task in self.tasks)
            return TaskStart(None, "", "", classes, prompts, samples, sum(self.plan.train_steps))
        left = self.ledger.classes[t]
        if left is not None:
            classes, prompts = tuple(classes[c] for c in left), tuple(prompts[c] for c in left)
        task, steps, samples = self.tasks[t], self.plan.train_steps[t], self.ledger.samples(t)
        noted = tuple(name for name in task.temporary if name in classes)
        if not self.told:
            return TaskStart(None, "", "", classes, prompts, samples, steps, noted)
        return TaskStart(t, task.name, task.description, classes, prompts, samples, steps, noted)

    def _targets(self, t: int, index: IntArray) -> IntArray | Boxes:
        """Return labels or boxes of samples of task ``t``, with indices into what its start names."""
        data, left = self.tasks[t].train, self.ledger.classes[t]

        def told(labels: IntArray) -> IntArray:
            return self.space.targets(t, labels) if left is None else np.searchsorted(left, labels)

        if self.detects and isinstance(data, Boxed):  # in this order: asking a protocol takes 15 microseconds
            return renumbered(data.boxes(index), told(np.arange(len(self.tasks[t].classes))))
        return told(data.targets[index])

    def online_labels(self, step: Step) -> IntArray | Boxes:
        """Return the labels or boxes of a question about a training batch."""
        data, index = self.tasks[step.task].train, self.ledger.batch(step.task, step.batch)
        if self.detects and isinstance(data, Boxed):
            return renumbered(data.boxes(index), self._answered(step.task))
        return self.space.labels(step.task, data.targets[index])

    def _answered(self, t: int) -> IntArray:
        """Return what each class of task ``t`` is among the candidates of questions about it."""
        return self.space.labels(t, np.arange(len(self.tasks[t].classes)))

    def asked(self, step: Step) -> IntArray:
        """Return the numbers of the questions of a query, int64 ``(B,)``."""
        if self.probing is None:
            return np.arange(step.start, step.stop)
        point: Point = self.plan.points[step.point]
        learned = point.step == 0 and step.task < point.after
        return self.probing.order(step.point, step.task, learned)[step.start : step.stop]

    def slow(self, position: int) -> bool:
        """Whether the inputs at a position come from files."""
        step = self.plan.steps[position]
        if step.kind == "erase":
            return self.decodes
        task = self.tasks[step.task]
        return task.test.decodes or task.train.decodes if step.kind == "query" else task.train.decodes

    def read(self, position: int) -> Any:
        """Return the inputs of an event, or the whole of an ``Erase``; called ahead of time, from threads."""
        step = self.plan.steps[position]
        if step.kind == "erase":
            return self.ledger.erase(step.service, step.batch)
        task = self.tasks[step.task]
        if step.kind != "query":
            rng = self.drawn.augmentation(step.task, step.batch) if task.train.decodes else None
            return task.train.batch(self.ledger.batch(step.task, step.batch), rng)
        asked, size, order = self.asked(step), len(task.test), self.questions[step.task]
        if self.probing is None or asked.max() < size:
            return task.test.batch(order[asked])
        probe = asked >= size
        rows = np.where(probe, self.probing.rows[step.task][np.where(probe, asked - size, 0)], order[asked % size])
        return Parts([task.test, task.train], probe.astype(np.int64), rows, rows).batch(np.arange(len(rows)))

    def next_read(self, position: int) -> int | None:
        """Return the next position with inputs."""
        steps = self.plan.steps
        for later in range(position + 1, len(steps)):
            if steps[later].kind in ("train", "ask", "query", "erase"):
                return later
        return None

    def held_out(self, size: int) -> Inputs:
        """Return the inputs of the first questions of every task; see :meth:`clgym.env.ContinualEnv.held_out`."""
        share = -(-size // len(self.tasks))
        parts = [t.test.batch(order[:share]) for t, order in zip(self.tasks, self.questions, strict=True)]
        if isinstance(parts[0], tuple):
            return tuple(text for part in parts for text in part)
        return np.concatenate(parts)

    def look_up(self, ids: IntArray, position: int) -> Train:
        """Return training samples by the ids under which they were shown before a position.

        Raises:
            ErasedError: A sample was erased by then.
            SettingError: An id was not shown by then.
        """
        of = np.repeat(np.arange(len(self.tasks)), [len(part) for part in self.ids])
        rows = np.concatenate([np.arange(len(part)) for part in self.ids])
        place = {id: k for k, id in enumerate(np.concatenate(self.ids).tolist())}
        gone, shown = self.ledger.revoked(self.plan.steps[:position]), self._shown(position)
        for id in np.asarray(ids).tolist():
            if id in gone:
                raise ErasedError(
                    f"Expected ids of samples that are there; got {id}, erased by request {gone[id]}. "
                    "Ask before its EraseEnd: nothing brings a sample back."
                )
            if id not in shown:
                raise SettingError(f"Expected ids shown so far; got {id}. Train.ids and Erase.forget.ids hold them.")
        at = [place[id] for id in np.asarray(ids).tolist()]
        labels = np.concatenate([self.space.merged(t, task.train.targets) for t, task in enumerate(self.tasks)])[at]
        data, every = Parts([task.train for task in self.tasks], of[at], rows[at], labels), np.arange(len(at))
        numbers = [self.space.merged(t, np.arange(len(task.classes))) for t, task in enumerate(self.tasks)]
        targets = data.boxes(every, numbers) if self.detects else labels
        return Train(data.batch(every), targets, np.asarray(ids, np.int64))

    def _shown(self, position: int) -> set[int]:
        """Return the ids in the batches before a position."""
        shown: set[int] = set()
        for step in self.plan.steps[: position + 1]:
            if step.kind == "train":
                shown |= set(self.ids[step.task][self.ledger.batch(step.task, step.batch)].tolist())
        return shown
