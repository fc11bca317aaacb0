"""Numbers of a run, each a function of its accuracy matrix and, for some, of a reference.

``scores`` computes every metric whose inputs are given; ``explain`` says what a metric is. The index
convention is that of ``clgym.formulary``; metrics that look inside a task are in ``clgym.anytime``, those that
compare with reference runs in ``clgym.references``.
"""

from __future__ import annotations

import numpy as np

from clgym import erasure_metrics
from clgym.anytime import (
    average_anytime_accuracy,
    learning_curve_area,
    min_accuracy,
    negative_flip_rate,
    prequential_auc,
    stability_gap,
    windowed_forgetting,
    windowed_plasticity,
    worst_case_accuracy,
)
from clgym.formulary import METRICS, Counts, Matrix, Metric, Probes, explain, mean, metric, scores
from clgym.references import forward_transfer_survey, intransigence, plasticity_gap, plasticity_gap_trend

__all__ = [
    "METRICS",
    "Metric",
    "Probes",
    "average_accuracy",
    "average_accuracy_diaz",
    "average_anytime_accuracy",
    "average_incremental_accuracy",
    "backward_transfer",
    "backward_transfer_diaz",
    "erasure_metrics",
    "explain",
    "forgetting",
    "forgetting_capped",
    "forgetting_first_to_last",
    "forward_transfer",
    "forward_transfer_diaz",
    "forward_transfer_survey",
    "global_forgetting",
    "intransigence",
    "last",
    "learning_accuracy",
    "learning_curve_area",
    "metric",
    "micro_accuracy",
    "min_accuracy",
    "mtil_avg",
    "mtil_last",
    "mtil_transfer",
    "negative_flip_rate",
    "plasticity_gap",
    "plasticity_gap_trend",
    "prequential_auc",
    "scores",
    "stability_gap",
    "windowed_forgetting",
    "windowed_plasticity",
    "worst_case_accuracy",
]


@metric("Average accuracy (ACC)", "mean_j R[T,j]", better="higher", source="arXiv:1706.08840, eq. 2")
def average_accuracy(R: Matrix) -> float:
    """Mean accuracy over tasks after the last one, in [0, 1]; higher is better.

    Each task weighs the same. Lopez-Paz & Ranzato 2017. Not the accuracy over all held-out items, which is
    ``micro_accuracy``, and not the "average accuracy" of class-incremental papers, which is
    ``average_incremental_accuracy``.

    >>> average_accuracy(np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75]]))
    0.625
    """
    return mean(R[-1])


@metric("Last accuracy", "mean_j R[T,j]", better="higher", source="arXiv:1706.08840, eq. 2")
def last(R: Matrix) -> float:
    """Mean accuracy over tasks after the last one, in [0, 1]; higher is better.

    The name that class-incremental papers give to ``average_accuracy``; the same number. Not their pooled
    version over items, which is ``micro_accuracy``.
    """
    return mean(R[-1])


@metric(
    "Micro accuracy",
    "sum_j n_j R[T,j] / sum_j n_j, n_j = held-out items of task j",
    better="higher",
    source="arXiv:1611.07725, accuracy over all classes met",
)
def micro_accuracy(R: Matrix, sizes: Counts) -> float:
    """Accuracy over all held-out items after the last task, in [0, 1]; higher is better.

    Each item weighs the same. Rebuffi et al. 2017. Equal to ``average_accuracy`` only for tasks of equal
    size.

    >>> micro_accuracy(np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75]]), np.array([30, 10]))
    0.5625
    """
    return float((sizes * R[-1]).sum() / sizes.sum())


@metric(
    "Average incremental accuracy (AIA)",
    "mean_t mean_{j<=t} R[t,j]",
    better="higher",
    source="arXiv:1611.07725, average incremental accuracy",
)
def average_incremental_accuracy(R: Matrix) -> float:
    """Mean, over task ends, of the accuracy on the tasks learned so far, in [0, 1]; higher is better.

    Early tasks weigh more, as they are in more averages. Rebuffi et al. 2017, with tasks weighing the same.
    Not ``average_accuracy``, though many tables call it that.

    >>> average_incremental_accuracy(np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75]]))
    0.8125
    """
    return mean([mean(row[: t + 1]) for t, row in enumerate(R[1:])])


@metric(
    "Accuracy of Diaz-Rodriguez et al. (A)",
    "mean over pairs j<=t of R[t,j]",
    better="higher",
    source="arXiv:1810.13166, A",
)
def average_accuracy_diaz(R: Matrix) -> float:
    """Mean over all cells on and below the diagonal, in [0, 1]; higher is better.

    Diaz-Rodriguez et al. 2018. Not ``average_incremental_accuracy``: here each cell weighs the same, there
    each row.

    >>> average_accuracy_diaz(np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75]]))
    0.75
    """
    return mean(R[1:][np.tril_indices(R.shape[1])])


@metric("Learning accuracy (LA)", "mean_j R[j,j]", better="higher", source="arXiv:1810.11910, LA")
def learning_accuracy(R: Matrix) -> float:
    """Mean accuracy on each task right after learning it, in [0, 1]; higher is better.

    Riemer et al. 2019. A sign of plasticity, but not a gain over any reference: for that see
    ``intransigence`` and ``forward_transfer_survey``.

    >>> learning_accuracy(np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75]]))
    0.875
    """
    return mean(R[1:].diagonal())


@metric(
    "MTIL Transfer",
    "mean_{j>=2} mean_{t=1..j-1} R[t,j]",
    better="higher",
    source="arXiv:2303.06628, Transfer; indices as in its released notebook",
)
def mtil_transfer(R: Matrix) -> float:
    """Mean zero-shot accuracy on tasks not yet learned, in [0, 1]; higher is better.

    Rows 1 to T count; row 0, the untouched model, is left out. First the mean of each column above the
    diagonal, then the mean of these. NaN for a single task. Zheng et al. 2023. Not a gain: nothing is
    subtracted, so compare with the zero-shot row. Not ``forward_transfer_diaz``, where each cell weighs the
    same.

    >>> mtil_transfer(np.array([[0.5, 0.5], [1.0, 0.25], [0.5, 0.75]]))
    0.25
    """
    return mean([mean(R[1 : j + 1, j]) for j in range(1, R.shape[1])])


@metric(
    "MTIL Avg",
    "mean_j mean_{t=1..T} R[t,j]",
    better="higher",
    source="arXiv:2303.06628, Avg; indices as in its released notebook",
)
def mtil_avg(R: Matrix) -> float:
    """Mean over all tasks at all task ends, learned or not, in [0, 1]; higher is better.

    Row 0, the untouched model, is left out. Zheng et al. 2023. Not ``average_incremental_accuracy``, which
    leaves out tasks not yet learned.

    >>> mtil_avg(np.array([[0.5, 0.5], [1.0, 0.25], [0.5, 0.75]]))
    0.625
    """
    return mean(R[1:])


@metric("MTIL Last", "mean_j R[T,j]", better="higher", source="arXiv:2303.06628, Last")
def mtil_last(R: Matrix) -> float:
    """Mean accuracy over tasks after the last one, in [0, 1]; higher is better.

    The name that MTIL and X-TAIL tables give to ``average_accuracy``; the same number. Zheng et al. 2023. Not
    the accuracy on the last task alone.
    """
    return mean(R[-1])


@metric(
    "Backward transfer (BWT)",
    "mean_{j<T} R[T,j] - R[j,j]",
    low=-1,
    better="higher",
    source="arXiv:1706.08840, eq. 3",
)
def backward_transfer(R: Matrix) -> float:
    """Mean change on earlier tasks since they were learned, in [-1, 1]; higher is better.

    NaN for a single task. Lopez-Paz & Ranzato 2017. The negative of ``forgetting_first_to_last``. Not the
    negative of ``forgetting``, which compares with the best accuracy reached, and not
    ``backward_transfer_diaz``. Some codes divide by T instead of T-1.

    >>> backward_transfer(np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75]]))
    -0.5
    """
    return mean((R[-1] - R[1:].diagonal())[:-1])


@metric(
    "Backward transfer of Diaz-Rodriguez et al. (BWT)",
    "mean over pairs j<t of R[t,j] - R[j,j]",
    low=-1,
    better="higher",
    source="arXiv:1810.13166, BWT",
)
def backward_transfer_diaz(R: Matrix) -> float:
    """Mean change on earlier tasks since they were learned, in [-1, 1]; higher is better.

    Every later task end counts. NaN for a single task. Diaz-Rodriguez et al. 2018. Not
    ``backward_transfer``, which looks at the last row only.

    >>> backward_transfer_diaz(np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75]]))
    -0.5
    """
    return mean((R[1:] - R[1:].diagonal())[np.tril_indices(R.shape[1], -1)])


@metric(
    "Forward transfer (FWT)",
    "mean_{j>=2} R[j-1,j] - R[0,j]",
    low=-1,
    better="higher",
    source="arXiv:1706.08840, eq. 4",
)
def forward_transfer(R: Matrix) -> float:
    """Mean zero-shot gain on a task from the tasks before it, in [-1, 1]; higher is better.

    Just before task ``j`` is learned, against row 0; NaN if that row was not measured, and for a single
    task. Lopez-Paz & Ranzato 2017, with the untouched model as baseline. Not ``mtil_transfer``, which
    subtracts nothing, and not ``forward_transfer_survey``, which asks whether learning itself went better.

    >>> forward_transfer(np.array([[0.5, 0.5], [1.0, 0.25], [0.5, 0.75]]))
    -0.25
    """
    return mean((R.diagonal() - R[0])[1:])


@metric(
    "Forward transfer of Diaz-Rodriguez et al. (FWT)",
    "mean over pairs t<j, t>=1, of R[t,j]",
    better="higher",
    source="arXiv:1810.13166, FWT",
)
def forward_transfer_diaz(R: Matrix) -> float:
    """Mean over all cells above the diagonal, in [0, 1]; higher is better.

    Row 0 is left out. NaN for a single task. Diaz-Rodriguez et al. 2018. Not a gain: nothing is subtracted.
    Not ``mtil_transfer``, where each column weighs the same.

    >>> forward_transfer_diaz(np.array([[0.5, 0.5], [1.0, 0.25], [0.5, 0.75]]))
    0.25
    """
    return mean(R[1:][np.triu_indices(R.shape[1], 1)])


@metric(
    "Forgetting (F)",
    "mean_{j<T} max_{t=j..T-1} R[t,j] - R[T,j]",
    low=-1,
    better="lower",
    source="arXiv:1801.10112, forgetting measure; maximum from row j on",
)
def forgetting(R: Matrix) -> float:
    """Mean drop on earlier tasks from the best accuracy since they were learned, in [-1, 1]; lower is better.

    The last row is not in the maximum, so a negative value says that the last task improved the earlier
    ones. NaN for a single task. Chaudhry et al. 2018. Not ``forgetting_first_to_last`` (first minus last,
    which two libraries call forgetting) and not ``forgetting_capped`` (last row in the maximum, which four
    do).

    >>> forgetting(np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75]]))
    0.5
    """
    return mean([R[j:-1, j - 1].max() - R[-1, j - 1] for j in range(1, R.shape[1])])


@metric(
    "Forgetting, first to last",
    "mean_{j<T} R[j,j] - R[T,j]",
    low=-1,
    better="lower",
    source="arXiv:2201.09381, backward forgetting",
)
def forgetting_first_to_last(R: Matrix) -> float:
    """Mean drop on earlier tasks since they were learned, in [-1, 1]; lower is better.

    NaN for a single task. Villa et al. 2022. The negative of ``backward_transfer``. Not ``forgetting``: a
    task that rose after it was learned and then fell back counts there and not here.

    >>> forgetting_first_to_last(np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75]]))
    0.5
    """
    return mean((R[1:].diagonal() - R[-1])[:-1])


@metric(
    "Forgetting, capped at zero",
    "mean_{j<T} max_{t=j..T} R[t,j] - R[T,j]",
    better="lower",
    source="no paper; the code of Mammoth, PyCIL, PILOT and CL-Gym",
)
def forgetting_capped(R: Matrix) -> float:
    """Mean drop on earlier tasks from the best accuracy, the last row included, in [0, 1]; lower is better.

    For comparison with libraries that report it. NaN for a single task. Not ``forgetting``: with the last
    row in the maximum an improved task counts as 0 and no longer makes up for a forgotten one.

    >>> forgetting_capped(np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75]]))
    0.5
    """
    return mean([R[j:, j - 1].max() - R[-1, j - 1] for j in range(1, R.shape[1])])


@metric(
    "Global forgetting (F_G)",
    "1/(T-1) sum_{t>=2} sum_{j<t} (c_j / sum_{i<=t} c_i) (R[j,j] - R[t,j]), c_j = classes of task j",
    low=-1,
    better="lower",
    source="arXiv:2203.17269, global forgetting",
)
def global_forgetting(R: Matrix, classes: Counts) -> float:
    """Class-weighted mean drop on earlier tasks since they were learned, in [-1, 1]; lower is better.

    Mean over the task ends from the second on. The weights of a row sum to less than 1, as the task just
    learned has its share. NaN for a single task. Smith et al. 2023, for accuracies among all classes met so
    far. Not ``forgetting_first_to_last``: every row counts.

    >>> global_forgetting(np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75]]), np.array([10, 10]))
    0.25
    """
    drop = R[1:].diagonal() - R[1:]
    tasks = range(1, R.shape[1])
    return mean([(classes[:t] * drop[t, :t]).sum() / classes[: t + 1].sum() for t in tasks])
