"""How requests to forget were met: a run's answers against those of its references, request by request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clgym import erasure_metrics
from clgym.distances import area_interval, confidences, jensen_shannon, largest_gap
from clgym.events import Array, IntArray
from clgym.lifetime import Lifetime
from clgym.metrics import METRICS
from clgym.neighbours import Neighbours
from clgym.probes import Sets

Parts = tuple[IntArray, ...]


@dataclass(frozen=True)
class RequestScore:
    """What one request came to.

    Attributes:
        request: Its number.
        kind: As in the event.
        goal: As in the event.
        scope: As in the event; of samples, how many.
        metrics: Metric id to value; only those that the goal and the kind allow.
        footnotes: Numbers beside the metrics: noise floors, an interval, a permutation's p.
        curves: Accuracy over the evaluation points, ``(1 + K, P)``, the run first: ``"erased"``, ``"near"``,
            ``"tested"``; NaN where not measured.
        subset: ``"atypical"``: of the atypical samples of the request alone; ``""``: of all.
    """

    request: int
    kind: str
    goal: str
    scope: tuple[str, ...]
    metrics: dict[str, float]
    footnotes: dict[str, float]
    curves: dict[str, npt.NDArray[np.float64]]
    subset: str = ""


class Answers:
    """What one agent answered over a stream, by evaluation point and question.

    Args:
        life: The stream.
        log: The columns ``point``, ``task``, ``question`` and ``prediction``.
        full: The columns of ``probes.parquet``.
    """

    def __init__(self, life: Lifetime, log: Mapping[str, Array], full: Mapping[str, Array]) -> None:
        """Lay the answers out."""
        labels = life.labels()
        self.starts = np.append(0, np.cumsum([len(known) for known in labels]))
        self.labels = np.concatenate(labels)
        shape = (len(life.plan.points), len(self.labels))
        self.right = np.full(shape, np.nan, np.float32)
        at = log["point"], self.starts[log["task"]] + log["question"]
        self.right[at] = log["prediction"] == self.labels[at[1]]
        self._row = np.full(shape, -1)
        self._row[full["point"], self.starts[full["task"]] + full["question"]] = np.arange(len(full["point"]))
        self._full = full["log_probs"]

    def flat(self, parts: Parts) -> IntArray:
        """Return questions per task as numbers over all tasks."""
        return np.concatenate([start + part for start, part in zip(self.starts, parts, strict=False)])

    def accuracy(self, point: int, parts: Parts) -> float:
        """Return the share of right answers; NaN if a question was not asked, or there is none."""
        asked = self.right[point, self.flat(parts)]
        return float(asked.mean(dtype=np.float64)) if len(asked) else float("nan")

    def answers(self, point: int, parts: Parts) -> npt.NDArray[np.float64]:
        """Return log-probabilities ``(n, C)``; NaN where the full answer was not kept."""
        rows = self._row[point, self.flat(parts)]
        if not len(self._full):
            return np.full((len(rows), 1), np.nan)
        out: npt.NDArray[np.float64] = self._full[rows].astype(np.float64)
        out[rows < 0] = np.nan
        return out

    def confidence(self, point: int, parts: Parts, labels: IntArray | None = None) -> npt.NDArray[np.float64]:
        """Return the confidence in the true labels, or in ``labels``, ``(n,)``."""
        known = self.labels[self.flat(parts)] if labels is None else labels
        return confidences(self.answers(point, parts), known)


def scored(life: Lifetime, backbone: str, run: Answers, references: Sequence[Answers]) -> list[RequestScore]:
    """Return what every request to forget came to, in order.

    Requests with goal ``"removal"`` need no reference; others are left out without one.

    Args:
        life: The stream.
        backbone: Name of the frozen model in which neighbours are looked for.
        run: Answers of the run.
        references: Answers of its references, of which there may be none.
    """
    out, neighbours = [], Neighbours(backbone, life.tasks)
    for r, request in enumerate(life.ledger.requests):
        if request.kind == "relearn" or not any(map(len, life.ledger.taken(r))):
            continue
        assert life.probing is not None
        sets = life.probing.sets(r)
        near = _near(life, neighbours, r, sets)
        if request.goal == "removal":
            given = removal(life, run, r, sets)
            out.append(score_of(life, r, given, {}, _curves(life, [run], sets, near)))
        elif references:
            agents = [run, *references]
            curves = _curves(life, agents, sets, near)
            given, notes = evidence(life, agents, r, sets, near)
            out.append(score_of(life, r, given, notes, curves))
            if any(map(len, sets.atypical)):
                given, notes = atypical(life, agents, r, sets)
                out.append(score_of(life, r, given, notes, {}, "atypical"))
    return out


def score_of(
    life: Lifetime,
    r: int,
    given: Mapping[str, Any],
    notes: dict[str, float],
    curves: dict[str, npt.NDArray[np.float64]],
    subset: str = "",
) -> RequestScore:
    """Return the metrics that what is given about a request allows.

    Args:
        life: The stream.
        r: Number of the request.
        given: Inputs of :mod:`clgym.erasure_metrics` by name.
        notes: Footnotes.
        curves: As in :class:`RequestScore`.
        subset: As there.
    """
    request = life.ledger.requests[r]
    module = erasure_metrics.__name__
    metrics = {
        m.id: m.function(**{name: given[name] for name in m.takes})
        for m in METRICS.values()
        if m.function.__module__ == module and given.keys() >= set(m.needs)
    }
    scope = request.scope or (f"{len(life.ledger.ids_of(r))} samples",)
    return RequestScore(r, request.kind, request.goal, scope, metrics, notes, curves, subset)


def point_of(life: Lifetime, r: int) -> int:
    """Return the number of the evaluation point right after a request was met."""
    service = life.ledger.served(r)
    return next(number for number, point in enumerate(life.plan.points) if point.service == service)


def until(life: Lifetime, r: int) -> int:
    """Return the first evaluation point at which what a request erased was welcome again, or their number."""
    request = life.ledger.requests[r]
    again = [
        point_of(life, other)
        for other, q in enumerate(life.ledger.requests)
        if q.kind == "relearn" and set(q.scope) & set(request.scope) and point_of(life, other) > point_of(life, r)
    ]
    return min(again, default=len(life.plan.points))


def evidence(
    life: Lifetime, agents: Sequence[Answers], r: int, sets: Sets, near: Parts
) -> tuple[dict[str, Any], dict[str, float]]:
    """Return the inputs of :mod:`clgym.erasure_metrics` about a request, and its footnotes.

    Args:
        life: The stream.
        agents: The run, then the references.
        r: Number of the request.
        sets: Its questions.
        near: Test questions of its neighbours.
    """
    point, end = point_of(life, r), until(life, r)
    scope = sets.unseen if any(map(len, sets.unseen)) else sets.erased
    probes = tuple(np.concatenate(both) for both in zip(sets.erased, sets.unseen, strict=True))
    given: dict[str, Any] = {
        name: [agent.accuracy(point, parts) for agent in agents]
        for name, parts in (("erased", scope), ("retained", sets.retained), ("tested", sets.tested), ("near", near))
        if any(map(len, parts))
    }
    given["answers"] = [agent.answers(point, probes) for agent in agents]
    given["confidence"] = [agent.confidence(point, probes) for agent in agents]
    given["later"] = np.array([[a.accuracy(p, scope) for p in range(point + 1, end)] for a in agents])
    given["renewed"] = np.array([_renewed(life, agent, r, end) for agent in agents])
    rows = [number for number, p in enumerate(life.plan.points) if p.is_row and number > end]
    if rows:
        given["relearned"] = [agent.accuracy(rows[0], scope) for agent in agents]
    notes = _floors(given)
    if any(map(len, sets.twins)):
        given["members"], given["others"] = _membership(agents, point, sets.erased, sets.twins, sets.groups)
        low, high = area_interval(given["members"][0], given["others"][0])
        notes |= {"mia_low": low, "mia_high": high}
    return given, notes


def atypical(life: Lifetime, agents: Sequence[Answers], r: int, sets: Sets) -> tuple[dict[str, Any], dict[str, float]]:
    """Return the inputs about the atypical samples of a request alone.

    Their held-out twins get a wrong label too: what was mislabelled is told from what would have been.
    """
    point = point_of(life, r)
    given: dict[str, Any] = {"erased": [agent.accuracy(point, sets.atypical) for agent in agents]}
    given["answers"] = [agent.answers(point, sets.atypical) for agent in agents]
    given["confidence"] = [agent.confidence(point, sets.atypical) for agent in agents]
    notes = _floors(given)
    if any(map(len, sets.twins)):
        true = agents[0].labels[agents[0].flat(sets.twins)]
        wrong = _wrong(life, sets.twins, true)
        given["members"] = given["confidence"]
        given["others"] = [agent.confidence(point, sets.twins, wrong) for agent in agents]
    return given, notes


def _wrong(life: Lifetime, twins: Parts, true: IntArray) -> IntArray:
    """Return for each twin another label of its task."""
    out, rng = true.copy(), np.random.default_rng(0)
    start = 0
    for t, part in enumerate(twins):
        labels = np.unique(life.labels()[t])
        mine = slice(start, start + len(part))
        place = np.searchsorted(labels, true[mine])
        out[mine] = labels[(place + rng.integers(1, len(labels), len(part))) % len(labels)]
        start += len(part)
    return out


def _membership(
    agents: Sequence[Answers], point: int, erased: Parts, twins: Parts, groups: Parts
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the scores of members and others: confidences, or where users asked, their means per user.

    An other user is as many twins as one who left has items, drawn once.
    """
    members = np.array([agent.confidence(point, erased) for agent in agents])
    others = np.array([agent.confidence(point, twins) for agent in agents])
    if not any(map(len, groups)):
        return members, others
    owner = np.concatenate(groups)
    users, sizes = np.unique(owner, return_counts=True)
    order = np.random.default_rng(0).permutation(others.shape[1])
    ends = np.cumsum(sizes)
    ends = ends[ends <= len(order)]
    parts = np.split(order[: ends[-1]], ends[:-1])
    return (
        np.stack([members[:, owner == user].mean(axis=1) for user in users], axis=1),
        np.stack([others[:, part].mean(axis=1) for part in parts], axis=1),
    )


def _renewed(life: Lifetime, agent: Answers, r: int, end: int) -> list[float]:
    """Return accuracy on each task learned after a request, right after it."""
    after, out = life.plan.points[point_of(life, r)].after, []
    for number, point in enumerate(life.plan.points[:end]):
        if point.is_row and point.after > after:
            t = point.after - 1
            parts = tuple(np.arange(len(task.test) if j == t else 0) for j, task in enumerate(life.tasks))
            out.append(agent.accuracy(number, parts))
    return out


def _floors(given: Mapping[str, Any]) -> dict[str, float]:
    """Return what the references differ by among themselves, and a permutation's p of the shift of confidence."""
    refs, answers, confidence = given["erased"][1:], given["answers"][1:], np.array(given["confidence"])
    pairs = [(k, j) for k in range(len(refs)) for j in range(k + 1, len(refs))]
    notes = {"erased_low": min(refs), "erased_high": max(refs)}
    if not pairs:
        return notes
    inside = [
        largest_gap(confidence[k], np.delete(confidence[1:], k - 1, axis=0).ravel()) for k in range(1, len(confidence))
    ]
    return notes | {
        "js_floor": float(np.mean([jensen_shannon(answers[k], answers[j]) for k, j in pairs])),
        "ks_floor": float(np.mean(inside)),
        "ks_p": permutation_p(confidence[0], confidence[1:].ravel()),
    }


def permutation_p(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], draws: int = 200) -> float:
    """Return the share of random divisions of two samples whose D is at least theirs, the true one counted, in (0, 1].

    A footnote: it gets smaller with the number of items, whatever the shift is.
    """
    rng, both, seen = np.random.default_rng(0), np.concatenate([a, b]), largest_gap(a, b)
    higher = 0
    for _ in range(draws):
        mixed = rng.permutation(both)
        higher += largest_gap(mixed[: len(a)], mixed[len(a) :]) >= seen
    return (1 + higher) / (1 + draws)


def removal(life: Lifetime, run: Answers, r: int, sets: Sets) -> dict[str, float]:
    """Return the inputs of GS-LoRA's accuracies about a request (arXiv:2501.09705); no reference is needed.

    The pre-trained model is the agent as it was before the first request of the stream.
    """
    ledger, point = life.ledger, point_of(life, r)
    services = [number for number, p in enumerate(life.plan.points) if p.service >= 0]
    assert life.probing is not None
    given = {
        "remaining": run.accuracy(point, sets.tested),
        "forgotten": run.accuracy(point, sets.unseen),
        "pretrained": run.accuracy(services[0] - 1, sets.unseen),
    }
    before = [
        life.probing.sets(other).unseen
        for other, request in enumerate(ledger.requests)
        if request.kind != "relearn" and ledger.served(other) < ledger.served(r)
    ]
    if before:
        given["earlier"] = run.accuracy(point, tuple(np.concatenate(parts) for parts in zip(*before, strict=True)))
    if missing := ledger.requests[r].missing:
        given["withheld"] = run.accuracy(point, of_classes(life, sets.tested, missing))
    return given


def of_classes(life: Lifetime, parts: Parts, names: Sequence[str]) -> Parts:
    """Return those of some test questions whose class has one of these names."""
    out = []
    for t, (task, part) in enumerate(zip(life.tasks, parts, strict=True)):
        labels = [c for c, name in enumerate(task.classes) if name in names]
        out.append(part[np.isin(task.test.targets[life.questions[t][part]], labels)])
    return tuple(out)


def _near(life: Lifetime, neighbours: Neighbours, r: int, sets: Sets) -> Parts:
    """Return the test questions of the neighbours of erased classes; none where no class goes as a whole."""
    request, after = life.ledger.requests[r], life.ledger.services[life.ledger.served(r)].after
    if not request.classes:
        return tuple(np.empty(0, np.int64) for _ in life.tasks)
    return of_classes(life, sets.tested, neighbours.nearest(after, request.classes))


def _curves(life: Lifetime, agents: Sequence[Answers], sets: Sets, near: Parts) -> dict[str, npt.NDArray[np.float64]]:
    """Return accuracy at every evaluation point by agent; questions about erased training samples come late."""
    scope = sets.unseen if any(map(len, sets.unseen)) else sets.erased
    points = range(len(life.plan.points))
    named = {"erased": scope, "near": near, "tested": sets.tested}
    return {
        name: np.array([[agent.accuracy(p, parts) for p in points] for agent in agents])
        for name, parts in named.items()
        if any(map(len, parts))
    }
