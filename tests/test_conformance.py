import math

import numpy as np
import pytest

from clgym.conformance import Case, check, load, ours
from clgym.metrics import METRICS


def test_our_metrics_conform() -> None:
    assert check() == []


def test_every_metric_has_a_case_with_a_number() -> None:
    covered = {id for case in load().cases for id, value in case.expected.items() if not math.isnan(value)}
    assert covered == set(METRICS)


def test_every_metric_of_earlier_tasks_has_a_case_where_it_is_nan() -> None:
    undefined = {id for case in load().cases for id, value in case.expected.items() if math.isnan(value)}
    assert undefined >= {
        "backward_transfer",
        "forgetting",
        "forward_transfer",
        "mtil_transfer",
        "min_accuracy",
    }


def test_cases_have_their_own_ids_and_say_where_their_values_come_from() -> None:
    pack = load()
    ids = [case.id for case in (*pack.cases, *pack.rejected)]
    assert len(ids) == len(set(ids))
    assert all(case.obtained.startswith(("by hand: ", "fractions: ", "printed in ")) for case in pack.cases)
    assert all(case.description for case in (*pack.cases, *pack.rejected))


def test_values_are_within_the_stated_range() -> None:
    for case in load().cases:
        for id, value in case.expected.items():
            assert math.isnan(value) or METRICS[id].low <= value <= METRICS[id].high, (case.id, id)


def last_row_in_the_maximum(case: Case) -> dict[str, float]:
    return {**ours(case), "forgetting": ours(case)["forgetting_capped"]}


def zero_for_undefined(case: Case) -> dict[str, float]:
    return {id: float(np.nan_to_num(value)) for id, value in ours(case).items()}


def percent(case: Case) -> dict[str, float]:
    return {id: 100 * value for id, value in ours(case).items()}


def zero_shot_row_in_avg(case: Case) -> dict[str, float]:
    return {**ours(case), "mtil_avg": float(case.R.mean())}


@pytest.mark.parametrize(
    ("compute", "case", "metric"),
    [
        (last_row_in_the_maximum, "improvement", "forgetting"),
        (zero_for_undefined, "one_task", "backward_transfer"),
        (percent, "four_tasks", "average_accuracy"),
        (zero_shot_row_in_avg, "mtil_three_tasks", "mtil_avg"),
        (lambda case: {}, "four_tasks", "last"),
    ],
)
def test_a_wrong_implementation_is_caught(compute: object, case: str, metric: str) -> None:
    assert callable(compute)
    assert (case, metric) in {(failure.case, failure.metric) for failure in check(compute)}


def test_an_implementation_that_crashes_is_caught() -> None:
    def crash(case: Case) -> dict[str, float]:
        raise ZeroDivisionError("one task")

    failures = check(crash, only=["last"])
    assert len(failures) == sum("last" in case.expected for case in load().cases)
    assert str(failures[0]) == ("four_tasks: expected last = 0.7375; got ZeroDivisionError('one task').")


def test_an_implementation_that_accepts_percentages_is_caught() -> None:
    def lax(case: Case) -> dict[str, float]:
        try:
            return ours(case)
        except ValueError:
            return {}

    failures = check(lax)
    assert {failure.case for failure in failures} == {case.id for case in load().rejected}
    assert str(failures[0]) == "percent: expected * = an error; got values."


def test_only_holds_to_the_named_metrics() -> None:
    def bare(case: Case) -> dict[str, float]:
        return {"average_accuracy": float(case.R[-1].mean())}

    assert check(bare, only=["average_accuracy"]) == []


def test_every_word_of_a_peer_maps_to_the_same_number_or_says_why_not() -> None:
    pack = load()
    values = next(case.expected for case in pack.cases if case.id == pack.peers_case)
    for word in pack.peers:
        if word.equals is None:
            assert word.remark
        else:
            assert values[word.equals] == pytest.approx(word.value, abs=5.1e-5), word
    assert len({word.value for word in pack.peers if word.word == "forgetting"}) > 2


def test_the_released_matrices_of_zscl_give_each_number_that_its_notebook_prints() -> None:
    printed = {  # Thunderbeee/ZSCL, mtil/results.ipynb at 65232c7: per data set, order I
        "transfer": "86.0 67.4 45.4 50.4 69.1 87.6 61.8 86.8 60.1 66.8",
        "avg": "45.1 92.0 80.1 64.3 79.5 81.6 89.6 75.2 88.9 64.7 68.0",
        "last": "40.6 92.2 81.3 70.5 94.8 90.5 91.9 98.7 93.9 85.3 80.2",
    }
    case = next(case for case in load().cases if case.id == "mtil_zscl_order1")
    R = 100 * case.R[1:]
    columns = {"transfer": [R[:j, j].mean() for j in range(1, 11)], "avg": R.mean(axis=0), "last": R[-1]}
    for name, line in printed.items():
        np.testing.assert_allclose(columns[name], [float(word) for word in line.split()], atol=0.0501)
        got = ours(case)[f"mtil_{name}"]
        assert 100 * got == pytest.approx(np.mean(columns[name]))
        assert round(100 * got, 1) == {"transfer": 68.1, "avg": 75.4, "last": 83.6}[name]
