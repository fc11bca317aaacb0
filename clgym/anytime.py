"""What happens between task ends: worst case, stability gap, speed of learning, prequential accuracy.

Those that take probes see the run as one row of evaluations: for each task its probes in order of step,
then the end of the task, which is row ``t`` of ``R``. The numbers depend on how often a run is probed, so
compare only runs probed at the same steps. The index convention is that of ``clgym.formulary``.
"""

from __future__ import annotations

import numpy as np

from clgym.formulary import Counts, Flags, Matrix, Probes, Vector, mean, metric


def _evaluations(R: Matrix, probes: Probes | None) -> tuple[Counts, Matrix]:
    """Return the task in training, ``(E,)``, and the accuracies, ``(E, T)``, of all evaluations in order."""
    tasks = R.shape[1]
    ends = np.arange(1, tasks + 1)
    if probes is None:
        return ends, R[1:]
    learning = np.concatenate([probes.task_learning, ends])
    step = np.concatenate([probes.step.astype(np.float64), np.full(tasks, np.inf)])
    order = np.lexsort((step, learning))
    return learning[order], np.concatenate([probes.accuracy, R[1:]])[order]


def _worst_later(R: Matrix, probes: Probes) -> Vector:
    """Lowest accuracy of each task but the last once a later task is in training; shape ``(T-1,)``."""
    learning, accuracy = _evaluations(R, probes)
    return np.array([accuracy[learning > j, j - 1].min() for j in range(1, R.shape[1])])


@metric(
    "Average anytime accuracy (AAA)",
    "mean over all evaluations e of mean_{j<=t(e)} acc_j(e), t(e) = the task in training at e",
    better="higher",
    source="arXiv:2104.05025, AAA",
)
def average_anytime_accuracy(R: Matrix, probes: Probes | None = None) -> float:
    """Mean, over all evaluations, of the accuracy on the tasks met so far, in [0, 1]; higher is better.

    The task in training counts as met from its first probe. Each evaluation weighs the same, so a task
    probed more often weighs more. Without probes the evaluations are the task ends. Caccia et al. 2022. Not
    ``average_incremental_accuracy`` as soon as there are probes, and not ``prequential_auc``, which asks
    about the next training batch rather than held-out data.

    >>> R = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 1.0]])
    >>> average_anytime_accuracy(R), average_anytime_accuracy(R, Probes([2], [1], [[0.0, 0.5]]))
    (0.875, 0.6666666666666666)
    """
    learning, accuracy = _evaluations(R, probes)
    return mean([mean(row[:t]) for t, row in zip(learning, accuracy, strict=True)])


@metric(
    "Average minimum accuracy (min-ACC)",
    "mean_{j<T} min over evaluations e with t(e)>j of acc_j(e)",
    better="higher",
    source="arXiv:2205.13452, min-ACC",
)
def min_accuracy(R: Matrix, probes: Probes) -> float:
    """Mean over earlier tasks of the lowest accuracy during later tasks, in [0, 1]; higher is better.

    The end of task ``j`` itself is not in its minimum. NaN for a single task. De Lange et al. 2023. Not the
    lowest of the averages over tasks: each task has its own worst moment.

    >>> R = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 1.0]])
    >>> min_accuracy(R, Probes([2], [1], [[0.25, 0.5]]))
    0.25
    """
    return mean(_worst_later(R, probes))


@metric(
    "Worst-case accuracy (WC-ACC)",
    "(1/T) R[T,T] + (1 - 1/T) min_accuracy",
    better="higher",
    source="arXiv:2205.13452, WC-ACC",
)
def worst_case_accuracy(R: Matrix, probes: Probes) -> float:
    """Mean of the last task's final accuracy and every earlier task's worst one, in [0, 1]; higher is better.

    For a single task it is the final accuracy: the minimum has weight 0. De Lange et al. 2023. Not a bound
    on what happens between probes, and never above ``average_accuracy``.

    >>> R = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 1.0]])
    >>> worst_case_accuracy(R, Probes([2], [1], [[0.25, 0.5]]))
    0.625
    """
    return mean([*_worst_later(R, probes), R[-1, -1]])


@metric(
    "Stability gap",
    "mean over pairs j<t of R[t-1,j] - min over evaluations e with t(e)=t of acc_j(e)",
    low=-1,
    better="lower",
    source="arXiv:2205.13452 names the phenomenon and plots it; the number is defined by clgym",
)
def stability_gap(R: Matrix, probes: Probes) -> float:
    """Mean drop of earlier tasks to their lowest point in the next task, in [-1, 1]; lower is better.

    For each task ``t`` from the second on and each earlier task ``j``: accuracy at the end of task ``t-1``
    minus the lowest accuracy while ``t`` is learned, its end included; then the mean over all pairs.
    Negative where even the lowest point is an improvement; NaN for a single task. De Lange et al. 2023
    describe the gap as the transient part of the drop; this number includes what never recovers. Not
    ``forgetting``, which sees task ends only, and not ``min_accuracy``, which is a level and not a drop.

    >>> R = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 1.0]])
    >>> stability_gap(R, Probes([2], [1], [[0.25, 0.5]]))
    0.75
    """
    learning, accuracy = _evaluations(R, probes)
    drops = [R[t - 1, : t - 1] - accuracy[learning == t, : t - 1].min(axis=0) for t in range(2, R.shape[1] + 1)]
    return mean(np.concatenate(drops) if drops else [])


def _largest_change(R: Matrix, probes: Probes, window: int, sign: int) -> float:
    """Mean over tasks of the largest change of one sign between two evaluations of one window, at least 0."""
    learning, accuracy = _evaluations(R, probes)
    largest = []
    for j in range(1, R.shape[1] + 1):
        own = accuracy[learning >= j, j - 1]
        if len(own) < 2:
            largest.append(float("nan"))
            continue
        changes = [sign * (own[lag:] - own[:-lag]) for lag in range(1, min(window, len(own)))]
        largest.append(np.maximum(np.concatenate(changes).max(), 0.0))
    return mean(largest)


@metric(
    "Windowed forgetting (WF)",
    "mean_j max(0, max over evaluations m<n, n-m<window, t(m)>=j of acc_j(m) - acc_j(n))",
    better="lower",
    source="arXiv:2205.13452, WF, as in its released code",
)
def windowed_forgetting(R: Matrix, probes: Probes, window: int = 10) -> float:
    """Mean over tasks of the largest drop within ``window`` evaluations, in [0, 1]; lower is better.

    A task's evaluations count from the start of its own training; a task with fewer than two is NaN. The
    window is counted in successive evaluations, so its length in steps depends on the probing period. De
    Lange et al. 2023. Not ``forgetting``: drops that recover count, slow drops longer than the window do
    not, and it is never negative.

    >>> R = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 1.0]])
    >>> windowed_forgetting(R, Probes([2], [1], [[0.25, 0.5]]))
    0.375
    """
    return _largest_change(R, probes, window, -1)


@metric(
    "Windowed plasticity (WP)",
    "mean_j max(0, max over evaluations m<n, n-m<window, t(m)>=j of acc_j(n) - acc_j(m))",
    better="higher",
    source="arXiv:2205.13452, WP, as in its released code",
)
def windowed_plasticity(R: Matrix, probes: Probes, window: int = 10) -> float:
    """Mean over tasks of the largest rise within ``window`` evaluations, in [0, 1]; higher is better.

    Evaluations count as in ``windowed_forgetting``; probe step 0 of each task to see the whole rise. De
    Lange et al. 2023. Not a measure of the level reached: a task known before training cannot rise, and a
    recovery from a drop counts as a rise.

    >>> R = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 1.0]])
    >>> windowed_plasticity(R, Probes([2], [1], [[0.25, 0.5]]))
    0.375
    """
    return _largest_change(R, probes, window, +1)


@metric(
    "Learning curve area (LCA)",
    "mean_{b=0..beta} mean_t acc_t after b periods of p steps on task t, p = the first step probed",
    better="higher",
    source="arXiv:1812.00420, sec. 3, where p = 1",
)
def learning_curve_area(R: Matrix, probes: Probes, beta: int = 10) -> float:
    """Mean accuracy on the task in training at its steps 0, p, 2p to ``beta`` p, in [0, 1]; higher is better.

    ``p`` is the lowest step above 0 that is probed in any task; with ``p = 1``, every batch, it is the paper's number.
    Step 0 is ``R[t-1,t]`` where it is not probed. NaN unless every task is probed at each of the steps p to
    ``beta`` p, all before its end. Chaudhry et al. 2019. Not the area over a whole task, and not comparable between
    batch sizes or periods: a step is one batch.

    >>> R = np.array([[0.0], [1.0]])
    >>> learning_curve_area(R, Probes([1, 1], [0, 1], [[0.25], [0.75]]), beta=1)
    0.5
    >>> learning_curve_area(R, Probes([1, 1], [5, 10], [[0.5], [0.7]]), beta=2)
    0.39999999999999997
    """
    probed = zip(probes.task_learning, probes.step, probes.accuracy, strict=True)
    seen = {(t, b): accuracy[t - 1] for t, b, accuracy in probed}
    period = min((b for _, b in seen if b), default=1)
    tasks = range(1, R.shape[1] + 1)
    untrained = {(t, 0): R[t - 1, t - 1] for t in tasks}
    return mean([(untrained | seen).get((t, b * period), np.nan) for t in tasks for b in range(beta + 1)])


@metric(
    "Prequential accuracy (area under the online accuracy curve)",
    "mean_b acc on training batch b before training on it",
    better="higher",
    source="arXiv:2108.09020, average online accuracy",
)
def prequential_auc(prequential: Vector) -> float:
    """Mean accuracy on each training batch just before it is learned, in [0, 1]; higher is better.

    The plain mean over batches of equal size, which is the area under the curve as a left sum, not the
    trapezoid. A smaller last batch weighs as much as the others. NaN for no batch. Cai et al. 2021. Not an
    accuracy on held-out data, and blind to forgetting: repeating the last label does well on a slow stream.

    >>> prequential_auc(np.array([0.0, 0.5, 1.0, 1.0]))
    0.625
    """
    return mean(prequential)


@metric(
    "Negative flip rate (NFR)",
    "mean over items of [right before and wrong after]",
    better="lower",
    source="arXiv:2011.09161, NFR",
)
def negative_flip_rate(before: Flags, after: Flags) -> float:
    """Share of items right before and wrong after an update, in [0, 1]; lower is better.

    The share is of all items, not of those that were right before. NaN for no item. Yan et al. 2021. Not
    the drop in accuracy: items that turn right do not make up for items that turn wrong.

    >>> negative_flip_rate(np.array([True, True, False, False]), np.array([True, False, True, True]))
    0.25
    """
    return mean(before & ~after)
