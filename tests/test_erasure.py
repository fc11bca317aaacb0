"""Requests to forget in a stream: what they bring, what they take away, and the stream without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from clgym.counterfactual import without
from clgym.env import ContinualEnv
from clgym.errors import ErasedError, RecordError, SettingError
from clgym.events import Erase, EraseEnd, EraseRequest, Event, Guess, Inputs, IntArray, Query, TaskEnd, TaskStart, Train
from clgym.scenario import Request, Scenario, ScenarioSpec, Task, Teaching

NONE = np.empty(0, np.int64)


@dataclass(frozen=True)
class Pixels:
    """Images that show their task and their row."""

    targets: IntArray
    task: int
    decodes: bool = False

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, index: IntArray, rng: np.random.Generator | None = None) -> Inputs:
        images = np.full((len(index), 2, 2, 3), 10 * self.task, np.uint8)
        images[:, 0, 0, 0] = index
        return images

    def fingerprint(self) -> str:
        return f"{self.task:064x}"


class Asking(Scenario):
    """Three tasks of two, three and four classes; 12 training and 6 test samples each, row ``i`` of class ``i % C``."""

    spec = ScenarioSpec(
        "Asking-v0", "Asking", "none", "class-incremental", "image", "For tests.", ("average_accuracy",)
    )

    def __init__(self, *asked: Request, noted: Sequence[str] = (), slow: bool = False, **teaching: Any) -> None:
        self.asked, self.noted, self.slow = asked, tuple(noted), slow
        self.shape, self.classes, self.source, self.backbone = (2, 2, 3), 9, "embedded", "none"
        self.teaching = Teaching(**{"labels": "union", "batch_size": 5, "query_size": 4, **teaching})

    def tasks(self, rng: np.random.Generator) -> Sequence[Task]:
        made = []
        for t in range(3):
            classes = tuple(f"t{t}c{c}" for c in range(t + 2))
            train, test = (Pixels(np.arange(n) % len(classes), t, self.slow) for n in (12, 6))
            noted = tuple(name for name in self.noted if name in classes)
            made.append(Task(f"task {t}", "", classes, tuple((c,) for c in classes), train, test, temporary=noted))
        return made

    def requests(self, tasks: Sequence[Task], rng: np.random.Generator) -> Sequence[Request]:
        return self.asked


def rows(*parts: Sequence[int]) -> tuple[IntArray, ...]:
    filled = [*parts, *[()] * (3 - len(parts))]
    return tuple(np.array(part, np.int64) for part in filled)


def of_class(task: int, label: int, **settings: Any) -> Request:
    """Ask for a class of a task to be forgotten, right after that task."""
    count = task + 2
    train, test = [np.arange(n)[np.arange(n) % count == label] for n in (12, 6)]
    where = dict(
        train=tuple(train if t == task else NONE for t in range(3)),
        test=tuple(test if t == task else NONE for t in range(3)),
    )
    name = f"t{task}c{label}"
    usual = {"after": task + 1, "kind": "class", "scope": (name,), "classes": (name,), "steps": 2, "forget": "full"}
    return Request(**{**usual, **where, **settings})


def played(env: ContinualEnv, seed: int = 0) -> list[Event]:
    event, _ = env.reset(seed=seed)
    events, done = [event], False
    while not done:
        event, _, done, _, _ = env.step(Guess(len(events)) if isinstance(event, Query) else None)
        events.append(event)
    return events


def stream(*asked: Request, **settings: Any) -> tuple[ContinualEnv, list[Event]]:
    env = ContinualEnv(Asking(*asked, **settings))
    return env, played(env)


def of(kind: type[Any], events: Sequence[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def places(batch: Train) -> list[tuple[int, int]]:
    """Return task and row of each sample, as its picture shows them."""
    assert isinstance(batch.inputs, np.ndarray)
    return [(int(image[1, 1, 1]) // 10, int(image[0, 0, 0])) for image in batch.inputs]


def kinds(events: Sequence[Event]) -> str:
    """Return the kinds of events in letters, repeated ones once."""
    letters = {"TaskStart": "S", "Train": "T", "TaskEnd": "E", "Query": "q", "End": "."}
    letters |= {"EraseRequest": "r", "Erase": "e", "EraseEnd": "d"}
    said = [letters[type(event).__name__] for event in events]
    return "".join(a for a, b in zip(said, ["", *said], strict=False) if a != b)


def test_a_request_comes_at_a_boundary_and_a_round_of_questions_follows() -> None:
    env, events = stream(of_class(0, 1), of_class(1, 2))
    assert kinds(events) == "qSTEqredqSTEqredqSTEq."
    assert [(p.after, p.service) for p in env._playing().plan.points] == [
        (0, -1),
        (1, -1),
        (1, 0),
        (2, -1),
        (2, 1),
        (3, -1),
    ]
    assert env.report().R.shape == (4, 3)


def test_a_request_names_what_was_shown() -> None:
    _, events = stream(of_class(0, 1, goal="removal", notice="temporary"))
    (asked,) = of(EraseRequest, events)
    shown = {
        id
        for event in of(Train, events)[:3]
        for id, label in zip(event.ids.tolist(), event.targets, strict=True)
        if label
    }
    assert asked == EraseRequest(
        0, "class", ("t0c1",), np.array(sorted(shown)), ("t0c1",), "removal", "temporary", "full", "none", 0, (), 2, 0
    )
    assert len(shown) == 6


def test_all_is_read_once_per_pass_and_counted() -> None:
    env, events = stream(of_class(0, 1, steps=3, batch_size=4, retain="full"))
    erases = of(Erase, events)
    assert [(e.requests, e.step, e.steps) for e in erases] == [((0,), k, 3) for k in range(3)]
    # Six samples in batches of four: the first six deliveries are all of them, the next six again.
    read = [place for e in erases for place in places(e.forget)]
    assert sorted(read[:6]) == sorted(read[6:]) == [(0, row) for row in (1, 3, 5, 7, 9, 11)]
    assert all(e.forget.targets.tolist() == [1] * 4 for e in erases)
    kept = [place for e in erases for place in places(e.retain)]
    assert sorted(kept[:6]) == [(0, row) for row in (0, 2, 4, 6, 8, 10)]
    assert env.reads == [
        {"events": 3, "forget_reads": 12, "forget_samples": 6, "retain_reads": 12, "retain_samples": 6}
    ]
    env.reset(seed=0)
    assert env.reads == [{"events": 0, "forget_reads": 0, "forget_samples": 0, "retain_reads": 0, "retain_samples": 0}]


@pytest.mark.parametrize(
    ("settings", "forget", "retain", "budget"),
    [
        ({"forget": "none"}, 0, 0, 0),
        ({"forget": "none", "retain": "own"}, 0, 0, 0),
        ({"forget": "few", "shots": 2, "batch_size": 9}, 2, 0, 2),
        # Two of task 0's two classes and of the two classes of task 1 that stay.
        ({"forget": "none", "retain": "few", "shots": 2, "batch_size": 9}, 0, 8, 2),
        ({"forget": "full", "retain": "few", "shots": 1, "missing": ("t0c0", "t1c1"), "batch_size": 9}, 4, 2, 2),
        ({"forget": "full", "retain": "full", "steps": 0}, 0, 0, 0),
    ],
)
def test_grants(settings: dict[str, Any], forget: int, retain: int, budget: int) -> None:
    _, events = stream(of_class(1, 2, **settings))
    (asked,) = of(EraseRequest, events)
    assert asked.budget == budget == len(of(Erase, events))
    erases = of(Erase, events)
    assert {0 if e.forget is None else len(e.forget.ids) for e in erases} <= {forget}
    assert {0 if e.retain is None else len(e.retain.ids) for e in erases} <= {retain}
    for e in erases:
        names = [e.classes[label] for part in (e.retain,) if part is not None for label in part.targets]
        assert not {"t1c2", *settings.get("missing", ())} & set(names)
        assert all(
            name == f"t{t}c{row % (t + 2)}"
            for name, (t, row) in zip(names, places(e.retain) if e.retain else [], strict=True)
        )


def test_after_the_end_no_event_brings_a_sample_again() -> None:
    # A user with samples in all three tasks, who asks after the second.
    user = Request(2, "user", ("u7",), rows((0, 1), (2, 3, 4), (5, 6, 7, 11)), forget="full", steps=1)
    _, events = stream(user, passes=2)
    end = next(k for k, event in enumerate(events) if isinstance(event, EraseEnd))
    before = [place for event in events[:end] if isinstance(event, Train) for place in places(event)]
    after = [place for event in events[end:] if isinstance(event, Train) for place in places(event)]
    assert {(0, 0), (1, 4)} < set(before)
    assert sorted(after) == sorted((2, row) for row in (0, 1, 2, 3, 4, 8, 9, 10) for _ in range(2))
    (start,) = [event for event in events[end:] if isinstance(event, TaskStart)]
    assert start.samples == 8
    assert start.steps == len([event for event in events[end:] if isinstance(event, Train)])


def test_asking_for_what_is_gone_raises() -> None:
    env = ContinualEnv(Asking(of_class(0, 1)))
    event, _ = env.reset(seed=0)
    first: Train | None = None
    while not isinstance(event, EraseEnd):
        event, *_ = env.step(Guess(0) if isinstance(event, Query) else None)
        first = event if first is None and isinstance(event, Train) else first
    assert first is not None
    assert np.array_equal(env.look_up(first.ids).inputs, first.inputs)
    assert np.array_equal(env.look_up(first.ids).targets, first.targets)
    env.step(None)
    gone = first.ids[np.asarray(first.targets) == 1]
    with pytest.raises(
        ErasedError, match=f"Expected ids of samples that are there; got {gone[0]}, erased by request 0"
    ):
        env.look_up(gone)
    assert len(env.look_up(first.ids[np.asarray(first.targets) == 0]).ids) > 0
    with pytest.raises(SettingError, match="Expected ids shown so far; got 36"):
        env.look_up(np.array([36]))


def test_a_duplicate_request_has_no_phase() -> None:
    _, events = stream(of_class(0, 1), of_class(0, 1), of_class(0, 1, after=3))
    first, second, third = of(EraseRequest, events)
    assert np.array_equal(first.ids, second.ids)
    assert (first.budget, second.budget, third.budget) == (2, 0, 0)
    assert kinds(events) == "qSTEqredqrdqSTEqSTEqrdq."
    assert [e.request for e in of(EraseEnd, events)] == [0, 1, 2]


def test_a_request_for_unknown_ids_has_no_phase() -> None:
    _, events = stream(Request(1, "sample", unknown=3, forget="full", retain="full", steps=4))
    (asked,) = of(EraseRequest, events)
    assert asked.ids.tolist() == [36, 37, 38]
    assert asked.scope == ("36", "37", "38")
    assert asked.budget == 0
    assert not of(Erase, events)


def test_of_overlapping_scopes_only_the_rest_is_forgotten() -> None:
    some = Request(1, "sample", train=rows((0, 1, 2, 3)), forget="full", steps=1)
    env, events = stream(of_class(0, 1), some)
    first, second = of(EraseRequest, events)
    assert set(first.ids.tolist()) & set(second.ids.tolist())
    assert sorted(places(of(Erase, events)[-1].forget)) == [(0, 0), (0, 2)]
    with pytest.raises(ErasedError, match="erased by request 1"):
        env.look_up(np.setdiff1d(second.ids, first.ids))


def test_erase_relearn_erase() -> None:
    # Task 2 stands for new samples of class t0c1.
    again = Request(2, "relearn", ("t0c1",), classes=("t0c1",))
    last = Request(
        3, "class", ("t0c1",), rows((1, 3, 5, 7, 9, 11), (), range(12)), classes=("t0c1",), forget="full", steps=3
    )
    env, events = stream(of_class(0, 1), again, last)
    assert kinds(events) == "qSTEqredqSTEqrdqSTEqredq."
    relearn = of(EraseRequest, events)[1]
    assert (relearn.kind, relearn.ids.tolist(), relearn.budget, relearn.classes) == ("relearn", [], 0, ("t0c1",))
    assert len(of(EraseRequest, events)[2].ids) == 18
    # What went with the first request is not brought a second time.
    assert {t for e in of(Erase, events)[2:] for t, _ in places(e.forget)} == {2}
    known = env.counterfactual()
    assert not of(EraseRequest, played(known))


def test_requests_with_a_deadline_are_served_together() -> None:
    both = [of_class(0, 1, delay=1, retain="full"), of_class(1, 2, delay=0), of_class(0, 0, after=1, delay=1)]
    _, events = stream(*both)
    assert kinds(events) == "qSTEqrSTEqedqredqSTEq."
    first, third, second = of(EraseRequest, events)
    position = events.index(first)
    phase = next(k for k, event in enumerate(events) if isinstance(event, Erase))
    assert first.deadline == phase - position - 1 == third.deadline + 1
    assert second.deadline == 0
    joint = of(Erase, events)[:4]
    assert [(e.requests, e.step, e.steps) for e in joint] == [((0, 2), k, 4) for k in range(4)]
    assert {place for e in joint for place in places(e.forget)} == {(0, row) for row in range(12)}
    # Nothing that either request takes away is retained.
    assert {t for e in joint for t, _ in places(e.retain)} == {1}
    assert [e.request for e in of(EraseEnd, events)] == [0, 2, 1]


def test_an_announcement_comes_with_the_task() -> None:
    _, events = stream(noted=("t1c2", "t2c0"))
    assert [start.temporary for start in of(TaskStart, events)] == [(), ("t1c2",), ("t2c0",)]


@pytest.mark.parametrize(
    "asked",
    [
        [of_class(0, 1)],
        [of_class(0, 1), of_class(1, 0, delay=1)],
        [Request(1, "task", ("task 0",), rows(range(12)), rows(range(6)), ("t0c0", "t0c1"), forget="full", steps=2)],
        [Request(2, "user", ("u",), rows((0, 1), (2, 3, 4), (5, 6, 7, 11)), forget="few", shots=1, steps=2)],
        [Request(2, "sample", train=rows(range(12), (0, 3, 6, 9)), steps=2, forget="full"), of_class(1, 0, after=3)],
    ],
    ids=["class", "delay", "task", "user", "overlap"],
)
@pytest.mark.parametrize("passes", [1, 3])
def test_the_counterfactual_stream_is_the_same_without_the_samples(asked: list[Request], passes: int) -> None:
    env, events = stream(*asked, passes=passes)
    twin = env.counterfactual()
    others = played(twin)
    assert not [event for event in others if isinstance(event, EraseRequest | Erase | EraseEnd)]
    gone = {id for e in of(EraseRequest, events) for id in e.ids.tolist()}
    assert gone
    taught = [event for event in others if isinstance(event, TaskStart | Train | TaskEnd)]
    expected = without(events, gone)
    assert taught == expected
    assert of(Query, others) == of(Query, events)
    assert np.array_equal(twin.scorer.predictions()["question"], env.scorer.predictions()["question"])
    assert twin.fingerprints()["stream"] != env.fingerprints()["stream"]
    assert twin.fingerprints()["data"] == env.fingerprints()["data"]


def test_a_counterfactual_of_some_requests_keeps_the_others() -> None:
    env, events = stream(of_class(0, 1), of_class(1, 2))
    others = played(env.counterfactual([0]))
    (asked,) = of(EraseRequest, others)
    assert asked == of(EraseRequest, events)[1]
    assert of(Erase, others) == of(Erase, events)[2:]
    assert of(Query, others) == of(Query, events)


def test_a_request_that_is_none_has_no_counterfactual() -> None:
    env, _ = stream(of_class(0, 1), Request(2, "relearn", ("t0c1",)))
    with pytest.raises(SettingError, match=r"Expected numbers of requests to forget, among \[0\]; got \[1\]"):
        env.counterfactual([1]).reset(seed=0)


@pytest.mark.parametrize(
    ("request_", "settings", "words"),
    [
        (of_class(0, 1, after=0), {}, "Expected request 0 to come and be served after 1 to 3 tasks; got 0 and 0"),
        (of_class(0, 1, delay=3), {}, "got 1 and 4"),
        (of_class(0, 1), {"boundaries": "hidden"}, "Expected boundaries='given' in a stream with requests to forget"),
    ],
)
def test_requests_that_cannot_be_met(request_: Request, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        ContinualEnv(Asking(request_, **settings)).reset(seed=0)


def test_a_state_continues_from_any_event() -> None:
    asked = [of_class(0, 1, retain="few", shots=2), of_class(1, 2, delay=1, forget="few", shots=1)]
    env, events = stream(*asked, needs_scores=False)
    whole = env.scorer.predictions()
    env.reset(seed=0)
    for position in range(len(events) - 1):
        again = ContinualEnv(Asking(*asked))
        event, _ = again.reset(options={"resume": env.get_state()})
        assert event == events[position]
        action = Guess(position + 1) if isinstance(event, Query) else None
        assert again.step(action)[0] == env.step(action)[0] == events[position + 1]
        assert again.reads == env.reads
    assert all(
        np.array_equal(whole[name], column, equal_nan=column.dtype.kind == "f")
        for name, column in env.scorer.predictions().items()
    )


def test_a_state_of_another_stream_is_refused() -> None:
    env, _ = stream(of_class(0, 1))
    twin = env.counterfactual()
    with pytest.raises(RecordError, match="Expected the state of a stream of"):
        twin.reset(options={"resume": env.get_state()})


def test_events_are_in_the_space_and_have_a_line() -> None:
    env = ContinualEnv(Asking(of_class(0, 1, retain="full")), "ansi")
    event, _ = env.reset(seed=0)
    lines, done = [], False
    while not done:
        assert event in env.observation_space
        lines.append(str(env.render())[7:].strip())
        event, _, done, _, _ = env.step(Guess(0) if isinstance(event, Query) else None)
    assert "EraseRequest  class: 6 samples, counterfactual" in lines
    assert "Erase      5 to forget and 5 to retain" in lines
    assert "EraseEnd" in lines
    log = env.describe(np.zeros(env.length - 1))
    assert {"EraseRequest", "Erase", "EraseEnd"} < set(log["kind"])


def test_an_erase_event_without_batches_is_not_in_the_space() -> None:
    space = ContinualEnv(Asking()).observation_space
    assert Erase((0,), ("a",), (("a",),), None, None, 0, 1) not in space


def test_reading_ahead_shows_the_same() -> None:
    asked = of_class(0, 1, retain="full")
    assert [event for event in stream(asked, slow=True)[1] if not isinstance(event, Train | Erase)] == [
        event for event in stream(asked)[1] if not isinstance(event, Train | Erase)
    ]
    again = stream(asked, slow=True)[1]
    assert again == stream(asked, slow=True)[1]
    assert [places(e.forget) for e in of(Erase, again)] == [places(e.forget) for e in of(Erase, stream(asked)[1])]


def pictures(env: ContinualEnv, questions: Sequence[IntArray]) -> set[tuple[str, int, int]]:
    """Return kind, task and row of questions."""
    life = env._playing()
    out = set()
    for t, numbers in enumerate(questions):
        for q in numbers.tolist():
            test = q < 6
            assert life.probing is not None
            out.add(
                ("test" if test else "train", t, int(life.questions[t][q] if test else life.probing.rows[t][q - 6]))
            )
    return out


def test_questions_about_a_class() -> None:
    env, _ = stream(of_class(0, 1), of_class(1, 2))
    probing = env._playing().probing
    assert probing is not None
    sets = probing.sets(1)
    assert pictures(env, sets.erased) == {("train", 1, row) for row in (2, 5, 8, 11)}
    assert pictures(env, sets.unseen) == {("test", 1, row) for row in (2, 5)}
    # Of task 0 class 1 went with the first request, of task 1 class 2 with this one; task 2 is yet to come.
    assert pictures(env, sets.tested) == {("test", 0, row) for row in (0, 2, 4)} | {
        ("test", 1, r) for r in (0, 1, 3, 4)
    }
    assert pictures(env, sets.twins) == set()
    control = pictures(env, sets.retained)
    # All of so few training samples are asked about; those of erased classes and of the task to come do not count.
    assert control == {("train", 0, row) for row in range(0, 12, 2)} | {
        ("train", 1, row) for row in range(12) if row % 3 < 2
    }


def test_questions_about_samples() -> None:
    some = Request(2, "sample", train=rows((0, 2), (3,), (0, 1)), forget="full", steps=1)
    env, _ = stream(some)
    probing = env._playing().probing
    assert probing is not None
    sets = probing.sets(0)
    # Samples of a task to come were never learned, so they are not asked about.
    assert pictures(env, sets.erased) == {("train", 0, 0), ("train", 0, 2), ("train", 1, 3)}
    assert pictures(env, sets.unseen) == set()
    # Two erased of class t0c0 and one of t1c0: three and two unseen samples allow for one and a half times as many.
    twins = pictures(env, sets.twins)
    assert {place for place in twins if place[1] == 0} == {("test", 0, row) for row in (0, 2, 4)}
    assert len(twins) == 4
    assert twins < {("test", t, row) for t, row in ((0, 0), (0, 2), (0, 4), (1, 0), (1, 3))}


def test_questions_about_users_and_odd_samples() -> None:
    user = Request(
        2,
        "user",
        ("u3", "u5"),
        rows((0, 2), (3,), (0, 1)),
        groups=rows((3, 5), (3,), (5, 5)),
        atypical=rows((2,)),
        forget="full",
        steps=1,
    )
    env, _ = stream(user)
    probing = env._playing().probing
    assert probing is not None
    sets = probing.sets(0)
    assert [part.tolist() for part in sets.groups] == [[3, 5], [3], []]
    assert pictures(env, sets.atypical) == {("train", 0, 2)}


def test_twins_of_a_domain_are_its_unseen_samples() -> None:
    env, _ = stream(Request(1, "domain", ("task 0",), rows(range(12)), rows(range(6)), forget="full", steps=1))
    probing = env._playing().probing
    assert probing is not None
    assert pictures(env, probing.sets(0).twins) == {("test", 0, row) for row in range(6)}


def test_probes_are_asked_among_the_others_once_their_task_is_learned() -> None:
    env, _ = stream(of_class(1, 2))
    log, points = env.scorer.predictions(), env._playing().plan.points
    for number, point in enumerate(points):
        for t in range(3):
            asked = log["question"][(log["point"] == number) & (log["task"] == t)]
            count = 6 + (len(env._playing().probing.rows[t]) if t < point.after else 0)  # type: ignore[union-attr]
            assert sorted(asked.tolist()) == list(range(count))
    first = log["question"][(log["point"] == 2) & (log["task"] == 1)].tolist()
    later = log["question"][(log["point"] == 3) & (log["task"] == 1)].tolist()
    assert first != later != sorted(later)
    probes = [place for place, q in enumerate(first) if q >= 6]
    assert probes != list(range(6, len(first)))
    # R counts test questions alone, whatever the probes' answers are.
    shown = env.report().R
    right = (
        log["prediction"]
        == np.concatenate(env.lifetime.labels())[
            np.array([0, *np.cumsum([len(labels) for labels in env.lifetime.labels()])])[log["task"]] + log["question"]
        ]
    )
    numbered = [number for number, point in enumerate(points) if point.is_row]
    for t, number in enumerate(numbered):
        for j in range(3):
            mine = (log["point"] == number) & (log["task"] == j) & (log["question"] < 6)
            assert shown[t, j] == right[mine].mean()
    assert np.array_equal(env.rescore(log).R, shown)


class Sure:
    """Answers with log-probabilities that its seed draws."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.said: list[tuple[int, int, int, IntArray]] = []

    def __call__(self, event: Query) -> Any:
        scores = self.rng.normal(size=(len(event.inputs), len(event.candidates)))
        return scores - np.log(np.exp(scores).sum(1, keepdims=True))


def test_full_answers_are_kept_for_probes_scope_and_twins() -> None:
    env = ContinualEnv(Asking(of_class(0, 1), needs_scores=True))
    answer = Sure()
    event, _ = env.reset(seed=0)
    done = False
    while not done:
        event, _, done, _, _ = env.step(answer(event) if isinstance(event, Query) else None)
    assert env.scorer.full is not None
    kept, log = env.scorer.full.columns(), env.scorer.predictions()
    probing = env._playing().probing
    assert probing is not None
    sets = probing.sets(0)
    wanted = {(t, q) for t in range(3) for q in sets.unseen[t].tolist()}
    wanted |= {(t, 6 + q) for t in range(3) for q in range(len(probing.rows[t]))}
    assert set(zip(kept["task"].tolist(), kept["question"].tolist(), strict=True)) == wanted
    assert kept["log_probs"].shape == (len(kept["point"]), 9)
    top = {
        key: value
        for *key_, value in zip(
            log["point"].tolist(), log["task"].tolist(), log["question"].tolist(), log["log_prob"].tolist(), strict=True
        )
        for key in [tuple(key_)]
    }
    for row in range(len(kept["point"])):
        key = tuple(int(kept[name][row]) for name in ("point", "task", "question"))
        assert kept["log_probs"][row].max() == np.float32(top[key])
    again = ContinualEnv(Asking(of_class(0, 1), needs_scores=True))
    again.reset(options={"resume": env.get_state()})
    assert again.scorer.full is not None
    assert all(np.array_equal(again.scorer.full.columns()[name], column) for name, column in kept.items())
