"""Writes the pictures of runs whose streams had requests to forget, from their answers, references and audits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clgym.audit import BUDGET, TARGET
from clgym.audit_runs import kept
from clgym.env import ContinualEnv
from clgym.erasure_plots import Panel, divergence_figure, relearn_figure, stream_figure
from clgym.erasure_results import results
from clgym.erasure_scores import RequestScore, point_of
from clgym.leaderboard.table import named
from clgym.lifetime import Lifetime
from clgym.record import RunRecord
from clgym.registry import make
from clgym.rescore import choice
from clgym.runner import folder_of

DIVERGENCES = {"Jensen-Shannon, bits": "js", "Kolmogorov-Smirnov, D": "ks"}

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def erased(record: RunRecord) -> bool:
    """Whether a run's stream had requests to forget."""
    return bool(record.resources.get("reads"))


def stream_panels(record: RunRecord, scores: Sequence[RequestScore]) -> list[Panel]:
    """Return a panel for each request of a run."""
    made = make(record.scenario, **choice(record))
    env: ContinualEnv = made.unwrapped  # type: ignore[assignment]
    try:
        env.reset(seed=record.seed)
        life = env.lifetime
        points, marks = words_of_points(life), marks_of(life)
        return [
            Panel(
                f"request {score.request} · {said(score)}", score.curves, points, point_of(life, score.request), marks
            )
            for score in scores
            if score.curves
        ]
    finally:
        made.close()


def words_of_points(life: Lifetime) -> list[str]:
    """Return words for every evaluation point of a stream."""
    out = []
    for point in life.plan.points:
        if point.service >= 0:
            closed = life.ledger.services[point.service].closes
            out.append(f"after request{'s' * (len(closed) > 1)} {', '.join(map(str, closed))}")
        elif point.step:
            out.append(f"{life.tasks[point.after].name}, step {point.step}")
        else:
            out.append("zero-shot" if point.after == 0 else life.tasks[point.after - 1].name)
    return out


def marks_of(life: Lifetime) -> list[tuple[int, str]]:
    """Return for each request the evaluation point right after it was met, and words."""
    return [(point_of(life, r), f"{r}: {q.kind}") for r, q in enumerate(life.ledger.requests)]


def said(score: RequestScore) -> str:
    """Say what a request was for, in short."""
    scope = ", ".join(score.scope[:3]) + (f" and {len(score.scope) - 3} more" if len(score.scope) > 3 else "")
    words = scope if score.kind == "sample" else f"{score.kind} {scope}"
    return f"{words} · {score.goal}"


def figures(runs: Mapping[Path, RunRecord]) -> list[tuple[Path, Figure]]:
    """Return the figures of runs with requests, each with its place as runs are laid out.

    Every run has its own ``erasure`` and, once audited, ``relearning``; all runs of a scenario share ``divergence``.
    """
    out: list[tuple[Path, Figure]] = []
    groups: dict[str, list[tuple[RunRecord, list[RequestScore]]]] = {}
    for folder, record in runs.items():
        if not erased(record):
            continue
        scores, place = results(folder, record), folder_of(record)
        title = f"{record.scenario} · {named(record.agent, record.agent_settings)} · seed {record.seed}"
        groups.setdefault(place.parts[0], []).append((record, scores))
        if panels := stream_panels(record, [score for score in scores if not score.subset]):
            out.append((place / "erasure", stream_figure(panels, title)))
        if audits := kept(folder):
            curves = [(_took(r, one), one["relearn"][0], one["relearn"][1]) for r, one in audits.items()]
            goals = [TARGET * one["best"] for one in audits.values()]
            out.append((place / "relearning", relearn_figure(curves, goals, title)))
    for scenario, scored in groups.items():
        if rows := divergences(scored):
            title = f"{scenario} · answers about erased items against the references'"
            out.append((Path(scenario) / "divergence", divergence_figure(rows, list(DIVERGENCES), title)))
    return out


def _took(request: int, audit: Mapping[str, Any]) -> str:
    """Say how many steps relearning took, the agent's before the reference's."""
    mine, other = ("never" if steps > BUDGET else f"{steps} step{'s' * (steps != 1)}" for steps in audit["steps"])
    return f"request {request} · {mine}, reference {other}"


def divergences(
    scored: Sequence[tuple[RunRecord, Sequence[RequestScore]]],
) -> list[tuple[str, dict[str, tuple[float, float]]]]:
    """Return for each agent and request that references judge floor and excess of both divergences, means over seeds.

    Args:
        scored: Runs of one scenario, and what their requests came to.
    """
    found: dict[tuple[str, int], list[list[tuple[float, float]]]] = {}
    for record, scores in scored:
        for score in scores:
            if "js_excess" in score.metrics and not score.subset:
                pairs = [
                    (score.footnotes.get(f"{id}_floor", np.nan), score.metrics[f"{id}_excess"])
                    for id in DIVERGENCES.values()
                ]
                found.setdefault((named(record.agent, record.agent_settings), score.request), []).append(pairs)
    rows = []
    for (agent, request), seeds in found.items():
        count = f" · {len(seeds)} seeds" if len(seeds) > 1 else ""
        means = np.mean(seeds, axis=0)
        values = {
            words: (float(floor), float(excess)) for words, (floor, excess) in zip(DIVERGENCES, means, strict=True)
        }
        rows.append((f"{agent} · request {request}{count}", values))
    return rows
