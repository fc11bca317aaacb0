import inspect
import math
import re
from collections.abc import Callable
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clgym import metrics
from clgym.errors import NotRegisteredError, SettingError
from clgym.metrics import METRICS, Probes, explain, scores

Array = npt.NDArray[np.float64]
NAN = float("nan")

# Worked by hand below; row 0 is zero-shot.
R = np.array([[0.2, 0.3, 0.1], [0.8, 0.5, 0.3], [0.9, 0.7, 0.2], [0.6, 0.8, 1.0]])
BY_HAND = {
    "average_accuracy": (0.6 + 0.8 + 1.0) / 3,
    "last": 0.8,
    "mtil_last": 0.8,
    "average_incremental_accuracy": (0.8 + (0.9 + 0.7) / 2 + 0.8) / 3,
    "average_anytime_accuracy": 0.8,
    "average_accuracy_diaz": (0.8 + 0.9 + 0.7 + 0.6 + 0.8 + 1.0) / 6,
    "learning_accuracy": (0.8 + 0.7 + 1.0) / 3,
    "mtil_transfer": (0.5 + (0.3 + 0.2) / 2) / 2,
    "mtil_avg": (0.8 + 0.5 + 0.3 + 0.9 + 0.7 + 0.2 + 0.6 + 0.8 + 1.0) / 9,
    "backward_transfer": ((0.6 - 0.8) + (0.8 - 0.7)) / 2,
    "backward_transfer_diaz": ((0.9 - 0.8) + (0.6 - 0.8) + (0.8 - 0.7)) / 3,
    "forward_transfer": ((0.5 - 0.3) + (0.2 - 0.1)) / 2,
    "forward_transfer_diaz": (0.5 + 0.3 + 0.2) / 3,
    "forgetting": ((0.9 - 0.6) + (0.7 - 0.8)) / 2,
    "forgetting_first_to_last": ((0.8 - 0.6) + (0.7 - 0.8)) / 2,
    "forgetting_capped": ((0.9 - 0.6) + 0.0) / 2,
}


@pytest.mark.parametrize("id", BY_HAND)
def test_value_worked_by_hand(id: str) -> None:
    assert METRICS[id].function(R) == pytest.approx(BY_HAND[id], abs=1e-12)


def test_scores_holds_exactly_the_metrics_whose_inputs_are_given() -> None:
    assert set(scores(R)) == set(BY_HAND)
    of_single = {"forward_transfer_survey", "plasticity_gap", "plasticity_gap_trend"}
    assert set(scores(R, single=np.ones(3))) == set(BY_HAND) | of_single
    assert "negative_flip_rate" not in scores(R, before=np.array([True]))
    empty = Probes(np.array([], int), np.array([], int), np.empty((0, 3)))
    everything = scores(
        R,
        single=np.ones(3),
        joint=np.ones(3),
        sizes=np.array([1, 2, 3]),
        classes=np.array([5, 5, 5]),
        probes=empty,
        prequential=np.array([0.5]),
        before=np.array([True, True]),
        after=np.array([False, True]),
    )
    erasure = {id for id, m in METRICS.items() if m.function.__module__ == metrics.erasure_metrics.__name__}
    assert set(everything) == set(METRICS) - erasure
    assert set(scores(R, erasure={"remaining": 0.5, "forgotten": 0.25})) == {*BY_HAND, "acc_r", "acc_f"}
    assert everything["negative_flip_rate"] == 0.5


def test_references_worked_by_hand() -> None:
    got = scores(R, single=np.array([0.9, 0.9, 0.7]), joint=np.array([0.8, 0.9, 0.9]), sizes=np.array([1, 3, 6]))
    assert got["forward_transfer_survey"] == pytest.approx(((0.7 - 0.9) + (1.0 - 0.7)) / 2)
    assert got["intransigence"] == pytest.approx((0.0 + 0.2 - 0.1) / 3)
    assert got["plasticity_gap"] == pytest.approx((0.1 + 0.2 - 0.3) / 3)
    assert got["plasticity_gap_trend"] == pytest.approx((-1 * 0.1 + 1 * -0.3) / 2)
    assert got["micro_accuracy"] == pytest.approx((0.6 + 3 * 0.8 + 6 * 1.0) / 10)


def test_global_forgetting_worked_by_hand() -> None:
    # t=2: 10/30 * (.8-.9); t=3: 10/40 * (.8-.6) + 20/40 * (.7-.8)
    expected = (10 / 30 * -0.1 + (10 / 40 * 0.2 + 20 / 40 * -0.1)) / 2
    assert metrics.global_forgetting(R, np.array([10, 20, 10])) == pytest.approx(expected)


def test_window_hides_slow_drops() -> None:
    slow = np.array([[0.1], [0.5]])
    probes = Probes(np.array([1, 1, 1]), np.array([1, 2, 3]), np.array([[0.8], [0.7], [0.6]]))
    assert metrics.windowed_forgetting(slow, probes, window=2) == pytest.approx(0.1)
    assert metrics.windowed_forgetting(slow, probes, window=3) == pytest.approx(0.2)
    assert metrics.windowed_forgetting(slow, probes, window=99) == pytest.approx(0.3)
    assert metrics.windowed_plasticity(slow, probes) == 0.0


def test_stability_gap_sees_a_drop_that_recovers() -> None:
    recovered = np.array([[0.0, 0.0], [0.9, 0.0], [0.9, 0.9]])
    probes = Probes(np.array([2]), np.array([1]), np.array([[0.2, 0.5]]))
    assert metrics.forgetting(recovered) == 0.0
    assert metrics.stability_gap(recovered, probes) == pytest.approx(0.7)


def test_row_before_training_leaves_mtil_alone() -> None:
    other = R.copy()
    other[0] = NAN
    for id in ("mtil_transfer", "mtil_avg", "mtil_last"):
        assert METRICS[id].function(other) == METRICS[id].function(R)


@pytest.mark.parametrize("id", sorted(METRICS))
def test_docstring_and_table_agree(id: str) -> None:
    m = METRICS[id]
    doc = inspect.getdoc(m.function) or ""
    direction = {True: "higher is better", False: "lower is better", None: "neither"}[m.higher_is_better]
    assert doc.splitlines()[0].endswith(f", in [{m.low:g}, {m.high:g}]; {direction}.")
    assert re.search(r"\b(Not|not|Equal|Negative|blind)\b", doc), "say what it is not"
    assert m.source.startswith(("arXiv:", "no paper;"))
    assert getattr(metrics, id, None) is m.function or getattr(metrics.erasure_metrics, id) is m.function
    assert m.takes[: len(m.needs)] == m.needs


def test_explain_shows_everything() -> None:
    assert explain("backward_transfer").splitlines()[:5] == [
        "backward_transfer: Backward transfer (BWT)",
        "  formula  mean_{j<T} R[T,j] - R[j,j]",
        "  range    [-1, 1], higher is better",
        "  source   arXiv:1706.08840, eq. 3",
        "  inputs   R",
    ]
    assert "which compares with the best accuracy" in explain("backward_transfer")
    assert ">>>" not in explain("backward_transfer")
    assert "inputs   R, probes, window (optional)" in explain("windowed_forgetting")


def test_explain_names_the_nearest_metric() -> None:
    with pytest.raises(NotRegisteredError, match=r"got 'forgeting'. Did you mean 'forgetting'\?"):
        explain("forgeting")


SQUARE = np.full((3, 3), 0.5)
PROBE = Probes(np.array([1]), np.array([1]), np.array([[0.5]]))
PROBE_OF_TWO = Probes(np.array([1]), np.array([1]), np.array([[0.5, 0.5]]))
ONE = np.array([[0.1], [0.8]])


def ask(**inputs: object) -> Callable[[], object]:
    matrix = inputs.pop("R", ONE)
    return lambda: scores(matrix, **inputs)  # type: ignore[arg-type]


def log(task: object, step: object, accuracy: object) -> Callable[[], object]:
    return lambda: Probes(task, step, accuracy)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (ask(R=R * 100), "Expected accuracies in [0, 1]; got 20 in R. Divide percentages by 100"),
        (ask(R=-ONE), "Expected accuracies in [0, 1]; got -0.1 in R."),
        (ask(R=np.array([[0.1], [np.inf]])), "got inf in R."),
        (
            ask(R=SQUARE),
            "Expected R of shape (T+1, T), row 0 before any training; got (3, 3). Put a row of NaN",
        ),
        (ask(R=np.zeros((1, 0))), "got (1, 0)"),
        (ask(R=[["a"], ["b"]]), "Expected R as numbers; got list"),
        (
            ask(single=np.array([0.5, 0.5])),
            "Expected single for the 1 tasks of R; got 2. Give one entry per task.",
        ),
        (ask(joint=np.array([50.0])), "got 50 in joint"),
        (ask(joint=np.array([[0.5]])), "Expected joint as one row of numbers; got shape (1, 1)."),
        (ask(sizes=np.array([0.5])), "Expected sizes as one row of whole numbers from 0; got array([0.5])."),
        (ask(sizes=np.array([0])), "Expected sizes with at least one above 0; got array([0])."),
        (ask(probes=[0.5]), "Expected probes as Probes; got list."),
        (ask(probes=PROBE_OF_TWO), "Expected probes.accuracy for the 1 tasks of R; got 2."),
        (
            ask(before=np.array([1]), after=np.array([1])),
            "Expected before as booleans, True = right; got int64.",
        ),
        (
            ask(before=np.array([True]), after=np.array([True, True])),
            "Expected before and after about the same items; got shapes (1,) and (2,).",
        ),
        (
            lambda: metrics.windowed_forgetting(ONE, PROBE, 1),
            "window as a whole number from 2",
        ),
        (
            log([1], [1, 2], [[0.5]]),
            "Expected probes of shapes (P,), (P,) and (P, T); got (1,), (2,) and (1, 1).",
        ),
        (log([0], [1], [[0.5]]), "Expected probes.task_learning in 1..1; got 0..0. Number tasks from 1."),
        (log([1, 1], [3, 3], [[0.5], [0.5]]), "Expected one probe per task and step; got a moment twice."),
        (log([1], [-1], [[0.5]]), "Expected probes.step as one row of whole numbers from 0"),
        (log([1], [1], [[50.0]]), "got 50 in probes.accuracy"),
    ],
)
def test_message(wrong: Callable[[], object], message: str) -> None:
    with pytest.raises(SettingError, match=re.escape(message)):
        wrong()


def test_inputs_are_left_as_they_were() -> None:
    before = R.copy()
    scores(R, sizes=np.array([1, 1, 1]))
    np.testing.assert_array_equal(R, before)


@st.composite
def matrices(draw: st.DrawFn, low: int = 0, high: int = 100) -> Array:
    tasks = draw(st.integers(1, 5))
    cells = st.integers(low, high)
    rows = draw(st.lists(st.lists(cells, min_size=tasks, max_size=tasks), min_size=tasks + 1, max_size=tasks + 1))
    return np.array(rows, dtype=np.float64) / 100


@st.composite
def runs(draw: st.DrawFn) -> tuple[Array, Probes]:
    matrix = draw(matrices())
    tasks = matrix.shape[1]
    moments = draw(st.lists(st.tuples(st.integers(1, tasks), st.integers(0, 5)), unique=True, max_size=8))
    cells = st.lists(st.integers(0, 100), min_size=tasks, max_size=tasks)
    accuracy = np.array([draw(cells) for _ in moments], dtype=np.float64).reshape(len(moments), tasks) / 100
    when = np.array(moments, dtype=np.int64).reshape(len(moments), 2)
    return matrix, Probes(when[:, 0], when[:, 1], accuracy)


def full(matrix: Array, probes: Probes) -> dict[str, float]:
    tasks = matrix.shape[1]
    ones, counts = np.ones(tasks), np.arange(1, tasks + 1)
    return scores(matrix, single=ones, joint=ones, sizes=counts, classes=counts, probes=probes, window=3, beta=1)


few = settings(max_examples=40, deadline=None)


@few
@given(runs())
def test_within_the_stated_range(run: tuple[Array, Probes]) -> None:
    for id, value in full(*run).items():
        assert math.isnan(value) or METRICS[id].low - 1e-12 <= value <= METRICS[id].high + 1e-12, id


@few
@given(runs())
def test_order_of_the_kinds_of_forgetting(run: tuple[Array, Probes]) -> None:
    got = full(*run)
    if run[0].shape[1] == 1:
        assert math.isnan(got["forgetting"])
        return
    assert got["forgetting"] >= got["forgetting_first_to_last"] - 1e-12
    assert got["forgetting_capped"] >= max(0.0, got["forgetting"]) - 1e-12
    assert got["backward_transfer"] == pytest.approx(-got["forgetting_first_to_last"], abs=1e-12)
    assert got["worst_case_accuracy"] <= got["average_accuracy"] + 1e-12
    assert got["min_accuracy"] <= np.mean(run[0][-1, :-1]) + 1e-12


@few
@given(st.integers(1, 6), st.integers(0, 100))
def test_constant_matrix_changes_nothing(tasks: int, cell: int) -> None:
    for id, value in scores(np.full((tasks + 1, tasks), cell / 100)).items():
        if "forgetting" in id or "backward" in id or id == "forward_transfer":
            assert math.isnan(value) if tasks == 1 else value == 0
        elif not math.isnan(value):
            assert value == pytest.approx(cell / 100)


@few
@given(matrices(high=60), st.integers(0, 40))
def test_constant_shift_leaves_changes_alone(matrix: Array, shift: int) -> None:
    before, after = scores(matrix), scores(matrix + shift / 100)
    for id, value in before.items():
        moved = 0 if "forgetting" in id or "backward" in id or id == "forward_transfer" else shift / 100
        assert after[id] == pytest.approx(value + moved, abs=1e-9, nan_ok=True), id


@few
@given(runs(), st.data())
def test_a_missing_cell_never_changes_a_number(run: tuple[Array, Probes], data: st.DataObject) -> None:
    matrix, probes = run
    holed = matrix.copy()
    row = data.draw(st.integers(0, matrix.shape[0] - 1))
    holed[row, data.draw(st.integers(0, matrix.shape[1] - 1))] = NAN
    whole = full(matrix, probes)
    for id, value in full(holed, probes).items():
        assert math.isnan(value) or value == whole[id], id


@few
@given(runs(), st.randoms())
def test_order_of_probes_does_not_matter(run: tuple[Array, Probes], random: Random) -> None:
    matrix, probes = run
    order = list(range(len(probes.step)))
    random.shuffle(order)
    mixed = Probes(probes.task_learning[order], probes.step[order], probes.accuracy[order])
    np.testing.assert_equal(full(matrix, mixed), full(matrix, probes))


@few
@given(st.lists(st.booleans(), min_size=1, max_size=20), st.data())
def test_negative_flips_bound_the_drop(before: list[bool], data: st.DataObject) -> None:
    after = data.draw(st.lists(st.booleans(), min_size=len(before), max_size=len(before)))
    rate = metrics.negative_flip_rate(np.array(before), np.array(after))
    assert rate >= (sum(before) - sum(after)) / len(before) - 1e-12


@few
@given(runs())
def test_without_tasks_to_come_only_metrics_of_zero_shot_are_undefined(run: tuple[Array, Probes]) -> None:
    """A class-incremental run: row 0 and everything above the diagonal is not measured, in probes neither."""
    matrix, probes = run
    tasks = matrix.shape[1]
    lower = np.where(np.arange(tasks) < np.arange(tasks + 1)[:, None], matrix, NAN)
    inside = np.where(np.arange(tasks) < probes.task_learning[:, None], probes.accuracy, NAN)
    whole = full(matrix, probes)
    got = full(lower, Probes(probes.task_learning, probes.step, inside))
    zero_shot = {"mtil_transfer", "forward_transfer", "forward_transfer_diaz", "learning_curve_area"}
    for id in whole:
        if id in zero_shot or (id == "mtil_avg" and tasks > 1):
            assert math.isnan(got[id]) or id == "learning_curve_area", id
        else:
            assert got[id] == pytest.approx(whole[id], nan_ok=True), id
