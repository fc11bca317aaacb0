"""Writes the pictures of runs whose streams had requests to forget, from their answers, references and audits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clgym.audit import TARGET
from clgym.audit_runs import kept
from clgym.env import ContinualEnv
from clgym.erasure_plots import Panel, divergence_figure, relearn_figure, stream_figure
from clgym.erasure_results import results
from clgym.erasure_scores import RequestScore, point_of
from clgym.lifetime import Lifetime
from clgym.record import RunRecord
from clgym.registry import make
from clgym.rescore import choice

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def erased(folder: Path) -> bool:
    """Whether a run kept answers about erased samples."""
    return (folder / "probes.parquet").is_file()


def stream_panels(record: RunRecord, scores: Sequence[RequestScore]) -> list[Panel]:
    """Return a panel for each request of a run."""
    made = make(record.scenario, **choice(record))
    env: ContinualEnv = made.unwrapped  # type: ignore[assignment]
    try:
        env.reset(seed=record.seed)
        life = env.lifetime
        points, marks = words_of_points(life), marks_of(life)
        return [
            Panel(f"request {score.request}: {said(score)}", score.curves, points, point_of(life, score.request), marks)
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
            closed = ", ".join(map(str, life.ledger.services[point.service].closes))
            out.append(f"after request {closed}")
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
    return f"{score.kind} {scope}, {score.goal}"


def figures(runs: Mapping[Path, RunRecord]) -> dict[Path, dict[str, Figure]]:
    """Return the figures of each run with requests by name, and under ``Path()`` those over all such runs."""
    out: dict[Path, dict[str, Figure]] = {}
    rows: list[tuple[str, dict[str, tuple[float, float]]]] = []
    for folder, record in runs.items():
        if not erased(folder):
            continue
        scores = results(folder, record)
        title = f"{record.scenario} · {record.agent} · seed {record.seed}"
        panels = stream_panels(record, [score for score in scores if not score.subset])
        out[folder] = {"erasure": stream_figure(panels, title)} if panels else {}
        audits = kept(folder)
        if audits:
            curves = [(f"request {r}", one["relearn"][0], one["relearn"][1]) for r, one in audits.items()]
            goals = [TARGET * one["before"] for one in audits.values()]
            out[folder]["relearning"] = relearn_figure(curves, goals, title)
        rows += divergences(record, scores)
    if rows:
        columns = ["Jensen-Shannon, bits", "Kolmogorov-Smirnov, D"]
        out[Path()] = {"divergence": divergence_figure(rows, columns, "answers about erased items")}
    return out


def divergences(record: RunRecord, scores: Sequence[RequestScore]) -> list[tuple[str, dict[str, tuple[float, float]]]]:
    """Return for each request that references judge the floors and the excess of both divergences."""
    named = {"Jensen-Shannon, bits": "js", "Kolmogorov-Smirnov, D": "ks"}
    return [
        (
            f"{record.agent} · seed {record.seed} · request {score.request}",
            {
                words: (score.footnotes.get(f"{id}_floor", np.nan), score.metrics[f"{id}_excess"])
                for words, id in named.items()
            },
        )
        for score in scores
        if "js_excess" in score.metrics and not score.subset
    ]
