"""Average precision, on cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from clgym.errors import SettingError
from clgym.precision import average_precision

HERE, THERE = (0.5, 0.5, 0.2, 0.2), (0.2, 0.8, 0.2, 0.2)


def found(*rows: list[tuple[float, ...]]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.array(rows, np.float32)


def test_a_shifted_box_counts_up_to_its_overlap() -> None:
    # The boxes share 0.18 x 0.2 of 0.22 x 0.2: IoU 0.818, above seven of the ten thresholds.
    score = average_precision(found([(0.52, 0.5, 0.2, 0.2, 0.9)]), found([(0, *HERE)]))
    assert score.AP == pytest.approx([0.7])
    assert score.AP50 == pytest.approx([1.0])


def test_a_false_alarm_above_two_hits_costs_a_third() -> None:
    # Precision is 1/2 at the first hit and 2/3 at the second, which is then the interpolated one at every recall.
    answers = found([(*THERE, 0.9), (*HERE, 0.8)], [(*THERE, 0.1), (*HERE, 0.7)])
    score = average_precision(answers, found([(0, *HERE)], [(0, *HERE)]))
    assert score.AP == pytest.approx([2 / 3])


def test_an_object_that_is_missed_ends_the_curve_at_half_the_recall() -> None:
    # Precision 1 at the 51 levels of recall from 0 to 0.5 of 101.
    answers = found([(*HERE, 0.9)], [(*THERE, 0.8)])
    score = average_precision(answers, found([(0, *HERE)], [(0, *HERE)]))
    assert score.AP == pytest.approx([51 / 101])


def test_a_second_detection_of_one_object_is_a_false_alarm() -> None:
    # Hit, duplicate, hit: precision 1 up to recall 0.5 and 2/3 beyond.
    answers = found([(*HERE, 0.9), (*HERE, 0.8)], [(*HERE, 0.7), (*THERE, 0.1)])
    score = average_precision(answers, found([(0, *HERE)], [(0, *HERE)]))
    assert score.AP == pytest.approx([(51 + 50 * 2 / 3) / 101])


def test_classes_are_scored_apart_and_those_without_an_object_are_not() -> None:
    # Scores of three classes: the first is found, the second is there but seen elsewhere, the third is not there.
    answers = found([(*HERE, 0.9, 0.05, 0.0), (*HERE, 0.1, 0.8, 0.1)])
    score = average_precision(answers, found([(0, *HERE), (1, *THERE), (-1, 0, 0, 0, 0)]))
    assert score.AP[:2] == pytest.approx([1.0, 0.0])
    assert np.isnan(score.AP).tolist() == np.isnan(score.AP50).tolist() == [False, False, True]


def test_small_objects_count_like_large_ones() -> None:
    tiny = (0.5, 0.5, 0.002, 0.002)
    assert average_precision(found([(*tiny, 0.9)]), found([(0, *tiny)])).AP == pytest.approx([1.0])


def test_pictures_without_an_object_have_no_precision() -> None:
    assert np.isnan(average_precision(found([(*HERE, 0.9)]), found([(-1, *HERE)])).AP).all()


@pytest.mark.parametrize(
    ("answers", "objects"),
    [
        (np.zeros((2, 1, 5)), np.zeros((1, 1, 5))),
        (np.zeros((1, 1, 4)), np.zeros((1, 1, 5))),
        (np.zeros((1, 1, 5)), np.zeros((1, 1, 4))),
        (np.zeros((1, 5)), np.zeros((1, 5))),
        (np.zeros((1, 1, 5)), np.ones((1, 1, 5))),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    answers: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    objects: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
) -> None:
    with pytest.raises(SettingError, match="Give the answers and the objects of the same pictures"):
        average_precision(answers, objects)
