"""How requests to remove classes from a detector were met: average precision of the classes that stay and that go."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from clgym.detection_scorer import DetectionScorer
from clgym.erasure_scores import RequestScore, point_of, score_of
from clgym.lifetime import Lifetime


def scored(life: Lifetime, run: DetectionScorer) -> list[RequestScore]:
    """Return what every request to remove classes came to, in order; only these can be made of a detector.

    What GS-LoRA's accuracies are of a classifier (arXiv:2501.09705) is here the mAP over the classes in question, on
    all test data: other objects in the same pictures do not matter to it.

    Args:
        life: The stream.
        run: Its answers.
    """
    precision = _precision(life, run)
    out = []
    for r, request in enumerate(life.ledger.requests):
        if request.kind == "relearn" or not any(map(len, life.ledger.taken(r))):
            continue
        ledger, point = life.ledger, point_of(life, r)
        others = [(ledger.served(other), q.classes) for other, q in enumerate(ledger.requests) if q.kind != "relearn"]
        gone = {name for served, names in others if served <= ledger.served(r) for name in names}
        earlier = {name for served, names in others if served < ledger.served(r) for name in names}
        staying = [name for name in life.space.met(ledger.services[ledger.served(r)].after)[0] if name not in gone]
        first = next(number for number, p in enumerate(life.plan.points) if p.service >= 0)
        given = {
            "remaining": _mean(life, precision[point], staying),
            "forgotten": _mean(life, precision[point], request.classes),
            "pretrained": _mean(life, precision[first - 1], request.classes),
        }
        if earlier:
            given["earlier"] = _mean(life, precision[point], sorted(earlier))
        if request.missing:
            given["withheld"] = _mean(life, precision[point], request.missing)
        curves = {
            name: np.array([[_mean(life, row, names) for row in precision]])
            for name, names in (("erased", request.classes), ("tested", staying))
        }
        out.append(score_of(life, r, given, {}, curves))
    return out


def _precision(life: Lifetime, run: DetectionScorer) -> npt.NDArray[np.float64]:
    """Return the AP of every class at every evaluation point, float64 ``(P, C)``; NaN where not measured.

    A class of several tasks has the mean over them.
    """
    out = np.full((len(run.points), len(life.space.met(len(life.tasks))[0])), np.nan)
    for point in range(len(run.points)):
        found = [run.precision(point, task) for task in range(len(life.tasks))]
        values = np.array([one.AP for one in found if one is not None])
        if len(values):
            count = (~np.isnan(values)).sum(axis=0)
            mean = np.where(count > 0, np.nansum(values, axis=0) / np.maximum(count, 1), np.nan)
            out[point, : len(mean)] = mean
    return out


def _mean(life: Lifetime, precision: npt.NDArray[np.float64], names: Sequence[str]) -> float:
    """Return the mean over the named classes that were measured; NaN if none was."""
    every = life.space.met(len(life.tasks))[0]
    values = precision[[every.index(name) for name in names]]
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")
