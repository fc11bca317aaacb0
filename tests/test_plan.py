"""The plan: what comes after what, and that training batches cover every sample equally."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clgym.plan import Plan, Point, batch_index, plan, train_length
from clgym.scenario import Teaching

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=4)


def told(laid: Plan) -> str:
    """Write a plan as one letter a step: start, train, ask, end, query, over."""
    return "".join({"over": "."}.get(step.kind, step.kind[0]) for step in laid.steps)


def test_order_by_hand() -> None:
    # Two tasks of 3 and 2 samples in batches of two; 2 and 1 questions, one a query.
    laid = plan([3, 2], [2, 1], Teaching(batch_size=2, query_size=1))
    assert told(laid) == "qqq" + "stteqqq" + "steqqq" + "."
    assert laid.points == (Point(0), Point(1), Point(2))
    assert laid.train_steps == (2, 1)


def test_probes_and_prequential_questions_by_hand() -> None:
    teaching = Teaching(steps=3, probe_every=2, probe_size=1, prequential=True)
    laid = plan([3, 2], [2, 1], teaching)
    # A probe follows the second step, about the tasks seen so far; none follows the last step.
    assert told(laid) == "qq" + "satatqateqq" + "satatqqateqq" + "."
    assert laid.points == (Point(0), Point(0, 2), Point(1), Point(1, 2), Point(2))


def test_seen_tasks_are_asked_from_their_own_end_on_by_hand() -> None:
    laid = plan([3, 2], [2, 1], Teaching(batch_size=2, query_size=1, labels="seen"))
    assert told(laid) == "stteqq" + "steqqq" + "."
    assert laid.points == (Point(0), Point(1), Point(2))
    assert {step.point for step in laid.steps if step.kind == "query"} == {1, 2}
    assert laid.ends == (3, 8)


def test_hidden_boundaries_by_hand() -> None:
    laid = plan([3, 2], [2, 1], Teaching(batch_size=2, boundaries="hidden", labels="union"))
    assert told(laid) == "qq" + "stt" + "qq" + "t" + "e" + "qq" + "."
    assert [s.task for s in laid.steps if s.kind in ("start", "end")] == [-1, -1]
    assert laid.ends == (5, 8)
    alone = plan([3], [2], Teaching(batch_size=2, boundaries="hidden", labels="seen"))
    assert told(alone) == "stteq."


def test_no_probe_falls_on_a_task_boundary() -> None:
    laid = plan([4], [1], Teaching(steps=4, probe_every=2))
    assert laid.points == (Point(0), Point(0, 2), Point(1))


@given(
    *(SIZES, st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.booleans()),
    *(st.sampled_from(["task", "seen"]), st.sampled_from(["given", "hidden"])),
)
def test_every_test_question_is_asked_once_at_every_boundary(
    sizes: list[int],
    query_size: int,
    batch_size: int,
    passes: int,
    probe_every: int,
    prequential: bool,
    labels: Literal["task", "seen"],
    boundaries: Literal["given", "hidden"],
) -> None:
    teaching = Teaching(
        batch_size,
        0,
        passes,
        query_size,
        labels=labels,
        probe_every=probe_every,
        prequential=prequential,
        boundaries=boundaries,
    )
    laid = plan(sizes, sizes[::-1], teaching)
    for number, point in enumerate(laid.points):
        asked = [(s.task, q) for s in laid.steps if s.point == number for q in range(s.start, s.stop)]
        everything = point.after if labels == "seen" else len(sizes)
        tasks = range(everything) if point.step == 0 else range(point.after + 1)
        assert asked == [(t, q) for t in tasks for q in range(sizes[::-1][t])]
    assert [p.after for p in laid.points if p.step == 0] == list(range(len(sizes) + 1))
    assert all(s.stop - s.start <= query_size for s in laid.steps)


@given(SIZES, st.integers(1, 4), st.integers(1, 3), st.integers(0, 5), st.booleans())
def test_every_task_is_started_taught_and_ended_in_turn(
    sizes: list[int], batch_size: int, passes: int, steps: int, prequential: bool
) -> None:
    teaching = Teaching(batch_size, steps, passes, prequential=prequential)
    laid = plan(sizes, sizes, teaching)
    taught = [(s.kind, s.task, s.batch) for s in laid.steps if s.kind in ("start", "train", "end")]
    expected = []
    for t, size in enumerate(sizes):
        expected += [("start", t, 0), *(("train", t, k) for k in range(train_length(size, teaching))), ("end", t, 0)]
    assert taught == expected
    assert laid.train_steps == tuple(train_length(size, teaching) for size in sizes)
    pairs = zip(laid.steps, laid.steps[1:], strict=False)
    asks = [(a.task, a.batch) == (b.task, b.batch) and b.kind == "train" for a, b in pairs if a.kind == "ask"]
    assert asks == [True] * (sum(laid.train_steps) if prequential else 0)
    assert [s.kind for s in laid.steps].count("over") == 1
    assert laid.steps[-1].kind == "over"


@given(st.integers(1, 30), st.integers(1, 8), st.integers(1, 3))
def test_each_pass_shows_each_sample_once(samples: int, batch_size: int, passes: int) -> None:
    teaching = Teaching(batch_size, passes=passes)
    length = train_length(samples, teaching)
    batches = [batch_index(samples, k, teaching, (0, 1)) for k in range(length)]
    for number in range(passes):
        shown = np.concatenate(batches[number * length // passes : (number + 1) * length // passes])
        assert sorted(shown.tolist()) == list(range(samples))
    assert all(len(batch) <= batch_size for batch in batches)


@given(st.integers(1, 30), st.integers(1, 40), st.integers(1, 12))
def test_steps_show_samples_equally_often_in_full_batches(samples: int, batch_size: int, steps: int) -> None:
    teaching = Teaching(batch_size, steps)
    batches = [batch_index(samples, k, teaching, (0, 1)) for k in range(steps)]
    assert [len(batch) for batch in batches] == [batch_size] * steps
    counts = np.bincount(np.concatenate(batches), minlength=samples)
    assert counts.max() - counts.min() <= 1


@given(st.integers(2, 30), st.integers(1, 8), st.integers(0, 5), st.integers(0, 20))
def test_batches_are_found_by_number_alone(samples: int, batch_size: int, steps: int, batch: int) -> None:
    teaching = Teaching(batch_size, steps)
    assert np.array_equal(batch_index(samples, batch, teaching, (4, 2)), batch_index(samples, batch, teaching, (4, 2)))


@pytest.mark.parametrize("other", [(0, 2), (1, 1)])
def test_entropy_decides_the_order(other: tuple[int, int]) -> None:
    teaching = Teaching(batch_size=50)
    assert batch_index(50, 0, teaching, (0, 1)).tolist() != batch_index(50, 0, teaching, other).tolist()
    assert batch_index(50, 1, teaching, (0, 1)).tolist() != batch_index(50, 0, teaching, (0, 1)).tolist()
