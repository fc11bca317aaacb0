"""Questions about what was erased, its twins and its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from clgym.env import ContinualEnv
from clgym.events import IntArray, Query
from clgym.scenario import Request
from tests.erasure.conftest import Asking, of_class, rows, stream


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


class Sure:
    """Answers with log-probabilities that its seed draws."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.said: list[tuple[int, int, int, IntArray]] = []

    def __call__(self, event: Query) -> Any:
        scores = self.rng.normal(size=(len(event.inputs), len(event.candidates)))
        return scores - np.log(np.exp(scores).sum(1, keepdims=True))


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
