"""Audits of agents that remember by rote: what they know, what they hide, and what they keep is known exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clgym
from clgym.agent import Agent, AgentSpec, Setup
from clgym.audit import BUDGET, Audit, Bench, audited, ridge_probe
from clgym.canary import Trace, mark
from clgym.env import ContinualEnv
from clgym.events import Array, Erase, EraseEnd, EraseRequest, Event, Inputs, Query, TaskEnd, TaskStart, Train
from clgym.lifetime import Lifetime

TINY = "embedded/tiny-clip"


class Rote(Agent):
    """Answers with the class of the nearest picture it was shown, after ``slow`` looks at it.

    Classes in ``hidden`` are not answered until they are asked for again or, if ``leaky``, anything is learned.
    """

    spec = AgentSpec("rote-v0", "Rote")

    def __init__(self, *, slow: int = 1, hidden: Sequence[str] = (), leaky: bool = False, sees: bool = True) -> None:
        super().__init__(Setup("image", (32, 32, 3), TINY))
        self.slow, self.hidden, self.leaky, self.sees = slow, set(hidden), leaky, sees
        self.looks: dict[bytes, tuple[np.ndarray, str, int]] = {}
        self.classes: tuple[str, ...] = ()
        self.heard: list[Event] = []

    def act(self, event: Event) -> Any:
        if not isinstance(event, Query):
            self.heard.append(event)
        return super().act(event)

    def begin_task(self, event: TaskStart) -> None:
        self.classes = event.classes

    def learn(self, event: Train) -> None:
        self.hidden = set() if self.leaky else self.hidden
        for image, target in zip(event.inputs, np.asarray(event.targets), strict=True):
            self.show(np.asarray(image), self.classes[target])

    def show(self, image: np.ndarray, name: str) -> None:
        seen = self.looks.get(image.tobytes(), (image, name, 0))[2]
        self.looks[image.tobytes()] = (image.astype(float), name, seen + 1)

    def begin_erasure(self, event: EraseRequest) -> None:
        assert event.kind == "relearn"
        self.hidden -= set(event.classes)

    def end_erasure(self, event: EraseEnd) -> None:
        pass

    def answer(self, event: Query) -> Array:
        known = [(image, name) for image, name, looks in self.looks.values() if looks >= self.slow]
        known = [pair for pair in known if pair[1] in event.candidates and pair[1] not in self.hidden]
        out = []
        for image in np.asarray(event.inputs, float):
            nearest = min(known, key=lambda pair: np.abs(pair[0] - image).sum())[1]
            out.append(event.candidates.index(nearest))
        return np.array(out)

    def features(self, inputs: Inputs) -> Array | None:
        # The pictures have areas of eight by eight pixels.
        return np.asarray(inputs, np.float32)[:, ::8, ::8].reshape(len(inputs), -1) - 128 if self.sees else None


@pytest.fixture
def life(four_domains: Path, request: pytest.FixtureRequest) -> Iterator[Lifetime]:
    """Play up to the first request, for a class unless a test says otherwise."""
    usual = {"source": str(four_domains), "backbone": TINY, "amount": 1, "steps": 1, "erase_steps": 1}
    made = clgym.make("CLIP-Erasure-v0", **{**usual, **getattr(request, "param", {})})
    assert isinstance(made.unwrapped, ContinualEnv)
    made.unwrapped.reset(seed=0)
    yield made.unwrapped.lifetime
    made.close()


def rote(life: Lifetime, *, knows_all: bool, **how: Any) -> Callable[[], Rote]:
    """Return what builds an agent that was shown the first two domains, all of them or without what must go."""

    def build() -> Rote:
        agent = Rote(**how)
        gone = life.ledger.taken(0)
        for t, task in enumerate(life.tasks[:2]):
            rows = np.arange(len(task.train))
            rows = rows if knows_all else np.setdiff1d(rows, gone[t])
            for image, target in zip(task.train.batch(rows), task.train.targets[rows], strict=True):
                for _ in range(how.get("slow", 1)):
                    agent.show(np.asarray(image), task.classes[target])
        agent.heard.clear()
        return agent

    return build


def test_the_material_of_a_class(life: Lifetime) -> None:
    bench = Bench(life, 0)
    assert (bench.t, bench.after, len(bench.erased), len(bench.shown), len(bench.asked)) == (0, 2, 6, 5, 4)
    assert set(bench.shown) < set(bench.erased)
    assert bench.data is bench.task.test
    assert [len(part) for part in bench.questions()] == [4, 0, 0, 0]


@pytest.mark.parametrize("life", [{"kind": "sample", "amount": 20, "requests": 1}], indirect=True)
def test_the_material_of_samples(life: Lifetime) -> None:
    bench = Bench(life, 0)
    assert bench.data is bench.task.train
    # Those that are shown again are not asked about.
    assert sorted([*bench.shown, *bench.asked]) == sorted(bench.erased)
    assert len(bench.questions()[bench.t]) == len(bench.asked)


def test_relearning_counts_the_steps(life: Lifetime) -> None:
    bench = Bench(life, 0)
    assert bench.relearned(rote(life, knows_all=False, slow=3), 0.8) == [0, 0, 0, 1]
    # What was only hidden is back as soon as it is welcome.
    hiding = rote(life, knows_all=True, hidden=bench.request.classes)
    assert bench.accuracy(hiding()) == 0
    assert bench.relearned(hiding, 0.8) == [1]
    assert bench.relearned(rote(life, knows_all=False, slow=1000), 0.8) == [0] * (BUDGET + 1)


def test_relearning_shows_five_samples_of_each_class_as_new_ones(life: Lifetime) -> None:
    bench, agents = Bench(life, 0), []

    def build() -> Rote:
        agents.append(rote(life, knows_all=False)())
        return agents[-1]

    bench.relearned(build, 0.8)
    welcome, done, start, batch = agents[0].heard
    assert isinstance(welcome, EraseRequest)
    assert (welcome.kind, welcome.classes, len(welcome.ids)) == ("relearn", bench.request.classes, 0)
    assert isinstance(done, EraseEnd)
    assert isinstance(start, TaskStart)
    assert (start.classes, start.samples, start.steps) == (bench.task.classes, 5, BUDGET)
    assert isinstance(batch, Train)
    assert not np.isin(batch.ids, np.concatenate(life.ids)).any()
    assert np.array_equal(batch.inputs, bench.task.train.batch(bench.shown))


def test_recovery_after_a_pass_of_what_stays(life: Lifetime) -> None:
    bench = Bench(life, 0)
    gone = bench.request.classes
    assert bench.recovered(rote(life, knows_all=False)) == 0
    assert bench.recovered(rote(life, knows_all=True, hidden=gone)) == 0
    assert bench.recovered(rote(life, knows_all=True, hidden=gone, leaky=True)) == 1


def test_recovery_shows_everything_that_stays_once(life: Lifetime) -> None:
    bench, agents = Bench(life, 0), []

    def build() -> Rote:
        agents.append(rote(life, knows_all=False)())
        return agents[-1]

    bench.recovered(build)
    start, *batches, end = agents[0].heard
    assert isinstance(start, TaskStart)
    assert isinstance(end, TaskEnd)
    assert not set(start.classes) & set(bench.request.classes)
    ids = np.concatenate([batch.ids for batch in batches if isinstance(batch, Train)])
    shown = [life.ids[t][life.ledger.live(t, 1)] for t in (0, 1)]
    assert sorted(ids.tolist()) == sorted(np.setdiff1d(np.concatenate(shown), life.ids[0][bench.erased]).tolist())
    assert (start.samples, start.steps) == (len(ids), len(batches))
    # Labels are indices into the classes of that task.
    place = {int(id): (t, row) for t in (0, 1) for row, id in enumerate(life.ids[t])}
    for batch in batches:
        assert isinstance(batch, Train)
        for id, target in zip(batch.ids.tolist(), np.asarray(batch.targets).tolist(), strict=True):
            t, row = place[id]
            assert start.classes[target] == life.tasks[t].classes[life.tasks[t].train.targets[row]]


def test_a_probe_reads_features_that_are_shown(life: Lifetime) -> None:
    bench = Bench(life, 0)
    assert bench.probed(rote(life, knows_all=False)) == {"few": 1, "full": 1}
    assert bench.probed(rote(life, knows_all=False, sees=False)) is None


def test_traces_in_a_state(life: Lifetime) -> None:
    bench = Bench(life, 0)
    build = rote(life, knows_all=False)
    images = np.asarray(bench.task.train.batch(bench.erased))
    others = np.asarray(bench.task.train.batch(np.setdiff1d(np.arange(len(bench.task.train)), bench.erased)))
    assert bench.found({"memory": others, "ids": life.ids[0]}, build, TINY) == ()
    assert Trace("bytes", "memory", 2) in bench.found({"memory": images[:2]}, build, TINY)
    assert bench.found({"log": mark(life.ids[0][bench.erased[:3]])}, build, TINY) == (Trace("id", "log", 3),)
    # The agent's own features are looked for too.
    own = build().features(images[:4])
    assert Trace("feature", "stored", 4) in bench.found({"stored": own}, build, TINY)


def test_views_are_what_batches_showed(life: Lifetime) -> None:
    bench, ids = Bench(life, 0), life.ids[0]
    images, whose = bench.views(ids)
    steps = life.plan.steps
    (train,) = (k for k, step in enumerate(steps) if step.kind == "train" and step.task == 0)
    (erase,) = (k for k, step in enumerate(steps) if step.kind == "erase" and step.service == 0)
    taught, asked = life.event(train, life.read), life.event(erase, life.read)
    assert isinstance(taught, Train)
    assert isinstance(asked, Erase)
    assert asked.forget is not None
    assert np.array_equal(ids[whose], np.concatenate([taught.ids, asked.forget.ids]))
    assert np.array_equal(images, np.concatenate([taught.inputs, asked.forget.inputs]))
    # Shown as they are they would be found without.
    assert not np.array_equal(images[: len(taught.ids)], bench.task.train.batch(whose[: len(taught.ids)]))
    state = {"memory": bench.views(life.ids[0][bench.erased[:2]])[0]}
    assert Trace("bytes", "memory", 2) in bench.found(state, rote(life, knows_all=False), TINY)


def test_an_audit_of_an_agent_that_hides(life: Lifetime) -> None:
    bench = Bench(life, 0)
    hiding = rote(life, knows_all=True, hidden=bench.request.classes, leaky=True)
    found = audited(bench, 0, 1.0, (hiding, rote(life, knows_all=False, slow=4)), {"n": 3}, True, TINY)
    assert (found.steps, found.ratio, found.recovery, found.traces) == ((0, 4), 0, (1, 0), ())
    assert found.probes == {"few": (1, 1), "full": (1, 1)}
    assert found.failed == ("W1", "W2")


def test_an_audit_of_a_reference(life: Lifetime) -> None:
    bench = Bench(life, 0)
    never = rote(life, knows_all=False, sees=False)
    found = audited(bench, 0, 1.0, (never, never), {}, True, TINY)
    assert (found.ratio, found.failed, found.probes) == (1, (), {})


@pytest.mark.parametrize(
    ("mine", "other", "ratio"), [(0, 0, 1), (3, 3, 1), (0, 4, 0), (0, 1, 0), (2, 4, 0.5), (1, 0, 1), (6, 3, 2)]
)
def test_the_ratio_of_steps(mine: int, other: int, ratio: float) -> None:
    curves = [0.0] * mine + [0.9], [0.0] * other + [0.9]
    assert Audit(0, 1.0, curves, (0, 0), (), True, {}).ratio == ratio


@pytest.mark.parametrize(
    ("mine", "other", "fails"), [(0, 1, False), (0, 2, True), (1, 3, True), (2, 4, False), (4, 0, False)]
)
def test_relearning_fails_by_a_half_and_by_two_steps(mine: int, other: int, fails: bool) -> None:
    curves = [0.0] * mine + [0.9], [0.0] * other + [0.9]
    assert ("W1" in Audit(0, 1.0, curves, (0, 0), (), True, {}).failed) == fails


def test_what_never_comes_back_needs_more_than_the_budget() -> None:
    never = [0.0] * (BUDGET + 1)
    found = Audit(0, 1.0, (never, never), (0, 0), (), True, {})
    assert (found.steps, found.ratio) == ((BUDGET + 1, BUDGET + 1), 1)


@pytest.mark.parametrize(
    ("settings", "failed"),
    [
        ({"traces": (Trace("mean", "prototypes", 1),)}, ()),
        ({"traces": (Trace("feature", "memory", 1),)}, ("W3",)),
        ({"same": False}, ("W3",)),
        ({"probes": {"few": (0.9, 0.85), "full": (0.9, 0.7)}}, ("W4",)),
        ({"recovery": (0.3, 0.25)}, ()),
        ({"recovery": (0.5, 0.25)}, ("W2",)),
    ],
)
def test_what_counts_as_a_failure(settings: dict[str, Any], failed: tuple[str, ...]) -> None:
    usual: dict[str, Any] = {"recovery": (0, 0), "traces": (), "same": True, "probes": {}}
    assert Audit(0, 1.0, ([1.0], [1.0]), **{**usual, **settings}).failed == failed


def test_a_ridge_probe_separates_what_lies_apart() -> None:
    features = np.array([[1.0, 0.1], [2.0, 0.0], [0.0, 3.0], [0.1, 1.0]])
    said = ridge_probe(features, np.array([5, 5, 2, 2]), np.array([[9.0, 1.0], [0.2, 0.9]]))
    assert said.tolist() == [5, 2]
