"""What a run is worth against reference runs on the same tasks: one model per task, or one on all tasks together.

The index convention is that of ``clgym.formulary``. A reference is one accuracy per task: ``s_j`` of a model trained
on task ``j`` alone (agent ``single_task``), ``u_t`` of one trained on tasks 1 to ``t`` together (agent ``joint``).
"""

from __future__ import annotations

import numpy as np

from clgym.formulary import Matrix, Vector, mean, metric


@metric(
    "Forward transfer against single-task models (FWT)",
    "mean_{j>=2} R[j,j] - s_j, s_j = accuracy of a model trained on task j alone",
    low=-1,
    better="higher",
    source="arXiv:2302.00487, FWT",
)
def forward_transfer_survey(R: Matrix, single: Vector) -> float:
    """Mean gain right after learning a task over learning it alone, in [-1, 1]; higher is better.

    NaN for a single task. Wang et al. 2024. Not ``forward_transfer``: no zero-shot accuracy enters.
    Negative in most runs, where it says how rigid the agent has become.

    >>> forward_transfer_survey(np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75]]), np.array([1.0, 0.5]))
    0.25
    """
    return mean((R[1:].diagonal() - single)[1:])


@metric(
    "Intransigence (I)",
    "mean_t u_t - R[t,t], u_t = accuracy on task t of a model trained on tasks 1..t together",
    low=-1,
    better="lower",
    source="arXiv:1801.10112, intransigence measure; mean over tasks",
)
def intransigence(R: Matrix, joint: Vector) -> float:
    """Mean shortfall right after learning a task against joint training, in [-1, 1]; lower is better.

    Negative where learning in sequence is better. Chaudhry et al. 2018. Not the gap between final
    accuracies, and not the negative of ``forward_transfer_survey``, whose reference has seen one task only.

    >>> intransigence(np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75]]), np.array([1.0, 1.0]))
    0.125
    """
    return mean(joint - R[1:].diagonal())


@metric(
    "Plasticity gap",
    "mean_j s_j - R[j,j], s_j = accuracy on task j of a freshly started model trained on it alone",
    low=-1,
    better="lower",
    source="arXiv:2306.13812 names the loss of plasticity; the gap to a fresh start is defined by clgym",
)
def plasticity_gap(R: Matrix, single: Vector) -> float:
    """Mean shortfall right after learning a task against a fresh start on it, in [-1, 1]; lower is better.

    Negative where what was learned before helps. The first task counts, where the gap is 0 if agent and reference
    learn alike. Dohare et al. 2023 follow the accuracy on one new task after another. Not the negative of
    ``forward_transfer_survey``, which leaves the first task out, and silent on whether the gap grows: see
    ``plasticity_gap_trend``.

    >>> plasticity_gap(np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75]]), np.array([1.0, 1.0]))
    0.125
    """
    return mean(single - R[1:].diagonal())


@metric(
    "Trend of the plasticity gap",
    "least-squares slope over j of s_j - R[j,j], per task",
    low=-2,
    high=2,
    better="lower",
    source="arXiv:2306.13812 names the loss of plasticity; the slope is defined by clgym",
)
def plasticity_gap_trend(R: Matrix, single: Vector) -> float:
    """Growth per task of the gap to a fresh start, in [-2, 2]; lower is better.

    Above 0 the agent loses plasticity as the stream goes on; the straight line is fitted over all tasks. NaN for a
    single task. Not the size of the gap: rigidity from the start, without a trend, is in ``plasticity_gap`` alone.

    >>> plasticity_gap_trend(np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75]]), np.array([1.0, 1.0]))
    0.25
    """
    gap = single - R[1:].diagonal()
    if len(gap) < 2:
        return float("nan")
    from_middle = np.arange(len(gap)) - (len(gap) - 1) / 2
    return float((from_middle * gap).sum() / (from_middle**2).sum())
