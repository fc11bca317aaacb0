import numpy as np
import pytest

from clgym.plan import Point
from clgym.scorer import Scorer

# Three tasks of two questions each; the right answer is 1 everywhere. Between tasks 2 and 3 there is a probe.
POINTS = [Point(0), Point(1), Point(2), Point(2, 5), Point(3)]
ANSWERS = {
    0: ([0, 0], [0, 0], [0, 0]),
    1: ([1, 1], [1, 1], [0, 0]),
    2: ([1, 0], [1, 1], [1, 1]),
    3: ([0, 0], [0, 0], [0, 0]),  # a probe: no task end, so it is no flip
    4: ([0, 1], [1, 0], [1, 1]),
}


def played() -> Scorer:
    labels = [np.array([1, 1])] * 3
    scorer = Scorer(["a", "b", "c"], labels, POINTS, questions=30)
    for point, answers in ANSWERS.items():
        for task, answer in enumerate(answers):
            scorer.add(point, task, np.arange(len(answer)), np.array(answer))
    return scorer


def test_flips_are_of_earlier_tasks_at_task_ends_alone() -> None:
    # After task 2: the questions of task 1. After task 3: those of tasks 1 and 2. Task 3 has no later task.
    before, after = played().flips(played().predictions())
    assert before.tolist() == [True, True, True, False, True, True]
    assert after.tolist() == [True, False, False, True, True, False]


def test_negative_flips_worked_by_hand() -> None:
    # Of six items, three turn wrong: question 2 of task 1 after task 2; 1 of task 1 and 2 of task 2 after task 3.
    assert played().report().metrics["negative_flip_rate"] == pytest.approx(3 / 6)


def test_flips_follow_from_the_log_alone() -> None:
    scorer = played()
    again = Scorer(scorer.tasks, [np.array([1, 1])] * 3, POINTS, 0).rescore(scorer.predictions())
    assert again.metrics == {k: v for k, v in scorer.report().metrics.items() if not np.isnan(v)} | {
        k: pytest.approx(v, nan_ok=True) for k, v in scorer.report().metrics.items() if np.isnan(v)
    }


def test_a_question_asked_at_one_end_only_is_no_item() -> None:
    scorer = Scorer(["a", "b"], [np.array([1, 1])] * 2, [Point(0), Point(1), Point(2)], questions=9)
    scorer.add(1, 0, np.arange(2), np.array([1, 1]))
    scorer.add(2, 0, np.arange(1), np.array([0]))
    before, after = scorer.flips(scorer.predictions())
    assert before.tolist() == [True]
    assert after.tolist() == [False]


def test_without_a_second_task_there_is_nothing_to_flip() -> None:
    scorer = Scorer(["a"], [np.array([1, 1])], [Point(0), Point(1)], questions=4)
    scorer.add(1, 0, np.arange(2), np.array([1, 1]))
    assert np.isnan(scorer.report().metrics["negative_flip_rate"])
