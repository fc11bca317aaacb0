"""Keeps the labels, and what was made of the answers to them; nothing here is shown to an agent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clgym.errors import RecordError
from clgym.events import Array, IntArray
from clgym.metrics import METRICS, Probes, scores
from clgym.plan import Point

COLUMNS = {
    "point": np.int32,
    "task": np.int16,
    "question": np.int32,
    "prediction": np.int32,
    "log_prob": np.float32,
    "entropy": np.float32,
    "margin": np.float32,
}


@dataclass(frozen=True)
class Report:
    """The accuracy matrix of a stream and every metric that follows from it.

    Attributes:
        tasks: Task names, in order.
        R: float64 ``(T + 1, T)`` in [0, 1]; row 0 before training, row ``t`` after task ``t``; NaN where
            not measured.
        metrics: Metric id to value, unrounded.
    """

    tasks: tuple[str, ...]
    R: npt.NDArray[np.float64]
    metrics: dict[str, float]

    def __str__(self) -> str:
        """Lay out the matrix in percent, then the metrics."""
        width = max(9, *(len(name) for name in self.tasks))
        lines = ["after".ljust(width) + "".join(f" {name[:8]:>8}" for name in self.tasks)]
        for name, row in zip(("zero-shot", *self.tasks), self.R, strict=True):
            cells = "".join(" " * 8 + "-" if np.isnan(a) else f" {100 * a:8.1f}" for a in row)
            lines.append(name.ljust(width) + cells)
        lines.append("")
        lines += [f"{METRICS[id].title}: {value:.4f}" for id, value in self.metrics.items()]
        return "\n".join(lines)


class FullAnswers:
    """Log-probabilities over all candidates, of some questions.

    Args:
        kept: Per task, of which questions they are kept, bool ``(n_j,)``.
    """

    def __init__(self, kept: Sequence[npt.NDArray[np.bool_]]) -> None:
        """Start empty."""
        self._kept = tuple(kept)
        self._rows: list[dict[str, Array]] = []

    def add(self, point: int, task: int, questions: IntArray, answer: Array) -> None:
        """Keep what is to be kept of an answer; labels are no full answer."""
        at = np.flatnonzero(self._kept[task][questions])
        if not len(at) or answer.ndim == 1:
            return
        n = len(at)
        self._rows.append(
            {
                "point": np.full(n, point, np.int32),
                "task": np.full(n, task, np.int16),
                "question": questions[at].astype(np.int32),
                "log_probs": answer[at].astype(np.float32),
            }
        )

    def columns(self) -> dict[str, Array]:
        """Return the columns of ``probes.parquet``; ``log_probs`` ``(n, C)`` is padded with ``-inf``."""
        width = max((row["log_probs"].shape[1] for row in self._rows), default=0)
        empty = {"point": np.int32, "task": np.int16, "question": np.int32}
        if not self._rows:
            return {name: np.empty(0, kind) for name, kind in empty.items()} | {
                "log_probs": np.empty((0, 0), np.float32)
            }
        for row in self._rows:
            short = width - row["log_probs"].shape[1]
            if short:
                row["log_probs"] = np.pad(row["log_probs"], ((0, 0), (0, short)), constant_values=-np.inf)
        self._rows = [{name: np.concatenate([row[name] for row in self._rows]) for name in self._rows[0]}]
        return self._rows[0]

    def table(self) -> dict[str, Any]:
        """Return the columns as a Parquet file takes them: ``log_probs`` as a list per row."""
        columns = self.columns()
        return {**columns, "log_probs": list(columns["log_probs"])}

    def get_state(self) -> dict[str, Array]:
        """Return what is kept so far."""
        return {name: column.copy() for name, column in self.columns().items()}

    def set_state(self, state: Mapping[str, Array]) -> None:
        """Take back what :meth:`get_state` returned."""
        self._rows = [{name: np.asarray(column) for name, column in state.items()}] if len(state["point"]) else []


class Scorer:
    """Counts right answers by (evaluation point, task asked about) and logs every prediction.

    Args:
        tasks: Task names.
        labels: Per task, the labels of its questions within the candidates, int64 ``(n_j,)``.
        points: The stream's evaluation points.
        questions: Answers that the whole stream will ask for.
        batches: Training batches that are asked before they are shown; 0 unless prequential.
        tests: Per task, how many of its questions are about test data and count in ``R``, the first; ``None``: all.
        kept: Per task, of which questions the full answers are kept, bool ``(n_j,)``; ``None``: of none.
    """

    needs = ("point", "task", "question", "prediction")  # columns by which a log can be scored anew

    def __init__(
        self,
        tasks: Sequence[str],
        labels: Sequence[IntArray],
        points: Sequence[Point],
        questions: int,
        batches: int = 0,
        *,
        tests: Sequence[int] | None = None,
        kept: Sequence[npt.NDArray[np.bool_]] | None = None,
    ) -> None:
        """Start with nothing asked."""
        self.sizes = np.array([len(known) for known in labels] if tests is None else tests)
        self.full = None if kept is None else FullAnswers(kept)
        self.tasks, self.points = tuple(tasks), tuple(points)
        self._labels = tuple(labels)
        shape = (len(self.points), len(self.tasks))
        self._right, self._asked = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self._log = {name: np.empty(questions, dtype) for name, dtype in COLUMNS.items()}
        self._online = np.empty(batches, np.float64)
        self._logged = self._batches = 0

    def add(self, point: int, task: int, questions: IntArray, answer: Array) -> float:
        """Score the answers to questions of a task; return their mean in [0, 1].

        Args:
            point: Evaluation point.
            task: Task asked about.
            questions: Numbers of the questions, int64 ``(B,)``.
            answer: Labels int64 ``(B,)`` or log-probabilities ``(B, C)``.
        """
        n = len(answer)
        rows = slice(self._logged, self._logged + n)
        self._log["point"][rows], self._log["task"][rows] = point, task
        self._log["question"][rows] = questions
        right = self._describe(answer, rows) == self._labels[task][questions]
        counts = questions < self.sizes[task]
        self._right[point, task] += int((right & counts).sum())
        self._asked[point, task] += int(counts.sum())
        if self.full is not None:
            self.full.add(point, task, questions, answer)
        self._logged += n
        return int(right.sum()) / n

    def add_online(self, answer: Array, label: Any) -> float:
        """Score a batch that is about to be trained on; return its accuracy in [0, 1]."""
        prediction = answer if answer.ndim == 1 else answer.argmax(axis=1)
        accuracy = float((prediction == label).mean())
        self._online[self._batches] = accuracy
        self._batches += 1
        return accuracy

    def _describe(self, answer: Array, rows: slice) -> Array:
        if answer.ndim == 1:
            prediction = answer
            for name in ("log_prob", "entropy", "margin"):
                self._log[name][rows] = np.nan
        else:
            prediction = answer.argmax(axis=1)
            top = np.sort(answer, axis=1)[:, -2:]
            self._log["log_prob"][rows] = top[:, -1]
            self._log["margin"][rows] = top[:, -1] - top[:, 0] if answer.shape[1] > 1 else np.inf
            p = np.exp(answer)
            self._log["entropy"][rows] = -(p * np.where(p > 0, answer, 0)).sum(axis=1)
        self._log["prediction"][rows] = prediction
        return prediction

    def predictions(self) -> dict[str, Array]:
        """Return the log so far, one array per column of ``predictions.parquet``."""
        return {name: column[: self._logged] for name, column in self._log.items()}

    def grid(self) -> npt.NDArray[np.float64]:
        """Return accuracy by (evaluation point, task), NaN where nothing was asked."""
        with np.errstate(invalid="ignore"):
            return self._right / self._asked

    def matrix(self) -> npt.NDArray[np.float64]:
        """Return ``R``, float64 ``(T + 1, T)``: the grid at task boundaries."""
        return self.grid()[[p.is_row for p in self.points]]

    def probes(self) -> Probes | None:
        """Return accuracy inside tasks, or ``None`` where the scenario does not ask there."""
        inside = [p.step > 0 for p in self.points]
        if not any(inside):
            return None
        at = [p for p in self.points if p.step]
        return Probes(np.array([p.after + 1 for p in at]), np.array([p.step for p in at]), self.grid()[inside])

    def online(self) -> npt.NDArray[np.float64] | None:
        """Return accuracy on each training batch before it was shown, or ``None`` if not asked."""
        return self._online[: self._batches] if len(self._online) else None

    def report(self, **references: Any) -> Report:
        """Return the matrix and all metrics it allows; ``references`` as in :func:`clgym.metrics.scores`."""
        return self._report(self.predictions(), self.online(), references)

    def _report(self, log: Mapping[str, Array], online: Any, references: Mapping[str, Any]) -> Report:
        """Return the report of what was counted; the flips are those of a log with the same answers."""
        R = self.matrix()
        before, after = self.flips(log)
        extra = {"probes": self.probes(), "prequential": online, "sizes": self.sizes, "before": before, "after": after}
        return Report(self.tasks, R, scores(R, **{k: v for k, v in {**extra, **references}.items() if v is not None}))

    def flips(self, log: Mapping[str, Array]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Return whether questions were answered right before and after each task that followed theirs.

        An item is a question about a task learned before task ``t``, asked at the end of task ``t - 1`` and at the
        end of task ``t``; the items of all ``t`` from the second on lie end to end, bool ``(N,)`` each.

        Args:
            log: The columns ``point``, ``task``, ``question`` and ``prediction``.
        """
        starts = np.append(0, np.cumsum([len(labels) for labels in self._labels]))
        label = np.concatenate(self._labels)
        ends = [p for p, at in enumerate(self.points) if at.is_row]
        right = np.full((len(ends), len(label)), -1, np.int8)  # -1: not asked
        row = np.full(len(self.points), -1)
        row[ends] = np.arange(len(ends))
        kept = (row[log["point"]] >= 0) & (log["question"] < self.sizes[log["task"]])
        item = starts[log["task"][kept]] + log["question"][kept]
        right[row[log["point"][kept]], item] = log["prediction"][kept] == label[item]
        pairs = [(right[t - 1, : starts[t - 1]], right[t, : starts[t - 1]]) for t in range(2, len(ends))]
        both = [(a >= 0) & (b >= 0) for a, b in pairs]
        none = np.zeros(0, np.int8)
        before = np.concatenate([none, *(a[asked] for (a, _), asked in zip(pairs, both, strict=True))])
        after = np.concatenate([none, *(b[asked] for (_, b), asked in zip(pairs, both, strict=True))])
        return before == 1, after == 1

    def rescore(self, predictions: Mapping[str, Array], **references: Any) -> Report:
        """Return the report of a log of predictions; nothing that was counted here is used.

        ``references`` are as in :func:`clgym.metrics.scores`.

        Raises:
            RecordError: A row names a point, task or question that the stream does not have.
        """
        point, task, question = (np.asarray(predictions[name]) for name in ("point", "task", "question"))
        sizes = np.array([len(labels) for labels in self._labels])
        known = (0 <= point) & (point < len(self.points)) & (0 <= task) & (task < len(sizes)) & (0 <= question)
        known[known] &= question[known] < sizes[task[known]]
        if not known.all():
            row = int((~known).argmax())
            raise RecordError(
                f"Expected points below {len(self.points)}, tasks below {len(sizes)} and their questions; got point "
                f"{point[row]}, task {task[row]}, question {question[row]} in row {row}. Score with the run's settings."
            )
        label = np.concatenate(self._labels)[np.append(0, sizes.cumsum())[task] + question]
        again = Scorer(self.tasks, self._labels, self.points, 0, tests=self.sizes.tolist())
        counts = question < self.sizes[task]
        np.add.at(again._asked, (point, task), counts)
        np.add.at(again._right, (point, task), (predictions["prediction"] == label) & counts)
        return again._report(predictions, None, references)

    def get_state(self) -> dict[str, Array]:
        """Return what has been answered so far."""
        counts = {"right": self._right.copy(), "asked": self._asked.copy()}
        online = self._online[: self._batches].copy()
        full = {} if self.full is None else {f"full.{k}": v for k, v in self.full.get_state().items()}
        return {**counts, **full, "online": online, **{k: v.copy() for k, v in self.predictions().items()}}

    def set_state(self, state: dict[str, Array]) -> None:
        """Continue from what :meth:`get_state` returned."""
        self._right, self._asked = state["right"].copy(), state["asked"].copy()
        self._logged, self._batches = len(state["point"]), len(state["online"])
        self._online[: self._batches] = state["online"]
        if self.full is not None:
            self.full.set_state({name: state[f"full.{name}"] for name in ("point", "task", "question", "log_probs")})
        for name, column in self._log.items():
            column[: self._logged] = state[name]
