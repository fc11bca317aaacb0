"""How far answers are apart, against values worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from clgym.distances import area, area_interval, confidences, jensen_shannon, largest_gap

SURE, EVEN, OTHER = np.log([1.0, 1e-300]), np.log([0.5, 0.5]), np.log([1e-300, 1.0])


@pytest.mark.parametrize(
    ("a", "b", "bits"),
    [
        ([SURE], [SURE], 0.0),
        ([SURE], [OTHER], 1.0),
        # m = (3/4, 1/4): half of log2(4/3), and half of the mean of log2(2/3) and log2(2).
        ([SURE], [EVEN], 0.5 * np.log2(4 / 3) + 0.25 * np.log2(2 / 3) + 0.25),
        ([SURE, SURE], [OTHER, SURE], 0.5),
    ],
)
def test_jensen_shannon(a: list[np.ndarray], b: list[np.ndarray], bits: float) -> None:
    assert jensen_shannon(np.array(a), np.array(b)) == pytest.approx(bits, abs=1e-12)
    assert jensen_shannon(np.array(b), np.array(a)) == pytest.approx(bits, abs=1e-12)


def test_candidates_that_a_question_does_not_have_count_for_nothing() -> None:
    padded = [np.append(row, -np.inf) for row in (SURE, EVEN)]
    assert jensen_shannon(padded[0][None], padded[1][None]) == pytest.approx(jensen_shannon(SURE[None], EVEN[None]))


@pytest.mark.parametrize(
    ("a", "b", "gap"),
    [
        ([1, 2, 3], [1, 2, 3], 0.0),
        ([1, 2], [3, 4], 1.0),
        ([1, 2, 3, 4], [3, 4, 5, 6], 0.5),
        ([1, 1, 1, 2], [1, 2], 0.25),  # at 1: three quarters against a half
    ],
)
def test_largest_gap(a: list[float], b: list[float], gap: float) -> None:
    assert largest_gap(np.array(a, float), np.array(b, float)) == gap


def test_confidences_are_logits_and_finite() -> None:
    found = confidences(np.array([np.log([0.75, 0.25]), np.log([0.75, 0.25]), [0.0, -np.inf]]), np.array([0, 1, 0]))
    assert found[:2] == pytest.approx([np.log(3), -np.log(3)])
    assert found[2] == pytest.approx(np.log((1 - 1e-7) / 1e-7))


def test_area_counts_pairs_and_ties_half() -> None:
    # Of six pairs 3 > 1, 3 > 2, 2 > 1 and the tie of 2 and 2.
    assert area(np.array([3.0, 2.0, 0.0]), np.array([1.0, 2.0])) == pytest.approx(3.5 / 6)


def test_the_interval_of_an_area() -> None:
    members, others = np.array([3.0, 2.0, 0.0]), np.array([1.0, 2.0])
    # Per member 1, 3/4 and 0; per other 2/3 and 1/2: variances 13/48 over 3 and 1/72 over 2.
    half = 1.96 * np.sqrt(13 / 48 / 3 + 1 / 72 / 2)
    assert area_interval(members, others) == pytest.approx((max(0, 3.5 / 6 - half), min(1, 3.5 / 6 + half)))
    assert area_interval(np.arange(4.0) + 10, np.arange(4.0)) == (1.0, 1.0)
    # The spread of a single member is not known, so it may be anything.
    assert area_interval(np.array([1.0]), np.array([0.0, 2.0])) == (0.0, 1.0)
