"""What answers cannot show: whether erased data come back, and whether the agent still keeps some of them.

An agent that hides its answers about an erased class scores as one that never saw it. Four audits look further, each
against a reference agent that never saw the data:

* **W1, relearning**: the scope is welcome again, and five samples of each class are shown over and over. How many
  steps until the accuracy is four fifths of the most that it ever was before the request? Not of what it was just
  before: a stream may have made an agent forget the scope by itself, and little is soon reached by chance.
* **W2, recovery**: one pass of the retained training data. Does the erased scope come back by itself?
* **W3, canary**: the agent's state goes through a file into a fresh agent, which must answer the same; in that file no
  id, no bytes and no feature of an erased sample may be found. Vectors like an erased class's mean are listed.
* **W4, probe**: how well a linear classifier tells the erased classes from the agent's features, where it shows any.

Where a request concerns several tasks, W1, W2 and W4 look at the one with most of its samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from clgym.agent import Agent
from clgym.backbones import load_backbone
from clgym.canary import Trace, traces
from clgym.events import Array, Erase, EraseEnd, EraseRequest, IntArray, Query, TaskEnd, TaskStart, Train, Wants
from clgym.lifetime import Lifetime
from clgym.scenario import Data

SHOTS, TARGET, BUDGET = 5, 0.8, 60  # samples per class, share of the best accuracy, and most steps of W1
RIDGE = 1e-2  # of the probe, on features of length 1
SOME = 200  # erased samples that are looked for in a state, at most
Build = Callable[[], Agent]


@dataclass(frozen=True, slots=True)
class Audit:
    """What the audits of one request came to; of a pair the second is the reference's.

    Attributes:
        request: Its number.
        best: Highest accuracy on the scope at any evaluation point before the request was met.
        relearn: Accuracy on the scope after 0, 1, 2, ... steps of relearning, until it was enough.
        recovery: Accuracy on the scope after a pass of retained data.
        traces: What the state held of erased samples.
        same: Whether a fresh agent with that state answers the same.
        probes: Accuracy of a linear probe on the scope, ``"few"`` shots and ``"full"``; none without features.
    """

    request: int
    best: float
    relearn: tuple[list[float], list[float]]
    recovery: tuple[float, float]
    traces: tuple[Trace, ...]
    same: bool
    probes: dict[str, tuple[float, float]]

    @property
    def steps(self) -> tuple[int, int]:
        """Steps until ``TARGET`` of ``best`` was reached; ``BUDGET + 1`` if it was not."""
        first, second = (
            next((k for k, a in enumerate(curve) if a >= TARGET * self.best), BUDGET + 1) for curve in self.relearn
        )
        return first, second

    @property
    def ratio(self) -> float:
        """Steps to relearn over the reference's; 1 is ideal, less means that something was left.

        Where both need the same it is 1, also if neither needs a step; a reference that needs none counts as one step.
        """
        mine, other = self.steps
        return 1.0 if mine == other else mine / max(other, 1)

    @property
    def failed(self) -> tuple[str, ...]:
        """The audits that found something.

        W1: less than half the reference's steps, and at least two fewer, as references differ by one. W2 and W4: ten
        points above the reference. W3: any trace but a mean, or other answers after a restart.
        """
        found = {
            "W1": self.ratio < 0.5 and self.steps[1] - self.steps[0] > 1,
            "W2": self.recovery[0] - self.recovery[1] > 0.1,
            "W3": not self.same or any(trace.kind != "mean" for trace in self.traces),
            "W4": any(mine - other > 0.1 for mine, other in self.probes.values()),
        }
        return tuple(name for name, is_found in found.items() if is_found)


class Bench:
    """The material for the audits of one request.

    Args:
        life: The stream.
        r: Number of the request.
    """

    def __init__(self, life: Lifetime, r: int) -> None:
        """Choose the task, and the samples to show and to ask about."""
        self.life, self.request = life, life.ledger.requests[r]
        self.service = life.ledger.served(r)
        self.after = life.ledger.services[self.service].after
        taken = life.ledger.taken(r)
        self.t = int(np.argmax([len(rows) for rows in taken]))
        self.task, self.erased = life.tasks[self.t], taken[self.t]
        labels = self.task.train.targets[self.erased]
        self.shown = np.concatenate([self.erased[labels == c][:SHOTS] for c in np.unique(labels)])
        unseen = self.request.test[self.t] if self.request.test else np.empty(0, np.int64)
        # Without unseen samples of the scope the erased ones are asked, but for those that are shown.
        self.data: Data = self.task.test if len(unseen) else self.task.train
        self.asked: IntArray = unseen if len(unseen) else np.setdiff1d(self.erased, self.shown)

    def questions(self) -> tuple[IntArray, ...]:
        """Return the questions of the stream about the same samples, by task."""
        assert self.life.probing is not None
        mine = self.life.probing.numbers(self.t, self.asked, probes=self.data is self.task.train)
        return tuple(mine if t == self.t else np.empty(0, np.int64) for t in range(len(self.life.tasks)))

    def accuracy(self, agent: Agent) -> float:
        """Ask an agent about the scope."""
        return float((self.answer(agent) == self.labels(self.data, self.asked)).mean())

    def answer(self, agent: Agent) -> IntArray:
        """Return an agent's labels for the scope."""
        inputs, (names, prompts) = (
            self.data.batch(self.asked),
            self.life.space.candidates(self.t, self.after, taught=False),
        )
        wants: Wants = "scores" if self.life.teaching.needs_scores else "labels"
        said = np.asarray(agent.act(Query(inputs, names, prompts, wants, self.t if self.life.told else None)))
        out: IntArray = said if said.ndim == 1 else said.argmax(axis=1)
        return out

    def labels(self, data: Data, rows: IntArray) -> IntArray:
        """Return labels among the candidates."""
        return self.life.space.labels(self.t, data.targets[rows])

    def relearned(self, build: Build, enough: float) -> list[float]:
        """W1: return the accuracy before any step and after each one, until it is ``enough``."""
        agent, q, number = build(), self.request, len(self.life.ledger.requests)
        agent.act(EraseRequest(number, "relearn", q.scope, np.empty(0, np.int64), q.classes))
        agent.act(EraseEnd(number))
        curve = [self.accuracy(agent)]
        shown, task = self.life.told, self.task
        agent.act(
            TaskStart(
                self.t if shown else None,
                task.name if shown else "",
                task.description if shown else "",
                task.classes,
                task.prompts,
                len(self.shown),
                BUDGET,
            )
        )
        ids = sum(map(len, self.life.ids)) + np.arange(len(self.shown))
        while curve[-1] < enough and len(curve) <= BUDGET:
            agent.act(Train(task.train.batch(self.shown), task.train.targets[self.shown], ids))
            curve.append(self.accuracy(agent))
        return curve

    def recovered(self, build: Build) -> float:
        """W2: return the accuracy after one pass of the retained training data, as one more task."""
        agent, life = build(), self.life
        names, prompts = life.space.met(self.after)
        kept = [i for i, name in enumerate(names) if name not in self.request.classes]
        place = np.full(len(names), -1)
        place[kept] = np.arange(len(kept))
        rows = []
        for t in range(self.after):
            scope = np.zeros(len(life.tasks[t].train), bool)
            if self.request.train:
                scope[self.request.train[t]] = True
            rows += [(t, row) for row in np.flatnonzero(life.ledger.live(t, self.service + 1) & ~scope).tolist()]
        order = np.random.default_rng(0).permutation(len(rows))
        size = life.teaching.batch_size
        batches = [[rows[i] for i in order[start : start + size]] for start in range(0, len(rows), size)]
        start = TaskStart(
            len(life.tasks) if life.told else None,
            "",
            "",
            tuple(names[i] for i in kept),
            tuple(prompts[i] for i in kept),
            len(rows),
            len(batches),
        )
        agent.act(start)
        for batch in batches:
            parts = [life.tasks[t].train.batch(np.array([row])) for t, row in batch]
            targets = [life.space.merged(t, life.tasks[t].train.targets[[row]])[0] for t, row in batch]
            ids = np.array([life.ids[t][row] for t, row in batch])
            agent.act(Train(np.concatenate(parts), place[targets], ids))
        agent.act(TaskEnd(start.task))
        return self.accuracy(agent)

    def found(self, state: Mapping[str, Any], build: Build, backbone: str) -> tuple[Trace, ...]:
        """W3: return what a state holds of erased samples."""
        rows = self.erased[:SOME]
        others = np.setdiff1d(np.arange(len(self.task.train)), self.erased)
        others = others if len(others) else np.arange(len(self.task.test))
        source = self.task.train if len(self.erased) < len(self.task.train) else self.task.test
        images = np.asarray(self.task.train.batch(rows))
        retained = np.asarray(source.batch(others[:SOME]))
        spaces: dict[str, tuple[Any, Any]] = {}
        frozen, agent = load_backbone(backbone, torch.device("cpu")), build()
        with torch.no_grad():
            pair = [frozen.encode_images(torch.from_numpy(x)).float().numpy() for x in (images, retained)]
        spaces["frozen"] = pair[0], pair[1]
        tuned = [agent.features(x) for x in (images, retained)]
        if tuned[0] is not None:
            spaces["agent"] = tuned[0], tuned[1]
        ids, labels = self.life.ids[self.t][rows], self.task.train.targets[rows]
        return tuple(traces(state, ids, images, labels, spaces, self.views(ids) if self.task.train.decodes else None))

    def views(self, ids: IntArray) -> tuple[Array, IntArray]:
        """Return samples as batches showed them, uint8 ``(m, H, W, 3)``, and the place of each in ``ids``."""
        life, out, whose = self.life, [], []
        brought = [
            life.event(position, life.read)
            for position, step in enumerate(life.plan.steps)
            if (step.kind == "train" and step.task == self.t) or (step.kind == "erase" and step.service == self.service)
        ]
        for batch in (event.forget if isinstance(event, Erase) else event for event in brought):
            if isinstance(batch, Train):
                at = np.isin(batch.ids, ids)
                out.append(np.asarray(batch.inputs)[at])
                whose.append(np.argsort(ids)[np.searchsorted(np.sort(ids), batch.ids[at])])
        return np.concatenate(out), np.concatenate(whose)

    def probed(self, build: Build) -> dict[str, float] | None:
        """W4: return the accuracy of linear probes on the scope; ``None`` if the agent shows no features."""
        agent, train = build(), self.task.train
        tested = agent.features(self.data.batch(self.asked))
        if tested is None:
            return None
        classes = [np.flatnonzero(train.targets == c) for c in range(len(self.task.classes))]
        held = self.asked if self.data is train else np.empty(0, np.int64)
        out = {}
        for name, count in (("few", SHOTS), ("full", len(train))):
            rows = np.setdiff1d(np.concatenate([of[:count] for of in classes]), held)
            features = agent.features(train.batch(rows))
            assert features is not None
            said = ridge_probe(features, train.targets[rows], tested)
            out[name] = float((said == self.data.targets[self.asked]).mean())
        return out


def ridge_probe(
    features: npt.NDArray[Any], labels: IntArray, asked: npt.NDArray[Any], ridge: float = RIDGE
) -> IntArray:
    """Return the labels that a ridge regression onto one-hot labels gives, int64 ``(m,)``.

    Args:
        features: Of the training samples, ``(n, d)``; every vector is divided by its length.
        labels: Their classes, ``(n,)``.
        asked: Features to classify, ``(m, d)``.
        ridge: Weight of the squared norm of the coefficients.
    """
    train, test = (np.c_[x / np.linalg.norm(x, axis=1, keepdims=True), np.ones(len(x))] for x in (features, asked))
    known = np.unique(labels)
    hot = (labels[:, None] == known).astype(np.float64)
    weights = np.linalg.solve(train.T @ train + ridge * np.eye(train.shape[1]), train.T @ hot)
    out: IntArray = known[(test @ weights).argmax(axis=1)]
    return out


def audited(
    bench: Bench, r: int, best: float, pair: tuple[Build, Build], state: Mapping[str, Any], same: bool, backbone: str
) -> Audit:
    """Return what all audits of a request come to.

    Args:
        bench: Its material.
        r: Its number.
        best: Highest accuracy on the scope before it was met.
        pair: Build the agent, and the reference agent, as they are right after it.
        state: The agent's state, from a file, after marked events.
        same: Whether an agent with that state answers as the agent did.
        backbone: Name of the frozen model.
    """
    probes = [bench.probed(build) for build in pair]
    shared = {} if probes[0] is None or probes[1] is None else {n: (probes[0][n], probes[1][n]) for n in probes[0]}
    mine, other = pair
    return Audit(
        r,
        best,
        (bench.relearned(mine, TARGET * best), bench.relearned(other, TARGET * best)),
        (bench.recovered(mine), bench.recovered(other)),
        bench.found(state, mine, backbone),
        same,
        shared,
    )
