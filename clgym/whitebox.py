"""What an agent's network looks like from inside: one function per number, on a frozen batch of held-out inputs.

An agent offers what these need by its methods ``features``, ``activations`` and ``matrices``; :func:`look` computes the
numbers of what it offers. They describe, they do not rank: each hints at what is wrong with a network that learns no
longer (arXiv:2306.13812), and none says how much was learned. The gap to a freshly started agent is a number of the
accuracy matrix, ``clgym.metrics.plasticity_gap``.

The batch is the first questions of every task, :data:`BATCH` in all and as many of each (``ContinualEnv.held_out``):
inputs alone, never labels, and the same for every agent, seed and task end of a stream.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from clgym.agent import Agent
from clgym.errors import SettingError
from clgym.events import Array, Inputs
from clgym.formulary import Metric

BATCH = 512
_AT_ONCE = 128  # inputs of one pass: hidden layers of a real model hold every token of every input
Function = TypeVar("Function", bound=Callable[..., float])
WHITEBOX: dict[str, Metric] = {}


def _column(
    title: str,
    formula: str,
    *,
    low: float,
    high: float = np.inf,
    better: Literal["lower"] | None = None,
    source: str,
    percent: bool = False,
) -> Callable[[Function], Function]:
    """Enter a function in the table of white-box columns under its own name."""

    def enter(function: Function) -> Function:
        parameters = inspect.signature(function).parameters
        needs = tuple(p.name for p in parameters.values() if p.default is p.empty)
        id, lower = function.__name__, None if better is None else False
        WHITEBOX[id] = Metric(id, title, formula, low, high, lower, source, needs, tuple(parameters), function, percent)
        return function

    return enter


@_column(
    "Effective rank of the features",
    "exp(-sum_k p_k ln p_k), p_k = sigma_k / sum_l sigma_l, sigma = singular values of the features (n, d)",
    low=1,
    source="Roy & Vetterli 2007, EUSIPCO, pp. 606-610",
)
def effective_rank(features: Array) -> float:
    """Number of directions that the features use, in [1, inf]; neither direction is better.

    The entropy of the singular values, said as a number of equal ones; at most min(n, d). Features are not centred, so
    their mean weighs as one direction. NaN for features that are all zero or not finite. Not ``stable_rank``, which
    holds all directions against the largest, and not comparable between widths or batch sizes.

    >>> round(effective_rank(np.eye(3)), 9), round(effective_rank(np.diag([2.0, 1.0, 1.0])), 9)  # 2 ** 1.5
    (3.0, 2.828427125)
    """
    sigma = _spectrum(features)
    p = sigma[sigma > 0] / sigma.sum()
    return float(np.exp(-(p * np.log(p)).sum())) if len(p) else float("nan")


@_column(
    "Stable rank of the features",
    "sum_k sigma_k^2 / max_k sigma_k^2, sigma = singular values of the features (n, d)",
    low=1,
    source="arXiv:math/0503442, abstract",
)
def stable_rank(features: Array) -> float:
    """Squared Frobenius norm over squared spectral norm of the features, in [1, inf]; neither direction is better.

    At most min(n, d), and at most the rank; 1 where one direction holds all. Features are not centred, and a large mean
    brings it close to 1. NaN for features that are all zero or not finite. Not ``effective_rank``, in which small
    directions count for more, and not comparable between widths or batch sizes.

    >>> stable_rank(np.eye(3)), stable_rank(np.diag([2.0, 1.0, 1.0]))
    (3.0, 1.5)
    """
    energy = _spectrum(features) ** 2
    return float(energy.sum() / energy.max()) if energy.any() else float("nan")


@_column(
    "Rank of the features at 99 % (srank)",
    "min k with sum_{l<=k} sigma_l >= (1 - delta) sum_l sigma_l, sigma = singular values in falling order",
    low=1,
    source="arXiv:2010.14498, srank",
)
def srank(features: Array, delta: float = 0.01) -> float:
    """Number of largest singular values that hold all but ``delta`` of their sum, in [1, inf]; neither is better.

    At most min(n, d). Kumar et al. 2021, who call it effective rank. NaN for features that are all zero or not finite.
    Not ``effective_rank``: a whole number, and blind to how the values above the cut are spread.

    >>> srank(np.eye(3)), srank(np.diag([9.0, 1.0, 0.05]))
    (3.0, 2.0)
    """
    sigma = _spectrum(features)
    if not sigma.any():
        return float("nan")
    return float((np.cumsum(sigma) < (1 - delta) * sigma.sum()).sum() + 1)


@_column(
    "Dormant units",
    "share of hidden units i with s_i <= tau, s_i = mean_x |h_i(x)| / mean over the layer's units of mean_x |h(x)|",
    low=0,
    high=1,
    better="lower",
    source="arXiv:2302.12902, tau-dormant neurons; the mean is over tokens too",
    percent=True,
)
def dormant_units(activations: Sequence[Array], tau: float = 0.025) -> float:
    """Share of hidden units that are next to silent beside others of their layer, in [0, 1]; lower is better.

    Hidden units are those of the feed-forward parts, after their non-linearity; ``x`` runs over inputs and tokens. All
    units of a layer that is silent as a whole are dormant. NaN without a layer, and for values that are not finite.
    Sokar et al. 2023. Not the share of
    units that are exactly zero: a GELU never is, hence the ratio.

    >>> dormant_units([np.array([[1.0, 0.0], [3.0, 0.0]]), np.array([[1.0, 1.0]])])
    0.25
    """
    means = [np.abs(layer.astype(np.float64)).mean(axis=0) for layer in activations]
    if not means or not np.isfinite(np.concatenate(means)).all():
        return float("nan")
    return float(np.concatenate([mean <= tau * mean.mean() for mean in means]).mean())


@_column(
    "Weight norm",
    "sqrt of the sum of squares of all parameters of the image encoder as they act",
    low=0,
    source="no paper; the length of a vector",
)
def weight_norm(matrices: Iterable[Array]) -> float:
    """Euclidean length of the network's parameters, in [0, inf]; neither direction is better.

    The classifier is left out, as heads grow with the classes; low-rank branches are added to their weights first. Not
    the distance from the pre-trained weights: a rotation leaves it as it is. Compare with the row before training.

    >>> weight_norm([np.array([[3.0]]), np.array([0.0, 4.0])])
    5.0
    """
    return float(np.sqrt(sum(float((matrix.astype(np.float64) ** 2).sum()) for matrix in matrices)))


def look(agent: Agent, inputs: Inputs) -> dict[str, float]:
    """Return the columns of what an agent offers, by id; what it does not offer is left out.

    Args:
        agent: Nothing in it changes.
        inputs: The frozen batch.
    """
    parts = [inputs[start : start + _AT_ONCE] for start in range(0, len(inputs), _AT_ONCE)]
    features = _joined([agent.features(part) for part in parts])
    seen = [agent.activations(part) for part in parts]
    layers = list(zip(*(part for part in seen if part is not None), strict=True))
    matrices = agent.matrices()
    offered: dict[str, object] = {} if features is None else {"features": features}
    offered |= {"activations": [np.concatenate(layer) for layer in layers]} if layers else {}
    out = {c.id: c.function(offered[c.needs[0]]) for c in WHITEBOX.values() if c.needs[0] in offered}
    return out if matrices is None else out | {"weight_norm": weight_norm(matrices)}


class Looks:
    """The columns of one run: a row before training and one at each task end, if they are wanted.

    Attributes:
        rows: One dict of columns per look, ``None`` for what is not finite; ``None`` where none are wanted.

    Args:
        wanted: Whether to look at all.
    """

    def __init__(self, wanted: bool) -> None:
        """Start without a look."""
        self.rows: list[dict[str, float | None]] | None = [] if wanted else None

    def take(self, agent: Agent, held_out: Callable[[int], Inputs]) -> None:
        """Add a row; ``held_out`` returns the frozen batch of a size."""
        if self.rows is not None:
            seen = look(agent, held_out(BATCH))
            self.rows.append({id: value if np.isfinite(value) else None for id, value in seen.items()})

    def restore(self, rows: list[dict[str, float | None]] | None) -> None:
        """Continue with the rows of an interrupted run.

        Raises:
            SettingError: It was played with the columns and is continued without them, or the reverse.
        """
        if (rows is None) != (self.rows is None):
            began, now = ("with" if kept is not None else "without" for kept in (rows, self.rows))
            raise SettingError(
                f"Expected a run {began} white-box columns, as it began; got one {now} them. "
                f"Continue it {began} --whitebox, or add --overwrite to start again."
            )
        self.rows = rows

    def require(self, resources: Mapping[str, Any], folder: Path) -> None:
        """Do nothing unless columns are wanted of a finished run that has none.

        Raises:
            SettingError: They are.
        """
        if self.rows is not None and "whitebox" not in resources:
            raise SettingError(
                f"Expected a run with white-box columns; got {folder}, which is finished without them. "
                "Add --overwrite to play it again."
            )


def _joined(parts: Sequence[Array | None]) -> Array | None:
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if known else None


def _spectrum(features: Array) -> Array:
    """Return the singular values in falling order, float64; none of features that are not finite."""
    if not np.isfinite(features).all():
        return np.zeros(0)
    spectrum: Array = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    return spectrum
