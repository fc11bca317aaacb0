"""Pictures with objects: what they hold, and that parts of them keep it."""

from __future__ import annotations

import numpy as np
import pytest

from clgym.boxes import Boxed, BoxedImages, holds, labels_of, renumbered
from clgym.errors import InvalidAnswerError
from clgym.events import Boxes, Guess, IntArray, Query
from clgym.images import ArrayImages
from clgym.parts import Parts
from clgym.spaces import AnswerSpace, EventSpace, checked

SMALL, LARGE = (0.2, 0.2, 0.1, 0.1), (0.6, 0.6, 0.5, 0.5)


def pictures(*objects: list[tuple[float, ...]]) -> BoxedImages:
    shades = np.arange(len(objects), dtype=np.uint8).reshape(-1, 1, 1, 1).repeat(3, axis=-1)
    flat = [row for rows in objects for row in rows]
    return BoxedImages(ArrayImages(shades, np.zeros(len(objects))), flat, [len(rows) for rows in objects])


DATA = pictures([(0, *SMALL), (2, *LARGE)], [(1, *SMALL)], [(2, *SMALL), (0, *LARGE), (1, *SMALL)])


def at(*index: int) -> IntArray:
    return np.array(index, np.int64)


def test_a_picture_is_of_the_class_of_its_largest_object() -> None:
    assert isinstance(DATA, Boxed)
    assert DATA.targets.tolist() == [2, 1, 0]


def test_boxes_are_filled_up_to_the_longest_of_the_batch() -> None:
    assert DATA.boxes(at(1)).shape == (1, 1, 5)
    both = DATA.boxes(at(1, 0))
    assert both.dtype == np.float32
    assert both[..., 0].tolist() == [[1, -1], [0, 2]]
    assert both[0, 1].tolist() == [-1, 0, 0, 0, 0]
    assert both[1, 1].tolist() == pytest.approx([2, *LARGE])


def test_holding_counts_every_object_not_the_largest_alone() -> None:
    assert DATA.holds([0]).tolist() == holds(DATA, [0]).tolist() == [True, False, True]
    assert labels_of(DATA, np.array([True, False, False])).tolist() == [0, 2]
    plain = ArrayImages(np.zeros((2, 1, 1, 3), np.uint8), [4, 5])
    assert holds(plain, [5]).tolist() == [False, True]
    assert labels_of(plain, np.array([True, False])).tolist() == [4]


def test_parts_weave_boxes_and_rename_classes() -> None:
    other = pictures([(1, *LARGE)])
    parts = Parts([DATA, other], [1, 0, 0], [0, 2, 1], [0, 0, 0])
    numbers = [np.array([10, 11, -1]), np.array([20, 21])]
    found = parts.boxes(at(1, 0, 2), numbers)
    # The object of class 2 is hidden, and those that are left come first.
    assert found[..., 0].tolist() == [[10, 11, -1], [21, -1, -1], [11, -1, -1]]
    assert found[0, 0, 1:].tolist() == pytest.approx(LARGE)


def test_the_fingerprint_tells_boxes_apart() -> None:
    one, other = pictures([(0, *SMALL)]), pictures([(0, *LARGE)])
    assert one.fingerprint() == pictures([(0, *SMALL)]).fingerprint()
    assert one.fingerprint() != other.fingerprint()


def test_renaming_leaves_the_given_boxes_as_they_are() -> None:
    boxes = DATA.boxes(at(0))
    before = boxes.copy()
    renumbered(boxes, np.array([-1, -1, -1]))
    assert np.array_equal(boxes, before)


QUERY = Query(np.zeros((2, 4, 4, 3), np.uint8), ("a", "b"), (("a",), ("b",)), "boxes", None)
ANSWER: Boxes = np.full((2, 3, 6), 0.5, np.float32)


def test_detections_are_answers() -> None:
    assert checked(QUERY, ANSWER, False) is ANSWER
    assert ANSWER in AnswerSpace(2)
    assert ANSWER not in AnswerSpace(1)
    guess = checked(QUERY, Guess(3), False)
    assert guess.shape == (2, 1, 6)
    assert guess in AnswerSpace(2)
    assert np.array_equal(guess, checked(QUERY, Guess(3), False))
    assert QUERY in EventSpace((4, 4, 3))


OTHERS = ((1, 3, 6), (2, 3, 5), (2,))  # answers to another query


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, r"got None\. Return agent\.act"),
        (ANSWER.tolist(), r"got list\. Convert"),
        (np.zeros(2, np.int64), r"got int64 of shape \(2,\)\. Give centre x"),
        (ANSWER[:1], r"of shape \(1, 3, 6\)"),
        (ANSWER[..., :5], r"of shape \(2, 3, 5\)"),
        (ANSWER[:, :0], r"of shape \(2, 0, 6\)"),
        (np.full((2, 101, 6), 0.5), r"of shape \(2, 101, 6\)"),
        (ANSWER.astype(np.float16), "got float16"),
        (ANSWER * np.nan, "got NaN in row 0"),
        (ANSWER * 3, r"got values from 1\.5 to 1\.5\. Boxes are shares"),
        (-ANSWER, r"got values from -0\.5 to -0\.5"),
    ],
)
def test_other_answers_are_refused(answer: object, words: str) -> None:
    pattern = r"Expected float detections of shape \(2, Q, 6\) with Q from 1 to 100, all in \[0, 1\]; " + ".*" + words
    with pytest.raises(InvalidAnswerError, match=pattern):
        checked(QUERY, answer, False)
    assert answer is None or answer not in AnswerSpace(2) or getattr(answer, "shape", ()) in OTHERS
