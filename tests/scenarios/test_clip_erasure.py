"""CLIP-Erasure-v0: what each kind of stream asks to be forgotten, and the faults it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clgym
from clgym.env import ContinualEnv
from clgym.errors import ErasedError, SettingError, SourceMissingError
from clgym.events import Erase, EraseEnd, EraseRequest, Event, Query, TaskStart, Train
from clgym.scenarios.clip_erasure import CLIPErasure

ID = "CLIP-Erasure-v0"


def bare(four_domains: Path | None = None, **settings: Any) -> ContinualEnv:
    if four_domains is not None:
        usual = {"source": str(four_domains), "backbone": "embedded/tiny-clip", "amount": 1, "steps": 1}
        settings = {**usual, "erase_steps": 1, **settings}
    env = clgym.make(ID, disable_env_checker=True, **settings).unwrapped
    assert isinstance(env, ContinualEnv)
    return env


def even(event: Event) -> Any:
    """Return the answer to a question that says nothing."""
    if not isinstance(event, Query):
        return None
    return np.full((len(event.inputs), len(event.candidates)), -np.log(len(event.candidates)))


def played(env: ContinualEnv, seed: int = 0) -> list[Event]:
    """Play with answers that are all the same."""
    event, _ = env.reset(seed=seed)
    events, done = [event], False
    while not done:
        event, _, done, _, _ = env.step(even(event))
        events.append(event)
    return events


def asked(events: list[Event]) -> list[EraseRequest]:
    return [event for event in events if isinstance(event, EraseRequest)]


def test_two_classes_of_each_of_the_first_two_domains_go_by_default() -> None:
    env = bare()
    env.reset(seed=0)
    life = env.lifetime
    assert [task.name for task in life.tasks] == ["satellite", "dishes", "flowers", "cars"]
    first, second = life.ledger.requests
    assert (first.after, second.after, first.kind, first.goal) == (2, 3, "class", "counterfactual")
    assert set(first.classes) < set(life.tasks[0].classes)
    assert set(second.classes) < set(life.tasks[1].classes)
    assert (len(first.classes), first.forget, first.retain, first.shots, first.steps) == (2, "full", "few", 4, 40)
    assert (env.scenario.teaching.steps, env.scenario.teaching.batch_size) == (60, 32)
    env.reset(seed=1)
    assert env.lifetime.ledger.requests[0].classes != first.classes


def test_constants_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clgym.hub.require", lambda *_: None)
    real = CLIPErasure(source="hub")
    assert (real.backbone, real.shape) == ("ViT-B-16/openai", (224, 224, 3))
    assert (real.teaching.steps, real.teaching.batch_size) == (500, 64)
    assert real.classes == 10 + 101 + 102 + 196


def test_the_hub_without_data_fails_at_once() -> None:
    with pytest.raises(SourceMissingError, match="eurosat"):
        bare(source="hub")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "klass"}, "Expected kind as one of 'class', 'sample'.*got 'klass'"),
        ({"goal": "privacy"}, "Expected goal as one of 'counterfactual', 'removal'; got 'privacy'"),
        ({"forget": "own"}, "Expected forget as one of"),
        ({"retain": "all"}, "Expected retain as one of"),
        ({"labels": "all"}, "Expected labels as one of 'task', 'union'; got 'all'"),
        ({"noise": 1.0, "kind": "sample"}, r"Expected noise in \[0, 1\)"),
        ({"noise": 0.1}, "with kind 'sample' only; got 0.1"),
        ({"lag": -1}, "Expected lag to be 0 or more; got -1"),
    ],
)
def test_settings_out_of_range(four_domains: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        bare(four_domains, **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"requests": 4}, "Expected requests and lag to sum to at most 4 in a stream of kind 'class'; got 4 and 1"),
        ({"lag": 4}, "got 2 and 4"),
        ({"kind": "batch", "requests": 3}, "at most 3 in a stream of kind 'batch'; got 3 and 1"),
        ({"amount": 3}, "Expected amount and missing to leave some of the 3 classes of pets; got 3 and 0"),
        ({"amount": 2, "missing": 1}, "got 2 and 1"),
    ],
)
def test_requests_that_do_not_fit_the_stream(four_domains: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        bare(four_domains, **settings).reset(seed=0)


def test_a_request_may_come_at_once_and_withhold_classes(four_domains: Path) -> None:
    env = bare(four_domains, lag=0, missing=1, retain="full", forget="none")
    events = played(env)
    request = asked(events)[0]
    (missing,) = request.missing
    domain = env.lifetime.tasks[0].classes
    assert missing in domain
    assert missing not in request.classes
    place = events.index(request)
    assert not [event for event in events[:place] if isinstance(event, TaskStart) and event.classes != domain]
    brought = [event for event in events[place:] if isinstance(event, Erase) and event.requests == (0,)]
    assert brought
    for event in brought:
        assert event.forget is None
        assert event.retain is not None
        names = {event.classes[target] for target in np.asarray(event.retain.targets)}
        assert not names & {missing, *request.classes}


def test_samples_of_all_learned_domains_go_half_of_them_mislabelled(four_domains: Path) -> None:
    env = bare(four_domains, kind="sample", amount=10, noise=0.4)
    requests = asked(played(env))
    assert [len(request.ids) for request in requests] == [10, 10]
    assert not set(requests[0].ids) & set(requests[1].ids)
    life = env.lifetime
    right = CLIPErasure(source=str(four_domains), backbone="embedded/tiny-clip")._load()
    for r, request in enumerate(life.ledger.requests):
        wrong = [task.train.targets != was.train.targets for task, was in zip(life.tasks, right, strict=True)]
        odd = sum(int(wrong[t][rows].sum()) for t, rows in enumerate(request.train))
        assert odd == 5 == sum(map(len, request.atypical))
        assert sum(len(rows) > 0 for rows in request.train) <= r + 2
        assert request.classes == ()


def test_a_domain_goes_and_its_classes_stay(four_domains: Path) -> None:
    env = bare(four_domains, kind="domain")
    events = played(env)
    starts = [event for event in events if isinstance(event, TaskStart)]
    assert [start.name for start in starts] == ["photo", "sketch", "posterised", "inverted"]
    assert len({start.classes for start in starts}) == 1
    gone = [("domain", (name,), ()) for name in ("photo", "sketch")]
    assert [(request.kind, request.scope, request.classes) for request in asked(events)] == gone


def test_a_whole_task_goes(four_domains: Path) -> None:
    env = bare(four_domains, kind="task", requests=1)
    (request,) = asked(played(env))
    assert (request.kind, request.scope) == ("task", ("pets",))
    assert request.classes == env.lifetime.tasks[0].classes
    assert sorted(request.ids) == sorted(env.lifetime.ids[0])


def test_users_leave_with_what_they_have_in_tasks_to_come(four_domains: Path) -> None:
    env = bare(four_domains, kind="user", amount=40)
    events = played(env)
    first, second = asked(events)
    assert (first.kind, len(first.scope)) == ("user", 40)
    assert not set(first.scope) & set(second.scope)
    life = env.lifetime
    gone = {id for q in life.ledger.requests for t, rows in enumerate(q.train) for id in life.ids[t][rows].tolist()}
    later = [event.ids for event in events[events.index(second) :] if isinstance(event, Train)]
    assert not gone & set(np.concatenate(later).tolist())


def test_temporary_domains_are_announced_and_only_one_must_go(four_domains: Path) -> None:
    events = played(bare(four_domains, kind="temporary"))
    starts = [event for event in events if isinstance(event, TaskStart)]
    assert [start.temporary == start.classes for start in starts] == [True, True, False, False]
    (request,) = asked(events)
    assert (request.notice, request.scope) == ("temporary", ("pets",))


def test_a_batch_has_one_deadline(four_domains: Path) -> None:
    events = played(bare(four_domains, kind="batch"))
    first, second = asked(events)
    phases = {event.requests for event in events if isinstance(event, Erase)}
    assert phases == {(0, 1)}
    assert first.deadline > second.deadline > 0
    start = next(k for k, event in enumerate(events) if isinstance(event, Erase))
    assert start - events.index(first) - 1 == first.deadline
    ends = [k for k, event in enumerate(events) if isinstance(event, EraseEnd)]
    assert ends[1] == ends[0] + 1


def test_what_went_is_welcome_again_with_new_samples(four_domains: Path) -> None:
    env = bare(four_domains, kind="relearn")
    events = played(env)
    gone, welcome = asked(events)
    assert (welcome.kind, welcome.classes, len(welcome.ids)) == ("relearn", gone.classes, 0)
    again = events[events.index(welcome) :]
    start = next(event for event in again if isinstance(event, TaskStart))
    assert start.name == "pets again"
    assert set(gone.classes) < set(start.classes)
    ids = np.concatenate([event.ids for event in again if isinstance(event, Train)])
    assert not set(ids) & set(gone.ids)


def test_repeated_unknown_and_overlapping_requests_change_nothing(four_domains: Path) -> None:
    env = bare(four_domains, kind="conflict")
    events = played(env)
    first, twice, unknown, overlap, welcome, last = asked(events)
    assert [request.kind for request in (first, twice, unknown, overlap, welcome, last)] == [
        *("class", "class", "sample", "sample", "relearn", "class")
    ]
    assert np.array_equal(first.ids, twice.ids)
    assert set(overlap.ids) <= set(first.ids)
    assert not set(unknown.ids) & set(np.concatenate(env.lifetime.ids))
    assert [request.budget for request in (first, twice, unknown, overlap, welcome, last)] == [1, 0, 0, 0, 0, 1]
    # The second time the samples that came anew go; the old ones are named too.
    assert set(first.ids) < set(last.ids)
    brought = [event for event in events if isinstance(event, Erase) and event.requests == (5,)]
    assert brought[0].forget is not None
    assert not set(brought[0].forget.ids) & set(first.ids)
    assert len([event for event in events if isinstance(event, EraseEnd)]) == 6


def test_what_was_erased_cannot_be_asked_for(four_domains: Path) -> None:
    env = bare(four_domains)
    event, _ = env.reset(seed=0)
    ids: np.ndarray = np.empty(0)
    while not isinstance(event, EraseEnd):
        ids = event.ids if isinstance(event, EraseRequest) else ids
        event, *_ = env.step(even(event))
    assert len(env.look_up(ids[:2]).ids) == 2
    env.step(None)
    with pytest.raises(ErasedError, match="erased by request 0"):
        env.look_up(ids[:2])


def test_the_goal_of_removal_is_said(four_domains: Path) -> None:
    assert {request.goal for request in asked(played(bare(four_domains, goal="removal")))} == {"removal"}


def test_all_domains_classes_may_be_offered(four_domains: Path) -> None:
    events = played(bare(four_domains, labels="union"))
    widths = {len(event.candidates) for event in events if isinstance(event, Query)}
    assert max(widths) == 12
