"""What is made of detections, and that a log of them gives the same numbers."""

from __future__ import annotations

import numpy as np
import pytest

from clgym.detection_scorer import COLUMNS, DetectionScorer
from clgym.errors import RecordError
from clgym.events import Boxes
from clgym.plan import Point
from clgym.precision import share_found

A, B = (0.3, 0.3, 0.2, 0.2), (0.7, 0.7, 0.2, 0.2)
# Three test pictures and, last, one of the training data that is asked about too.
TRUTH: Boxes = np.array([[[0, *A]], [[1, *B]], [[0, *B]], [[1, *A]]], np.float32)
POINTS = [Point(0, 0), Point(1, 0)]


def scorer() -> DetectionScorer:
    return DetectionScorer(["one"], [TRUTH], POINTS, tests=[3])


def seen(*rows: tuple[float, ...]) -> Boxes:
    """Return one detection per picture of two classes."""
    return np.array([[row] for row in rows], np.float32)


ALL = seen((*A, 0.9, 0), (*B, 0, 0.9), (*B, 0.9, 0), (*A, 0, 0.9))
HALF = seen((*A, 0.9, 0), (*A, 0, 0.9), (*B, 0.9, 0), (*A, 0, 0.9))  # class 1 is looked for in the wrong place


def asked() -> DetectionScorer:
    one, order = scorer(), np.array([3, 1, 0, 2])
    assert one.add(0, 0, order[:2], HALF[order[:2]]) == 0.5
    assert one.add(0, 0, order[2:], HALF[order[2:]]) == 1.0
    assert one.add(1, 0, order, ALL[order]) == 1.0
    return one


def test_the_matrix_has_the_mean_over_classes() -> None:
    assert asked().matrix().tolist() == [[0.5], [1.0]]
    assert asked().report().metrics["average_accuracy"] == 1.0
    precision = asked().precision(0, 0)
    assert precision is not None
    assert precision.AP.tolist() == [1.0, 0.0]


def test_what_was_not_all_asked_is_not_measured() -> None:
    one = scorer()
    assert np.isnan(one.matrix()).all()
    one.add(1, 0, np.array([0, 1]), ALL[:2])
    assert one.precision(1, 0) is None
    one.add(1, 0, np.array([2]), ALL[2:3])
    assert one.matrix()[1, 0] == 1.0


def test_the_log_has_a_row_per_detection_and_gives_the_same_report() -> None:
    one = asked()
    log = one.predictions()
    assert list(log) == list(COLUMNS)
    assert len(log["score"]) == 2 * 4 * 2  # points, pictures, classes
    again = scorer().rescore(log)
    assert np.array_equal(again.R, one.report().R)
    assert np.array_equal(again.R, [[0.5], [1.0]])


@pytest.mark.parametrize(
    ("name", "value"), [("point", 2), ("task", 1), ("question", 4), ("question", -1), ("class", -1)]
)
def test_a_log_of_another_stream_is_refused(name: str, value: int) -> None:
    log = asked().predictions()
    log[name] = log[name].copy()
    log[name][5] = value
    with pytest.raises(RecordError, match=rf"Expected points below 2, tasks below 1.*{name} {value}.* in row 5"):
        scorer().rescore(log)


def test_a_state_goes_on_where_it_stood() -> None:
    one, other = scorer(), scorer()
    one.add(0, 0, np.arange(4), HALF)
    one.add_online(ALL[:1], TRUTH[:1])
    other.set_state(one.get_state())
    for part in (one, other):
        part.add(1, 0, np.arange(4), ALL)
        assert part.add_online(HALF[1:2], TRUTH[1:2]) == 0.0
    assert all(np.array_equal(other.predictions()[name], column) for name, column in one.predictions().items())
    assert other.report().metrics == pytest.approx(one.report().metrics, nan_ok=True, abs=0)


def test_share_found_counts_as_many_detections_as_there_are_objects() -> None:
    there: Boxes = np.array([[[0, *A], [1, *B]], [[-1, 0, 0, 0, 0]] * 2], np.float32)
    # The third strongest detection would find the second object.
    answer: Boxes = np.array([[(*A, 0.9, 0.8), (*B, 0.1, 0.7)]] * 2, np.float32)
    assert share_found(answer, there) == 0.5
    assert share_found(answer[:, ::-1], there) == 0.5
    assert share_found(answer[1:], there[1:]) == 0.0
