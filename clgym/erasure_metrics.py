"""What is left of erased data: an agent's answers against those of reference agents that never saw the data.

Inputs named ``erased``, ``retained``, ``tested``, ``near`` and ``relearned`` are accuracies of ``1 + K`` agents, the
agent under test first, then ``K`` references: the same method with other seeds on the counterfactual stream. ``later``
and ``renewed`` hold such a row per evaluation point or task, ``answers`` log-probabilities about the same ``n`` erased
items, ``confidence``, ``members`` and ``others`` one number per item. References differ among themselves: that is the
noise floor, which the numbers called *excess* take off. None of them can tell erasure from a careful suppression of
answers; see :mod:`clgym.audit`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from clgym.distances import area, jensen_shannon, largest_gap
from clgym.formulary import Matrix, Vector, mean, metric

Cube = npt.NDArray[np.float64]
_FEW = 500  # held-out items below which a rate of one in a hundred is not estimated


@metric(
    "Forget gap (E1)",
    "acc_f(agent) - mean_k acc_f(reference k)",
    low=-1,
    better=None,
    source="arXiv:2203.12817 has the target, an agent that never saw the data; the signed gap is defined by clgym",
)
def gap_forget(erased: Vector) -> float:
    """Accuracy on the erased scope above that of agents that never saw it, in [-1, 1]; neither.

    0 is best. Unseen items of the scope where there are any, else the erased items themselves. Above 0 something is
    left; below 0 the agent erased more than was asked, which also tells that something was erased. Not Drop_f, which
    compares with the agent's own past, and has no right value: what was never learned from the data need not go.

    >>> gap_forget(np.array([0.5, 0.25, 0.25]))
    0.25
    """
    return float(erased[0] - erased[1:].mean())


@metric(
    "Retain gap (E2)",
    "mean_k acc_t(reference k) - acc_t(agent)",
    low=-1,
    better=None,
    source="no paper; clgym",
)
def gap_retain(tested: Vector) -> float:
    """Accuracy lost on test items of what was learned and must stay, against the references, in [-1, 1]; neither.

    0 is best. Negative where the agent is better than its references, as one that had more data or steps may be.

    >>> gap_retain(np.array([0.5, 0.75, 0.75]))
    0.25
    """
    return float(tested[1:].mean() - tested[0])


@metric(
    "Neighbour gap (E2)",
    "mean_k acc_n(reference k) - acc_n(agent), n = test items of the 10 % of retained classes nearest to the erased",
    low=-1,
    better=None,
    source="no paper; clgym",
)
def gap_near(near: Vector) -> float:
    """Accuracy lost on classes next to the erased ones, in [-1, 1]; neither.

    0 is best, above 0 the erasure spilled over. Not ``gap_retain``, which averages over all that stays. Nearest in
    the frozen backbone: by text features on CLIP, by class means of image features elsewhere. Only where classes are
    erased as a whole.

    >>> gap_near(np.array([0.5, 0.75, 1.0]))
    0.375
    """
    return float(near[1:].mean() - near[0])


@metric(
    "Tug of war (E3)",
    "prod_{S in forget, retain, test} (1 - |acc_S(agent) - mean_k acc_S(reference k)|)",
    better="higher",
    source="arXiv:2406.01257, tug-of-war; against the mean of K references",
)
def tug_of_war(erased: Vector, retained: Vector, tested: Vector) -> float:
    """Closeness to the references on erased, retained training and test items at once, in [0, 1]; higher is better.

    It is blind to how answers are wrong: an output that is masked scores as one that was never trained.

    >>> tug_of_war(np.array([0.5, 0.0]), np.array([0.5, 1.0]), np.array([1.0, 1.0]))
    0.25
    """
    return float(np.prod([1 - abs(float(s[0] - s[1:].mean())) for s in (erased, retained, tested)]))


@metric(
    "Divergence above noise (E4)",
    "max(0, mean_k JS(agent, reference k) - mean_{k<l} JS(reference k, reference l)), JS in bits, mean over items",
    better="lower",
    source="arXiv:2203.12817, Jensen-Shannon divergence of outputs; the floor is taken off, not divided by",
)
def js_excess(answers: Cube) -> float:
    """Divergence of answers about erased items from the references', beyond their own, in [0, 1]; lower is better.

    NaN with a single reference, whose noise is unknown. Not the divergence itself, which is above 0 between any two
    seeds.

    >>> never, sure = np.log([0.5, 0.5]), np.log([0.9999999, 0.0000001])
    >>> round(js_excess(np.array([[sure], [never], [never]])), 3)
    0.311
    """
    count = len(answers)
    among = [jensen_shannon(answers[k], answers[j]) for k in range(1, count) for j in range(k + 1, count)]
    across = [jensen_shannon(answers[0], answers[k]) for k in range(1, count)]
    return max(0.0, mean(across) - mean(among)) if among else float("nan")


@metric(
    "Confidence shift above noise (E5)",
    "max(0, D(agent, all references) - mean_k D(reference k, all others)), D = largest gap of distribution functions",
    better="lower",
    source="no paper; clgym; Kolmogorov-Smirnov's D and not its p-value, which depends on the number of items",
)
def ks_excess(confidence: Matrix) -> float:
    """Shift of confidence in the true labels of erased items, beyond the references', in [0, 1]; lower is better.

    Confidence is ``ln p - ln(1 - p)`` of the true label. NaN with a single reference. Not the p-value of TOFU's
    forget quality, in which the same shift means more the more items there are.

    >>> ks_excess(np.array([[3.0, 4.0], [0.0, 1.0], [0.0, 1.0]]))
    1.0
    """
    count = len(confidence)
    if count < 3:
        return float("nan")
    inside = [largest_gap(confidence[k], np.delete(confidence[1:], k - 1, axis=0).ravel()) for k in range(1, count)]
    return max(0.0, largest_gap(confidence[0], confidence[1:].ravel()) - mean(inside))


@metric(
    "Membership gap (E6)",
    "AUC(agent) - mean_k AUC(reference k), AUC = chance that an erased item's score exceeds a held-out item's",
    low=-1,
    better=None,
    source="no paper; clgym; the attack is a threshold on the confidence, the same for all items",
)
def mia_gap(members: Matrix, others: Matrix) -> float:
    """How much better erased items are told from held-out ones than by the references, in [-1, 1]; neither.

    0 is best. ``members`` are the scores of erased items ``(1+K, n)``, ``others`` those of held-out ones ``(1+K,
    m)``. Only for samples, users and domains: of a whole class there are no held-out twins that were learned. A
    threshold for all items is a weak attack; what it does not find may still be there. Not an AUC: 0 and not one half
    is chance.

    >>> mia_gap(np.array([[1.0, 2.0], [0.0, 2.0]]), np.array([[0.0, 0.5], [1.0, 1.0]]))
    0.5
    """
    areas = [area(m, o) for m, o in zip(members, others, strict=True)]
    return areas[0] - mean(areas[1:])


@metric(
    "Membership found at 1 % false alarms (E6)",
    "TPR(agent) - mean_k TPR(reference k) at FPR = 0.01",
    low=-1,
    better=None,
    source="arXiv:2112.03570, true positives at a low false-positive rate; the gap is defined by clgym",
)
def mia_found(members: Matrix, others: Matrix) -> float:
    """Share of erased items found, with one false alarm in a hundred, above the references', in [-1, 1]; neither.

    0 is best. Not ``mia_gap``: a few items may be found for sure where most are not. NaN with fewer than 500 held-out
    items.

    >>> high, low = np.full(4, 9.0), np.linspace(0, 1, 500)
    >>> mia_found(np.array([high, low[:4]]), np.array([low, low]))
    1.0
    """
    if others.shape[1] < _FEW:
        return float("nan")
    found = [float((m > np.quantile(o, 0.99, method="higher")).mean()) for m, o in zip(members, others, strict=True)]
    return found[0] - mean(found[1:])


@metric(
    "Relapse, mean (E7)",
    "mean_p max(0, acc_f(agent at p) - mean_k acc_f(reference k at p)), p = later evaluation points",
    better="lower",
    source="arXiv:2509.17530 names relapse; against references defined by clgym",
)
def relapse_mean(later: Matrix) -> float:
    """Mean return of the erased scope while the stream goes on, in [0, 1]; lower is better.

    Not ``forgetting`` turned around: the references may gain too. Points after the request's own, until the scope is
    asked to be learned again. NaN if there are none.

    >>> relapse_mean(np.array([[0.5, 0.25], [0.25, 0.5]]))
    0.125
    """
    return mean((later[0] - later[1:].mean(axis=0)).clip(0))


@metric(
    "Relapse, largest (E7)",
    "max_p max(0, acc_f(agent at p) - mean_k acc_f(reference k at p)), p = later evaluation points",
    better="lower",
    source="arXiv:2509.17530 names relapse; against references defined by clgym",
)
def relapse_max(later: Matrix) -> float:
    """Largest return of the erased scope while the stream goes on, in [0, 1]; lower is better.

    Not an average: one moment counts. NaN without later points.

    >>> relapse_max(np.array([[0.5, 0.25], [0.25, 0.5]]))
    0.25
    """
    gaps = (later[0] - later[1:].mean(axis=0)).clip(0)
    return float(gaps.max()) if gaps.size else float("nan")


@metric(
    "Relearning gap (E8)",
    "acc_f(agent) - mean_k acc_f(reference k), after the scope was learned again from new data",
    low=-1,
    better=None,
    source="no paper; clgym",
)
def gap_relearned(relearned: Vector) -> float:
    """Accuracy on a scope that was welcome again, above the references', in [-1, 1]; neither.

    0 is best. Not a relapse, which nobody asked for. Below 0 the erasure stands in the way of legitimate learning;
    above 0 something was left to build on.

    >>> gap_relearned(np.array([0.5, 0.75, 0.75]))
    -0.25
    """
    return float(relearned[0] - relearned[1:].mean())


@metric(
    "Plasticity after erasure (E8)",
    "mean_j (R_j(agent) - mean_k R_j(reference k)), R_j = accuracy right after learning task j, j after the request",
    low=-1,
    better=None,
    source="no paper; clgym",
)
def plasticity_after(renewed: Matrix) -> float:
    """Accuracy on tasks learned after the request, right after each, above the references', in [-1, 1]; neither.

    0 is best. Not ``learning_accuracy``, which compares with nobody. ``renewed`` is ``(1+K, J)``. NaN if no task
    follows.

    >>> plasticity_after(np.array([[0.5, 0.5], [0.75, 0.5]]))
    -0.125
    """
    return mean(renewed[0] - renewed[1:].mean(axis=0))


@metric(
    "Erasure index",
    "tug_of_war (1 - js_excess) (1 - ks_excess) (1 - relapse_max); the last factor is 1 without later points",
    better="higher",
    source="no paper; clgym; for sorting only, shown with its parts",
)
def erasure_index(
    erased: Vector, retained: Vector, tested: Vector, answers: Cube, confidence: Matrix, later: Matrix
) -> float:
    """Product of what E3, E4, E5 and E7 leave of 1, in [0, 1]; higher is better.

    For sorting only, and never shown without its parts: a single number does not say what went wrong. NaN with a
    single reference.

    >>> one = np.array([0.5, 0.5, 0.5])
    >>> same = np.zeros((3, 1, 1))
    >>> erasure_index(one, one, one, same, same[:, 0], np.array([[0.75], [0.5], [0.5]]))
    0.75
    """
    back = relapse_max(later) if later.size else 0.0
    close = tug_of_war(erased, retained, tested)
    return close * (1 - js_excess(answers)) * (1 - ks_excess(confidence)) * (1 - back)


@metric(
    "Acc_r: still to be kept",
    "accuracy on the classes that remain",
    better="higher",
    source="arXiv:2501.09705, section of experiments; goal 'removal' only",
)
def acc_r(remaining: float) -> float:
    """Accuracy on test items of all classes that remain after the request, in [0, 1]; higher is better.

    Not Acc_t of other papers: classes that went before do not count.

    >>> acc_r(0.75)
    0.75
    """
    return remaining


@metric(
    "Acc_f: just erased",
    "accuracy on the classes of this request",
    better="lower",
    source="arXiv:2501.09705, section of experiments; goal 'removal' only",
)
def acc_f(forgotten: float) -> float:
    """Accuracy on test items of the classes just erased, in [0, 1]; lower is better.

    Not for goal ``"counterfactual"``, where 0 may be too low.

    >>> acc_f(0.25)
    0.25
    """
    return forgotten


@metric(
    "Acc_o: erased before",
    "accuracy on the classes of all earlier requests",
    better="lower",
    source="arXiv:2501.09705, section of experiments; goal 'removal' only",
)
def acc_o(earlier: float) -> float:
    """Accuracy on test items of all classes erased by earlier requests, in [0, 1]; lower is better.

    Not a relapse, which is held against references.

    >>> acc_o(0.25)
    0.25
    """
    return earlier


@metric(
    "Acc_m: kept without data",
    "accuracy on remaining classes of which nothing could be read",
    better="higher",
    source="arXiv:2501.09705, section of experiments; goal 'removal' only",
)
def acc_m(withheld: float) -> float:
    """Accuracy on remaining classes of which nothing could be read, in [0, 1]; higher is better.

    Not Acc_r, of which these classes are a part.

    >>> acc_m(0.75)
    0.75
    """
    return withheld


@metric(
    "H-mean",
    "2 Acc_r D / (Acc_r + D), D = Acc_f(pre-trained) - Acc_f",
    better="higher",
    source="arXiv:2501.09705, tables 3 and 4; D refers to the pre-trained model, as the printed numbers do",
)
def h_mean(remaining: float, forgotten: float, pretrained: float) -> float:
    """Harmonic mean of what is kept and of the drop of what is not, in [0, 1]; higher is better.

    Not for goal ``"counterfactual"``: it rewards going below what an agent would know that never saw the data. 0
    where the accuracy did not drop. The released code logs another number, with the accuracy before the request in
    place of the pre-trained model's.

    >>> round(100 * h_mean(0.7416, 0.0, 0.7465), 2)
    74.4
    """
    drop = pretrained - forgotten
    return 2 * remaining * drop / (remaining + drop) if drop > 0 else 0.0
