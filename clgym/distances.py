"""How far two sets of answers are apart: divergence, distribution functions, and who is told from whom."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from clgym.formulary import Matrix, Vector

_SURE = 1e-7  # probabilities are kept so far from 0 and 1 that a confidence is finite


def jensen_shannon(a: Matrix, b: Matrix) -> float:
    """Return the Jensen-Shannon divergence of two agents' answers, bits in [0, 1], mean over items.

    Args:
        a: Log-probabilities ``(n, C)``.
        b: The same items and candidates.
    """
    p, q = np.exp(a), np.exp(b)
    with np.errstate(divide="ignore"):
        m = np.log((p + q) / 2)
    with np.errstate(invalid="ignore"):
        left, right = (np.where(x > 0, x * (log - m), 0.0).sum(axis=-1) for x, log in ((p, a), (q, b)))
    return float(np.clip((left + right) / (2 * np.log(2)), 0, 1).mean())


def largest_gap(a: Vector, b: Vector) -> float:
    """Return Kolmogorov and Smirnov's D: the largest difference of two empirical distribution functions, in [0, 1]."""
    at = np.sort(np.concatenate([a, b]))
    below = [np.searchsorted(np.sort(x), at, side="right") / len(x) for x in (a, b)]
    return float(np.abs(below[0] - below[1]).max())


def confidences(log_probs: Matrix, labels: npt.NDArray[np.int64]) -> Vector:
    """Return ``ln p - ln(1 - p)`` of the true labels, float64 ``(n,)``, finite (arXiv:2112.03570, section VI).

    Args:
        log_probs: ``(n, C)``.
        labels: ``(n,)``.
    """
    p = np.exp(np.asarray(log_probs, np.float64)[np.arange(len(labels)), labels]).clip(_SURE, 1 - _SURE)
    logit: npt.NDArray[np.float64] = np.log(p) - np.log1p(-p)
    return logit


def area(members: Vector, others: Vector) -> float:
    """Return the chance that a member's score exceeds another's, ties half, in [0, 1]."""
    order = np.sort(others)
    wins = np.searchsorted(order, members, side="left") + np.searchsorted(order, members, side="right")
    return float(wins.mean() / (2 * len(others)))


def area_interval(members: Vector, others: Vector, z: float = 1.96) -> tuple[float, float]:
    """Return a 95 % interval of :func:`area`, by the variance of DeLong et al. 1988, within [0, 1]."""
    total = area(members, others)
    per_member = np.array([area(members[i : i + 1], others) for i in range(len(members))])
    per_other = np.array([area(members, others[i : i + 1]) for i in range(len(others))])
    spread = [x.var(ddof=1) / len(x) if len(x) > 1 else np.nan for x in (per_member, per_other)]
    half = z * float(np.sqrt(sum(spread)))
    return max(0.0, total - half), min(1.0, total + half)
